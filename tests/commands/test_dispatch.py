"""Pushing: from the outbox, through the real sender and a real socket, to the rows with FCM's answer."""

import pytest
from django.core.management import call_command
from django.db.models.functions import Now
from pytest_django import Settings

from commands.models import Attempt, AttemptOutcome, Command, Delivery
from commands.push import fcm_outcomes
from commands.push.attempts import record_attempts
from commands.push.fcm import parse
from commands.push.outbox import LEASE, Claimed, Sent, claim_due
from devices.models import Device
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.client.phone import Agent, Credentials
from tests.support.actors import Admin

pytestmark = pytest.mark.django_db(transaction=True)


def dispatch() -> None:
    call_command("dispatch", once=True)


def answered(claimed: Claimed, outcome: AttemptOutcome) -> Sent:
    return Sent(claimed, outcome, http_status=200 if outcome == AttemptOutcome.ACCEPTED else 404)


def ruled(claimed: Claimed, fcm: FcmStandin) -> Sent:
    """Return the outcome of the fake FCM's answer to this push, in the form that the dispatcher records."""
    reply = fcm.scripted(claimed.push_token)
    answer = parse(reply.status or 0, reply.retry_after or "", reply.body)
    ruling = fcm_outcomes.decide(answer, claimed.failures)
    return Sent(claimed, ruling.outcome, answer.http_status, answer.fcm_error, retry_in_seconds=ruling.retry_in_seconds)


def test_a_command_is_pushed_and_the_answer_of_fcm_is_logged(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    issued = admin.command("launch_app", to=phone, params={"package": "com.example.kiosk"}).json
    assert issued["push"] == {"queued": 1, "no_push_token": 0}
    assert fcm.journal.sends() == []

    dispatch()

    (send,) = fcm.journal.sends()
    attempt = Attempt.objects.get()
    assert (send.push_token, send.request_id) == ("ok-1", issued["request_id"])
    assert (attempt.outcome, attempt.http_status, attempt.message_id) == ("accepted", 200, send.message_id)
    assert attempt.latency_ms is not None
    assert Delivery.objects.get().push_state == "accepted"
    assert admin.get(f"/admin/commands/{issued['request_id']}").json["push"]["accepted"] == 1


def test_a_push_is_data_only_of_high_priority_and_lives_no_longer_than_its_command(
    admin: Admin, fcm: FcmStandin
) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    admin.command("ping", to=phone, expires_in_seconds=90)

    dispatch()

    message = fcm.journal.sends()[0].message
    assert set(message) == {"token", "data", "android", "fcm_options"}
    assert message["android"]["priority"] == "high"
    assert 85 <= int(message["android"]["ttl"].removesuffix("s")) <= 91
    assert all(isinstance(value, str) for value in message["data"].values())


def test_the_push_and_the_heartbeat_carry_the_same_envelope(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    admin.command("message", to=phone, params={"title": "Café ✓", "body": "…"})

    dispatch()

    assert fcm.journal.sends()[0].message["data"] == phone.heartbeat().json["commands"][0]


def test_an_accepted_push_is_not_called_delivered(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    request_id = admin.command("ping", to=phone).json["request_id"]

    dispatch()

    delivery = admin.get(f"/admin/commands/{request_id}/deliveries").json["items"][0]
    assert (delivery["state"], delivery["delivered_via"], delivery["push"]["state"]) == ("pending", None, "accepted")


def test_a_command_is_pushed_once(admin: Admin, fcm: FcmStandin) -> None:
    admin.command("ping", to=admin.enrol("phone-1", push_token="ok-1"))

    dispatch()
    dispatch()

    assert len(fcm.journal) == 1


def test_a_dead_push_token_is_not_pushed_to_again_until_another_one_comes(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="unregistered-1")
    admin.command("ping", to=phone)
    dispatch()
    assert admin.command("ping", to=phone).json["push"] == {"queued": 0, "no_push_token": 1}

    assert phone.heartbeat(push_token="unregistered-1").status == 200
    dispatch()
    assert [send.answer for send in fcm.journal.sends()] == ["unregistered"]

    assert phone.heartbeat(push_token="ok-1").status == 200
    dispatch()
    assert [send.answer for send in fcm.journal.sends()] == ["unregistered", "ok", "ok"]


def test_the_other_open_pushes_of_a_dead_token_are_not_sent_either(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="unregistered-1")
    admin.command("ping", to=phone)
    admin.command("lock", to=phone, expires_in_seconds=1200)
    Delivery.objects.filter(command__action="lock").update(next_attempt_at=Now() + LEASE)

    dispatch()

    assert list(Delivery.objects.order_by("id").values_list("push_state", "next_attempt_at")) == [
        ("undeliverable", None),
        ("no_push_token", None),
    ]


def test_pushes_of_a_killed_dispatcher_are_closed_as_unknown_and_sent_again(admin: Admin, fcm: FcmStandin) -> None:
    admin.command("ping", to=admin.enrol("phone-1", push_token="ok-1"))
    assert len(claim_due(10)) == 1
    dispatch()
    assert len(fcm.journal) == 0, "its lease has not run out"

    Delivery.objects.update(next_attempt_at=Now())
    dispatch()

    assert len(fcm.journal) == 1
    assert list(Attempt.objects.order_by("number").values_list("number", "outcome")) == [
        (1, "unknown"),
        (2, "accepted"),
    ]


def test_an_answer_that_comes_after_the_lease_changes_nothing(admin: Admin, fcm: FcmStandin) -> None:
    admin.command("ping", to=admin.enrol("phone-1", push_token="ok-1"))
    (late,) = claim_due(10)
    Delivery.objects.update(next_attempt_at=Now())
    (current,) = claim_due(10)

    record_attempts([answered(late, AttemptOutcome.ACCEPTED)])
    assert Delivery.objects.get().push_state == "waiting"
    record_attempts([answered(current, AttemptOutcome.ACCEPTED)])

    assert Delivery.objects.get().push_state == "accepted"
    assert list(Attempt.objects.order_by("number").values_list("outcome", flat=True)) == ["unknown", "accepted"]


def test_expired_cancelled_and_answered_commands_are_not_pushed(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    expired, cancelled, done = (admin.command("ping", to=phone).json["request_id"] for _ in range(3))
    Delivery.objects.filter(command=expired).update(open_until=Now())
    Command.objects.filter(id=expired).update(issued_at=Now() - LEASE, expires_at=Now())
    admin.post(f"/admin/commands/{cancelled}/cancel")
    phone.report(done, "succeeded")

    dispatch()

    assert len(fcm.journal) == 0
    assert not Delivery.objects.filter(next_attempt_at__isnull=False).exists()


def test_a_revoked_device_gets_no_push(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    admin.command("ping", to=phone)
    admin.post(f"/admin/devices/{phone.device_id}/revoke")

    dispatch()

    assert len(fcm.journal) == 0


def test_a_push_is_signed_for_the_phone_that_gets_it(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    admin.command("ping", to=phone)

    dispatch()

    agent = Agent(phone.device_id, Credentials(phone.device_token, phone.command_key))
    envelope = fcm.journal.sends()[0].message["data"]
    assert agent.trusts(envelope)
    assert not agent.trusts(envelope | {"action": "wipe"})


def test_without_firebase_nothing_is_sent_and_heartbeats_deliver_commands(admin: Admin, settings: Settings) -> None:
    settings.FIREBASE_SERVICE_ACCOUNT = None
    phone = admin.enrol("phone-1", push_token="ok-1")
    request_id = admin.command("ping", to=phone).json["request_id"]

    dispatch()

    assert not Attempt.objects.exists()
    assert admin.client.request("GET", "/readyz").json["push"] == "unconfigured"
    assert phone.heartbeat().json["commands"][0]["request_id"] == request_id
    assert phone.report(request_id, "succeeded", via="heartbeat").json["state"] == "succeeded"


def test_a_fan_out_reaches_every_phone_once(admin: Admin, fcm: FcmStandin) -> None:
    phones = [admin.enrol(f"phone-{number}", push_token=f"ok-{number}") for number in range(30)]
    admin.command("ping", to={"all": True})

    dispatch()

    assert sorted(send.push_token for send in fcm.journal.sends()) == sorted(f"ok-{n}" for n in range(len(phones)))
    assert Attempt.objects.filter(outcome="accepted").count() == len(phones)


def test_the_dispatcher_marks_expired_deliveries(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1")
    admin.command("ping", to=phone)
    Delivery.objects.update(open_until=Now())

    dispatch()

    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.settled_at) == ("expired", delivery.open_until)


def test_a_push_token_that_moved_during_its_push_is_not_called_dead_on_the_new_device(
    admin: Admin, fcm: FcmStandin
) -> None:
    phone = admin.enrol("phone-1", push_token="unregistered-1")
    admin.command("ping", to=phone)
    (claimed,) = claim_due(1)
    phone.heartbeat(push_token="ok-2")

    record_attempts([answered(claimed, AttemptOutcome.TOKEN_DEAD)])

    assert Device.objects.get().push_token_dead_at is None
    dispatch()
    assert [send.push_token for send in fcm.journal.sends()] == ["ok-2"]


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (AttemptOutcome.RETRY_LATER, "superseded"), (AttemptOutcome.UNKNOWN, "superseded"), (AttemptOutcome.BLOCKED,
        "superseded"), (AttemptOutcome.ACCEPTED, "accepted"), (AttemptOutcome.REJECTED, "undeliverable"),
        (AttemptOutcome.TOKEN_DEAD, "undeliverable"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("settle", ["report", "cancel"])
def test_a_push_that_ends_after_its_delivery_was_settled_is_superseded_if_it_would_be_repeated(
    admin: Admin, fcm: FcmStandin, settle: str, outcome: AttemptOutcome, shown: str
) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    request_id = admin.command("ping", to=phone).json["request_id"]
    (claimed,) = claim_due(1)
    settled = (
        phone.report(request_id, "succeeded")
        if settle == "report"
        else admin.post(f"/admin/commands/{request_id}/cancel")
    )
    assert settled.status == 200

    record_attempts([answered(claimed, outcome)._replace(retry_in_seconds=10)])

    delivery = admin.get(f"/admin/commands/{request_id}/deliveries").json["items"][0]
    assert (delivery["push"]["state"], delivery["push"]["next_attempt_at"]) == (shown, None)


def test_a_push_token_that_moved_to_another_phone_is_dead_there_too(admin: Admin, fcm: FcmStandin) -> None:
    phone, other = admin.enrol("phone-1", push_token="unregistered-1"), admin.enrol("phone-2")
    admin.command("ping", to=[phone, other])
    (claimed,) = claim_due(1)
    other.heartbeat(push_token="unregistered-1")

    record_attempts([answered(claimed, AttemptOutcome.TOKEN_DEAD)])
    dispatch()

    assert len(fcm.journal) == 0
    assert Device.objects.get(push_token="unregistered-1").push_token_dead_at is not None


def test_a_push_under_way_keeps_its_lease_when_its_phone_gets_another_push_token(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="unavailable-1")
    admin.command("ping", to=phone)
    record_attempts([ruled(claim_due(1)[0], fcm)])
    Delivery.objects.update(next_attempt_at=Now())
    (under_way,) = claim_due(1)

    phone.heartbeat(push_token="ok-2")
    assert claim_due(1) == []
    record_attempts([ruled(under_way, fcm)])

    assert Attempt.objects.filter(outcome="retry_later").count() == 2


def test_a_batch_with_answers_before_and_after_a_lease_records_the_later_one(admin: Admin, fcm: FcmStandin) -> None:
    admin.command("ping", to=admin.enrol("phone-1", push_token="ok-1"))
    (before,) = claim_due(1)
    Delivery.objects.update(next_attempt_at=Now())
    (after,) = claim_due(1)

    record_attempts([answered(before, AttemptOutcome.REJECTED), answered(after, AttemptOutcome.ACCEPTED)])

    assert Delivery.objects.get().push_state == "accepted"


def test_answers_of_every_kind_are_recorded_in_one_batch(admin: Admin, fcm: FcmStandin) -> None:
    kinds = ["ok", "forbidden", "unavailable", "unavailable7", "quota", "quota7", "invalid", "unregistered", "garbage"]
    for kind in kinds:
        admin.enrol(kind, push_token=f"{kind}-1")
    admin.command("ping", to={"all": True}, expires_in_seconds=86_400)

    record_attempts([ruled(claimed, fcm) for claimed in claim_due(100)])

    assert Attempt.objects.exclude(outcome="in_flight").count() == len(kinds)
    waits = Delivery.objects.filter(next_attempt_at__isnull=False).count()
    assert waits == len(["forbidden", "unavailable", "unavailable7", "quota", "quota7", "garbage"])


def test_an_answer_that_cannot_be_stored_does_not_prevent_the_others(admin: Admin, fcm: FcmStandin) -> None:
    admin.enrol("phone-1", push_token="ok-1")
    admin.enrol("phone-2", push_token="ok-2")
    admin.command("ping", to={"all": True})
    bad, good = claim_due(2)

    record_attempts(
        [answered(bad, AttemptOutcome.ACCEPTED)._replace(message_id="x\x00"), answered(good, AttemptOutcome.ACCEPTED)]
    )

    outcomes = dict(Attempt.objects.values_list("delivery_id", "outcome"))
    assert outcomes == {bad.delivery_id: "unknown", good.delivery_id: "accepted"}


def test_an_abandoned_attempt_of_a_settled_delivery_is_closed_as_unknown(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    request_id = admin.command("ping", to=phone).json["request_id"]
    claim_due(1)
    phone.report(request_id, "succeeded")
    dispatch()
    assert Attempt.objects.get().outcome == "in_flight", "its lease has not run out"

    Attempt.objects.update(started_at=Now() - LEASE)
    dispatch()

    assert Attempt.objects.get().outcome == "unknown"
    assert Attempt.objects.get().finished_at is not None


def test_no_push_is_due_again_for_a_phone_that_lost_its_push_token_meanwhile(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    admin.command("ping", to=phone)
    (claimed,) = claim_due(1)
    phone.heartbeat(push_token=None)

    record_attempts([Sent(claimed, AttemptOutcome.RETRY_LATER, http_status=503, retry_in_seconds=10)])

    assert (Delivery.objects.get().push_state, Delivery.objects.get().next_attempt_at) == ("undeliverable", None)
