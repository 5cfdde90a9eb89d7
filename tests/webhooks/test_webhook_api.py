"""The endpoints of webhooks: rows, secrets, replay, tests, and what the audit shows."""

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pytest_django import Settings

from nexmdm.common import database
from nexmdm.models import AuditEntry, DispatcherSeen, Webhook
from nexmdm.webhooks import attempts
from tests.support.actors import Admin, Phone
from tests.webhooks.conftest import Hook
from tests.webhooks.receiver import Receiver, running_lane, send_once, status
from tests.webhooks.test_sending import events, move_times, tag

ROW = {"id", "url", "types", "tags", "description", "paused", "why", "cursor", "created_at"}
URL = "https://hooks.example.com/nexmdm?token=abc"
ID = "0192f0c1-a2b3-7d4e-8f90-a1b2c3d4e5f6"


@pytest.mark.django_db
def test_a_webhook_is_created_with_a_secret_that_no_later_answer_shows(admin: Admin) -> None:
    body = {"url": URL, "types": ["command.*", "command.*"], "tags": ["kiosk"], "description": "Ticket system"}
    made = admin.post("/admin/webhooks", body).json
    assert made.keys() == ROW | {"secret"}
    assert made["secret"].startswith("whsec_")
    assert (made["url"], made["types"], made["tags"]) == (URL, ["command.*"], ["kiosk"])
    assert (made["description"], made["paused"], made["why"]) == ("Ticket system", False, None)
    row = {name: value for name, value in made.items() if name != "secret"}
    assert admin.get(f"/admin/webhooks/{made['id']}").json == row
    assert admin.get("/admin/webhooks").json == {"items": [row], "next_cursor": None}


@pytest.mark.django_db
def test_the_repeat_of_a_creation_shows_the_secret_again(admin: Admin) -> None:
    first, again = (admin.post("/admin/webhooks", {"url": URL}, idempotency_key="0123456789abcdef") for _ in range(2))
    assert (again.headers["idempotent-replayed"], again.json) == ("true", first.json)
    assert Webhook.objects.count() == 1


@pytest.mark.django_db
def test_the_secrets_of_two_webhooks_differ(admin: Admin) -> None:
    assert len({admin.post("/admin/webhooks", {"url": URL}).json["secret"] for _ in range(3)}) == 3


@pytest.mark.django_db
def test_webhooks_are_listed_newest_first_by_pages(admin: Admin) -> None:
    made = [admin.post("/admin/webhooks", {"url": URL}).json["id"] for _ in range(3)]
    first = admin.get("/admin/webhooks?limit=2").json
    rest = admin.get(f"/admin/webhooks?cursor={first['next_cursor']}").json
    assert [row["id"] for row in (*first["items"], *rest["items"])] == made[::-1]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": ""},
        {"url": URL, "types": ["device.unknown"]},
        {"url": URL, "types": ["device"]},
        {"url": URL, "tags": ["no blanks"]},
        {"url": URL, "description": "d" * 201},
        {"url": URL, "secret": "whsec_mine"},
        {"url": URL, "paused": True},
        {"url": f"https://example.com/{'p' * 2048}"},
    ],
)
def test_an_invalid_webhook_is_refused(admin: Admin, body: dict[str, Any]) -> None:
    answer = admin.post("/admin/webhooks", body)
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert Webhook.objects.count() == 0


@pytest.mark.django_db
@pytest.mark.parametrize("call", ["GET", "PATCH", "DELETE", "test", "replay", "rotate-secret", "attempts"])
def test_an_unknown_webhook_is_not_found(admin: Admin, call: str) -> None:
    path, body = f"/admin/webhooks/{ID}", {"after": "now"} if call == "replay" else {}
    answer = (
        admin.call(call, path, body if call == "PATCH" else None)
        if call.isupper()
        else admin.get(f"{path}/attempts")
        if call == "attempts"
        else admin.post(f"{path}/{call}", body)
    )
    assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.django_db(transaction=True)
def test_url_types_and_tags_are_changed_from_now_on(admin: Admin, phone: Phone, hook: Hook, receiver: Receiver) -> None:
    changed = hook.change(url=receiver.url + "/other", types=["device.updated"], tags=["kiosk"])
    assert changed == hook.row
    tag(admin, phone, "kiosk")
    tag(admin, phone, "till")
    tag(admin, phone, "kiosk", "till")
    send_once()
    assert {one.path for one in receiver.received} == {"/hook/other"}
    # Phone has the tag when the events are sent.
    assert receiver.types == ["device.updated"] * 3
    assert admin.call("PATCH", hook.path, {"secret": "x"}).status == 422
    assert admin.call("PATCH", hook.path, {"url": "http://example.com"}).status == 422


@pytest.mark.django_db(transaction=True)
def test_another_url_is_tried_immediately(admin: Admin, phone: Phone, hook: Hook, receiver: Receiver) -> None:
    receiver.state.script = [status(500)]
    tag(admin, phone, "kiosk")
    send_once()
    hook.change(url=receiver.url + "/repaired")
    send_once()
    assert [one.path for one in receiver.received] == ["/hook", "/hook/repaired"]
    assert Webhook.objects.get().failing_since is None


@pytest.mark.django_db(transaction=True)
def test_a_paused_webhook_gets_nothing_and_after_it_is_resumed_what_happened_meanwhile(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    paused = hook.change(paused=True)
    assert (paused["paused"], paused["why"]) == (True, "Paused by admin.")
    hook.change(paused=True)  # It is paused already: no further event.
    (event,) = [event for event in events(admin) if event["type"] == "webhook.paused"]
    assert event["data"] == {"webhook_id": hook.id, "why": "Paused by admin.", "by": "admin"}
    tag(admin, phone, "kiosk")
    send_once()
    assert receiver.received == []
    resumed = hook.change(paused=False)
    assert (resumed["paused"], resumed["why"]) == (False, None)
    send_once()
    assert receiver.types == ["webhook.paused", "device.updated"]


@pytest.mark.django_db(transaction=True)
def test_a_pause_ends_a_run_and_the_event_that_was_acknowledged_is_not_sent_again(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    receiver.state.script = [receiver.hang]
    for number in range(3):
        tag(admin, phone, str(number))
    with running_lane():
        receiver.wait_for(1)
        hook.change(paused=True)
        receiver.state.script = []
        receiver.released.set()
    receiver.state.received.clear()
    hook.change(paused=False)
    send_once()
    shown = [event["id"] for event in events(admin) if event["type"] in ("device.updated", "webhook.paused")]
    assert receiver.ids == shown[-len(receiver.ids) :]
    assert receiver.ids[0] != shown[0]


@pytest.mark.django_db(transaction=True)
def test_a_deleted_webhook_gets_nothing_more(admin: Admin, phone: Phone, hook: Hook, receiver: Receiver) -> None:
    tag(admin, phone, "kiosk")
    send_once()
    row = hook.row
    tag(admin, phone, "till")
    assert admin.call("DELETE", hook.path).json == row
    send_once()
    assert len(receiver.received) == 1
    assert admin.get(hook.path).status == 404
    assert database.row("SELECT count(*) FROM nexmdm_webhookattempt") == (0,)


@pytest.mark.django_db(transaction=True)
def test_a_webhook_may_be_deleted_while_its_receiver_hangs(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    receiver.state.script = [receiver.hang]
    tag(admin, phone, "kiosk")
    with running_lane():
        receiver.wait_for(1)
        assert admin.call("DELETE", hook.path).status == 200
        receiver.released.set()
    assert database.row("SELECT count(*) FROM nexmdm_webhookattempt") == (0,)


@pytest.mark.django_db(transaction=True)
def test_a_replay_sends_events_again_with_the_same_ids_and_bodies(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    begin = hook.row["cursor"]
    for number in range(3):
        tag(admin, phone, str(number))
    send_once()
    hook.replay(begin)
    send_once()
    assert receiver.ids[3:] == receiver.ids[:3]
    assert [one.body for one in receiver.received[3:]] == [one.body for one in receiver.received[:3]]


@pytest.mark.django_db(transaction=True)
def test_a_replay_from_the_oldest_event_or_from_now(admin: Admin, phone: Phone, hook: Hook, receiver: Receiver) -> None:
    tag(admin, phone, "kiosk")
    hook.replay("now")
    send_once()
    assert receiver.received == []
    hook.replay("")
    send_once()
    assert receiver.ids == [event["id"] for event in events(admin)]


@pytest.mark.django_db(transaction=True)
def test_a_replay_from_a_later_place_skips_an_event_that_cannot_be_delivered(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    receiver.state.script = [status(400)]
    tag(admin, phone, "bad")
    send_once()
    later = admin.get("/admin/events?after=now").json["next_cursor"]
    tag(admin, phone, "good")
    hook.replay(later)
    send_once()
    assert [one.headers["webhook-id"] for one in receiver.received] == [event["id"] for event in events(admin)[-2:]]


@pytest.mark.django_db(transaction=True)
def test_the_place_of_a_replay_must_be_a_cursor_whose_events_are_kept(admin: Admin, phone: Phone, hook: Hook) -> None:
    path, cursor = f"{hook.path}/replay", hook.row["cursor"]
    assert admin.post(path, {"after": "no cursor"}).code == "invalid_request"
    assert admin.post(path, {}).code == "invalid_request"
    database.execute("UPDATE nexmdm_eventmark SET epoch = 'fedcba9876543210'")
    assert admin.post(path, {"after": cursor}).code == "cursor_expired"


@pytest.mark.django_db(transaction=True)
def test_a_webhook_whose_events_are_deleted_is_paused_and_a_replay_repairs_it(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    database.execute("UPDATE nexmdm_eventmark SET epoch = 'fedcba9876543210'")
    tag(admin, phone, "kiosk")
    send_once()
    row = hook.row
    assert (row["paused"], row["why"].partition(":")[0].partition(",")[0]) == (
        True,
        "Events after the webhook's cursor were deleted",
    )
    assert receiver.received == []
    hook.replay("now")
    hook.change(paused=False)
    tag(admin, phone, "till")
    send_once()
    assert receiver.types[-1] == "device.updated"


@pytest.mark.django_db(transaction=True)
def test_for_24_hours_after_a_rotation_both_secrets_sign(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    key = secrets.token_hex(16)
    rotated = admin.post(f"{hook.path}/rotate-secret", idempotency_key=key).json
    assert rotated.keys() == ROW | {"secret", "previous_secret_until"}
    assert rotated["secret"] != hook.secret
    again = admin.post(f"{hook.path}/rotate-secret", idempotency_key=key)
    assert (again.headers["idempotent-replayed"], again.json) == ("true", rotated)
    tag(admin, phone, "kiosk")
    send_once()
    (one,) = receiver.received
    assert len(one.headers["webhook-signature"].split(" ")) == 2
    assert one.verified(hook.secret) == one.verified(rotated["secret"])
    move_times(rotated_at=timedelta(hours=24, seconds=1))
    tag(admin, phone, "till")
    send_once()
    latest = receiver.received[-1]
    assert len(latest.headers["webhook-signature"].split(" ")) == 1
    assert latest.verified(rotated["secret"])


@pytest.mark.django_db(transaction=True)
def test_the_newest_two_secrets_sign_after_two_rotations(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver
) -> None:
    second, third = (admin.post(f"{hook.path}/rotate-secret").json["secret"] for _ in range(2))
    tag(admin, phone, "kiosk")
    send_once()
    (one,) = receiver.received
    assert one.verified(second) == one.verified(third)
    assert len(one.headers["webhook-signature"].split(" ")) == 2


@pytest.mark.django_db(transaction=True)
def test_a_secret_survives_a_change_of_secret_key_while_the_old_one_is_a_fallback(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, settings: Settings
) -> None:
    old = settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = secrets.token_urlsafe(48), [old]
    tag(admin, phone, "a")
    send_once()
    assert receiver.received[0].verified(hook.secret)
    settings.SECRET_KEY_FALLBACKS = []
    tag(admin, phone, "b")
    send_once()
    row = hook.row
    assert (row["paused"], row["why"].partition(" from ")[0]) == (True, "The webhook's secret was derived")
    renewed = admin.post(f"{hook.path}/rotate-secret").json["secret"]
    hook.change(paused=False)
    send_once()
    assert receiver.received[1].verified(renewed)


@pytest.mark.django_db(transaction=True)
def test_a_test_sends_one_event_and_its_answer_says_what_happened(hook: Hook, admin: Admin, receiver: Receiver) -> None:
    hook.change(paused=True)
    DispatcherSeen.objects.create(name="host:1", circuit="closed")
    with running_lane():
        tested = admin.post(f"{hook.path}/test").json
        receiver.state.always = status(418)
        failed = admin.post(f"{hook.path}/test").json
    assert receiver.types == ["webhook.test"] * 2
    assert receiver.ids == [tested["event_id"], failed["event_id"]]
    assert receiver.received[0].verified(hook.secret)["data"]["webhook_id"] == hook.id
    assert tested["attempt"] == hook.attempts[1]
    assert (tested["attempt"]["delivered"], tested["attempt"]["http_status"]) == (True, 204)
    assert (failed["attempt"]["delivered"], failed["attempt"]["http_status"]) == (False, 418)
    assert Webhook.objects.get().tries == 0


@pytest.mark.django_db(transaction=True)
def test_a_test_without_a_dispatcher_is_carried_out_later(hook: Hook, admin: Admin, receiver: Receiver) -> None:
    key = secrets.token_hex(16)
    asked = admin.post(f"{hook.path}/test", idempotency_key=key).json
    assert asked["attempt"] is None
    assert admin.post(f"{hook.path}/test").json["event_id"] == asked["event_id"]
    send_once()
    assert receiver.ids == [asked["event_id"]]
    repeated = admin.post(f"{hook.path}/test", idempotency_key=key)
    assert (repeated.headers["idempotent-replayed"], repeated.json["attempt"]["delivered"]) == ("true", True)
    send_once()
    assert len(receiver.received) == 1


@pytest.mark.django_db(transaction=True)
def test_attempts_are_listed_newest_first_by_pages(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, make_hook: Callable[..., Hook]
) -> None:
    make_hook()
    for number in range(3):
        tag(admin, phone, str(number))
    send_once()
    first = admin.get(f"{hook.path}/attempts?limit=2").json
    rest = admin.get(f"{hook.path}/attempts?cursor={first['next_cursor']}").json
    rows = [*first["items"], *rest["items"]]
    shown = [event["id"] for event in events(admin) if event["type"] == "device.updated"]
    assert [row["event_id"] for row in rows] == shown[::-1]
    assert rows[0].keys() == {"event_id", "type", "at", "delivered", "http_status", "error", "latency_ms"}
    assert attempts.KEPT == 1000


@pytest.mark.django_db
def test_writes_are_audited_without_the_url(admin: Admin) -> None:
    webhook_id = admin.post("/admin/webhooks", {"url": URL}).json["id"]
    path = f"/admin/webhooks/{webhook_id}"
    admin.call("PATCH", path, {"types": ["command.*"]})
    admin.post(f"{path}/rotate-secret")
    admin.post(f"{path}/replay", {"after": ""})
    admin.post(f"{path}/test")
    admin.call("DELETE", path)
    written = list(AuditEntry.objects.order_by("id").values_list("action", "target"))
    about = f"webhook_id: {webhook_id}"
    assert written == [
        ("create_webhook", "host: hooks.example.com"),
        ("change_webhook", about),
        ("rotate_webhook_secret", about),
        ("replay_webhook", about),
        ("test_webhook", about),
        ("delete_webhook", about),
    ]


@pytest.mark.django_db
def test_every_call_must_be_signed(admin: Admin) -> None:
    for method, path in (
        ("GET", "/admin/webhooks"),
        ("POST", "/admin/webhooks"),
        ("DELETE", f"/admin/webhooks/{ID}"),
    ):
        assert admin.client.request(method, path).code == "invalid_signature"
