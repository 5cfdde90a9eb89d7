"""The reason why a delivery is open, in the API and on the admin site, with pushes through the real sender."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from commands.models import Attempt, AttemptOutcome, Command, Delivery, Report
from commands.push import attempts, circuit_breaker, outbox
from commands.push import fcm as firebase
from commands.push.circuit_breaker import Fault
from commands.push.dispatcher import Dispatcher
from commands.push.fcm import Sender
from devices.models import Device, Presence
from loadtest.fake_fcm.server import FcmStandin
from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass, releasing_connection

pytestmark = pytest.mark.django_db(transaction=True)


def ping(admin: Admin, push_token: str, *, expires_in_seconds: int = 600) -> Phone:
    """Register a phone that has sent a heartbeat, and issue a ping for it."""
    phone = admin.enrol(f"phone-{push_token}", push_token=push_token)
    phone.heartbeat()
    admin.command("ping", to=phone, expires_in_seconds=expires_in_seconds)
    return phone


def dispatch() -> None:
    """Send all open pushes, whenever they are due."""
    Delivery.objects.filter(next_attempt_at__isnull=False).update(next_attempt_at=Now())
    call_command("dispatch", once=True)


def why_open(admin: Admin, phone: Phone | None = None) -> str:
    """Return why a delivery (by default, the only one) is open; the list and the delivery's own answer must agree."""
    found = Delivery.objects.all() if phone is None else Delivery.objects.filter(device_id=phone.device_id)
    delivery = found.get()
    path = f"/admin/commands/{delivery.command_id}/deliveries"
    (row,) = [row for row in admin.get(path).json["items"] if row["device_id"] == str(delivery.device_id)]
    assert admin.get(f"{path}/{delivery.device_id}").json["why_open"] == row["why_open"]
    return str(row["why_open"])


class Overtaken:
    """A sender, and an event that happens before FCM's answer is known."""

    def __init__(self, sender: Sender, happening: Callable[[], object]) -> None:
        self.sender = sender
        self.happening = happening

    async def send(self, push: firebase.FcmMessage) -> firebase.FcmResponse:
        """Send a push, and cause the event."""
        answer = await self.sender.send(push)
        await asyncio.to_thread(releasing_connection, self.happening)
        return answer


def dispatch_overtaken(standin: FcmStandin, happening: Callable[[], object]) -> None:
    async def dispatched() -> None:
        async with Sender(standin.service_account(), standin.base_url, connections=10) as sender:
            await Dispatcher(Overtaken(sender, happening), per_second=5000).run_once()

    asyncio.run(dispatched())


def test_the_reason_names_a_phone_that_is_silent_or_defers(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    request_id = admin.command("ping", to=phone).json["request_id"]
    call_command("dispatch", once=True)
    assert why_open(admin) == "The device has never sent a heartbeat."

    phone.heartbeat()
    assert why_open(admin) == "Waiting for the phone to answer."

    Presence.objects.update(last_seen_at=Now() - timedelta(hours=3, minutes=10))
    Device.objects.update(push_token_dead_at=Now())
    assert why_open(admin) == "The device has sent no heartbeat for 3 h; the push token is dead."

    phone.report(request_id, "deferred")
    phone.report(request_id, "deferred")
    assert (
        why_open(admin)
        == "The phone deferred the command twice; the device has sent no heartbeat for 3 h; the push token is dead."
    )


def test_a_phone_is_silent_for_the_reason_when_its_presence_is_offline(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    phone.heartbeat()
    admin.command("ping", to=phone)
    for interval, seconds, presence, reason in (
        (120, 290, "online", "The device has no push token, and the phone gets the command with its next heartbeat."),
        (
            120,
            370,
            "offline",
            (
                "The device has sent no heartbeat for 6 min; the device has no push token, and the phone gets the "
                "command with its next heartbeat."
            ),
        ),
        (3600, 7200, "online", "The device has no push token, and the phone gets the command with its next heartbeat."),
        (5, 50, "offline", "The device has no push token, and the phone gets the command with its next heartbeat."),
        (
            5,
            70,
            "offline",
            (
                "The device has sent no heartbeat for 1 min; the device has no push token, and the phone gets the "
                "command with its next heartbeat."
            ),
        ),
    ):
        settings.HEARTBEAT_INTERVAL_SECONDS = interval
        Presence.objects.update(last_seen_at=Now() - timedelta(seconds=seconds))
        found = admin.get(f"/admin/devices/{phone.device_id}").json["presence"]
        assert (found, why_open(admin)) == (presence, reason)


def test_the_reason_without_a_push_token_names_the_next_heartbeat(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    request_id = admin.command("ping", to=phone).json["request_id"]
    assert why_open(admin) == "The device has no push token, and the phone gets the command with its next heartbeat."
    phone.report(request_id, "running")
    assert why_open(admin) == "The phone reported running; the device has no push token."


@pytest.mark.parametrize(
    ("push_token", "expires_in_seconds", "sentence"),
    [
        ("ok-1", 600, "Waiting for the phone to answer."),
        ("unregistered-1", 600, "The push token is dead."),
        ("invalid-1", 600, "FCM refused the push."),
        ("unavailable-1", 600, "Push failed once, and will be tried again."),
        ("reset-1", 600, "Push failed once, and will be tried again."),
        ("forbidden-1", 600, "Push failed once, and the next push is not sent yet."),
        ("unavailable90-1", 60, "Push failed once, and no time is left for another push before the expiry."),
        ("reset-1", 10, "Push failed once, and no time is left for another push before the expiry."),
    ],
)
def test_the_reason_contains_the_result_of_the_push(
    admin: Admin, fcm: FcmStandin, push_token: str, expires_in_seconds: int, sentence: str
) -> None:
    ping(admin, push_token, expires_in_seconds=expires_in_seconds)
    dispatch()
    assert why_open(admin) == sentence


@pytest.mark.parametrize("status", ["received", "running"])
def test_the_reason_omits_a_failed_push_if_the_phone_has_reported(admin: Admin, fcm: FcmStandin, status: str) -> None:
    phone = ping(admin, "unavailable-1")
    request_id = str(Delivery.objects.get().command_id)
    dispatch_overtaken(fcm, lambda: phone.report(request_id, status, via="heartbeat"))
    assert Delivery.objects.get().push_state == "undeliverable"
    assert why_open(admin) == f"The phone reported {status}."


def test_without_firebase_the_reason_names_the_next_heartbeat(admin: Admin, settings: Settings) -> None:
    settings.FIREBASE_SERVICE_ACCOUNT = None
    ping(admin, "ok-1")
    call_command("dispatch", once=True)
    assert why_open(admin) == "Firebase is not configured, and the phone gets the command with its next heartbeat."


def test_a_push_without_a_dispatcher_is_not_sent_yet(admin: Admin, fcm: FcmStandin) -> None:
    ping(admin, "ok-1")
    assert why_open(admin) == "The push is not sent yet."


def test_a_push_behind_an_open_circuit_is_not_sent_yet(admin: Admin, fcm: FcmStandin) -> None:
    async def held() -> int:
        async with Sender(fcm.service_account(), fcm.base_url, connections=10) as sender:
            dispatcher = Dispatcher(sender, per_second=5000)
            now = asyncio.get_running_loop().time()
            dispatcher.circuit.note(Fault.OAUTH, "there is no access token", now, device_id="1", delivery_id=1)
            return await dispatcher.dispatch_once()

    ping(admin, "ok-1")
    assert asyncio.run(held()) == 0
    assert why_open(admin) == "The push is not sent yet."


def test_a_returned_push_is_not_sent_yet_and_counts_as_no_failure(
    admin: Admin, fcm: FcmStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.push.dispatcher.SLOTS", 1)
    *sent, given_back = [ping(admin, f"forbidden-{number}") for number in range(circuit_breaker.SEVERAL_DEVICES + 1)]
    dispatch()
    assert Attempt.objects.get(delivery__device_id=given_back.device_id).detail.startswith("not sent: ")
    assert {why_open(admin, phone) for phone in sent} == {"Push failed once, and the next push is not sent yet."}
    assert why_open(admin, given_back) == "The push is not sent yet."


def test_a_push_without_an_access_token_is_not_sent_yet(admin: Admin, fcm: FcmStandin) -> None:
    fcm.oauth_down = True
    ping(admin, "ok-1")
    dispatch()
    assert why_open(admin) == "The push is not sent yet."


def test_only_pushes_that_were_sent_count_as_failed(admin: Admin, fcm: FcmStandin) -> None:
    ping(admin, "unavailable-1")
    for _ in range(2):
        dispatch()
    assert why_open(admin) == "Push failed twice, and will be tried again."

    fcm.oauth_down = True
    dispatch()
    assert why_open(admin) == "Push failed twice, and the next push is not sent yet."

    Delivery.objects.update(next_attempt_at=Now())
    outbox.claim_due(1)
    assert Delivery.objects.get().attempt_count == 4
    assert why_open(admin) == "Push failed twice, and the next push is being sent."


def test_a_push_whose_dispatcher_died_is_being_sent_until_its_lease_is_over(admin: Admin, fcm: FcmStandin) -> None:
    ping(admin, "ok-1")
    outbox.claim_due(1)
    assert why_open(admin) == "The push is being sent."
    let_pass(seconds=outbox.LEASE.total_seconds())
    assert why_open(admin) == "Push failed once, and the next push is not sent yet."


def test_the_reason_shows_that_no_time_was_left_for_a_push(admin: Admin, fcm: FcmStandin) -> None:
    ping(admin, "ok-1")
    (claimed,) = outbox.claim_due(1)
    Command.objects.update(expires_at=Now() + outbox.LEAST)
    attempts.record_attempts(
        [outbox.Sent(claimed, AttemptOutcome.BLOCKED, detail="not sent: too late", retry_in_seconds=0)]
    )
    assert why_open(admin) == "No time is left for a push before the expiry."


def test_after_a_new_push_token_a_refused_push_is_due_again(admin: Admin, fcm: FcmStandin) -> None:
    phone = ping(admin, "invalid-1")
    dispatch()
    phone.heartbeat(push_token="ok-1")
    assert why_open(admin) == "Push failed once, and the next push is not sent yet."


def test_the_admin_site_shows_the_same_reason_although_its_timeline_is_cut(
    admin: Admin, fcm: FcmStandin, admin_client: Client
) -> None:
    phone = ping(admin, "unavailable-1")
    dispatch()
    delivery = Delivery.objects.get()
    page = reverse("nexmdm-admin:commands_delivery_change", args=[delivery.pk])
    (failed,) = Attempt.objects.values()
    Attempt.objects.bulk_create(Attempt(**failed | {"id": None, "number": number}) for number in range(2, 151))
    Delivery.objects.update(attempt_count=150)
    assert why_open(admin) == "Push failed 150 times, and will be tried again."
    assert "Push failed 150 times, and will be tried again." in admin_client.get(page).content.decode()

    phone.report(str(delivery.command_id), "deferred")
    Report.objects.bulk_create(Report(delivery=delivery, status="deferred") for _ in range(149))
    assert why_open(admin) == "The phone deferred the command 150 times."
    assert "The phone deferred the command 150 times." in admin_client.get(page).content.decode()
