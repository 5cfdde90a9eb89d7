"""PgBouncer in front of PostgreSQL: pooling of transactions works; pooling of statements is refused."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import structlog
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from pytest_django import DjangoDbBlocker

from commands.models import Delivery
from commands.push.listener import DEAF_POLL_SECONDS, POLL_SECONDS, Listener
from loadtest.testbed import pgbouncer
from loadtest.testbed.postgres_servers import PostgresServer, PostgresServers
from nexmdm.audit import chain
from nexmdm.common import database
from nexmdm.config import checks
from nexmdm.config.environment import ConfigError
from nexmdm.management.commands import migrate as migrate_command
from tests.support import processes
from tests.support.actors import Admin, Client
from tests.support.moments import releasing_connection
from tests.support.other_database import migrate, used_instead

IDLE_SNAPSHOTS = """
    SELECT backend_xmin::text FROM pg_stat_activity
    WHERE state = 'idle in transaction' AND query LIKE '%pg_try_advisory_xact_lock%'
"""

pytestmark = pytest.mark.skipif(pgbouncer.program() is None, reason=pgbouncer.MISSING)


@pytest.fixture(scope="module")
def server(open_folder: Path) -> Iterator[PostgresServer]:
    """PostgreSQL whose defaults differ from what NexMDM needs, so that our settings are visible."""
    with PostgresServers(open_folder, durable=False) as servers:
        yield servers.primary("one", default_transaction_isolation="serializable", datestyle="SQL, DMY")


@pytest.fixture(scope="module")
def pooler(server: PostgresServer, open_folder: Path) -> Iterator[str]:
    """The URL of a PgBouncer that gives each transaction a free session out of two."""
    with pgbouncer.pooling(open_folder / "pooler", server.url, "transaction", default_pool_size="2") as url:
        yield url


@pytest.fixture
def pooled(pooler: str, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Use a migrated database behind the pooler, and no other database."""
    with used_instead(django_db_blocker, pooler):
        migrate()
        yield


@pytest.fixture
def pooled_admin(pooled: None) -> Admin:
    return Admin(Client(), django_settings.ADMIN_KEYS[0], django_settings.HMAC_SECRETS[0])


def test_the_loop_works_through_a_pooler_that_refuses_options(pooled_admin: Admin) -> None:
    phone = pooled_admin.enrol("phone-1", alias="Empfang Süd")
    pooled_admin.command("ping", to=phone)
    (command,) = phone.heartbeat().json["commands"]
    assert phone.report(command["request_id"], "succeeded").status == 200
    assert Delivery.objects.get(device_id=phone.device_id).state == "succeeded"
    assert chain.verify(timedelta(days=1)).entries == 2


def shown(*names: str) -> list[str]:
    return [database.row(f"SHOW {name}")[0] for name in names]


def test_each_transaction_has_our_settings_whichever_session_it_gets(pooled: None) -> None:
    ours = ["read committed", "ISO, DMY", "7s", "5s", "UTC"]
    names = ("transaction_isolation", "datestyle", "statement_timeout", "lock_timeout", "timezone")
    assert shown(*names) == ours
    with transaction.atomic():
        assert shown(*names) == ours


def test_a_statement_is_stopped_at_its_time_out(pooled: None, pooler: str) -> None:
    connection.ensure_connection()
    connection.connection.set_for_session("statement_timeout", "50ms")
    with pytest.raises(OperationalError, match="statement timeout"):
        database.rows("SELECT pg_sleep(10)")
    with pytest.raises(OperationalError, match="statement timeout"), transaction.atomic():
        database.rows("SELECT pg_sleep(10)")
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]
    with psycopg.connect(pooler, autocommit=True) as other:
        assert other.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_options_of_the_url_apply_to_each_transaction(pooler: str, django_db_blocker: DjangoDbBlocker) -> None:
    with used_instead(django_db_blocker, f"{pooler}?options=-csearch_path%3Dpublic,pg_temp%20-c%20work_mem%3D5MB"):
        assert shown("search_path", "work_mem") == ["public, pg_temp", "5MB"]


def test_statement_pooling_is_refused_by_name(
    server: PostgresServer, open_folder: Path, django_db_blocker: DjangoDbBlocker
) -> None:
    with (
        pgbouncer.pooling(open_folder / "statements", server.url, "statement") as url,
        used_instead(django_db_blocker, url),
    ):
        (found,) = checks.connections()
        assert (found.id, "pool_mode" in (found.hint or "")) == (ConfigError.STATEMENT_POOLING, True)
        with pytest.raises(CommandError, match="pool_mode = statement"):
            call_command("migrate", verbosity=0)


async def listened(until: str) -> tuple[list[str], float]:
    """Run a listener until it has logged this text; return its log lines, and the seconds between polls."""
    one = Listener(lambda: None)
    with structlog.testing.capture_logs() as lines:
        running = asyncio.create_task(one.run())
        async with asyncio.timeout(10):
            while not any(until in str(line) for line in lines):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        running.cancel()
    return [line["event"] for line in lines], one.poll_seconds


def test_without_a_direct_address_the_dispatcher_polls_more_often_and_logs_why(pooled: None) -> None:
    assert asyncio.run(listened("Set DIRECT_DATABASE_URL")) == (["listen.lost"], DEAF_POLL_SECONDS)


def test_with_a_direct_address_the_dispatcher_is_woken(
    pooler: str, server: PostgresServer, django_db_blocker: DjangoDbBlocker
) -> None:
    with used_instead(django_db_blocker, pooler, server.url):
        assert asyncio.run(listened("listen.started")) == (["listen.started"], POLL_SECONDS)


def test_a_migration_waits_for_another_one_then_names_its_session(
    pooled: None, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_command, "TURN_SECONDS", 0)
    with psycopg.connect(server.url) as another:
        another.execute(f"SELECT pg_advisory_lock({migrate_command.LOCK})")
        with pytest.raises(CommandError, match=f"process {another.info.backend_pid}, .*from 127.0.0.1, since"):
            call_command("migrate", verbosity=0)
    call_command("migrate", verbosity=0)


def test_a_migration_that_waits_has_no_snapshot_for_which_an_index_would_wait(
    pooled: None, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_command, "TURN_SECONDS", 1)
    monkeypatch.setattr(migrate_command, "_LOOK_SECONDS", 0.01)
    with psycopg.connect(server.url, autocommit=True) as another, ThreadPoolExecutor(1) as thread:
        another.execute(f"SELECT pg_advisory_lock({migrate_command.LOCK})")
        migrating = thread.submit(releasing_connection, call_command, "migrate", verbosity=0)
        seen = set()
        while not migrating.done():
            seen |= {xmin for (xmin,) in another.execute(IDLE_SNAPSHOTS)}
        assert isinstance(migrating.exception(), CommandError)
    assert seen == {None}


def test_the_tests_of_the_control_loop_pass_through_a_pooler(tmp_path: Path) -> None:
    done = processes.run(
        *("-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--pooler", f"--basetemp={tmp_path}"),
        "tests/commands/test_control_loop.py",
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^[1-9]\d* passed", done.stdout, re.MULTILINE)
