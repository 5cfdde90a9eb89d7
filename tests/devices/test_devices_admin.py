"""Devices as an admin reads and changes them, and the audit of these changes."""

from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final
from unittest.mock import Mock
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from commands.models import Attempt, AttemptOutcome, Delivery
from devices.models import Device, EnrollmentToken, Presence
from nexmdm.models import AuditEntry
from tests.support import tampering
from tests.support.actors import Admin, Answer, Client, Phone, encode
from tests.support.moments import let_pass

DEVICE_KEYS: Final = {
    "device_id", "hardware_id", "alias", "tags", "manufacturer", "model", "os_version", "agent_version", "presence",
    "last_seen_at", "offline_since", "last_status", "push", "enrolled_at", "revoked_at", "retired_at", "last_refusal",
}  # fmt: skip
TOKEN_KEYS: Final = {
    "id", "label", "max_uses", "uses", "tags", "re_enroll", "expires_at", "revoked_at", "created_at",
}  # fmt: skip
UNKNOWN_ID: Final = "6f1d2c3b-4a59-4e68-9c7d-8b0a1f2e3d4c"


def found(admin: Admin, query: str) -> list[str]:
    """The hardware ids of the devices that a list shows."""
    answer = admin.get(f"/admin/devices?{query}")
    assert answer.status == 200, answer.body
    return [item["hardware_id"] for item in answer.json["items"]]


def device(admin: Admin, phone: Phone) -> dict[str, Any]:
    answer: dict[str, Any] = admin.get(f"/admin/devices/{phone.device_id}").json
    return answer


def test_a_device_is_shown_with_its_own_data_and_without_secrets(admin: Admin) -> None:
    details = {"manufacturer": "Acme", "model": "One", "os_version": "15", "agent_version": "1.2"}
    phone = admin.enrol("phone-1", alias="lobby", push_token="token-1", **details)
    phone.heartbeat(status={"battery_pct": 83, "custom": [1]})
    shown = device(admin, phone)
    assert set(shown) == DEVICE_KEYS
    assert details.items() <= shown.items()
    assert (shown["alias"], shown["presence"], shown["push"]) == ("lobby", "online", "ok")
    assert shown["last_status"] == {"battery_pct": 83, "custom": [1]}
    assert shown["revoked_at"] is None
    assert admin.get("/admin/devices").json == {"items": [shown], "next_cursor": None}


@pytest.mark.parametrize("device_id", [UNKNOWN_ID, "phone-1", UNKNOWN_ID.replace("-", ""), UNKNOWN_ID.upper(), "%00"])
def test_an_unknown_device_is_not_found(admin: Admin, device_id: str) -> None:
    for method, suffix in (("GET", ""), ("PATCH", ""), ("POST", "/revoke"), ("POST", "/reinstate")):
        answer = admin.call(method, f"/admin/devices/{device_id}{suffix}", {} if method == "PATCH" else None)
        assert (answer.status, answer.code) == (404, "not_found")


def test_devices_are_listed_by_presence(admin: Admin) -> None:
    online, offline, _, revoked = [admin.enrol(name) for name in ("online", "offline", "never", "revoked")]
    offline.heartbeat()
    revoked.heartbeat()
    let_pass(seconds=django_settings.HEARTBEAT_INTERVAL_SECONDS * 2.5 + 1)
    online.heartbeat()
    admin.post(f"/admin/devices/{revoked.device_id}/revoke")
    assert [found(admin, f"status={presence}") for presence in ("online", "offline", "never")] == [
        ["online"], ["offline"], ["never"],
    ]  # fmt: skip
    shown = [device(admin, phone)["presence"] for phone in (online, offline, revoked)]
    assert shown == ["online", "offline", "revoked"]
    assert [row["presence"] for row in admin.get("/admin/devices").json["items"]] == [
        "revoked", "never", "offline", "online",
    ]  # fmt: skip


def test_a_device_is_online_while_its_heartbeat_is_younger_than_two_and_a_half_intervals(
    admin: Admin, phone: Phone
) -> None:
    phone.heartbeat()
    let_pass(seconds=django_settings.HEARTBEAT_INTERVAL_SECONDS * 2.5 - 5)
    assert (device(admin, phone)["presence"], found(admin, "status=online")) == ("online", ["phone-1"])
    let_pass(seconds=5)
    assert (device(admin, phone)["presence"], found(admin, "status=offline")) == ("offline", ["phone-1"])


def test_devices_are_listed_by_tag_and_by_push(admin: Admin) -> None:
    tagged, dead, none = admin.enrol("tagged", push_token="a"), admin.enrol("dead", push_token="b"), admin.enrol("bare")
    Device.objects.filter(push_token="b").update(push_token_dead_at=Now())
    admin.post("/admin/tags/floor-2", {"add": [tagged.device_id, none.device_id]})
    assert found(admin, "tag=floor-2") == ["bare", "tagged"]
    assert found(admin, "tag=floor") == []
    assert [found(admin, f"push={push}") for push in ("ok", "dead", "none")] == [["tagged"], ["dead"], ["bare"]]
    assert found(admin, "tag=floor-2&push=ok") == ["tagged"]
    assert device(admin, dead)["push"] == "dead"


def search(admin: Admin, text: str) -> list[str]:
    """The hardware ids of the devices that a search finds."""
    return found(admin, urlencode({"q": text}))


@pytest.mark.parametrize("keyed", [True, False])
def test_devices_are_found_by_part_of_alias_or_hardware_id_in_any_case(admin: Admin, keyed: bool) -> None:
    admin.enrol("SN-100", alias="Front_Desk")
    admin.enrol("SN-200", alias="front-gate É1")
    if not keyed:
        Device.objects.update(alias_key=None, hardware_key=None)  # as the version before writes them
    assert search(admin, "FRONT") == ["SN-200", "SN-100"]
    assert search(admin, "t_d") == search(admin, "DESK") == search(admin, "Front_Desk") == ["SN-100"]
    assert search(admin, "n-2") == search(admin, "gate é") == search(admin, "e É") == ["SN-200"]
    assert search(admin, "desk SN") == []


def test_a_search_finds_a_letter_in_each_way_of_composing_it(admin: Admin) -> None:
    admin.enrol("SN-100", alias="Caf\u00e9")
    assert search(admin, "CAFE\u0301") == ["SN-100"]


def test_devices_are_found_by_their_id_or_its_start_with_hyphens_or_without(admin: Admin) -> None:
    one, other = admin.enrol("SN-100"), admin.enrol("SN-200")
    device_id = one.device_id
    common = next(number for number in range(36) if device_id[number] != other.device_id[number])
    for text in (device_id, device_id[:-1], device_id[: common + 1], device_id.upper(), device_id.replace("-", "")):
        assert search(admin, text) == ["SN-100"]
    for text in (device_id[:4], device_id[:9], device_id[:9].replace("-", "")):
        assert search(admin, text) == ["SN-200", "SN-100"]
    for text in (device_id[1:], device_id[-12:], f"{device_id}0", f"{device_id[:3]}-", device_id.replace("-", "--")):
        assert search(admin, text) == []


@pytest.mark.parametrize("sign", ["%", "_", "\\", "'", '"', "*", "."])
def test_no_character_has_a_special_meaning_in_a_search(admin: Admin, sign: str) -> None:
    admin.enrol("SN-100", alias=f"a{sign}b")
    admin.enrol("SN-200", alias="axb")
    for text in (sign, f"a{sign}b", f"A{sign}"):
        assert search(admin, text) == ["SN-100"]


def test_a_search_combines_with_other_filters_and_applies_to_all_pages(admin: Admin) -> None:
    for number in range(3):
        admin.enrol(f"SN-{number}", alias=f"Till {number}")
    admin.enrol("SN-3", push_token="fcm-1", alias="till 3")
    first = admin.get("/admin/devices?q=TILL&push=none&limit=2").json
    second = admin.get(f"/admin/devices?q=TILL&push=none&limit=2&cursor={first['next_cursor']}").json
    assert [item["alias"] for page in (first, second) for item in page["items"]] == ["Till 2", "Till 1", "Till 0"]


def test_a_search_reads_the_devices_once_and_nothing_else(admin: Admin) -> None:
    admin.enrol_fleet(3)
    with CaptureQueriesContext(connection) as queries:
        search(admin, "phone")
    assert len([query for query in queries if "devices_device" in query["sql"]]) == 1


def test_devices_come_in_stable_pages(admin: Admin) -> None:
    for number in range(3):
        admin.enrol(f"phone-{number}")
    first = admin.get("/admin/devices?limit=2").json
    admin.enrol("phone-3")
    second = admin.get(f"/admin/devices?limit=2&cursor={first['next_cursor']}").json
    names = [item["hardware_id"] for page in (first, second) for item in page["items"]]
    assert (names, second["next_cursor"]) == (["phone-2", "phone-1", "phone-0"], None)


@pytest.mark.parametrize(
    "query", ["status=lost", "push=yes", "tag=a%20b", "q=", "q=%00", f"q={'x' * 129}", "limit=501", "sort=alias"]
)
def test_a_device_list_refuses_unknown_parameters(admin: Admin, query: str) -> None:
    answer = admin.get(f"/admin/devices?{query}")
    assert (answer.status, answer.code) == (422, "invalid_request")


def change(admin: Admin, phone: Phone, body: Any) -> Answer:
    return admin.call("PATCH", f"/admin/devices/{phone.device_id}", body)


def test_an_alias_is_set_and_null_deletes_it(admin: Admin, phone: Phone) -> None:
    assert change(admin, phone, {"alias": "lobby"}).json["alias"] == "lobby"
    assert change(admin, phone, {"tags": []}).json["alias"] == "lobby"
    answer = change(admin, phone, {"alias": None})
    assert (answer.json, answer.json["alias"]) == (device(admin, phone), None)
    assert Device.objects.get().alias is None


def test_tags_are_replaced_each_kept_once(admin: Admin, phone: Phone) -> None:
    change(admin, phone, {"tags": ["b", "a", "b"]})
    assert Device.objects.get().tags == ["b", "a"]
    change(admin, phone, {"alias": "lobby"})
    assert Device.objects.get().tags == ["b", "a"]
    assert change(admin, phone, {"tags": []}).json["tags"] == []


def test_an_alias_belongs_to_one_device(admin: Admin, phone: Phone) -> None:
    admin.enrol("phone-2", alias="lobby")
    answer = change(admin, phone, {"alias": "lobby", "tags": ["new"]})
    assert (answer.status, answer.code) == (409, "alias_taken")
    assert (device(admin, phone)["alias"], device(admin, phone)["tags"]) == (None, [])


def test_a_device_may_be_given_the_alias_it_has(admin: Admin) -> None:
    assert change(admin, admin.enrol("phone-1", alias="lobby"), {"alias": "lobby"}).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {"alias": ""}, {"alias": "x" * 129}, {"alias": 1}, {"alias": "a\x00b"}, {"tags": "lobby"}, {"tags": [""]},
        {"tags": None}, {"tags": ["a b"]}, {"tags": ["x" * 65]}, {"tags": ["lobby\n"]}, {"tags": ["é"]},
        {"hardware_id": "x"}, {"push_token": None}, [], "lobby",
    ],
)  # fmt: skip
def test_an_invalid_change_is_refused(admin: Admin, phone: Phone, body: Any) -> None:
    before = device(admin, phone)
    answer = change(admin, phone, body)
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert device(admin, phone) == before


def test_a_tag_is_added_to_and_removed_from_many_devices_and_the_changes_are_counted(admin: Admin) -> None:
    one, two, three = (admin.enrol(f"phone-{number}").device_id for number in (1, 2, 3))
    first = admin.post("/admin/tags/a.B_c:1-2", {"add": [one, two, one]})
    assert first.json == {"tag": "a.B_c:1-2", "added": 2, "removed": 0}
    second = admin.post("/admin/tags/a.B_c:1-2", {"add": [two, three], "remove": [one]})
    assert second.json == {"tag": "a.B_c:1-2", "added": 1, "removed": 1}
    tags = {str(device.id): device.tags for device in Device.objects.all()}
    assert tags == {one: [], two: ["a.B_c:1-2"], three: ["a.B_c:1-2"]}


def test_a_tag_leaves_other_tags_alone(admin: Admin, phone: Phone) -> None:
    change(admin, phone, {"tags": ["x", "y"]})
    admin.post("/admin/tags/z", {"add": [phone.device_id]})
    admin.post("/admin/tags/x", {"remove": [phone.device_id]})
    assert Device.objects.get().tags == ["y", "z"]


@pytest.mark.parametrize("list_name", ["add", "remove"])
def test_tagging_unknown_devices_changes_nothing(admin: Admin, phone: Phone, list_name: str) -> None:
    stranger = str(uuid4())
    answer = admin.post("/admin/tags/floor-2", {"add": [phone.device_id], list_name: [phone.device_id, stranger]})
    assert (answer.status, answer.code) == (422, "unknown_devices")
    assert [stranger in error["msg"] for error in answer.json["errors"]] == [True]
    assert Device.objects.get().tags == []


@pytest.mark.parametrize("tag", ["a%20b", "a%2Fb", "x" * 65, "%C3%A9", "a%0A", ""])
def test_a_malformed_tag_in_the_path_is_not_found(admin: Admin, phone: Phone, tag: str) -> None:
    answer = admin.post(f"/admin/tags/{tag}", {"add": [phone.device_id]})
    assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize("body", [{"add": ["x"]}, {"add": None}, {"set": []}, {"add": "x"}, []])
def test_an_invalid_change_of_a_tag_is_refused(admin: Admin, body: Any) -> None:
    assert admin.post("/admin/tags/floor-2", body).code == "invalid_request"


def test_a_revoked_device_is_refused_at_its_next_request(admin: Admin, phone: Phone) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    answer = admin.post(f"/admin/devices/{phone.device_id}/revoke")
    assert answer.json == device(admin, phone) | {"withdrawn": []}
    assert answer.json["revoked_at"] is not None
    for refused in (phone.heartbeat(), phone.report(request_id, "succeeded"), phone.rotate()):
        assert (refused.status, refused.code) == (403, "device_revoked")
    assert Presence.objects.get().last_seen_at is None


def test_a_revocation_cancels_open_commands_and_no_more_pushes_are_sent(admin: Admin) -> None:
    phone = admin.enrol("phone-1", push_token="token-1")
    done, waiting = (admin.command(to=phone).json["request_id"] for _ in range(2))
    phone.report(done, "succeeded")
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    states = {str(delivery.command_id): delivery.state for delivery in Delivery.objects.all()}
    assert states == {done: "succeeded", waiting: "cancelled"}
    assert not Delivery.objects.exclude(next_attempt_at=None).exists()


def test_a_revocation_names_the_open_wipe_or_lock_that_it_withdraws(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    done = admin.command("lock", to=phone).json["request_id"]
    phone.report(done, "succeeded")
    lock, _, wipe, _ = (
        admin.command(action, to=device).json["request_id"]
        for action, device in (("lock", phone), ("ping", phone), ("wipe", phone), ("wipe", other))
    )
    answer = admin.post(f"/admin/devices/{phone.device_id}/revoke").json
    assert answer["withdrawn"] == [
        {"request_id": lock, "action": "lock", "may_still_run": False},
        {"request_id": wipe, "action": "wipe", "may_still_run": False},
    ]
    assert admin.post(f"/admin/devices/{phone.device_id}/revoke").json["withdrawn"] == []
    command = admin.get(f"/admin/commands/{wipe}").json
    assert (command["state"], command["outcome"]) == ("cancelled", "cancelled")


def test_a_device_is_revoked_and_its_commands_are_cancelled_or_neither(
    admin: Admin, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.command(to=phone)
    monkeypatch.setattr("commands.queue.cancel_all_of", Mock(side_effect=RuntimeError))
    assert admin.post(f"/admin/devices/{phone.device_id}/revoke").status == 500
    assert Device.objects.get().revoked_at is None
    assert len(phone.heartbeat().json["commands"]) == 1


def test_a_second_revocation_keeps_the_time_of_the_first(admin: Admin, phone: Phone) -> None:
    first = admin.post(f"/admin/devices/{phone.device_id}/revoke").json
    assert admin.post(f"/admin/devices/{phone.device_id}/revoke").json == first


def test_a_reinstated_device_works_with_the_same_token(admin: Admin, phone: Phone) -> None:
    admin.command(to=phone)
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    answer = admin.post(f"/admin/devices/{phone.device_id}/reinstate")
    assert (answer.status, answer.json["revoked_at"]) == (200, None)
    heartbeat = phone.heartbeat()
    assert (heartbeat.status, heartbeat.json["commands"]) == (200, [])
    assert admin.command(to=phone).status == 200


def test_a_new_enrollment_token_is_answered_with_its_limits(admin: Admin) -> None:
    asked = {"label": "stock", "max_uses": 5, "tags": ["new", "new"], "re_enroll": True, "expires_in_seconds": 3600}
    made = admin.post("/admin/enrollment-tokens", asked).json
    assert set(made) == TOKEN_KEYS | {"enrollment_token", "provisioning"}
    assert (made["label"], made["max_uses"], made["uses"], made["tags"]) == ("stock", 5, 0, ["new"])
    assert (made["re_enroll"], made["revoked_at"]) == (True, None)
    lives = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert abs(lives - timedelta(hours=1)) < timedelta(seconds=1)
    assert (made["enrollment_token"][:4], len(made["enrollment_token"])) == ("nxe_", 76)


def test_an_enrollment_token_is_for_one_device_and_a_day_by_default(admin: Admin) -> None:
    made = admin.post("/admin/enrollment-tokens", {}).json
    assert (made["label"], made["max_uses"], made["tags"], made["re_enroll"]) == ("", 1, [], False)
    lives = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert abs(lives - timedelta(days=1)) < timedelta(seconds=1)


def test_enrollment_tokens_are_listed_newest_first_without_their_texts(admin: Admin) -> None:
    text = admin.enrollment_token(label="first")
    admin.enrollment_token(label="second")
    Phone(admin.client, "phone-1").register(text)
    first_page = admin.get("/admin/enrollment-tokens?limit=1").json
    second_page = admin.get(f"/admin/enrollment-tokens?cursor={first_page['next_cursor']}").json
    (second,), (first,) = first_page["items"], second_page["items"]
    assert (second["label"], first["label"], first["uses"]) == ("second", "first", 1)
    assert set(first) == TOKEN_KEYS


def test_a_revoked_enrollment_token_is_refused_and_its_devices_stay(admin: Admin) -> None:
    made = admin.post("/admin/enrollment-tokens", {"max_uses": 2}).json
    phone = Phone(admin.client, "phone-1")
    phone.register(made["enrollment_token"])
    revoked = admin.post(f"/admin/enrollment-tokens/{made['id']}/revoke").json
    assert set(revoked) == TOKEN_KEYS
    assert revoked["revoked_at"] is not None
    answer = Phone(admin.client, "phone-2").register(made["enrollment_token"])
    assert (answer.status, answer.code) == (401, "enrollment_token_revoked")
    assert phone.heartbeat().status == 200


@pytest.mark.parametrize("token_id", [UNKNOWN_ID, "nonsense"])
def test_an_unknown_enrollment_token_cannot_be_revoked(admin: Admin, token_id: str) -> None:
    answer = admin.post(f"/admin/enrollment-tokens/{token_id}/revoke")
    assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"max_uses": 0}, {"max_uses": 2**31}, {"max_uses": "1"}, {"max_uses": True}, {"expires_in_seconds": 0},
        {"expires_in_seconds": 10**12}, {"tags": ["a b"]}, {"label": "a\x00b"}, {"label": 1}, {"re_enroll": "yes"},
        {"reenroll": True}, [],
    ],
)  # fmt: skip
def test_an_invalid_enrollment_token_request_is_refused(admin: Admin, body: Any) -> None:
    answer = admin.post("/admin/enrollment-tokens", body)
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert not EnrollmentToken.objects.exists()


def test_the_summary_counts_devices_open_deliveries_and_pushes(admin: Admin) -> None:
    online, offline, never, revoked = [admin.enrol(name) for name in ("online", "offline", "never", "revoked")]
    offline.heartbeat()
    admin.command(to=never, expires_in_seconds=60)
    let_pass(hours=1)
    online.heartbeat()
    admin.command(to=[online, offline])
    admin.post(f"/admin/devices/{revoked.device_id}/revoke")
    summary = admin.get("/admin/summary").json
    assert summary == {
        "devices": {"online": 1, "offline": 1, "never": 1, "revoked": 1, "retired": 0},
        "open_deliveries": 2,
        "pushes_last_hour": {},
    }


def test_the_summary_counts_the_last_hours_pushes_by_fcm_code(admin: Admin, phone: Phone) -> None:
    admin.command(to=phone)
    delivery = Delivery.objects.get()
    pushes: list[tuple[AttemptOutcome, int | None, str]] = [
        (AttemptOutcome.ACCEPTED, 200, ""), (AttemptOutcome.ACCEPTED, 200, ""), (AttemptOutcome.TOKEN_DEAD, 404,
        "UNREGISTERED"), (AttemptOutcome.RETRY_LATER, 503, ""),
    ]  # fmt: skip
    for number, (outcome, status, error) in enumerate(pushes):
        fields = {"outcome": outcome, "http_status": status, "fcm_error": error, "finished_at": Now()}
        Attempt.objects.create(delivery=delivery, number=number, **fields)
    assert admin.get("/admin/summary").json["pushes_last_hour"] == {"OK": 2, "UNREGISTERED": 1, "503": 1}
    let_pass(minutes=61)
    assert admin.get("/admin/summary").json["pushes_last_hour"] == {}


def test_a_write_that_was_carried_out_is_audited(admin: Admin, phone: Phone) -> None:
    body = {"action": "ping", "target": {"all": True}}
    answer = admin.post("/admin/command", body)
    entry = admin.get("/admin/audit?limit=1").json["items"][0]
    datetime.fromisoformat(entry.pop("at"))
    assert entry == {
        "principal": "admin",
        "address": "127.0.0.1",
        "method": "POST",
        "path": "/admin/command",
        "body_sha256": sha256(encode(body)).hexdigest(),
        "status": 200,
        "code": None,
        "request_id": answer.json["request_id"],
        "correlation_id": answer.headers["x-correlation-id"],
        "summary": {"action": "ping", "target": "all", "device_count": 1, "dry_run": False},
    }


def test_a_write_that_was_refused_is_audited_with_its_code(admin: Admin, phone: Phone) -> None:
    refused = [
        admin.command("dance", to=phone),
        admin.post("/admin/command", b"no json"),
        admin.post(f"/admin/devices/{uuid4()}/revoke"),
        admin.command(to=phone, expect_count=7),
    ]
    items = admin.get("/admin/audit?limit=4").json["items"][::-1]
    assert [item["code"] for item in items] == ["invalid_request", "invalid_json", "not_found", "audience_changed"]
    assert [item["status"] for item in items] == [answer.status for answer in refused] == [422, 400, 404, 409]
    assert [item["correlation_id"] for item in items] == [answer.headers["x-correlation-id"] for answer in refused]
    assert [item["request_id"] for item in items] == [None] * 4


def test_reads_replays_and_unsigned_writes_are_not_audited(admin: Admin, client: Client, phone: Phone) -> None:
    key = "the-same-key-twice"
    admin.post("/admin/command", {"action": "ping", "target": {"all": True}}, idempotency_key=key)
    before = AuditEntry.objects.count()
    admin.post("/admin/command", {"action": "ping", "target": {"all": True}}, idempotency_key=key)
    admin.get("/admin/devices")
    admin.get("/admin/nothing")
    client.request("POST", "/admin/command", {})
    assert AuditEntry.objects.count() == before


def test_a_write_beyond_the_rate_limit_is_refused_and_not_audited(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    settings.ADMIN_RATE_LIMIT = "1/h"
    before = AuditEntry.objects.count()
    assert admin.command(to=phone).status == 200
    answer = admin.command(to=phone)
    assert (answer.status, answer.code) == (429, "rate_limited")
    assert int(answer.headers["retry-after"]) >= 1
    assert AuditEntry.objects.count() == before + 1


def test_the_audit_is_listed_newest_first_in_pages_and_by_time(admin: Admin) -> None:
    for _ in range(3):
        admin.enrollment_token()
    oldest, middle, newest = AuditEntry.objects.order_by("id")
    tampering.change(oldest.id, at="2026-01-01T00:00:00Z")
    tampering.change(middle.id, at="2026-01-02T00:00:00Z")
    page = admin.get("/admin/audit?limit=2").json
    rest = admin.get(f"/admin/audit?limit=2&cursor={page['next_cursor']}").json
    shown = [item["correlation_id"] for item in page["items"] + rest["items"]]
    assert shown == [entry.correlation_id for entry in (newest, middle, oldest)]

    def between(query: str) -> list[str]:
        return [item["correlation_id"] for item in admin.get(f"/admin/audit?{query}").json["items"]]

    assert between("since=2026-01-02T00:00:00Z") == [newest.correlation_id, middle.correlation_id]
    assert between("until=2026-01-02T00:00:00Z") == [oldest.correlation_id]
    assert between("since=2026-01-01T00:00:01Z&until=2026-01-03T00:00:00Z") == [middle.correlation_id]
    assert admin.get("/admin/audit?since=today").code == "invalid_request"


def test_a_post_that_needs_only_its_path_takes_no_body_or_an_empty_one(admin: Admin, phone: Phone) -> None:
    token_id = admin.post("/admin/enrollment-tokens", {}).json["id"]
    one = f"/admin/devices/{phone.device_id}"
    for target in (f"{one}/revoke", f"{one}/reinstate", f"/admin/enrollment-tokens/{token_id}/revoke"):
        assert admin.post(target, {"reason": "lost"}).code == "invalid_request"
        assert (admin.post(target).status, admin.post(target, {}).status) == (200, 200)
