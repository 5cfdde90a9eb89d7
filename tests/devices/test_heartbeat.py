"""The heartbeat: a phone's status is stored, and the phone gets its open commands."""

import hmac
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from commands import envelope
from commands.models import Delivery, Report
from devices import credentials, tokens
from devices.models import Device, Presence
from nexmdm.common.postgresql import direct
from nexmdm.common.postgresql.connection import Connection
from tests.support.actors import Admin, Answer, Client, Phone, fcm_calls_dead
from tests.support.moments import in_batches, in_one_batch, in_parallel, let_pass, one_after_the_other


def presence_of(phone: Phone) -> Presence:
    return Presence.objects.get(device_id=phone.device_id)


def offered(answer: Answer) -> list[str]:
    return [command["request_id"] for command in answer.json["commands"]]


def issue(admin: Admin, phone: Phone, count: int = 1) -> list[str]:
    return [str(admin.command(to=phone).json["request_id"]) for _ in range(count)]


def test_an_empty_object_is_a_heartbeat(phone: Phone) -> None:
    answer = phone.heartbeat()
    assert (answer.status, set(answer.json)) == (
        200,
        {"server_time", "next_heartbeat_seconds", "commands", "has_more"},
    )
    assert (answer.json["commands"], answer.json["has_more"]) == ([], False)
    seen = presence_of(phone).last_seen_at
    assert seen is not None
    assert datetime.fromisoformat(answer.json["server_time"]) == seen


def test_a_heartbeat_updates_when_the_device_was_last_seen(phone: Phone) -> None:
    phone.heartbeat()
    let_pass(hours=1)
    before = presence_of(phone).last_seen_at
    phone.heartbeat()
    seen = presence_of(phone).last_seen_at
    assert before is not None
    assert seen is not None
    assert seen - before == timedelta(hours=1)


def test_when_a_device_was_last_seen_never_moves_back(phone: Phone) -> None:
    later = timezone.now() + timedelta(hours=1)
    Presence.objects.update(last_seen_at=later)
    assert phone.heartbeat(status={"battery_pct": 1}).status == 200
    assert (presence_of(phone).last_seen_at, presence_of(phone).last_status) == (later, {"battery_pct": 1})


def test_the_same_heartbeat_again_changes_nothing_twice(phone: Phone) -> None:
    content: dict[str, Any] = {"status": {"battery_pct": 50}, "push_token": "fcm-1", "agent_version": "2"}
    phone.heartbeat(**content)
    before = Device.objects.values().get(), presence_of(phone).last_status
    phone.heartbeat(**content)
    assert (Device.objects.values().get(), presence_of(phone).last_status) == before
    assert (Device.objects.count(), Presence.objects.count()) == (1, 1)


def test_a_field_that_is_not_sent_keeps_its_value(phone: Phone) -> None:
    phone.heartbeat(status={"battery_pct": 83}, push_token="fcm-1", agent_version="2.1")
    phone.heartbeat()
    presence = presence_of(phone)
    assert (presence.last_status, presence.agent_version) == ({"battery_pct": 83}, "2.1")
    assert Device.objects.get().push_token == "fcm-1"


def test_the_status_is_replaced_whole(phone: Phone) -> None:
    phone.heartbeat(status={"battery_pct": 83, "charging": True, "site": "north"})
    phone.heartbeat(status={"battery_pct": 82})
    assert presence_of(phone).last_status == {"battery_pct": 82}
    phone.heartbeat(status={})
    assert presence_of(phone).last_status == {}


def test_typed_fields_and_others_are_stored_as_sent(phone: Phone) -> None:
    status = {
        "battery_pct": 0,
        "charging": False,
        "network": "none",
        "uptime_seconds": 2**63 - 1,
        "free_storage_mb": 0,
        "foreground_app": "ä" * 256,
        "site": {"floors": [1, 2.5, None, "✓"]},
        "model_dump": 1,
        "": -(2**63),
    }
    assert phone.heartbeat(status=status).status == 200
    assert presence_of(phone).last_status == status


def test_a_field_that_a_newer_agent_sends_is_ignored(phone: Phone) -> None:
    assert phone.heartbeat(satellites=[{"id": 1}], last_seen_at="2000-01-01T00:00:00Z", revoked_at=None).status == 200
    assert presence_of(phone).last_seen_at is not None


def nested(depth: int, core: str = "1") -> bytes:
    """A status whose innermost object is at this depth (the status itself is at 1)."""
    return ('{"status":' + '{"a":' * depth + core + "}" * depth + "}").encode()


@pytest.mark.parametrize(
    "body",
    [
        b" ",
        b"{",
        b"{} {}",
        b"{'status': {}}",
        b'{"status": {"a": NaN}}',
        b'{"status": {"a": Infinity}}',
        b'{"status": {"a": -Infinity}}',
        b'{"status": {"a": NaN, "b": 1234567890123456789}}',
        b'{"status": {"a": NaN, "b": "\\ud800"}}',
        b'{"status": {"a": 01}}',
        b'{"status": {"a": "\n"}}',
        b'{"status": {"a": "\xff"}}',
        b'{"status": {"a": "\xed\xa0\x80"}}',
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        '{"status": {}}'.encode("utf-16"),
        b'{"status": ' + b"[" * 30_000,
        b'{"status": ' + b"[" * 30_000 + b'"\\' * 15_000,
        nested(2000)[:-1],
    ],
)
def test_a_body_that_is_not_json_is_400(phone: Phone, body: bytes) -> None:
    answer = phone.send("/v1/heartbeat", body)
    assert (answer.status, answer.code) == (400, "invalid_json")
    assert presence_of(phone).last_seen_at is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"true",
        b"1",
        b'"status"',
        b'[{"status": {}}]',
        b'"\\ud800"',
        b"[" * 30_000 + b"]" * 30_000,
    ],
)
def test_a_body_that_is_not_an_object_is_422(phone: Phone, body: bytes) -> None:
    answer = phone.send("/v1/heartbeat", body)
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert answer.json["errors"][0]["loc"] == ["body"]
    assert presence_of(phone).last_seen_at is None


@pytest.mark.parametrize("body", [nested(16), b'{"status": {"a": [9.2e18, -9.2e18, 5e-324, 0.1]}}'])
def test_values_at_the_limits_are_stored(phone: Phone, body: bytes) -> None:
    assert phone.send("/v1/heartbeat", body).status == 200
    assert presence_of(phone).last_status == json.loads(body)["status"]


def test_no_status_keeps_an_admin_from_revoking_the_device(admin: Admin, phone: Phone) -> None:
    phone.send("/v1/heartbeat", b'{"status": {"a": 1e19}}')
    phone.send("/v1/heartbeat", nested(16, "9223372036854775807"))
    phone.heartbeat(status={"a": [9.2e18, 5e-324, -(2**63)], "status": "revoked"})
    assert admin.post(f"/admin/devices/{phone.device_id}/revoke").status == 200
    assert admin.get(f"/admin/devices/{phone.device_id}").json["last_status"]["status"] == "revoked"


@pytest.mark.parametrize("text", ["x" * 8184, "é" * 4092])
def test_a_status_may_take_eight_kibibytes_of_json(phone: Phone, text: str) -> None:
    assert "warnings" not in phone.heartbeat(status={"a": text}).json
    assert presence_of(phone).last_status == {"a": text}


def test_the_last_value_of_a_repeated_key_counts(phone: Phone) -> None:
    assert phone.send("/v1/heartbeat", b'{"status": {"a": 1, "a": 2}, "status": {"a": 3}}').status == 200
    assert presence_of(phone).last_status == {"a": 3}


ROUTES = {
    "/v1/heartbeat": {},
    "/v1/action-result": {"request_id": "0192f0c1-b000-7abc-8def-0123456789ab", "status": "received"},
    "/v1/token/rotate": None,
}


@pytest.mark.parametrize("target", ROUTES)
def test_an_unknown_device_and_a_wrong_token_are_answered_alike(phone: Phone, target: str) -> None:
    wrong = tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text
    unknown = tokens.make(tokens.DEVICE_PREFIX, UUID(int=7), bytes(32)).text
    answers = [phone.send(target, ROUTES[target], token) for token in (wrong, unknown)]
    assert [(answer.status, answer.code) for answer in answers] == [(401, "invalid_token")] * 2
    assert answers[0].body == answers[1].body
    assert answers[0].headers["www-authenticate"] == answers[1].headers["www-authenticate"] == "Bearer"
    assert presence_of(phone).last_seen_at is None


@pytest.mark.parametrize("target", ROUTES)
def test_an_enrollment_token_is_no_device_token(admin: Admin, client: Client, target: str) -> None:
    text = admin.enrollment_token()
    answer = client.request("POST", target, ROUTES[target], {"Authorization": f"Bearer {text}"})
    assert (answer.status, answer.code) == (401, "invalid_token")


@pytest.mark.parametrize("target", ROUTES)
def test_a_revoked_device_gets_device_revoked_until_it_is_reinstated(admin: Admin, phone: Phone, target: str) -> None:
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    refused = phone.send(target, ROUTES[target])
    assert (refused.status, refused.code) == (403, "device_revoked")
    assert presence_of(phone).last_seen_at is None
    admin.post(f"/admin/devices/{phone.device_id}/reinstate")
    assert phone.heartbeat().status == 200


@pytest.mark.parametrize("target", ROUTES)
def test_a_wrong_token_for_a_revoked_device_gets_the_ordinary_401(admin: Admin, phone: Phone, target: str) -> None:
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    wrong = tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text
    assert phone.send(target, ROUTES[target], wrong).code == "invalid_token"


def test_the_first_use_of_a_token_is_stored_once(phone: Phone) -> None:
    assert Device.objects.get().token_used_at is None
    phone.heartbeat()
    used = Device.objects.get().token_used_at
    let_pass(hours=1)
    phone.heartbeat()
    again = Device.objects.get().token_used_at
    assert used is not None
    assert again == used - timedelta(hours=1)


def test_a_push_token_has_one_owner(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2", push_token="fcm-1")
    assert phone.heartbeat(push_token="fcm-1").status == 200
    assert dict(Device.objects.values_list("hardware_id", "push_token")) == {"phone-1": "fcm-1", "phone-2": None}
    assert other.heartbeat(push_token="fcm-2").status == 200
    assert dict(Device.objects.values_list("hardware_id", "push_token")) == {"phone-1": "fcm-1", "phone-2": "fcm-2"}


def test_a_null_push_token_deletes_it(admin: Admin, phone: Phone) -> None:
    phone.heartbeat(push_token="fcm-1")
    issue(admin, phone)
    assert Delivery.objects.get().push_state == "waiting"
    assert phone.heartbeat(push_token=None).status == 200
    delivery = Delivery.objects.get()
    assert (Device.objects.get().push_token, Device.objects.get().push_token_dead_at) == (None, None)
    assert (delivery.state, delivery.push_state, delivery.next_attempt_at) == ("pending", "no_push_token", None)


def test_a_dead_push_token_stays_dead_when_it_is_sent_again(admin: Admin, phone: Phone) -> None:
    phone.heartbeat(push_token="fcm-1")
    fcm_calls_dead("fcm-1")
    died = Device.objects.get().push_token_dead_at
    assert phone.heartbeat(push_token="fcm-1").status == 200
    assert (Device.objects.get().push_token, Device.objects.get().push_token_dead_at) == ("fcm-1", died)
    issue(admin, phone)
    assert Delivery.objects.get().push_state == "no_push_token"


def test_a_dead_push_token_stays_dead_on_another_device(admin: Admin, phone: Phone) -> None:
    admin.enrol("phone-2", push_token="fcm-1")
    fcm_calls_dead("fcm-1")
    phone.heartbeat(push_token="fcm-1")
    device = Device.objects.get(hardware_id="phone-1")
    assert (device.push_token, device.push_token_dead_at is None) == ("fcm-1", False)


@pytest.mark.parametrize("meanwhile", [None, "fcm-2"])
def test_a_dead_push_token_stays_dead_after_it_was_replaced(admin: Admin, phone: Phone, meanwhile: str | None) -> None:
    phone.heartbeat(push_token="fcm-1")
    fcm_calls_dead("fcm-1")
    phone.heartbeat(push_token=meanwhile)
    phone.heartbeat(push_token="fcm-1")
    assert Device.objects.get().push_token_dead_at is not None
    assert admin.command(to=phone).json["push"] == {"queued": 0, "no_push_token": 1}


def test_a_different_push_token_ends_the_state_dead(admin: Admin, phone: Phone) -> None:
    phone.heartbeat(push_token="fcm-1")
    fcm_calls_dead("fcm-1")
    phone.heartbeat(push_token="fcm-2")
    assert (Device.objects.get().push_token, Device.objects.get().push_token_dead_at) == ("fcm-2", None)
    assert admin.command(to=phone).json["push"] == {"queued": 1, "no_push_token": 0}


@pytest.mark.parametrize("push_state", ["no_push_token", "undeliverable", "retrying"])
def test_a_different_push_token_makes_open_deliveries_due(admin: Admin, phone: Phone, push_state: str) -> None:
    phone.heartbeat(push_token="fcm-1")
    issue(admin, phone)
    Delivery.objects.update(push_state=push_state, next_attempt_at=None, attempt_count=1, failure_count=3)
    phone.heartbeat(push_token="fcm-2")
    delivery = Delivery.objects.get()
    assert (delivery.push_state, delivery.failure_count) == ("waiting", 0)
    assert delivery.next_attempt_at is not None


def test_a_command_that_the_phone_has_reported_on_is_not_pushed_again(admin: Admin, phone: Phone) -> None:
    (request_id,) = issue(admin, phone)
    phone.report(request_id, "received")
    phone.heartbeat(push_token="fcm-2")
    assert Delivery.objects.get().next_attempt_at is None


@pytest.mark.django_db(transaction=True)
def test_phones_that_swap_their_push_tokens_at_the_same_time_leave_each_with_one_owner(admin: Admin) -> None:
    left, right = admin.enrol("phone-1", push_token="fcm-1"), admin.enrol("phone-2", push_token="fcm-2")
    left.client, right.client = Client(), Client()
    calls = [partial(left.heartbeat, push_token="fcm-2"), partial(right.heartbeat, push_token="fcm-1")]
    answers = in_parallel(calls, all_wait_for="devices_device")
    assert [answer.status for answer in answers] == [200, 200]
    owned = [token for token in Device.objects.values_list("push_token", flat=True) if token is not None]
    assert len(owned) == len(set(owned))


@pytest.mark.parametrize(
    ("interval", "least", "most"), [(120, 108, 132), (7, 7, 7), (16, 15, 17), (86_400, 77_760, 95_040)]
)
def test_the_next_heartbeat_is_due_within_a_tenth_of_the_interval(
    phone: Phone, settings: Settings, interval: int, least: int, most: int
) -> None:
    settings.HEARTBEAT_INTERVAL_SECONDS = interval
    due = [phone.heartbeat().json["next_heartbeat_seconds"] for _ in range(60)]
    assert {type(seconds) for seconds in due} == {int}
    assert (min(due) >= least, max(due) <= most) == (True, True)
    assert len(set(due)) > 1 or least == most


def test_an_envelope_has_six_strings(admin: Admin, phone: Phone) -> None:
    issued = admin.command("launch_app", to=phone, params={"package": "com.example.café"}, expires_in_seconds=90).json
    (command,) = phone.heartbeat().json["commands"]
    assert list(command) == ["request_id", "action", "params", "issued_at", "expires_at", "signature"]
    assert {type(value) for value in command.values()} == {str}
    assert (command["request_id"], command["action"]) == (issued["request_id"], "launch_app")
    assert (command["issued_at"], command["expires_at"]) == (issued["issued_at"], issued["expires_at"])
    assert json.loads(command["params"]) == {"package": "com.example.café"}


def test_the_times_of_an_envelope_are_whole_seconds_and_the_later_is_rounded_up(admin: Admin, phone: Phone) -> None:
    admin.command(to=phone, expires_in_seconds=90)
    (command,) = phone.heartbeat().json["commands"]
    issued_at, expires_at = (datetime.strptime(command[name], "%Y-%m-%dT%H:%M:%S%z") for name in list(command)[3:5])
    delivery = Delivery.objects.select_related("command").get()
    assert (delivery.command.issued_at, delivery.command.expires_at) == (issued_at, expires_at)
    assert timedelta(seconds=90) <= expires_at - issued_at <= timedelta(seconds=91)


def test_the_phone_can_verify_an_envelope_with_its_command_key(admin: Admin, phone: Phone) -> None:
    issue(admin, phone)
    (command,) = phone.heartbeat().json["commands"]
    sealed = "\n".join(
        ["NXC1", phone.device_id]
        + [command[name] for name in ("request_id", "action", "params", "issued_at", "expires_at")]
    )
    assert command["signature"] == hmac.digest(phone.command_key.encode(), sealed.encode(), "sha256").hex()


def test_command_key_and_signature_are_those_of_the_vector(settings: Settings) -> None:
    settings.COMMAND_SIGNING_KEYS = ["nxk_test_c2lnbmluZy1tYXN0ZXIta2V5LWRvLW5vdC11c2U"]
    device_id, (key_id,) = UUID("0192f0c1-a2b3-7d4e-8f90-a1b2c3d4e5f6"), credentials.command_key_ids()
    content = envelope.Content(
        UUID("0192f0c1-b000-7abc-8def-0123456789ab"),
        "launch_app",
        '{"package":"com.example.app"}',
        datetime(2026, 1, 1, 0, 0, tzinfo=UTC),
        datetime(2026, 1, 1, 0, 10, tzinfo=UTC),
    )
    key = credentials.command_key(device_id, 1, key_id)
    assert key == "dc9436fa48f9627fb9b60096bf7e5807aba27f180d7cb012361ece39a553f8f9"
    signature = envelope.seal(content, envelope.Recipient(str(device_id), 1, key_id))["signature"]
    assert signature == "7d9a3990e02731fe0114f3f4ca17f658be5b955b89fc82bd90e8778d8721f11e"


def test_each_device_is_offered_its_own_commands_only(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    mine, others = issue(admin, phone), issue(admin, other)
    both = str(admin.command(to=[phone, other]).json["request_id"])
    assert offered(phone.heartbeat()) == [*mine, both]
    assert offered(other.heartbeat()) == [*others, both]


@pytest.mark.parametrize("status", ["received", "running", "deferred"])
def test_a_command_is_offered_until_its_final_report(admin: Admin, phone: Phone, status: str) -> None:
    (request_id,) = issue(admin, phone)
    assert offered(phone.heartbeat()) == offered(phone.heartbeat()) == [request_id]
    phone.report(request_id, status)
    assert offered(phone.heartbeat()) == [request_id]
    phone.report(request_id, "failed")
    assert offered(phone.heartbeat()) == []


def test_a_command_is_the_same_text_whenever_it_is_offered(admin: Admin, phone: Phone) -> None:
    issue(admin, phone)
    assert phone.heartbeat().json["commands"] == phone.heartbeat().json["commands"]


def test_a_command_is_not_offered_after_its_time(admin: Admin, phone: Phone) -> None:
    issue(admin, phone)
    let_pass(seconds=602)
    assert offered(phone.heartbeat()) == []
    assert Delivery.objects.get().state == "pending"


def test_a_command_that_runs_is_offered_an_hour_longer(admin: Admin, phone: Phone) -> None:
    running, deferred = issue(admin, phone, 2)
    phone.report(running, "running")
    phone.report(deferred, "deferred")
    let_pass(minutes=69)
    assert offered(phone.heartbeat()) == [running]
    let_pass(minutes=2)
    assert offered(phone.heartbeat()) == []


def test_a_cancelled_command_is_not_offered(admin: Admin, phone: Phone) -> None:
    (request_id,) = issue(admin, phone)
    admin.post(f"/admin/commands/{request_id}/cancel")
    assert offered(phone.heartbeat()) == []


def test_pending_commands_come_oldest_first_then_reported_commands_longest_silent_first(
    admin: Admin, phone: Phone
) -> None:
    first, second, third, fourth, fifth = issue(admin, phone, 5)
    phone.report(second, "received")
    phone.report(first, "deferred")
    phone.report(fourth, "running")
    assert offered(phone.heartbeat()) == [third, fifth, second, first, fourth]
    phone.report(second, "running")
    assert offered(phone.heartbeat()) == [third, fifth, first, fourth, second]


def test_twenty_commands_fit_and_has_more_is_true_for_further_pending_ones(admin: Admin, phone: Phone) -> None:
    ids = issue(admin, phone, 22)
    answer = phone.heartbeat()
    assert (offered(answer), answer.json["has_more"]) == (ids[:20], True)
    phone.report(ids[0], "received")
    phone.report(ids[1], "received")
    answer = phone.heartbeat()
    assert (offered(answer), answer.json["has_more"]) == (ids[2:], False)


def test_has_more_is_false_for_further_reported_ones(admin: Admin, phone: Phone) -> None:
    ids = issue(admin, phone, 21)
    for request_id in ids:
        phone.report(request_id, "received")
    answer = phone.heartbeat()
    assert (offered(answer), answer.json["has_more"]) == (ids[:20], False)


def test_heartbeats_that_share_a_flush_each_get_their_own_answer(admin: Admin) -> None:
    phones = [admin.enrol(f"phone-{number}") for number in range(4)]
    ids = [issue(admin, phone) for phone in phones]
    calls = [(phone.device_token, {"status": {"battery_pct": at}}) for at, phone in enumerate(phones)]
    answers = in_one_batch(*calls)
    assert [offered(answer) for answer in answers] == ids
    assert [presence_of(phone).last_status for phone in phones] == [{"battery_pct": at} for at in range(4)]


def test_two_heartbeats_of_one_device_in_a_flush_merge_field_by_field(admin: Admin, phone: Phone) -> None:
    ids = issue(admin, phone)
    answers = in_one_batch(
        (phone.device_token, {"status": {"battery_pct": 9, "site": "n"}, "agent_version": "2"}),
        (phone.device_token, {"status": {"battery_pct": 8}}),
    )
    assert [offered(answer) for answer in answers] == [ids, ids]
    presence = presence_of(phone)
    assert (presence.last_status, presence.agent_version) == ({"battery_pct": 8}, "2")


@pytest.mark.parametrize("others_send", [[{}], [{}, {"agent_version": "2"}], [{"push_token": "fcm-0"}]])
def test_a_push_token_is_stored_from_any_heartbeat_of_a_flush(phone: Phone, others_send: list[dict[str, Any]]) -> None:
    before, after = others_send[:1], others_send[1:] or [{}]
    calls = [(phone.device_token, said) for said in (*before, {"push_token": "fcm-1"}, *after)]
    assert [answer.status for answer in in_one_batch(*calls)] == [200] * len(calls)
    assert Device.objects.get().push_token == "fcm-1"


def test_a_bad_token_in_a_flush_does_not_disturb_the_good_ones(admin: Admin, phone: Phone) -> None:
    revoked, other = admin.enrol("phone-2"), admin.enrol("phone-3")
    admin.post(f"/admin/devices/{revoked.device_id}/revoke")
    wrong = tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text
    unknown = tokens.make(tokens.DEVICE_PREFIX, UUID(int=7), bytes(32)).text
    said = {"agent_version": "9"}
    texts = [wrong, phone.device_token, unknown, revoked.device_token, other.device_token]
    answers = in_one_batch(*((text, said) for text in texts))
    assert [answer.code for answer in answers] == ["invalid_token", None, "invalid_token", "device_revoked", None]
    assert {presence_of(one).agent_version for one in (phone, other)} == {"9"}
    assert presence_of(revoked).last_seen_at is None


def test_wrong_tokens_for_a_device_in_a_flush_do_not_change_what_it_is_offered(admin: Admin, phone: Phone) -> None:
    ids = issue(admin, phone, 11)
    wrong = [tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes([number] * 32)).text for number in range(3)]
    answers = in_one_batch(*((text, {}) for text in (*wrong, phone.device_token)))
    assert [answer.status for answer in answers] == [401, 401, 401, 200]
    assert (offered(answers[-1]), answers[-1].json["has_more"]) == (ids, False)


def test_a_rotated_token_in_a_flush_does_not_disturb_the_others(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    rotated = phone.rotate().json["device_token"]
    answers = in_one_batch((other.device_token, {}), (rotated, {"agent_version": "3"}), (other.device_token, {}))
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert presence_of(phone).agent_version == "3"


@pytest.mark.django_db(transaction=True)
def test_the_heartbeats_of_several_processes_do_not_hinder_each_other(admin: Admin) -> None:
    phones = [admin.enrol(f"phone-{number}") for number in range(6)]
    said = [(phone.device_token, {"status": {"battery_pct": 7}}) for phone in phones]

    def process(calls: list[tuple[str, dict[str, Any]]]) -> Callable[[], Answer]:
        return lambda: max(in_one_batch(*calls), key=lambda answer: answer.status)

    calls = [process(said), process(said[::-1]), process(said[3:] + said[:3])]
    worst = in_parallel(calls, all_wait_for="devices_presence")
    assert [answer.status for answer in worst] == [200, 200, 200]
    assert (Presence.objects.filter(last_status={"battery_pct": 7}).count(), Presence.objects.count()) == (6, 6)


@pytest.mark.django_db(transaction=True)
def test_a_heartbeat_that_the_database_refuses_fails_alone(admin: Admin, poisoned_presence: None) -> None:
    phones = [admin.enrol(f"phone-{number}") for number in range(3)]
    said = [{"agent_version": "1"}, {"agent_version": "poison"}, {"agent_version": "1"}]
    answers = in_one_batch(*((phone.device_token, body) for phone, body in zip(phones, said, strict=True)))
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert [presence_of(phone).agent_version for phone in phones] == ["1", "", "1"]


@pytest.mark.django_db(transaction=True)
def test_a_heartbeat_with_a_new_push_token_does_not_override_a_later_one(phone: Phone) -> None:
    first = (phone.device_token, {"push_token": "fcm-1", "agent_version": "1"})
    second = (phone.device_token, {"agent_version": "2"})
    answers = one_after_the_other(first, second)
    assert [answer.status for answer in answers] == [200, 200]
    assert (presence_of(phone).agent_version, Device.objects.get().push_token) == ("2", "fcm-1")


@pytest.mark.django_db(transaction=True)
def test_a_kept_connection_that_was_cut_loses_no_heartbeat(admin: Admin) -> None:
    phones = [admin.enrol(f"phone-{number}") for number in range(3)]
    beats: list[tuple[str, Any]] = [(phone.device_token, {}) for phone in phones]
    with Connection.connect(**direct.parameters(), autocommit=True) as other:

        def cut() -> None:
            kept = connection.connection
            assert kept is not None, "where one batch follows another, more are expected"
            other.execute("SELECT pg_terminate_backend(%s)", [kept.info.backend_pid])

        batches = in_batches([beats, beats, beats], before_the_last=cut)
    assert [answer.status for answer in batches[-1]] == [200, 200, 200]


@pytest.fixture
def poisoned_presence(transactional_db: None) -> Iterator[None]:
    """Make PostgreSQL refuse one agent version as bad data; it could refuse any unforeseen value in this way."""
    with connection.cursor() as cursor:
        cursor.execute("""
            CREATE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.agent_version = 'poison' THEN RAISE 'bad data' USING ERRCODE = 'data_exception'; END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER poison BEFORE UPDATE ON devices_presence FOR EACH ROW EXECUTE FUNCTION refuse_poison();
        """)
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION refuse_poison CASCADE")


def test_a_heartbeat_adds_no_row(admin: Admin, phone: Phone) -> None:
    issue(admin, phone)

    def counts() -> list[int]:
        with connection.cursor() as cursor:
            names = sorted(name for name in connection.introspection.table_names(cursor) if name != "django_migrations")
            cursor.execute(" UNION ALL ".join(f'SELECT count(*) FROM "{name}"' for name in names))  # noqa: S608
            return [count for (count,) in cursor.fetchall()]

    phone.heartbeat(status={"a": 1}, push_token="fcm-1", agent_version="2")
    before = counts()
    for _ in range(3):
        phone.heartbeat(status={"a": 1}, push_token="fcm-1", agent_version="2")
    assert counts() == before
    assert Report.objects.count() == 0
