"""Reports are recorded in batches: each gets the answer that it would get alone, and fails alone."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from asgiref.sync import async_to_sync
from django.db import DataError, IntegrityError, OperationalError
from pytest_django import Settings

from commands import report_intake, report_limit, reports
from commands.models import Delivery, Report, ReportStatus
from commands.reports import ReportInput, ReportRecord
from devices import tokens
from devices.models import Device
from nexmdm.common import group_commit
from nexmdm.common.group_commit import ClientLeft, Draining, GroupCommit, Overloaded
from tests.support.actors import Admin, Answer, Phone
from tests.support.moments import let_pass, reports_in_one_batch

pytestmark = pytest.mark.django_db(transaction=True)

Say = Callable[..., tuple[str, dict[str, Any]]]


@pytest.fixture
def fleet(admin: Admin) -> list[Phone]:
    return admin.enrol_fleet(12)


def report_input(phone: Phone, request_id: str, status: str = "succeeded", **fields: Any) -> tuple[str, dict[str, Any]]:
    """Return a report of a phone, in the form that a batch takes."""
    return phone.device_token, {"request_id": request_id, "status": status, **fields}


def result_of(answer: Answer) -> Any:
    """Return the result in the answer to a report; for any other answer, return status and code."""
    if answer.status != 200:
        return answer.status, answer.code
    return tuple(answer.json[name] for name in ("state", "duplicate", "late"))


def test_each_report_of_a_batch_gets_its_own_answer(admin: Admin, fleet: list[Phone]) -> None:
    first, again, running, late, cancelled, unknown, revoked, wrong, _, deferred, failed, other = fleet
    old = admin.command(to=[late]).json["request_id"]
    let_pass(hours=2)
    withdrawn = admin.command(to=[cancelled]).json["request_id"]
    admin.post(f"/admin/commands/{withdrawn}/cancel")
    request_id = admin.command(to=fleet).json["request_id"]
    again.report(request_id, "failed")
    admin.post(f"/admin/devices/{revoked.device_id}/revoke")
    guessed = tokens.make(tokens.DEVICE_PREFIX, UUID(wrong.device_id), bytes(32)).text
    elsewhere = admin.command(to=[first]).json["request_id"]
    calls: list[tuple[tuple[str, dict[str, Any]], Any]] = [
        (report_input(first, request_id), ("succeeded", False, False)),
        (report_input(again, request_id), ("failed", True, False)),
        (report_input(running, request_id, "running"), ("received", False, False)),
        (report_input(late, old), ("expired", False, True)),
        (report_input(cancelled, withdrawn, "failed"), ("cancelled", False, True)),
        (report_input(unknown, str(uuid4())), (404, "unknown_request")),
        (report_input(other, elsewhere), (404, "unknown_request")),
        (report_input(revoked, request_id), (403, "device_revoked")),
        ((guessed, report_input(wrong, request_id)[1]), (401, "invalid_token")),
        (report_input(deferred, request_id, "deferred"), ("received", False, False)),
        (report_input(failed, request_id, "failed", message="no"), ("failed", False, False)),
    ]
    answers = reports_in_one_batch(*(call for call, _ in calls))
    assert [result_of(answer) for answer in answers] == [expected for _, expected in calls]
    assert Delivery.objects.get(command=request_id, device__id=wrong.device_id).state == "pending"
    assert Delivery.objects.get(command=request_id, device__id=revoked.device_id).state == "cancelled"
    assert Report.objects.get(delivery__device__id=failed.device_id).message == "no"


def test_two_reports_on_one_delivery_keep_their_order(admin: Admin, fleet: list[Phone]) -> None:
    request_id = admin.command(to=fleet).json["request_id"]
    said = ["received", "running", "running", "failed", "succeeded", "running"]
    answers = reports_in_one_batch(*(report_input(phone, request_id, status) for status in said for phone in fleet[:3]))
    by_status = [[result_of(answer) for answer in answers[start : start + 3]] for start in range(0, len(answers), 3)]
    expected = [
        ("received", False, False), ("received", False, False), ("received", False, False), ("failed", False, False),
        ("failed", True, False), ("failed", True, False),
    ]  # fmt: skip
    assert by_status == [[one] * 3 for one in expected]
    for phone in fleet[:3]:
        kept = Report.objects.filter(delivery__device__id=phone.device_id).order_by("id")
        assert [(one.status, one.repeat_count) for one in kept] == [
            ("received", 0), ("running", 1), ("failed", 0), ("succeeded", 0), ("running", 0),
        ]  # fmt: skip


@pytest.mark.parametrize("error", [DataError, IntegrityError])
def test_a_report_that_the_database_refuses_fails_alone(
    admin: Admin, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    request_id = admin.command(to=fleet).json["request_id"]
    bad = UUID(fleet[4].device_id)
    record = reports.record

    def refusing(records: list[ReportRecord]) -> list[reports.Outcome]:
        if any(one.token.id == bad for one in records):
            raise error("as PostgreSQL would")
        return record(records)

    monkeypatch.setattr(reports, "record", refusing)
    answers = reports_in_one_batch(*(report_input(phone, request_id) for phone in fleet))
    refused = [answer.status for phone, answer in zip(fleet, answers, strict=True) if UUID(phone.device_id) == bad]
    assert refused == [500]
    assert sorted(answer.status for answer in answers) == [200] * 11 + [500]
    assert Delivery.objects.filter(state="succeeded").count() == 11


def test_a_whole_batch_that_finds_no_database_is_503(
    admin: Admin, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = admin.command(to=fleet).json["request_id"]

    def away(_: object) -> None:
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(reports, "record", away)
    answers = reports_in_one_batch(*(report_input(phone, request_id) for phone in fleet))
    assert {(answer.status, answer.code) for answer in answers} == {(503, "database_unavailable")}
    assert {int(answer.headers["retry-after"]) >= 1 for answer in answers} == {True}


def test_a_successful_wipe_retires_its_device_next_to_others_in_the_batch(admin: Admin, fleet: list[Phone]) -> None:
    request_id = admin.command("wipe", to=fleet[:3], expect_count=3).json["request_id"]
    ping = admin.command(to=fleet[3:]).json["request_id"]
    calls = [
        report_input(fleet[0], request_id),
        report_input(fleet[1], request_id, "failed"),
        report_input(fleet[2], request_id, "running"),
    ]
    answers = reports_in_one_batch(*calls, *(report_input(phone, ping) for phone in fleet[3:]), calls[0])
    states = ["succeeded", "failed", "received", *["succeeded"] * 9, "succeeded"]
    assert [answer.json["state"] for answer in answers] == states
    assert {answers[0].json["duplicate"], answers[-1].json["duplicate"]} == {True, False}
    retired = Device.objects.filter(retired_at__isnull=False)
    assert [str(device.id) for device in retired] == [fleet[0].device_id]


LIMIT: Final = 40
"""A twentieth of it, 2, is counted only by the process."""


def test_the_limit_of_a_device_is_exact_for_any_number_of_simultaneous_reports(
    admin: Admin, fleet: list[Phone], settings: Settings
) -> None:
    settings.DEVICE_RATE_LIMIT = f"{LIMIT}/h"
    report_limit.reports.forget()
    request_id = admin.command(to=fleet).json["request_id"]
    own = [report_input(fleet[0], request_id, "running") for _ in range(LIMIT + 15)]
    answers = reports_in_one_batch(*own, *(report_input(phone, request_id) for phone in fleet[1:]))
    assert sorted(answer.status for answer in answers[: len(own)]) == [200] * LIMIT + [429] * 15
    assert {answer.status for answer in answers[len(own) :]} == {200}


def test_guesses_at_a_token_do_not_use_up_the_reports_of_its_device(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    settings.DEVICE_RATE_LIMIT = f"{LIMIT}/h"
    report_limit.reports.forget()
    request_id = admin.command(to=phone).json["request_id"]
    guesses = [tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes([n]) * 32).text for n in range(60)]
    answers = reports_in_one_batch(*((text, report_input(phone, request_id)[1]) for text in guesses))
    assert {answer.status for answer in answers} <= {401, 429}
    for _ in range(LIMIT):
        assert phone.report(request_id, "running").status == 200


def batch_of(phone: Phone, request_id: str) -> report_intake._Waiting:
    token = tokens.parse(tokens.DEVICE_PREFIX, phone.device_token)
    assert token is not None
    return report_intake._Waiting(token, UUID(request_id), ReportInput(ReportStatus.SUCCEEDED))


def test_over_the_limit_nothing_waits_and_a_stop_records_everything_that_waits(
    admin: Admin, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = admin.command(to=fleet).json["request_id"]
    monkeypatch.setattr(report_intake, "WAITING_LIMIT", 8)
    waiting = [batch_of(phone, request_id) for phone in fleet]

    async def crowd() -> list[Any]:
        batcher = report_intake.batcher()
        tasks = [asyncio.create_task(batcher.submit(str(number), one)) for number, one in enumerate(waiting)]
        await asyncio.sleep(0)
        draining = asyncio.create_task(batcher.drain())
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await draining
        with pytest.raises(Draining):
            await batcher.submit("late", waiting[0])
        return list(found)

    found = async_to_sync(crowd)()
    assert [type(one) for one in found] == [reports.ReportResult] * 8 + [Overloaded] * 4
    assert Delivery.objects.filter(state="succeeded").count() == 8


@pytest.mark.parametrize(("seconds", "taken"), [(0.0, 5), (60.0, 12)])
def test_if_more_than_a_batch_has_waited_too_long_no_further_report_waits(
    admin: Admin, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch, seconds: float, taken: int
) -> None:
    request_id = admin.command(to=fleet).json["request_id"]
    monkeypatch.setattr(report_intake, "BATCH", 4)
    monkeypatch.setattr(report_intake, "LONGEST_WAIT_SECONDS", seconds)

    async def crowd() -> list[Any]:
        batcher = report_intake.batcher()
        items = [batch_of(phone, request_id) for phone in fleet]
        tasks = [batcher.submit(str(number), one) for number, one in enumerate(items)]
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    found = async_to_sync(crowd)()
    assert [type(one) for one in found] == [reports.ReportResult] * taken + [Overloaded] * (12 - taken)
    assert Delivery.objects.filter(state="succeeded").count() == taken


@dataclass
class Numbered:
    name: str

    def merge(self, later: "Numbered") -> bool:
        del later
        return False

    def log_fields(self) -> dict[str, str]:
        return {"name": self.name}

    def is_wanted(self) -> bool:
        return True


def test_a_full_batch_follows_the_one_before_it_although_the_event_loop_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_commit, "HAS_OWN_THREAD", True)
    may_end, has_followed = threading.Event(), threading.Event()
    flushed: list[list[str]] = []

    def flush(items: Sequence[Numbered]) -> list[str]:
        flushed.append([one.name for one in items])
        if len(flushed) == 1:
            assert may_end.wait(10)
        else:
            has_followed.set()
        return [one.name for one in items]

    async def crowd() -> list[Any]:
        batcher = GroupCommit[Numbered, str](flush, lambda *_: None, batch_size=2, waiting_limit=10)
        tasks = [asyncio.create_task(batcher.submit(name, Numbered(name))) for name in "abcde"]
        for _ in range(5):
            await asyncio.sleep(0)
        may_end.set()
        assert has_followed.wait(10), "the second batch waits for the event loop, which waits here"
        found = await asyncio.gather(*tasks)
        await batcher.drain()
        return list(found)

    assert asyncio.run(crowd()) == ["a", "b", "c", "d", "e"]
    assert flushed == [["a", "b"], ["c", "d"], ["e"]]


def test_no_work_is_done_for_a_client_that_has_left(admin: Admin, fleet: list[Phone]) -> None:
    request_id = admin.command(to=fleet).json["request_id"]
    waiting = [batch_of(phone, request_id) for phone in fleet]
    left = [report_intake._Waiting(one.token, one.request_id, one.report, lambda: False) for one in waiting[:5]]

    async def crowd() -> list[Any]:
        batcher = report_intake.batcher()
        items = [*left, *waiting[5:]]
        return list(await asyncio.gather(*(batcher.submit(str(number), one) for number, one in enumerate(items))))

    found = async_to_sync(crowd)()
    assert [type(one) for one in found] == [ClientLeft] * 5 + [reports.ReportResult] * 7
    assert Delivery.objects.filter(state="succeeded").count() == 7


def test_refused_reports_get_different_values_of_retry_after(
    admin: Admin, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values are spread over the time to record all reports: here, a second for each report."""
    request_id = admin.command(to=fleet).json["request_id"]
    monkeypatch.setattr(report_intake, "WAITING_LIMIT", 0)
    monkeypatch.setattr(group_commit, "_EXPECTED_PER_SECOND", 1.0)
    answers = reports_in_one_batch(*(report_input(phone, request_id) for phone in fleet * 20))
    assert {(answer.status, answer.code) for answer in answers} == {(503, "overloaded")}
    times = [int(answer.headers["retry-after"]) for answer in answers]
    assert 1 <= min(times) < 10
    assert 50 < max(times) <= group_commit.MOST_SPREAD_SECONDS
