"""Signed writes at the same moment share a transaction: each keeps its own answer, limit and link in the audit."""

from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import pytest
from django.db import DataError, IntegrityError, OperationalError
from pytest_django import Settings

from commands import issuing
from commands.issuing import CommandRequest
from commands.models import Command, Delivery
from nexmdm.audit import chain
from nexmdm.auth import signed_write
from nexmdm.auth.shared_writes import SharedWrites
from nexmdm.common.postgresql import direct
from nexmdm.common.postgresql.connection import Connection
from nexmdm.models import AuditEntry, StoredAnswer
from tests.support.actors import Admin, Answer, Phone
from tests.support.moments import signed_in_one_batch

pytestmark = pytest.mark.django_db(transaction=True)

COMMAND: Final = "/admin/command"
Call = tuple[str, Any, str | None]


@pytest.fixture
def fleet(admin: Admin) -> list[Phone]:
    return admin.enrol_fleet(8)


def ping(*phones: Phone, key: str | None = None, **fields: Any) -> Call:
    """Return a command to some phones, in the form that a batch takes."""
    return COMMAND, {"action": "ping", "target": {"device_ids": [phone.device_id for phone in phones]}, **fields}, key


def result_of(answer: Answer) -> Any:
    """Return the number of devices of an answered command; for any other answer, return status and code."""
    return answer.json["device_count"] if answer.status == 200 else (answer.status, answer.code)


def verify_audit() -> int:
    """Return how many entries the audit's chain has. Raises BrokenLink if the chain is broken."""
    return chain.verify(timedelta(days=1)).entries


def test_each_command_of_a_batch_is_issued_answered_stored_and_audited(admin: Admin, fleet: list[Phone]) -> None:
    before = verify_audit()
    calls = [ping(phone, key=f"one-of-several-{number}", note=f"{number}") for number, phone in enumerate(fleet)]
    answers = signed_in_one_batch(admin, *calls)
    assert [result_of(answer) for answer in answers] == [1] * 8
    for number, (phone, answer) in enumerate(zip(fleet, answers, strict=True)):
        delivery = Delivery.objects.select_related("command").get(device__id=phone.device_id)
        assert (str(delivery.command_id), delivery.command.note) == (answer.json["request_id"], f"{number}")
        assert StoredAnswer.objects.get(key=f"one-of-several-{number}").body == answer.body.decode()
        entry = AuditEntry.objects.get(request_id=delivery.command_id)
        assert (entry.action, entry.target) == ("ping", f"device_ids: {phone.device_id}")
        assert (entry.device_count, entry.correlation_id) == (1, answer.headers["x-correlation-id"])
    assert verify_audit() == before + 8


def test_a_refused_command_of_a_batch_is_refused_alone(admin: Admin, fleet: list[Phone]) -> None:
    first, second, third, *_, revoked = fleet
    assert admin.post(f"/admin/devices/{revoked.device_id}/revoke").status == 200
    unknown = Phone(first.client, "X", device_id="01890000-0000-7000-8000-000000000000")
    too_long: dict[str, Any] = {"action": "message", "params": {"title": "", "body": "x" * 4096}}
    expected: list[tuple[Call, Any]] = [
        (ping(first), 1),
        (ping(first, revoked), (422, "unknown_devices")),
        (ping(unknown), (422, "unknown_devices")),
        (ping(first, second, expect_count=3), (409, "audience_changed")),
        (ping(first, second, expect_count=2), 2),
        (ping(third, third), 1),
        (ping(second, **too_long), (422, "push_payload_too_large")),
    ]
    answers = signed_in_one_batch(admin, *(call for call, _ in expected))
    assert [result_of(answer) for answer in answers] == [what for _, what in expected]
    assert [error["msg"] for error in answers[1].json["errors"]] == [f"{revoked.device_id} is revoked"]
    assert Command.objects.count() == 3
    refused = AuditEntry.objects.exclude(status=200).order_by("id").values_list("status", "code", "device_count")
    assert sorted(refused) == sorted((*what, None) for _, what in expected if isinstance(what, tuple))
    verify_audit()


def test_a_repeat_in_the_same_batch_gets_the_answer_of_the_first(admin: Admin, fleet: list[Phone]) -> None:
    call = ping(fleet[0], key="sent-twice-at-once")
    other = ping(fleet[1], key="sent-twice-at-once")
    first, repeat, reused = signed_in_one_batch(admin, call, call, other)
    assert (first.status, repeat.status, repeat.body) == (200, 200, first.body)
    assert ("idempotent-replayed" in first.headers, repeat.headers["idempotent-replayed"]) == (False, "true")
    assert (reused.status, reused.code) == (422, "idempotency_key_reused")
    assert Command.objects.count() == 1
    verify_audit()


def test_the_limit_is_exact_within_a_batch(admin: Admin, fleet: list[Phone], settings: Settings) -> None:
    settings.ADMIN_RATE_LIMIT = "5/m"
    answers = signed_in_one_batch(admin, *(ping(phone) for phone in fleet))
    assert sorted(answer.status for answer in answers) == [200] * 5 + [429] * 3
    assert {int(answer.headers["retry-after"]) in range(1, 61) for answer in answers if answer.status == 429} == {True}
    assert Command.objects.count() == 5
    assert {result_of(answer) for answer in signed_in_one_batch(admin, ping(fleet[0]))} == {(429, "rate_limited")}


def test_a_write_over_the_limit_is_429_even_if_its_batch_finds_no_database(
    admin: Admin, fleet: list[Phone], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise OperationalError("server closed the connection unexpectedly")

    settings.ADMIN_RATE_LIMIT = "5/m"
    monkeypatch.setattr(issuing, "issue_together", away)
    answers = signed_in_one_batch(admin, *(ping(phone) for phone in fleet))
    assert sorted(answer.status for answer in answers) == [429] * 3 + [503] * 5


def test_a_batch_that_is_flushed_again_counts_no_write_twice_and_lets_no_more_through(
    admin: Admin, fleet: list[Phone], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ADMIN_RATE_LIMIT = "5/m"
    flush = SharedWrites._flush

    def twice(self: Any, writes: Any) -> Any:
        signed_write.check_limits([write.caller for write in writes])
        return flush(self, writes)

    monkeypatch.setattr(SharedWrites, "_flush", twice)
    answers = signed_in_one_batch(admin, *(ping(phone) for phone in fleet))
    assert sorted(answer.status for answer in answers) == [200] * 5 + [429] * 3
    assert Command.objects.count() == 5


def test_a_command_to_a_locked_device_waits_alone(
    admin: Admin, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, issue = fleet[3], issuing.issue
    issued_alone: list[UUID] = []
    with Connection.connect(**direct.parameters()) as holder:
        holder.autocommit = False
        holder.execute("SELECT FROM devices_device WHERE id = %s FOR UPDATE", [held.device_id])

        def let_go_and_issue(request: CommandRequest, *, dry_run: bool) -> issuing.Issued:
            assert Delivery.objects.exclude(device__id=held.device_id).count() == 7
            holder.rollback()
            issued_alone.extend(request.target.device_ids)
            return issue(request, dry_run=dry_run)

        monkeypatch.setattr(issuing, "issue", let_go_and_issue)
        answers = signed_in_one_batch(admin, *(ping(phone) for phone in fleet))
    assert [answer.status for answer in answers] == [200] * 8
    assert issued_alone == [UUID(held.device_id)]
    assert Delivery.objects.filter(device__id=held.device_id).count() == 1
    verify_audit()


@pytest.mark.parametrize("error", [DataError, IntegrityError])
def test_a_command_that_the_database_refuses_fails_alone(
    admin: Admin, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    issue_together = issuing.issue_together

    def refusing(requests: list[CommandRequest]) -> Any:
        if any(request.note == "bad" for request in requests):
            raise error("as PostgreSQL would")
        return issue_together(requests)

    monkeypatch.setattr(issuing, "issue_together", refusing)
    answers = signed_in_one_batch(admin, *(ping(phone, note="bad" if phone is fleet[3] else "") for phone in fleet))
    assert [answer.status for answer in answers] == [200, 200, 200, 500, 200, 200, 200, 200]
    assert Command.objects.count() == 7
    verify_audit()


def test_a_whole_batch_that_finds_no_database_is_503_and_nothing_is_issued(
    admin: Admin, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(issuing, "issue_together", away)
    answers = signed_in_one_batch(admin, *(ping(phone) for phone in fleet))
    assert {(answer.status, answer.code) for answer in answers} == {(503, "database_unavailable")}
    assert not Command.objects.exists()
