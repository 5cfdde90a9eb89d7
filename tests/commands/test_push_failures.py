"""The rule by which pushing to a device counts as failing: the last pushes that ended decide, over all commands."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models.functions import Now

from commands.models import AttemptOutcome, Delivery
from commands.push import attempts, circuit_breaker, outbox
from commands.push.outbox import Claimed, Sent
from devices.models import Device
from loadtest.fake_fcm.server import FcmStandin
from tests.commands.test_fcm import dispatched, fleet
from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass, releasing_connection

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 20


@pytest.fixture
def pushed(admin: Admin, fcm: FcmStandin) -> Phone:
    """A phone with a push token, for which FCM is unavailable."""
    fcm.override = "unavailable"
    return admin.enrol("phone-1", push_token="ok-1")


def push(admin: Admin, phone: Phone, *, times: int = 1) -> None:
    """Send a command whose push is tried this number of times, each time by another dispatcher; then withdraw the
    command.
    """
    request_id = admin.command("ping", to=phone, expires_in_seconds=86_400).json["request_id"]
    for _ in range(times):
        Delivery.objects.filter(command=request_id, next_attempt_at__isnull=False).update(next_attempt_at=Now())
        call_command("dispatch", once=True)
    admin.post(f"/admin/commands/{request_id}/cancel")


def push_of(admin: Admin, phone: Phone) -> str:
    """The push health of a phone in the admin API, by its row and by the filter of the list, which must agree."""
    shown = str(admin.get(f"/admin/devices/{phone.device_id}").json["push"])
    for name in ("ok", "failing", "dead", "none"):
        listed = [row["device_id"] for row in admin.get(f"/admin/devices?push={name}").json["items"]]
        assert (phone.device_id in listed) == (name == shown)
    return shown


def count(phone: Phone) -> int:
    return Device.objects.get(id=phone.device_id).push_failures


def test_push_is_failing_after_five_failures_in_a_row_across_deliveries(admin: Admin, pushed: Phone) -> None:
    push(admin, pushed, times=3)
    push(admin, pushed)
    assert push_of(admin, pushed) == "ok"
    push(admin, pushed)
    assert push_of(admin, pushed) == "failing"
    push(admin, pushed, times=2)
    assert (push_of(admin, pushed), count(pushed)) == ("failing", 5)


def test_a_push_that_is_accepted_ends_the_row(admin: Admin, pushed: Phone, fcm: FcmStandin) -> None:
    push(admin, pushed, times=5)
    fcm.override = None
    push(admin, pushed)
    assert push_of(admin, pushed) == "ok"
    fcm.override = "unavailable"
    push(admin, pushed, times=4)
    assert push_of(admin, pushed) == "ok"


@pytest.mark.parametrize(
    "answer",
    [
        "internal", "quota1", "reset", "garbage", "html404", "thirdparty", "invalid", "unauthenticated", "forbidden",
        "missing", "hang", "oauth",
    ],
)  # fmt: skip
def test_every_end_of_a_push_except_acceptance_counts(
    admin: Admin, fcm: FcmStandin, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("commands.push.fcm.TIMEOUT_SECONDS", 0.2 if answer == "hang" else 10)
    fcm.oauth_down = answer == "oauth"
    phone = admin.enrol("phone-1", push_token=f"{answer}-1")
    for _ in range(5):
        assert push_of(admin, phone) == "ok"
        push(admin, phone)
    assert push_of(admin, phone) == "failing"


def test_a_dead_push_token_outranks_a_failing_one(admin: Admin, pushed: Phone, fcm: FcmStandin) -> None:
    push(admin, pushed, times=5)
    fcm.override = "unregistered"
    push(admin, pushed)
    assert push_of(admin, pushed) == "dead"


def _another(admin: Admin, phone: Phone) -> None:
    phone.heartbeat(push_token="ok-2")


def _none_and_the_same_again(admin: Admin, phone: Phone) -> None:
    phone.heartbeat(push_token=None)
    assert push_of(admin, phone) == "none"
    phone.heartbeat(push_token="ok-1")


def _registered_again(admin: Admin, phone: Phone) -> None:
    phone.register(admin.enrollment_token(re_enroll=True), push_token="ok-2")


def _written_by_the_version_before(admin: Admin, phone: Phone) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE devices_device SET push_token = 'ok-2', push_token_dead_at = NULL")


@pytest.mark.parametrize(
    "change", [_another, _none_and_the_same_again, _registered_again, _written_by_the_version_before]
)
def test_another_push_token_sets_the_count_to_zero(
    admin: Admin, pushed: Phone, change: Callable[[Admin, Phone], None]
) -> None:
    push(admin, pushed, times=5)
    change(admin, pushed)
    assert push_of(admin, pushed) == "ok"
    push(admin, pushed, times=4)
    assert push_of(admin, pushed) == "ok"
    push(admin, pushed)
    assert push_of(admin, pushed) == "failing"


def test_the_same_push_token_sent_again_keeps_the_count(admin: Admin, pushed: Phone) -> None:
    push(admin, pushed, times=5)
    pushed.heartbeat(push_token="ok-1")
    assert push_of(admin, pushed) == "failing"


def test_a_phone_that_takes_over_a_failing_push_token_has_a_count_of_zero(admin: Admin, pushed: Phone) -> None:
    push(admin, pushed, times=5)
    other = admin.enrol("phone-2", push_token="ok-1")
    assert (push_of(admin, pushed), push_of(admin, other)) == ("none", "ok")
    pushed.heartbeat(push_token="ok-3")
    assert push_of(admin, pushed) == "ok"


def claims(admin: Admin, phone: Phone, number: int) -> list[Claimed]:
    """This number of pushes to a phone, claimed at the same moment."""
    for _ in range(number):
        admin.command("ping", to=phone)
    return outbox.claim_due(100)


def failed(claimed: Claimed) -> Sent:
    return Sent(claimed, AttemptOutcome.RETRY_LATER, http_status=503, retry_in_seconds=3600)


def accepted(claimed: Claimed) -> Sent:
    return Sent(claimed, AttemptOutcome.ACCEPTED, http_status=200)


@pytest.mark.parametrize(
    ("ends", "push"),
    [("FFFFF", "failing"), ("FFFFA", "ok"), ("AFFFFF", "failing"), ("FFFFFA", "ok"), ("FFAFFFF", "ok")],
)
def test_pushes_that_are_recorded_together_count_in_the_order_in_which_they_ended(
    admin: Admin, pushed: Phone, ends: str, push: str
) -> None:
    claimed = claims(admin, pushed, len(ends))
    attempts.record_attempts(
        [accepted(one) if end == "A" else failed(one) for end, one in zip(ends, claimed, strict=True)]
    )
    assert push_of(admin, pushed) == push


def test_the_same_text_as_another_kind_of_push_target_counts_anew(admin: Admin, pushed: Phone) -> None:
    attempts.record_attempts(list(map(failed, claims(admin, pushed, 5))))
    assert push_of(admin, pushed) == "failing"
    text = Device.objects.get(id=pushed.device_id).push_token
    pushed.heartbeat(push_target={"kind": "fid", "value": text})
    assert (push_of(admin, pushed), count(pushed)) == ("ok", 0)


def test_a_batch_that_is_recorded_twice_counts_once(admin: Admin, pushed: Phone) -> None:
    answers = list(map(failed, claims(admin, pushed, 3)))
    attempts.record_attempts(answers)
    attempts.record_attempts(answers)
    assert count(pushed) == 3


def test_an_answer_about_an_earlier_push_token_does_not_count_for_the_present_one(admin: Admin, pushed: Phone) -> None:
    claimed = claims(admin, pushed, 5)
    pushed.heartbeat(push_token="ok-2")
    attempts.record_attempts(list(map(failed, claimed)))
    assert (push_of(admin, pushed), count(pushed)) == ("ok", 0)


def test_pushes_that_were_never_sent_do_not_count(
    admin: Admin, fcm: FcmStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.push.dispatcher.SLOTS", 1)
    fleet(admin, "unavailable-", 25)
    assert dispatched(fcm).circuit.state == circuit_breaker.OPEN
    assert [Device.objects.filter(push_failures=number).count() for number in (0, 1)] == [5, 20]


def test_a_push_whose_dispatcher_died_does_not_count(admin: Admin, pushed: Phone) -> None:
    claims(admin, pushed, 5)
    let_pass(minutes=5)
    assert attempts.close_abandoned(100) == 5
    assert count(pushed) == 0


def version_of_row(phone: Phone) -> Any:
    """A value that changes when a device's row is written or locked."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT xmin::text, xmax::text FROM devices_device WHERE id = %s", [phone.device_id])
        return cursor.fetchone()


def test_a_device_whose_count_stays_the_same_is_neither_written_nor_locked(admin: Admin, pushed: Phone) -> None:
    claimed = claims(admin, pushed, 9)
    untouched = version_of_row(pushed)
    attempts.record_attempts(list(map(accepted, claimed[:2])))
    assert version_of_row(pushed) == untouched
    attempts.record_attempts(list(map(failed, claimed[2:7])))
    failing = version_of_row(pushed)
    assert failing != untouched
    attempts.record_attempts(list(map(failed, claimed[7:])))
    assert version_of_row(pushed) == failing


def test_dispatchers_that_record_at_the_same_moment_count_together_and_wait_for_each_other_in_one_order(
    admin: Admin, fcm: FcmStandin
) -> None:
    phones = admin.enrol_fleet(10, "ok-")
    ready = Barrier(2)

    def record(answers: list[Sent]) -> None:
        ready.wait()
        attempts.record_attempts(answers)

    with ThreadPoolExecutor(2) as dispatchers:
        for _ in range(ROUNDS):
            Device.objects.update(push_failures=0)
            halves = [[failed(one) for one in _one_each(admin, phones)] for _ in range(2)]
            halves[1].reverse()
            recorded = [dispatchers.submit(releasing_connection, partial(record, half)) for half in halves]
            for one in recorded:
                one.result()
            assert set(Device.objects.values_list("push_failures", flat=True)) == {2}


def _one_each(admin: Admin, phones: list[Phone]) -> list[Claimed]:
    Delivery.objects.update(next_attempt_at=None)
    admin.command("ping", to=phones)
    return sorted(outbox.claim_due(len(phones)), key=lambda claimed: claimed.recipient.device_id)


def test_a_push_token_that_dies_next_to_a_failure_of_another_device_is_recorded_in_one_order(
    admin: Admin, fcm: FcmStandin
) -> None:
    phones = admin.enrol_fleet(2, "ok-")
    ready = Barrier(2)

    def record(answers: list[Sent]) -> None:
        ready.wait()
        attempts.record_attempts(answers)

    with ThreadPoolExecutor(2) as dispatchers:
        for number in range(ROUNDS):
            for place, phone in enumerate(phones):
                phone.heartbeat(push_token=f"ok-{number}-{place}")
            crossed = [_one_each(admin, phones), list(reversed(_one_each(admin, phones)))]
            halves = [
                [Sent(dying, AttemptOutcome.TOKEN_DEAD, http_status=404), failed(other)] for dying, other in crossed
            ]
            recorded = [dispatchers.submit(releasing_connection, partial(record, half)) for half in halves]
            for one in recorded:
                one.result()
            assert {push_of(admin, phone) for phone in phones} == {"dead"}
