"""Races: dispatchers claim at the same time, and rows change while a decision depends on them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Barrier
from uuid import UUID

import pytest
from django.db import transaction
from django.db.models.functions import Now

from commands import finishing, issuing, queue, reports, retention
from commands.issuing import CommandRequest
from commands.models import Attempt, AttemptOutcome, Command, Delivery, ReportStatus, Withdrawal
from commands.push import attempts, outbox
from commands.push.outbox import Claimed, Sent
from commands.reports import ReportInput
from devices import check_in, enrollment, tokens
from devices.audience import Target
from devices.heartbeats import HeartbeatRecord
from devices.models import Device, Presence
from tests.support.actors import Admin, Answer, Phone
from tests.support.moments import overtaken, releasing_connection

pytestmark = pytest.mark.django_db(transaction=True)

PHONES = 30
ROUNDS = 40


@pytest.fixture
def fleet(admin: Admin) -> list[Phone]:
    """Thirty phones with push tokens, and a due command for each."""
    phones = admin.enrol_fleet(PHONES, "ok-")
    admin.command("ping", to={"all": True})
    return phones


def test_dispatchers_that_claim_at_the_same_moment_share_the_due_pushes(fleet: list[Phone]) -> None:
    ready = Barrier(2)

    def claim() -> list[Claimed]:
        ready.wait()
        return outbox.claim_due(PHONES)

    with ThreadPoolExecutor(2) as dispatchers:
        for number in range(1, ROUNDS + 1):
            claims = [dispatchers.submit(releasing_connection, claim) for _ in range(2)]
            claimed = sorted((one.delivery_id, one.number) for both in claims for one in both.result())
            assert claimed == [(delivery.id, number) for delivery in Delivery.objects.order_by("id")]
            assert Attempt.objects.filter(outcome=AttemptOutcome.IN_FLIGHT, number=number).count() == PHONES
            Delivery.objects.update(next_attempt_at=Now())

    assert Attempt.objects.count() == PHONES * ROUNDS


def test_a_dispatcher_does_not_wait_for_the_claim_of_another_one(fleet: list[Phone]) -> None:
    with ThreadPoolExecutor(1) as other, transaction.atomic():
        mine = outbox.claim_due(PHONES // 2)
        theirs = other.submit(releasing_connection, partial(outbox.claim_due, PHONES)).result(timeout=5)
    assert len(mine) == len(theirs) == PHONES // 2
    assert not {one.delivery_id for one in mine} & {one.delivery_id for one in theirs}


def test_a_push_that_is_claimed_at_the_moment_of_its_cancellation_may_still_run(admin: Admin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    request_id = admin.command("ping", to=phone).json["request_id"]
    answer = overtaken(lambda: outbox.claim_due(1), lambda: admin.post(f"/admin/commands/{request_id}/cancel"))
    assert (answer.json["cancelled"], answer.json["may_still_run"]) == (1, 1)


def test_a_command_in_a_heartbeats_answer_at_the_moment_of_its_cancellation_may_still_run(admin: Admin) -> None:
    phone = admin.enrol("phone-1")
    request_id = admin.command("ping", to=phone).json["request_id"]
    token = tokens.parse("nxd", phone.device_token)
    assert token is not None
    beat = HeartbeatRecord(token)
    answer = overtaken(lambda: check_in.flush([beat]), lambda: admin.post(f"/admin/commands/{request_id}/cancel"))
    assert (answer.json["cancelled"], answer.json["may_still_run"]) == (1, 1)


def test_a_command_that_reaches_a_phone_at_the_moment_of_its_revocation_may_still_run(admin: Admin) -> None:
    pushed, offered = admin.enrol("phone-1", push_token="ok-1"), admin.enrol("phone-2")
    admin.command("wipe", to=[pushed, offered], expect_count=2)
    token = tokens.parse("nxd", offered.device_token)
    assert token is not None
    beat = HeartbeatRecord(token)
    offered.heartbeat()  # Later requests are not the first use of the token.
    Presence.objects.update(last_seen_at=None, online_from=None)
    doings: list[tuple[Phone, Callable[[], object]]] = [
        (pushed, lambda: outbox.claim_due(1)), (offered, lambda: check_in.flush([beat])),
    ]  # fmt: skip
    for phone, doing in doings:
        answer = overtaken(doing, partial(admin.post, f"/admin/devices/{phone.device_id}/revoke"))
        assert [one["may_still_run"] for one in answer.json["withdrawn"]] == [True]


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
def test_a_result_that_comes_while_its_delivery_ends_is_late(admin: Admin, ending: str) -> None:
    phone = admin.enrol("phone-1")
    request_id = admin.command("ping", to=phone).json["request_id"]
    end: Callable[[], object] = partial(queue.cancel, UUID(request_id))
    if ending == "expired":
        Delivery.objects.update(open_until=Now())
        end = partial(queue.expire, 1)
    answer = overtaken(end, lambda: phone.report(request_id, "succeeded"))
    assert (answer.json["state"], answer.json["late"]) == (ending, True)


def test_a_result_that_is_being_recorded_is_not_withdrawn(admin: Admin) -> None:
    phone = admin.enrol("phone-1")
    request_id = admin.command("ping", to=phone).json["request_id"]
    take = partial(reports.record_report, UUID(phone.device_id), UUID(request_id), ReportInput(ReportStatus.SUCCEEDED))
    answer = overtaken(take, lambda: admin.post(f"/admin/commands/{request_id}/cancel"))
    assert (answer.json["cancelled"], answer.json["already_settled"]) == (0, 1)
    assert Delivery.objects.get().state == "succeeded"


def test_no_push_is_due_again_for_a_phone_that_loses_its_push_token_while_the_answer_is_recorded(admin: Admin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    admin.command("ping", to=phone)
    (claimed,) = outbox.claim_due(1)
    answer = Sent(claimed, AttemptOutcome.RETRY_LATER, http_status=503, retry_in_seconds=10)

    overtaken(lambda: phone.heartbeat(push_token=None), lambda: attempts.record_attempts([answer]))

    assert Attempt.objects.get().outcome == "retry_later"
    assert (Delivery.objects.get().push_state, Delivery.objects.get().next_attempt_at) == ("undeliverable", None)


def test_a_push_token_that_dies_at_the_moment_another_phone_sends_it_is_dead_there(admin: Admin) -> None:
    phone, other = admin.enrol("phone-1", push_token="token-1"), admin.enrol("phone-2")
    admin.command("ping", to=phone)
    (claimed,) = outbox.claim_due(1)
    phone.heartbeat(push_token=None)
    dead = Sent(claimed, AttemptOutcome.TOKEN_DEAD, http_status=404)

    overtaken(lambda: attempts.record_attempts([dead]), lambda: other.heartbeat(push_token="token-1"))

    assert Device.objects.get(push_token="token-1").push_token_dead_at is not None


def cancelled_long_ago(span: timedelta) -> None:
    Delivery.objects.update(state="cancelled", next_attempt_at=None, settled_at=Now() - span)
    assert finishing.finish(10) == 1


@pytest.mark.parametrize("sweep", ["prune", "expire"])
def test_expiry_waits_for_no_lock(fleet: list[Phone], sweep: str) -> None:
    kept = timedelta(days=90)
    if sweep == "prune":
        cancelled_long_ago(kept)
        work = partial(retention.prune, kept, PHONES)
    else:
        Delivery.objects.update(open_until=Now())
        work = partial(finishing.expire, PHONES)
    with ThreadPoolExecutor(1) as other, transaction.atomic():
        Delivery.objects.select_for_update().order_by("id")[0]
        assert other.submit(releasing_connection, work).result(timeout=5) == PHONES - 1


def test_a_command_is_deleted_with_its_last_delivery_by_any_process(fleet: list[Phone]) -> None:
    kept = timedelta(days=90)
    cancelled_long_ago(kept)
    overtaken(lambda: retention.prune(kept, PHONES // 2), lambda: retention.prune(kept, PHONES))
    assert (Delivery.objects.count(), Command.objects.count()) == (0, 0)


def issue_a_ping(phone: Phone) -> None:
    target = Target(device_ids=[UUID(phone.device_id)])
    issuing.issue(CommandRequest("ping", "{}", target, target_as_given={}, issued_by="admin", expires_in_seconds=600))


def test_a_command_waits_for_the_reinstatement_of_its_device(admin: Admin) -> None:
    phone = admin.enrol("phone-1")
    assert admin.post(f"/admin/devices/{phone.device_id}/revoke").status == 200
    answer = overtaken(lambda: enrollment.reinstate(UUID(phone.device_id)), lambda: admin.command(to=phone))
    assert (answer.status, answer.json["device_count"]) == (200, 1)
    assert Delivery.objects.get().state == "pending"


@pytest.mark.parametrize("ending", ["revoked", "enrolled anew"])
def test_a_command_issued_during_a_revocation_or_re_enrollment_is_cancelled(admin: Admin, ending: str) -> None:
    phone = admin.enrol("phone-1")
    text = admin.enrollment_token(re_enroll=True)

    def end() -> Answer:
        if ending == "revoked":
            return admin.post(f"/admin/devices/{phone.device_id}/revoke")
        return Phone(admin.client, "phone-1").register(text)

    answer = overtaken(lambda: issue_a_ping(phone), end)
    assert answer.status == 200
    assert Delivery.objects.get().state == "cancelled"


def test_a_command_issued_during_a_revocation_finds_its_device_revoked(admin: Admin) -> None:
    phone = admin.enrol("phone-1")

    def revoke() -> None:
        enrollment.revoke(UUID(phone.device_id))
        queue.cancel_all_of(UUID(phone.device_id), Withdrawal.REVOCATION)

    answer = overtaken(revoke, lambda: admin.command("ping", to=phone))
    assert (answer.code, Delivery.objects.count()) == ("unknown_devices", 0)
