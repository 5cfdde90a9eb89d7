"""A missing synchronous standby: a commit that waits for it does not count, and no request waits without limit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import structlog
from django.conf import settings as django_settings
from pytest_django import DjangoDbBlocker

from loadtest.testbed.postgres_servers import PostgresServer
from nexmdm.common import database
from nexmdm.common.postgresql import outage
from tests.support.actors import Admin, Client
from tests.support.moments import releasing_connection
from tests.support.other_database import migrate, used_instead

UNAVAILABLE = (503, "database_unavailable")
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture
def far_admin(
    server: PostgresServer, django_db_blocker: DjangoDbBlocker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Admin]:
    monkeypatch.setattr(outage, "CALM_SECONDS", 0)
    with used_instead(django_db_blocker, server.url):
        migrate()
        yield Admin(Client(), django_settings.ADMIN_KEYS[0], django_settings.HMAC_SECRETS[0])
        server.configure(synchronous_standby_names="")


def waiting(server: PostgresServer) -> list[int]:
    with psycopg.connect(server.superuser_url, autocommit=True) as connection:
        return [pid for (pid,) in connection.execute(WAITING)]


def test_writes_get_503_in_time_and_readiness_shows_it_without_many_waiting_commits(
    server: PostgresServer, far_admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr("nexmdm.api.health.LOOK_SECONDS", 0.5)
    monkeypatch.setattr("nexmdm.api.health._ready._fresh_seconds", 0)
    phone = far_admin.enrol("alone-1")
    assert far_admin.client.request("GET", "/readyz").status == 200

    server.configure(synchronous_standby_names="nobody")
    answers = [phone.heartbeat(), far_admin.command("ping", to=phone)]
    assert [(answer.status, answer.code) for answer in answers] == [UNAVAILABLE] * 2
    held = len(waiting(server))
    with structlog.testing.capture_logs() as lines:
        ready = [far_admin.client.request("GET", "/readyz") for _ in range(4)]
    assert [(answer.status, answer.json["database"]) for answer in ready] == [(503, "unavailable")] * 4
    assert [line for line in lines if "synchronous standby" in line.get("reason", "")]
    assert len(waiting(server)) <= held + 1

    server.configure(synchronous_standby_names="")
    assert phone.heartbeat().status == 200
    assert far_admin.client.request("GET", "/readyz").status == 200


def test_a_commit_whose_wait_for_the_standby_was_cancelled_counts_as_failed(
    server: PostgresServer, far_admin: Admin
) -> None:
    phone = far_admin.enrol("ended-1")
    server.configure(synchronous_standby_names="nobody")
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(releasing_connection, phone.heartbeat)
        while not (pids := waiting(server)):
            assert not answer.done()
        server.execute("SELECT pg_cancel_backend(%s)", pids[0])
        assert (answer.result().status, answer.result().code) == UNAVAILABLE
