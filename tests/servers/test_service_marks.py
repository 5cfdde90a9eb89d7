"""The marks of web workers: a worker that runs leaves them, and one that returns stores the time without them."""

import asyncio
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest
import structlog
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.db import connection
from django.db.models.functions import Now

from devices.models import ServiceGap, ServiceMark
from devices.presence import service_time
from nexmdm.common import database
from nexmdm.monitoring import service_marks
from nexmdm.standalone import embedded_postgres
from tests.support.processes import address, web_worker

pytestmark = pytest.mark.django_db(transaction=True)

HOST = "mdm.example.com"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_time, "MARK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(service_time, "_latest", None)


@pytest.fixture
def variables(transactional_db: None) -> dict[str, str]:
    """The environment of a worker on the tests' own database."""
    names = ("SECRET_KEY", "ADMIN_KEY", "HMAC_SECRET", "COMMAND_SIGNING_KEY")
    secrets = {name: f"a-Secret-of-this-test-and-no-other-{name}" for name in names}
    url = embedded_postgres.url(django_settings.DATA_DIR).replace(
        f"/{embedded_postgres.NAME}?", f"/{connection.settings_dict['NAME']}?"
    )
    return {**secrets, "DATABASE_URL": url, "ALLOWED_HOSTS": HOST}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def while_marks_are_written(work: Callable[[], None]) -> None:
    async def run() -> None:
        async with service_marks.written():
            await asyncio.to_thread(work)

    async_to_sync(run)()


def marked_since_now() -> bool:
    (passed,) = database.row("SELECT EXISTS (SELECT FROM devices_servicemark WHERE at > now() - interval '5 seconds')")
    return bool(passed)


def test_a_worker_that_returns_stores_the_time_in_which_none_ran(variables: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with web_worker(listener, variables):
            assert httpx.get(f"{address(listener)}/readyz", headers={"Host": HOST}, timeout=30).status_code == 200
            assert marked_since_now()
        assert ServiceGap.objects.count() == 0
        ServiceMark.objects.update(at=Now() - timedelta(hours=1))
        with web_worker(listener, variables):
            assert httpx.get(f"{address(listener)}/healthz", headers={"Host": HOST}, timeout=30).status_code == 200
            gap = ServiceGap.objects.get()
    assert timedelta(hours=1) <= gap.ended_at - gap.began_at < timedelta(hours=1, minutes=1)


def test_a_worker_marks_again_and_again() -> None:
    def work() -> None:
        for _ in range(2):
            first = ServiceMark.objects.get().at
            until(lambda first=first: ServiceMark.objects.get().at > first)  # type: ignore[misc]
        database.release_connections()

    while_marks_are_written(work)


def test_a_mark_that_fails_is_logged_and_the_next_one_is_written() -> None:
    def work() -> None:
        database.execute("ALTER TABLE devices_servicemark RENAME TO devices_servicemark_away")
        until(lambda: any(entry["event"] == "service_mark.failed" for entry in logs))
        database.execute("ALTER TABLE devices_servicemark_away RENAME TO devices_servicemark")
        ServiceMark.objects.update(at=Now() - timedelta(hours=1))
        until(marked_since_now)
        database.release_connections()

    with structlog.testing.capture_logs() as logs:
        while_marks_are_written(work)
