"""A network or a server that becomes silent: all requests are answered in time, and everything recovers."""

import asyncio
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
import structlog
from django.conf import settings as django_settings
from django.db import connection, transaction
from pytest_django import DjangoDbBlocker, Settings

from commands import queue, report_intake
from commands.push import listener
from commands.push.listener import DEAF_POLL_SECONDS, POLL_SECONDS, Listener
from devices import check_in
from devices.models import Presence
from loadtest.testbed.postgres_servers import PostgresServer
from loadtest.testbed.tcp_proxy import TcpProxy
from nexmdm.common import database, group_commit
from nexmdm.common.postgresql import direct, outage
from tests.support.actors import Admin, Answer, Client, Visitor
from tests.support.other_database import migrate, used_instead

WAIT_SECONDS = 1.0
POOL_SECONDS = 1.0

SOON_IDLE = "-c idle_in_transaction_session_timeout=200ms"
UNAVAILABLE = (503, "database_unavailable")


@pytest.fixture
def proxy(
    server: PostgresServer, django_db_blocker: DjangoDbBlocker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TcpProxy]:
    """A proxy between NexMDM, with short time-outs, and its migrated database."""
    settings.POOL_TIMEOUT_SECONDS = POOL_SECONDS
    monkeypatch.setattr(database, "WAIT_SECONDS", WAIT_SECONDS)
    monkeypatch.setattr(outage, "CALM_SECONDS", 0)
    monkeypatch.setattr(outage, "HELD_OFF_SECONDS", 0)
    with TcpProxy(server.port) as proxy:
        url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
        with used_instead(django_db_blocker, url):
            migrate()
            yield proxy
            proxy.restore()


@pytest.fixture
def far_admin(proxy: TcpProxy) -> Admin:
    return Admin(Client(), django_settings.ADMIN_KEYS[0], django_settings.HMAC_SECRETS[0])


def test_while_the_network_is_frozen_all_requests_get_503_in_time_and_then_work_again(
    proxy: TcpProxy, far_admin: Admin
) -> None:
    phone = far_admin.enrol("frozen-1")
    request_id = far_admin.command("ping", to=phone).json["request_id"]
    assert phone.heartbeat().status == 200
    ready = far_admin.client.request("GET", "/readyz")
    assert (ready.status, ready.json["database"]) == (200, "ok")

    proxy.freeze()
    calls: list[Callable[[], Answer]] = [
        phone.heartbeat,
        lambda: phone.report(request_id, "succeeded"),
        lambda: far_admin.command("ping", to=phone),
        lambda: far_admin.get("/admin/devices"),
    ]
    for call in calls:
        begun_at = time.monotonic()
        answer = call()
        assert (answer.status, answer.code) == UNAVAILABLE
        assert time.monotonic() - begun_at < 3 * WAIT_SECONDS

    proxy.thaw()
    assert phone.heartbeat().status == 200
    assert phone.report(request_id, "succeeded").status == 200


def test_readiness_is_answered_within_3_seconds_by_a_frozen_network(proxy: TcpProxy, far_admin: Admin) -> None:
    assert far_admin.client.request("GET", "/readyz").status == 200
    proxy.freeze()
    begun_at = time.monotonic()
    while (answer := far_admin.client.request("GET", "/readyz")).status == 200:
        pass  # The result of the last check is kept for a second.
    assert (answer.status, answer.json["database"]) == (503, "unavailable")
    assert time.monotonic() - begun_at < 1 + 3


def test_one_request_fails_if_the_network_has_dropped_all_connections(proxy: TcpProxy, far_admin: Admin) -> None:
    phones = [far_admin.enrol(f"forgotten-{number}") for number in range(3)]
    with structlog.testing.capture_logs() as lines:
        proxy.forget()
        statuses = [phone.heartbeat().status for phone in phones]
    assert statuses[1:] == [200, 200]
    assert Presence.objects.filter(last_seen_at__isnull=False).count() >= 2
    assert [line["event"] for line in lines if line["event"].startswith("database.")] in (
        [], ["database.unavailable", "database.available"],
    )  # fmt: skip


def test_an_outage_is_logged_once_with_its_reason_and_once_at_its_end(proxy: TcpProxy, far_admin: Admin) -> None:
    phone = far_admin.enrol("unlucky-1")
    with structlog.testing.capture_logs() as lines:
        proxy.cut()
        assert {phone.heartbeat().code for _ in range(3)} == {"database_unavailable"}
        proxy.restore()
        assert phone.heartbeat().status == 200
    said = [line for line in lines if line["event"].startswith("database.")]
    assert [line["event"] for line in said] == ["database.unavailable", "database.available"]
    assert "Connection refused" in said[0]["reason"] or "closed the connection" in said[0]["reason"]


def test_after_a_failure_to_connect_other_requests_are_refused_immediately_for_a_moment(
    proxy: TcpProxy, far_admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "HELD_OFF_SECONDS", 60)
    phone = far_admin.enrol("held-off-1")
    proxy.cut()
    assert (phone.heartbeat().code, phone.heartbeat().code) == ("database_unavailable",) * 2
    proxy.restore()
    answers = [phone.heartbeat(), Visitor(session="s" * 32).request("GET", "/django-admin/")]
    assert [(answer.status, answer.code) for answer in answers] == [UNAVAILABLE] * 2
    asyncio.run(drained())
    outage.forget()
    assert phone.heartbeat().status == 200


def test_reports_after_a_pause_do_not_wait_for_a_connection_that_the_network_has_dropped(
    proxy: TcpProxy, far_admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No report came while the network was frozen, so the first report after that time finds the dropped connection."""
    monkeypatch.setattr(database, "WAIT_SECONDS", 8)
    phone = far_admin.enrol("paused-1")
    request_id = far_admin.command(to=phone).json["request_id"]

    async def report() -> Answer:
        body = {"request_id": request_id, "status": "running"}
        headers = {"Authorization": f"Bearer {phone.device_token}"}
        return await Client().arequest("POST", "/v1/action-result", body, headers)

    async def talk() -> tuple[list[int], float]:
        before = [await report() for _ in range(3)]
        monkeypatch.setattr(group_commit, "BUSY_SECONDS", 0)
        await asyncio.to_thread(proxy.forget)
        began_at = time.monotonic()
        after = [await report() for _ in range(3)]
        seconds = time.monotonic() - began_at
        await report_intake.batcher().drain()
        return [answer.status for answer in before + after], seconds

    statuses, seconds = asyncio.run(talk())
    assert statuses[:3] == [200] * 3
    assert statuses[4:] == [200] * 2
    assert seconds < 5


async def drained() -> None:
    """Stop the work on requests, as a web worker does."""
    await check_in.batcher().drain()


def test_a_transaction_that_the_network_has_dropped_releases_its_rows(
    server: PostgresServer, proxy: TcpProxy, far_admin: Admin
) -> None:
    phone = far_admin.enrol("locked-1")
    connection.close()
    forgotten = psycopg.connect(**(direct.parameters() | {"options": SOON_IDLE}))
    forgotten.execute("SELECT FROM devices_device WHERE id = %s FOR UPDATE", [phone.device_id])
    proxy.forget()
    with psycopg.connect(server.url, autocommit=True) as other:
        other.execute("SET lock_timeout = '10s'")
        other.execute("SELECT FROM devices_device WHERE id = %s FOR UPDATE", [phone.device_id])
    forgotten.close()


def test_no_transaction_of_ours_idles_longer_than_5_seconds(proxy: TcpProxy) -> None:
    with transaction.atomic():
        assert database.row("SHOW idle_in_transaction_session_timeout") == ("5s",)


def test_a_listening_connection_that_died_silently_is_replaced(
    proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(listener, "HEARD_SECONDS", 0.5)

    async def until(condition: bool, of: Listener) -> None:
        async with asyncio.timeout(10):
            while (of.poll_seconds == POLL_SECONDS) is not condition:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def woken() -> list[str]:
        awake = asyncio.Event()
        one = Listener(awake.set)
        assert one.poll_seconds == DEAF_POLL_SECONDS
        running = asyncio.create_task(one.run())
        await until(True, one)
        await asyncio.to_thread(proxy.forget)
        await until(False, one)
        await until(True, one)
        awake.clear()
        await asyncio.to_thread(_notify)
        async with asyncio.timeout(5):
            await awake.wait()
        running.cancel()
        return [line["event"] for line in lines if line["event"].startswith("listen.")]

    with structlog.testing.capture_logs() as lines:
        assert asyncio.run(woken()) == ["listen.started", "listen.lost", "listen.started"]


def _notify() -> None:
    try:
        database.rows("SELECT pg_notify(%s, '')", [queue.CHANNEL])
    finally:
        database.release_connections()
