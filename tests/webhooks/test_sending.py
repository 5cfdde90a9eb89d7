"""What a receiver gets: each event once it is committed, signed, in order and at least once."""

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
import standardwebhooks
from django.conf import settings as django_settings
from django.db import OperationalError

from nexmdm.common import database
from nexmdm.events import feed as feed_of_server
from nexmdm.models import Webhook, WebhookAttempt
from nexmdm.webhooks import attempts, lane, leases, receivers
from tests.support import feed
from tests.support.actors import Admin, Phone
from tests.webhooks.conftest import Hook
from tests.webhooks.receiver import Receiver, endless, receiving, reset, running_lane, send_once, status

pytestmark = pytest.mark.django_db(transaction=True)


def tag(admin: Admin, phone: Phone, *names: str) -> None:
    """Replace the tags of a phone: one event for each change."""
    assert admin.call("PATCH", f"/admin/devices/{phone.device_id}", {"tags": list(names)}).status == 200


def move_times(**columns: timedelta) -> None:
    """Move times of all webhooks into the past."""
    for name, length in columns.items():
        database.execute(f"UPDATE nexmdm_webhook SET {name} = {name} - %s", [length])  # noqa: S608


def make_due() -> None:
    """Let the time of the next attempt come."""
    database.execute("UPDATE nexmdm_webhook SET next_attempt_at = now()")


def events(admin: Admin) -> list[dict[str, Any]]:
    """Return all events of the feed."""
    return feed.all_events(admin, limit=1000)


def test_a_receiver_gets_each_event_as_the_feed_shows_it(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    tag(admin, phone, "kiosk")
    request_id = admin.command(to=phone).json["request_id"]
    send_once()
    expected = [event for event in events(admin) if event["type"] in ("device.updated", "command.issued")]
    assert receiver.ids == [event["id"] for event in expected]
    for one, event in zip(receiver.received, expected, strict=True):
        ids = {"device_id": event["device_id"], "request_id": event["request_id"]}
        assert json.loads(one.body) == {
            "type": event["type"],
            "timestamp": event["at"],
            "data": event["data"] | ids,
        }
    assert json.loads(receiver.received[0].body)["data"]["device_id"] == phone.device_id
    assert json.loads(receiver.received[1].body)["data"]["request_id"] == request_id


def test_a_request_is_signed_by_the_standard_webhooks_specification(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    tag(admin, phone, "kiosk")
    send_once()
    (one,) = receiver.received
    assert one.verified(hook.secret)["type"] == "device.updated"
    assert (one.path, one.headers["content-type"]) == ("/hook", "application/json")
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(hook.secret).verify(one.body + b" ", one.headers)


def test_a_new_webhook_begins_with_the_events_after_its_creation(
    admin: Admin, phone: Phone, make_hook: Callable[..., Hook], receiver: Receiver
) -> None:
    tag(admin, phone, "before")
    make_hook()
    send_once()
    assert receiver.received == []
    tag(admin, phone, "after")
    send_once()
    assert json.loads(receiver.received[0].body)["data"]["tags"] == ["after"]


def test_events_come_in_order_over_one_connection(admin: Admin, phone: Phone, hook: Hook, receiver: Receiver) -> None:
    for number in range(30):
        tag(admin, phone, str(number))
    send_once()
    assert [json.loads(one.body)["data"]["tags"] for one in receiver.received] == [[str(n)] for n in range(30)]
    assert receiver.state.connections == 1


def test_a_webhook_gets_only_the_types_that_it_names(
    admin: Admin, phone: Phone, make_hook: Callable[..., Hook], receiver: Receiver
) -> None:
    make_hook(types=["command.*", "device.revoked"])
    tag(admin, phone, "kiosk")
    admin.command(to=phone)
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    send_once()
    assert set(receiver.types) >= {"command.issued", "device.revoked"}
    assert all(name.startswith("command.") or name == "device.revoked" for name in receiver.types)


@pytest.mark.parametrize("rows_of_a_page", [1, 1000])
def test_a_webhook_with_tags_gets_the_events_of_devices_that_have_one_when_it_is_sent(
    admin: Admin, phone: Phone, make_hook: Callable[..., Hook], receiver: Receiver, rows_of_a_page: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(feed_of_server, "SCANNED_FOR_TAGS", rows_of_a_page)
    other = admin.enrol("phone-2")
    tag(admin, other, "till")
    make_hook(tags=["kiosk", "till"], types=["device.updated"])
    tag(admin, phone, "a")
    tag(admin, phone, "kiosk")
    tag(admin, other, "b")
    admin.command()  # It has no device, so it is no event for tags.
    send_once()
    assert [json.loads(one.body)["data"]["device_id"] for one in receiver.received] == [phone.device_id] * 2


FAILURES = {
    "500": (status(500), 500),
    "404": (status(404), 404),
    "a redirect": (status(302, Location="http://127.0.0.1:1/elsewhere"), 302),
    "a reset": (reset, None),
}


@pytest.mark.parametrize("name", FAILURES)
def test_any_other_outcome_is_tried_again_with_the_same_id_and_nothing_overtakes_it(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, name: str
) -> None:
    answer, code = FAILURES[name]
    receiver.state.script = [answer]
    for number in range(2):
        tag(admin, phone, str(number))
    send_once()
    send_once()  # The next attempt is not due yet.
    assert len(receiver.received) == 1
    (attempt,) = hook.attempts
    assert (attempt["delivered"], attempt["http_status"]) == (False, code)
    assert (attempt["error"] is None) == (code is not None)
    make_due()
    send_once()
    first, second = [event["id"] for event in events(admin) if event["type"] == "device.updated"]
    assert receiver.ids == [first, first, second]
    assert receiver.received[0].body == receiver.received[1].body
    assert [attempt["delivered"] for attempt in hook.attempts] == [True, True, False]


def test_a_receiver_that_does_not_answer_in_time_has_not_acknowledged(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "TIMEOUT_SECONDS", 0.2)
    receiver.state.script = [receiver.hang]
    tag(admin, phone, "kiosk")
    send_once()
    assert hook.attempts[0]["error"] == "no response within 0.2 s"
    receiver.released.set()
    make_due()
    send_once()
    assert receiver.ids == [receiver.ids[0]] * 2


def test_an_answer_is_read_only_up_to_a_bound(admin: Admin, phone: Phone, hook: Hook, receiver: Receiver) -> None:
    receiver.state.script = [endless]
    tag(admin, phone, "kiosk")
    send_once()
    (attempt,) = hook.attempts
    assert (attempt["delivered"], attempt["http_status"]) == (True, 200)


def test_the_time_between_attempts_doubles_up_to_an_hour(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    receiver.state.always = status(503)
    tag(admin, phone, "kiosk")
    waits = []
    for _ in range(14):
        make_due()
        send_once()
        (seconds,) = database.row("SELECT extract(epoch FROM next_attempt_at - now()) FROM nexmdm_webhook")
        waits.append(float(seconds))
    for tries, wait in enumerate(waits, start=1):
        longest = min(3600, 2**tries)
        assert 0.7 * longest < wait <= longest, (tries, wait)


def test_a_webhook_is_paused_72_hours_after_its_first_failure_and_keeps_its_place(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    receiver.state.always = status(500)
    tag(admin, phone, "kiosk")
    send_once()
    move_times(failing_since=timedelta(hours=71, minutes=59))
    make_due()
    send_once()
    assert hook.row["paused"] is False
    move_times(failing_since=timedelta(minutes=2))
    make_due()
    send_once()
    row = hook.row
    assert row["paused"] is True
    assert row["why"] == (
        "The receiver acknowledged no attempt in the last 72 hours. The last attempt failed: the receiver answered 500"
    )
    (event,) = [event for event in events(admin) if event["type"] == "webhook.paused"]
    assert event["data"] == {"webhook_id": hook.id, "why": row["why"], "by": "dispatcher"}
    make_due()
    send_once()
    assert len(receiver.received) == 3
    assert admin.client.request("GET", "/readyz").json["webhooks"] == "1 paused"

    receiver.state.always = status(200)
    resumed = hook.change(paused=False)
    assert (resumed["paused"], resumed["why"]) == (False, None)
    send_once()
    assert receiver.types[3:] == ["device.updated", "webhook.paused"]
    assert receiver.ids[3] == receiver.ids[0]


def test_a_success_ends_the_72_hours(admin: Admin, phone: Phone, hook: Hook, receiver: Receiver) -> None:
    receiver.state.script = [status(500), status(200), status(500)]
    tag(admin, phone, "a")
    send_once()
    move_times(failing_since=timedelta(hours=73))
    tag(admin, phone, "b")
    make_due()
    send_once()
    assert hook.row["paused"] is False
    assert Webhook.objects.get().tries == 1


def test_an_event_whose_acknowledgement_was_not_stored_is_sent_again(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    """A dispatcher that ends between the answer and its commit: nothing is lost, and the order stays."""
    for number in range(3):
        tag(admin, phone, str(number))
    with patch.object(leases, "store", side_effect=RuntimeError):
        send_once()
    assert len(receiver.received) == 3
    send_once()  # The lease of the dispatcher that was killed lives.
    assert len(receiver.received) == 3
    move_times(lease_until=leases.LEASE)
    send_once()
    assert receiver.ids[3:] == receiver.ids[:3]


def test_a_dispatcher_that_lost_its_lease_stores_nothing(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    tag(admin, phone, "kiosk")
    before = hook.row["cursor"]

    def lose_lease(handler: Any, received: Any) -> None:
        database.execute("UPDATE nexmdm_webhook SET lease = gen_random_uuid()")
        database.release_connections()
        status(200)(handler, received)

    receiver.state.script = [lose_lease]
    send_once()
    assert (hook.row["cursor"], hook.attempts) == (before, [])


def test_two_dispatchers_send_no_event_twice_and_none_out_of_order(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    with running_lane(), running_lane():
        for number in range(40):
            tag(admin, phone, str(number))
        receiver.wait_for(40)
    assert [json.loads(one.body)["data"]["tags"] for one in receiver.received] == [[str(n)] for n in range(40)]


def test_a_hanging_receiver_delays_no_other_webhook(
    admin: Admin, phone: Phone, hook: Hook, make_hook: Callable[..., Hook], receiver: Receiver
) -> None:
    with receiving() as quick:
        make_hook(url=quick.url)
        receiver.state.always = receiver.hang
        with running_lane():
            tag(admin, phone, "a")
            receiver.wait_for(1)
            for number in range(5):
                tag(admin, phone, str(number))
            quick.wait_for(6)
            assert len(receiver.received) == 1
            receiver.state.always = status(200)
            receiver.released.set()
            receiver.wait_for(6)


def test_many_hanging_receivers_delay_no_healthy_webhook(
    admin: Admin,
    phone: Phone,
    make_hook: Callable[..., Hook],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "SLOTS", 4)
    monkeypatch.setattr(lane, "FAILING_SLOTS", 2)
    receiver.state.always = receiver.hang
    for _ in range(6):
        make_hook()
    tag(admin, phone, "a")
    database.execute("UPDATE nexmdm_webhook SET tries = 1, failing_since = now()")
    with receiving() as quick, running_lane():
        receiver.wait_for(2)
        make_hook(url=quick.url)
        for number in range(3):
            tag(admin, phone, str(number))
            quick.wait_for(number + 1)
        assert len(receiver.received) == 2
        receiver.released.set()


def test_a_lane_that_stops_cuts_off_a_request_that_hangs_and_sends_it_again_after_the_next_start(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "GRACE_SECONDS", 0.05)
    receiver.state.script = [status(200), receiver.hang]
    with running_lane():
        for number in range(2):
            tag(admin, phone, str(number))
        receiver.wait_for(2)
    assert [attempt["delivered"] for attempt in hook.attempts] == [True]
    send_once()
    assert receiver.ids[1:] == [receiver.ids[1]] * 2


def test_a_lane_goes_on_after_an_outage_of_the_database(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "AFTER_FAILURE_SECONDS", 0.02)
    away, claim = threading.Event(), leases.claim
    failures = threading.Semaphore(0)

    def claim_if_available(most: int, most_failing: int) -> Any:
        if away.is_set():
            failures.release()
            raise OperationalError("the server closed the connection unexpectedly")
        return claim(most, most_failing)

    monkeypatch.setattr(leases, "claim", claim_if_available)
    away.set()
    tag(admin, phone, "kiosk")
    with running_lane():
        assert failures.acquire(timeout=5)
        assert failures.acquire(timeout=5)
        assert receiver.received == []
        away.clear()
        receiver.wait_for(1)


def test_no_connection_to_the_database_is_kept_while_a_receiver_is_awaited(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    receiver.state.script = [receiver.hang]
    tag(admin, phone, "kiosk")
    database.release_connections()
    with running_lane():
        receiver.wait_for(1)
        (busy,) = database.row(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state <> 'idle' AND backend_type = 'client backend'"
        )
        assert busy == 0
        receiver.released.set()


def test_secrets_are_in_no_row_and_in_no_log_line(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    tag(admin, phone, "kiosk")
    send_once()
    rotated = admin.post(f"{hook.path}/rotate-secret").json["secret"]
    tables = ("nexmdm_webhook", "nexmdm_webhookattempt", "nexmdm_storedanswer", "nexmdm_auditentry", "nexmdm_event")
    rows = "".join(str(row) for table in tables for row in database.rows(f"SELECT to_jsonb(t) FROM {table} t"))  # noqa: S608
    written = "".join(capfd.readouterr())
    assert "webhook.attempt" in written
    for secret in (hook.secret, rotated, django_settings.SECRET_KEY):
        bare = secret.removeprefix("whsec_")
        assert bare not in rows
        assert bare not in written


def test_the_newest_thousand_attempts_are_kept(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "KEPT", 3)
    row = Webhook.objects.get()
    for number in range(6):
        WebhookAttempt.objects.create(webhook=row, event_id=str(number), type="x", is_delivered=True, latency_ms=1)
    assert attempts.prune(timedelta(days=1), 2) == 2
    assert attempts.prune(timedelta(days=1), 2) == 1
    assert attempts.prune(timedelta(days=1), 2) == 0
    assert [attempt["event_id"] for attempt in hook.attempts] == ["5", "4", "3"]
    database.execute("UPDATE nexmdm_webhookattempt SET at = at - interval '2 days' WHERE event_id = '5'")
    assert attempts.prune(timedelta(days=1), 10) == 1
