"""The real stack for every test: the ASGI application, PostgreSQL, and phones and admins that use the protocol."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import hypothesis
import pytest
import structlog
from django.conf import settings as django_settings
from django.core.cache import cache
from pytest_django import DjangoDbBlocker, Settings

from commands import report_limit
from loadtest.fake_fcm.server import FcmStandin
from loadtest.testbed import pgbouncer, postgres_servers
from loadtest.testbed.postgres_servers import PostgresServers
from nexmdm.admin_site import logins
from nexmdm.auth import rate_limits
from nexmdm.common import database, group_commit
from nexmdm.common.postgresql import outage
from nexmdm.http import protocol, refusals
from nexmdm.http.guard import body, guard
from nexmdm.standalone import embedded_postgres
from tests.support import other_database
from tests.support.actors import Admin, Client, Phone

SOON: Final = 0.1
"""The time that an impatient server waits, in seconds."""

# A shell starts jobs in the background with SIGINT ignored, and the servers of the tests would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("trust", max_examples=2000, deadline=None)

# A cached logger would continue to write to pytest's standard output of the test that first used it.
structlog.configure(cache_logger_on_first_use=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that start servers: they take longest, and one process must not run them alone at the
    end.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/servers", "tests/loadtest")))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options with which the tests of poolers run other tests."""
    parser.addoption(
        "--pooler", action="store_true", help="reach the database through PgBouncer, pool_mode=transaction"
    )


@pytest.fixture(scope="session")
def django_db_keepdb(pytestconfig: pytest.Config) -> bool:
    """Keep the database if a pooler has sessions in it; the database ends with its server."""
    return bool(pytestconfig.getoption("pooler"))


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder for the module's servers that run under another account."""
    with other_database.open_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def django_db_modify_db_settings(pytestconfig: pytest.Config) -> Iterator[None]:
    """Run PostgreSQL as long as the tests. Some tests leave a transaction idle for longer than NexMDM ever does."""
    options = django_settings.DATABASES["default"]["OPTIONS"]
    options["options"] += " -c idle_in_transaction_session_timeout=0"
    if pytestconfig.getoption("pooler"):
        with other_database.open_folder() as folder, PostgresServers(folder, durable=False) as servers:
            server = servers.primary("one")
            server.execute(f"ALTER ROLE {postgres_servers.NAME} CREATEDB CREATEROLE")
            with pgbouncer.pooling(folder / "pooler", server.url, "transaction") as url:
                other_database.switch_to(url)
                yield
        return
    started = embedded_postgres.start(django_settings.DATA_DIR)
    yield
    if started:
        embedded_postgres.stop(django_settings.DATA_DIR)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Let the tests that commit delete their rows by TRUNCATE, which the audit refuses otherwise."""
    with django_db_blocker.unblock():
        database.execute("ALTER TABLE nexmdm_auditentry DISABLE TRIGGER audit_not_truncated")
        database.execute("ALTER TABLE nexmdm_auditmark DISABLE TRIGGER audit_mark_not_truncated")
        database.release_connections()


@pytest.fixture(autouse=True)
def forget_floods() -> None:
    """Reset limits, refusals and outages, so that no test starts with those of another test."""
    rate_limits.forget()
    logins.logins.forget()
    report_limit.reports.forget()
    refusals.forget()
    outage.forget()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let group commits use the thread of the test, and so its transaction."""
    monkeypatch.setattr(group_commit, "HAS_OWN_THREAD", False)


@pytest.fixture(autouse=True)
def look_up_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only refusals.drain() look up refusals, because a background task's connection does not see the fixtures."""
    monkeypatch.setattr(refusals._devices._timer, "_call", lambda: None)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each time-out of the server be only a moment."""
    for module, name in (
        (protocol, "HEAD_SECONDS"), (protocol, "TAKEN_SECONDS"), (protocol, "LAST_SECONDS"),
        (guard, "DRAIN_SECONDS"), (body, "BODY_SECONDS"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, SOON)


@pytest.fixture
def client() -> Client:
    """A client of the real ASGI application."""
    return Client()


@pytest.fixture
def admin(client: Client, db: None) -> Admin:
    """An admin with the key and the secret of this installation, who has not called yet."""
    cache.clear()
    return Admin(client, django_settings.ADMIN_KEYS[0], django_settings.HMAC_SECRETS[0])


@pytest.fixture(scope="session")
def _standin() -> Iterator[FcmStandin]:
    with FcmStandin() as standin:
        yield standin


@pytest.fixture
def fcm(_standin: FcmStandin, settings: Settings) -> Iterator[FcmStandin]:
    """A fake FCM over a real socket, with this installation configured for it."""
    settings.FIREBASE_SERVICE_ACCOUNT = _standin.service_account()
    settings.FCM_BASE_URL = _standin.base_url
    _standin.journal.clear()
    yield _standin
    _standin.override, _standin.oauth_down, _standin.delay_ms, _standin.expires_in_seconds = None, False, 0, 3600
    _standin.oauth_says = ""


@pytest.fixture
def phone(admin: Admin) -> Phone:
    """A phone that is registered."""
    return admin.enrol("phone-1")
