"""The audit describes each signed write by a summary, which can be searched for, and is part of the hash."""

from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from nexmdm.api.application import api
from nexmdm.audit import chain
from nexmdm.common import database
from nexmdm.models import AuditEntry
from tests.support.actors import Admin, Phone

NOTHING: Final = {"action": None, "target": None, "device_count": None, "dry_run": None}


def audited(admin: Admin, **query: object) -> list[dict[str, Any]]:
    """Return the matching entries, newest first."""
    answer = admin.get(f"/admin/audit?{urlencode({'limit': 100} | query)}")
    assert answer.status == 200, answer
    items: list[dict[str, Any]] = answer.json["items"]
    return items


def newest(admin: Admin) -> dict[str, Any]:
    summary: dict[str, Any] = audited(admin, limit=1)[0]["summary"]
    return summary


def test_a_command_is_summed_up_by_its_action_target_and_audience(admin: Admin) -> None:
    one, other = admin.enrol("one", alias="Lobby"), admin.enrol("other")
    admin.post("/admin/tags/kiosk", {"add": [one.device_id, other.device_id]})
    assert admin.command("wipe", to=one).status == 200
    assert newest(admin) == {
        "action": "wipe", "target": f"device_ids: {one.device_id}", "device_count": 1, "dry_run": False,
    }  # fmt: skip
    for target, text, count in (
        ({"all": True}, "all", 2),
        ({"tags": ["kiosk", "van"]}, "tags: kiosk, van", 2),
        ({"aliases": ["lobby"]}, "aliases: lobby", 1),
        ({"device_ids": [one.device_id, other.device_id]}, f"device_ids: {one.device_id}, {other.device_id}", 2),
    ):
        assert admin.command(to=target).status == 200
        assert newest(admin) == {"action": "ping", "target": text, "device_count": count, "dry_run": False}


def test_a_dry_run_is_marked_as_such(admin: Admin, phone: Phone) -> None:
    assert admin.command("wipe", to=phone, dry_run=True).status == 200
    (entry,) = audited(admin, action="wipe")
    assert (entry["status"], entry["request_id"]) == (200, None)
    assert (entry["summary"]["device_count"], entry["summary"]["dry_run"]) == (1, True)


def test_a_long_target_is_cut(admin: Admin) -> None:
    phones = admin.enrol_fleet(8)
    assert admin.command(to=phones).status == 200
    target = newest(admin)["target"]
    assert len(target) == 200
    assert target.startswith(f"device_ids: {phones[0].device_id}, {phones[1].device_id}, ")
    assert target.endswith("…")


def test_every_other_write_has_its_action_in_the_summary(admin: Admin, phone: Phone) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    device = f"device_id: {phone.device_id}"
    token_id = admin.post("/admin/enrollment-tokens", {"label": "yard"}).json["id"]
    assert newest(admin) == NOTHING | {"action": "create_enrollment_token", "target": "label: yard"}
    admin.enrollment_token()
    assert newest(admin) == NOTHING | {"action": "create_enrollment_token"}
    path = f"/admin/devices/{phone.device_id}"
    for method, target, body, action, about, count in (
        ("POST", f"/admin/commands/{request_id}/cancel", None, "cancel", f"request_id: {request_id}", 1),
        ("POST", f"/admin/enrollment-tokens/{token_id}/revoke", None, "revoke_enrollment_token",
         f"token_id: {token_id}", None),
        ("PATCH", path, {"alias": "Lobby"}, "change_device", device, 1),
        ("POST", "/admin/tags/kiosk", {"add": [phone.device_id]}, "tag", f"tag: kiosk, add: {phone.device_id}", 1),
        ("POST", f"{path}/revoke", None, "revoke", device, 1),
        ("POST", f"{path}/reinstate", None, "reinstate", device, 1),
        ("POST", f"{path}/retire", None, "retire", device, 1),
    ):  # fmt: skip
        assert admin.call(method, target, body).status == 200, target
        assert newest(admin) == {"action": action, "target": about, "device_count": count, "dry_run": None}


def test_a_change_of_a_tag_names_as_many_devices_as_fit(admin: Admin) -> None:
    phones = admin.enrol_fleet(6)
    first, second, *_ = ids = [phone.device_id for phone in phones]
    admin.post("/admin/tags/lab", {"add": [first], "remove": [second]})
    assert newest(admin)["target"] == f"tag: lab, add: {first}, remove: {second}"
    admin.post("/admin/tags/lab", {"add": ids})
    target = newest(admin)["target"]
    assert target.startswith(f"tag: lab, add: {first}, {second}, ")
    assert (len(target), target[-1]) == (200, "…")


def test_a_change_of_a_tag_counts_the_devices_that_got_or_lost_it(admin: Admin) -> None:
    one, two, three = (phone.device_id for phone in admin.enrol_fleet(3))
    for body, changed in (
        ({"add": [one, two]}, {"added": 2, "removed": 0}),
        ({"add": [one, two]}, {"added": 0, "removed": 0}),
        ({"add": [one, three], "remove": [one, three]}, {"added": 0, "removed": 1}),
        ({"add": [three], "remove": [two, three]}, {"added": 0, "removed": 1}),
    ):
        assert admin.post("/admin/tags/lab", body).json == {"tag": "lab", **changed}
        assert newest(admin)["device_count"] == changed["added"] + changed["removed"]
    assert admin.get("/admin/devices?tag=lab").json["items"] == []


def test_a_change_of_a_device_counts_if_it_changes_anything(admin: Admin, phone: Phone) -> None:
    for body, count in (
        ({}, 0), ({"alias": None}, 0), ({"tags": []}, 0),
        ({"alias": "Lobby", "tags": ["a", "b"]}, 1), ({"alias": "Lobby", "tags": ["a", "b", "a"]}, 0),
        ({"alias": "lobby"}, 1), ({"tags": ["b"]}, 1), ({"alias": None, "tags": ["b"]}, 1),
    ):  # fmt: skip
        assert admin.call("PATCH", f"/admin/devices/{phone.device_id}", body).status == 200
        assert newest(admin)["device_count"] == count, body


@pytest.mark.parametrize("body", [b"no json", [], {"add": "all"}, {"add": [7]}, {"remove": None}])
def test_a_change_of_a_tag_with_an_invalid_body_names_the_tag(admin: Admin, body: Any) -> None:
    assert admin.post("/admin/tags/lab", body).status in (400, 422)
    assert newest(admin)["target"] == "tag: lab"


def test_every_signed_write_has_a_summary(admin: Admin) -> None:
    """Each write is sent with the path of an object that does not exist and the body of another write, and is
    refused.
    """
    values = {name: str(uuid4()) for name in ("device_id", "request_id", "token_id", "webhook_id")} | {"tag": "none"}
    for path, operations in api.get_openapi_schema()["paths"].items():
        for method in operations:
            if path.startswith("/admin/") and method != "get":
                answer = admin.call(method.upper(), path.format(**values), {"action": "dance"})
                entry = audited(admin, limit=1)[0]
                assert (entry["correlation_id"], entry["status"]) == (answer.headers["x-correlation-id"], answer.status)
                assert answer.status >= 400, path
                assert entry["summary"]["action"], path


@pytest.mark.parametrize(
    ("body", "summary"),
    [
        ({"action": "wipe", "target": {"tags": ["kiosk"]}}, {"action": "wipe", "target": "tags: kiosk"}),
        ({"action": "wpie", "target": {"all": True}}, {"action": "wpie", "target": "all"}),
        ({"action": "wipe", "target": {"all": True}, "dry_run": True}, {"dry_run": True}),
        ({"action": "wipe", "target": {"all": True, "tags": ["kiosk"]}}, {"target": None}),
        ({"action": "wipe", "target": {"serials": ["kiosk"]}}, {"target": None}),
        ({"action": "wipe", "target": {"tags": ["kiosk", 7]}}, {"target": None}),
        ({"action": "wipe", "target": "all"}, {"action": "wipe", "target": None}),
        ({"action": ["wipe"], "target": {"tags": "kiosk"}, "dry_run": "yes"},
         {"action": None, "target": None, "dry_run": None}),
        ({"action": "ping", "target": {"all": False}}, {"target": None, "dry_run": False}),
        ({"action": "w" * 65, "target": {"aliases": ["nul\0 ✓"]}},
         {"action": f"{'w' * 63}…", "target": "aliases: nul\N{REPLACEMENT CHARACTER} ✓"}),
        ([], NOTHING),
        (b'{"action": "wipe"', NOTHING),
        (b"\xff", NOTHING),
    ],
)  # fmt: skip
def test_a_refused_command_has_the_part_of_a_summary_that_its_body_allows(
    admin: Admin, phone: Phone, body: Any, summary: dict[str, Any]
) -> None:
    assert admin.post("/admin/command", body).status in (400, 422)
    found = newest(admin)
    assert found["device_count"] is None
    assert found | summary == found


def test_a_command_that_is_refused_for_its_audience_counts_no_device(admin: Admin, phone: Phone) -> None:
    assert admin.command("wipe", to=phone, expect_count=7).code == "audience_changed"
    assert newest(admin) == {
        "action": "wipe", "target": f"device_ids: {phone.device_id}", "device_count": None, "dry_run": False,
    }  # fmt: skip


def test_entries_are_found_by_their_fields(admin: Admin, phone: Phone) -> None:
    wipe = admin.command("wipe", to=phone).json["request_id"]
    admin.command(to=phone)
    admin.command("wipe", to=phone, expect_count=7)
    admin.post(f"/admin/commands/{wipe}/cancel")
    assert [item["status"] for item in audited(admin, action="wipe")] == [409, 200]
    assert [item["summary"]["action"] for item in audited(admin, request_id=wipe)] == ["cancel", "wipe"]
    assert [item["request_id"] for item in audited(admin, action="wipe", status=200)] == [wipe]
    assert [item["code"] for item in audited(admin, status=409)] == ["audience_changed"]
    assert len(audited(admin, principal="admin")) == len(audited(admin)) == 5
    assert audited(admin, principal="nobody") == audited(admin, action="dance") == []


def test_the_entries_about_a_device_name_it_in_their_path_or_have_a_delivery_to_it(admin: Admin) -> None:
    meant, other = admin.enrol("meant"), admin.enrol("other")
    for phone in (meant, other):
        admin.command(to=phone)
        admin.call("PATCH", f"/admin/devices/{phone.device_id}", {"alias": phone.hardware_id})
    to_all = admin.command(to={"all": True}).json["request_id"]
    admin.post(f"/admin/commands/{to_all}/cancel")
    admin.command(to=other, dry_run=True)
    # The same path in another spelling.
    admin.post(f"/admin/devices/%{ord(meant.device_id[0]):x}{meant.device_id[1:]}/revoke")
    found = audited(admin, device_id=meant.device_id)
    assert [item["summary"]["action"] for item in found] == ["revoke", "cancel", "ping", "change_device", "ping"]
    assert audited(admin, device_id=uuid4()) == []
    first = audited(admin, device_id=meant.device_id, limit=2)
    cursor = admin.get(f"/admin/audit?device_id={meant.device_id}&limit=2").json["next_cursor"]
    assert first + audited(admin, device_id=meant.device_id, cursor=cursor) == found


def test_commands_that_sent_nothing_are_found_by_the_one_device_that_they_name(admin: Admin) -> None:
    meant, other = admin.enrol("meant"), admin.enrol("other")
    admin.command("wipe", to=meant, dry_run=True)
    admin.command("wipe", to=meant, expect_count=7)
    admin.command("lock", to=other, dry_run=True)
    admin.command("lock", to=[meant, other], dry_run=True)
    found = audited(admin, device_id=meant.device_id)
    assert [(item["summary"]["action"], item["status"]) for item in found] == [("wipe", 409), ("wipe", 200)]
    unknown = str(uuid4())
    admin.post("/admin/command", {"action": "ping", "target": {"device_ids": [unknown]}})
    assert [item["code"] for item in audited(admin, device_id=unknown)] == ["unknown_devices"]


@pytest.mark.parametrize(
    "query",
    ["status=wrong", "status=99", "device_id=7", "request_id=x", "action=a%00b", f"action={'x' * 65}", "who=me"],
)
def test_an_invalid_filter_is_refused(admin: Admin, query: str) -> None:
    answer = admin.get(f"/admin/audit?{query}")
    assert (answer.status, answer.code) == (422, "invalid_request")


def written_by_the_version_before(path: str) -> None:
    """Insert an entry as a server that knows no summaries does."""
    columns = "at, principal, admin_key_id, idempotency_key, address, method, path, body_sha256, status, code, "
    columns += "request_id, correlation_id"
    values = "now(), 'admin', '0a1b2c3d', '', '192.0.2.1', 'POST', %s, 'ab', 200, '', NULL, 'before'"
    database.execute(f"INSERT INTO nexmdm_auditentry ({columns}) VALUES ({values})", [path])  # noqa: S608


def test_an_entry_of_the_version_before_has_no_summary_and_is_found_by_its_path(admin: Admin, phone: Phone) -> None:
    written_by_the_version_before(f"/admin/devices/{phone.device_id}/revoke")
    (entry,) = audited(admin, device_id=phone.device_id)
    assert entry["summary"] == NOTHING


@pytest.mark.django_db(transaction=True)
def test_a_chain_of_entries_with_and_without_summaries_is_verified(admin: Admin, phone: Phone) -> None:
    before = AuditEntry.objects.count()
    for _ in range(2):
        written_by_the_version_before("/admin/command")
        admin.command(to=phone)
        admin.post("/admin/command", b"no json")
    assert chain.verify(timedelta(days=90)).entries == before + 6


@pytest.mark.parametrize("text", ["", "Café ✓ 📱", '"\\/\b\f\n\r\t', "\x01\x1f\x7f\x80\u2028\ufeff", "', NULL, '"])
@pytest.mark.parametrize(("device_count", "dry_run"), [(None, None), (0, False), (100_000, True), (-1, None)])
def test_the_database_and_python_hash_the_same_summary(
    db: None, text: str, device_count: int | None, dry_run: bool | None
) -> None:
    entry = AuditEntry.objects.create(
        principal="admin", method="POST", path="/", body_sha256="", status=200,
        action=text, target=text, device_count=device_count, dry_run=dry_run,
    )  # fmt: skip
    entry.refresh_from_db()
    assert entry.hash == chain.digest(entry)
