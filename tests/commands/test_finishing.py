"""The end of a command is stored once, logged and counted; it does not change the answers of the API."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import structlog
from django.core.management import call_command
from django.db import transaction
from django.db.models import F
from prometheus_client import REGISTRY

from commands import finishing, queue
from commands.models import Command, Delivery
from tests.support import feed
from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass, releasing_connection

pytestmark = pytest.mark.django_db(transaction=True)


def finished(action: str, outcome: str) -> float:
    return REGISTRY.get_sample_value("nexmdm_commands_finished_total", {"action": action, "outcome": outcome}) or 0.0


def logged(events: list[Any]) -> list[tuple[str, str, str, str, int]]:
    """Return the log lines of commands that have ended."""
    names = ("request_id", "action", "state", "outcome", "device_count")
    return [tuple(event[name] for name in names) for event in events if event["event"] == "command.finished"]


def test_the_dispatcher_stores_the_end_of_a_command_and_logs_it_once(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    request_id = admin.command(to=[phone, other]).json["request_id"]
    phone.report(request_id, "succeeded")
    before = finished("ping", "partial")
    with structlog.testing.capture_logs() as events:
        call_command("dispatch", once=True)
    assert logged(events) == []
    assert Command.objects.get().finished_at is None

    other.report(request_id, "failed")
    said = admin.get(f"/admin/commands/{request_id}").json
    with structlog.testing.capture_logs() as events:
        for _ in range(2):
            call_command("dispatch", once=True)
    command = Command.objects.get()
    last = max(settled for settled in Delivery.objects.values_list("settled_at", flat=True) if settled)
    assert (command.finished_at, command.outcome) == (last, "partial")
    assert logged(events) == [(request_id, "ping", "completed", "partial", 2)]
    assert finished("ping", "partial") == before + 1
    assert admin.get(f"/admin/commands/{request_id}").json == said


def test_a_command_whose_time_is_over_ends_when_that_is_marked(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("wipe", to=phone, expires_in_seconds=60).json["request_id"]
    let_pass(minutes=3)
    assert finishing.finish(10) == 0
    assert len(queue.expire(10)) == 1
    with structlog.testing.capture_logs() as events:
        assert finishing.finish_recent(10) == 0, "it was settled more than a minute ago"
        assert finishing.finish(10) == 1
    assert logged(events) == [(request_id, "wipe", "expired", "expired", 1)]
    command = Command.objects.get()
    assert command.finished_at == command.expires_at


def test_a_command_whose_time_was_over_while_no_dispatcher_ran_ends_with_its_last_delivery(
    admin: Admin, phone: Phone
) -> None:
    request_id = admin.command(to=[phone, admin.enrol("phone-2")]).json["request_id"]
    let_pass(hours=2)
    with structlog.testing.capture_logs() as events:
        assert (finishing.expire(1), logged(events)) == (1, [])
        assert finishing.expire(1) == 1
    assert logged(events) == [(request_id, "ping", "expired", "expired", 2)]
    assert (finishing.expire(1), finishing.finish(10)) == (0, 0)
    finished = [row for row in feed.rows() if row[0] == "command.finished"]
    assert [(row[2], row[3]["counts"]["expired"]) for row in finished] == [(request_id, 2)]


def test_a_late_report_does_not_change_the_stored_end(admin: Admin, phone: Phone) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    let_pass(hours=2)
    queue.expire(10)
    assert finishing.finish(10) == 1
    assert phone.report(request_id, "succeeded").json["late"] is True
    assert finishing.finish(10) == 0
    assert admin.get(f"/admin/commands/{request_id}").json["outcome"] == "expired"


def test_a_cancellation_is_part_of_the_end(admin: Admin, phone: Phone) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    admin.post(f"/admin/commands/{request_id}/cancel")
    with structlog.testing.capture_logs() as events:
        assert finishing.finish_recent(10) == 1
    assert logged(events) == [(request_id, "ping", "cancelled", "cancelled", 1)]


def test_the_end_of_an_old_command_is_stored_without_a_log_line(admin: Admin, phone: Phone) -> None:
    """As after an upgrade from a version that stored no ends."""
    request_id = admin.command(to=phone).json["request_id"]
    phone.report(request_id, "succeeded")
    Delivery.objects.update(settled_at=F("settled_at") - timedelta(days=8))
    with structlog.testing.capture_logs() as events:
        assert finishing.finish(10) == 1
    assert logged(events) == []
    assert admin.get(f"/admin/commands/{request_id}").json["outcome"] == "succeeded"


def test_two_dispatchers_log_an_end_once(admin: Admin, phone: Phone) -> None:
    for _ in range(20):
        phone.report(admin.command(to=phone).json["request_id"], "succeeded")
    with structlog.testing.capture_logs() as events:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: releasing_connection(lambda: finishing.finish_recent(100)), range(4)))
        finishing.finish_recent(100)
    assert len(logged(events)) == len(set(logged(events))) == 20


def test_an_end_that_is_rolled_back_is_not_logged(admin: Admin, phone: Phone) -> None:
    phone.report(admin.command(to=phone).json["request_id"], "succeeded")
    with structlog.testing.capture_logs() as events, transaction.atomic():
        assert finishing.finish_recent(10) == 1
        transaction.set_rollback(True)
    assert logged(events) == []
    assert Command.objects.get().finished_at is None


def test_batches_are_limited_and_begin_with_the_oldest(admin: Admin, phone: Phone) -> None:
    issued = [admin.command(to=phone).json["request_id"] for _ in range(5)]
    for request_id in issued:
        phone.report(request_id, "succeeded")
    assert [finishing.finish(2) for _ in range(4)] == [2, 2, 1, 0]
