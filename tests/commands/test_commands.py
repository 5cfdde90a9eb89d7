"""Issuing a command: its devices and its limits; a refused command queues nothing."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import pytest
from django.db import connection
from django.db.models.functions import Now

from commands import actions
from commands.models import Command, Delivery
from devices.models import Device
from nexmdm.common import database
from nexmdm.models import AuditEntry
from tests.support.action_params import BAD, GOOD
from tests.support.actors import Admin, Answer, Phone

ANSWER_KEYS: Final = {
    "request_id", "action", "state", "issued_at", "expires_at", "device_count", "push", "dry_run",
}  # fmt: skip
EVERYONE: Final = {"all": True}


@pytest.fixture
def fleet(admin: Admin) -> list[Phone]:
    """Three phones: the first has one tag, the second has another tag, the third has both tags."""
    phones = [admin.enrol(f"phone-{number}", alias=f"desk-{number}") for number in (1, 2, 3)]
    one, two, both = (phone.device_id for phone in phones)
    admin.post("/admin/tags/lobby", {"add": [one, both]})
    admin.post("/admin/tags/gate", {"add": [two, both]})
    return phones


def reached(answer: Answer) -> set[str]:
    assert answer.status == 200, answer.body
    found = Delivery.objects.filter(command_id=answer.json["request_id"]).values_list("device_id", flat=True)
    assert answer.json["device_count"] == len(found)
    return {str(device_id) for device_id in found}


def assert_nothing_queued(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code)
    assert (Command.objects.count(), Delivery.objects.count()) == (0, 0)


def test_the_answer_contains_the_command_and_the_number_of_devices(admin: Admin, phone: Phone) -> None:
    answer = admin.command("launch_app", to=phone, params={"package": "com.example.kiosk"}, note="after the update")
    assert set(answer.json) == ANSWER_KEYS
    assert answer.json["push"] == {"queued": 0, "no_push_token": 1}
    assert (answer.json["state"], answer.json["dry_run"], answer.json["device_count"]) == ("open", False, 1)

    command = Command.objects.get()
    assert (str(command.id), command.id.version) == (answer.json["request_id"], 7)
    assert (command.action, command.params) == ("launch_app", '{"package":"com.example.kiosk"}')
    assert (command.note, command.priority, command.issued_by) == ("after the update", "high", "admin")
    assert Delivery.objects.get().state == "pending"


def test_times_are_whole_seconds_and_the_same_text_in_the_envelope(admin: Admin, phone: Phone) -> None:
    issued = admin.command(to=phone, expires_in_seconds=90).json
    (envelope,) = phone.heartbeat().json["commands"]
    listed = admin.get(f"/admin/commands/{issued['request_id']}").json
    for name in ("issued_at", "expires_at"):
        assert issued[name] == envelope[name] == listed[name]
        assert len(issued[name]) == len("2026-01-01T00:00:00Z")
    span = datetime.fromisoformat(issued["expires_at"]) - datetime.fromisoformat(issued["issued_at"])
    assert span in (timedelta(seconds=90), timedelta(seconds=91))
    assert datetime.fromisoformat(issued["issued_at"]) <= datetime.now(UTC)


def test_expires_at_is_rounded_up(admin: Admin, phone: Phone) -> None:
    admin.command(to=phone, expires_in_seconds=1)
    early = Command.objects.get().expires_at - (database.now() + timedelta(seconds=1))
    assert timedelta(0) <= early < timedelta(seconds=1)


def test_a_command_expires_after_ten_minutes_by_default(admin: Admin, phone: Phone) -> None:
    issued = admin.command(to=phone).json
    span = datetime.fromisoformat(issued["expires_at"]) - datetime.fromisoformat(issued["issued_at"])
    assert span in (timedelta(seconds=600), timedelta(seconds=601))


def test_devices_with_and_without_a_push_token_add_up_to_the_audience(admin: Admin) -> None:
    admin.enrol("phone-1", push_token="alive")
    admin.enrol("phone-2", push_token="dead")
    admin.enrol("phone-3")
    Device.objects.filter(push_token="dead").update(push_token_dead_at=Now())
    assert admin.command(to=EVERYONE).json["push"] == {"queued": 1, "no_push_token": 2}
    assert Delivery.objects.filter(push_state="waiting", next_attempt_at__isnull=False).count() == 1
    assert Delivery.objects.filter(push_state="no_push_token", next_attempt_at=None).count() == 2


def test_the_priority_is_stored(admin: Admin, phone: Phone) -> None:
    admin.command(to=phone, priority="normal")
    assert Command.objects.get().priority == "normal"


def test_a_command_reaches_the_devices_named_by_id_each_once(admin: Admin, fleet: list[Phone]) -> None:
    one, two, _ = fleet
    assert reached(admin.command(to=[one])) == {one.device_id}
    assert reached(admin.command(to=[one, two, one], expect_count=2)) == {one.device_id, two.device_id}


def test_a_command_reaches_the_devices_named_by_alias_each_once(admin: Admin, fleet: list[Phone]) -> None:
    one, _, three = fleet
    answer = admin.command(to={"aliases": ["desk-3", "desk-1", "desk-3"]}, expect_count=2)
    assert reached(answer) == {one.device_id, three.device_id}


def test_tags_mean_devices_with_any_of_them(admin: Admin, fleet: list[Phone]) -> None:
    one, two, both = (phone.device_id for phone in fleet)
    assert reached(admin.command(to={"tags": ["lobby"]})) == {one, both}
    assert reached(admin.command(to={"tags": ["lobby", "gate", "nowhere"]})) == {one, two, both}


def test_all_means_every_device_that_is_not_revoked(admin: Admin, fleet: list[Phone]) -> None:
    one, two, both = (phone.device_id for phone in fleet)
    assert reached(admin.command(to=EVERYONE)) == {one, two, both}
    admin.post(f"/admin/devices/{two}/revoke")
    assert reached(admin.command(to=EVERYONE)) == {one, both}
    assert reached(admin.command(to={"tags": ["gate"]})) == {both}


def test_the_audience_is_frozen_when_the_command_is_issued(admin: Admin, fleet: list[Phone]) -> None:
    request_id = admin.command(to={"tags": ["lobby"]}).json["request_id"]
    admin.post("/admin/tags/lobby", {"add": [fleet[1].device_id], "remove": [fleet[0].device_id]})
    assert [command["request_id"] for command in fleet[0].heartbeat().json["commands"]] == [request_id]
    assert fleet[1].heartbeat().json["commands"] == []


@pytest.mark.parametrize("by", ["device_ids", "aliases"])
def test_unknown_and_revoked_devices_are_named_and_nothing_is_queued(admin: Admin, fleet: list[Phone], by: str) -> None:
    known, revoked, _ = fleet
    admin.post(f"/admin/devices/{revoked.device_id}/revoke")
    unknown = str(uuid4())
    names = {"device_ids": [known.device_id, revoked.device_id, unknown], "aliases": ["desk-1", "desk-2", unknown]}
    answer = admin.command(to={by: names[by]})
    assert_nothing_queued(answer, 422, "unknown_devices")
    _, second, third = names[by]
    assert {error["msg"] for error in answer.json["errors"]} == {f"{second} is revoked", f"{third} is unknown"}


def test_no_more_than_100_unknown_devices_are_named(admin: Admin, phone: Phone) -> None:
    answer = admin.command(to={"device_ids": [phone.device_id, *(str(uuid4()) for _ in range(130))]})
    assert_nothing_queued(answer, 422, "unknown_devices")
    assert len(answer.json["errors"]) == 100
    assert "130" in answer.json["detail"]


@pytest.mark.parametrize("target", [EVERYONE, {"tags": ["nowhere"]}])
def test_a_target_without_devices_is_refused(admin: Admin, target: dict[str, Any]) -> None:
    revoked = admin.enrol("phone-1")
    admin.post(f"/admin/devices/{revoked.device_id}/revoke")
    assert_nothing_queued(admin.command(to=target), 422, "empty_audience")
    assert_nothing_queued(admin.command(to=target, dry_run=True), 422, "empty_audience")


def test_an_audience_of_another_size_than_expected_is_refused(admin: Admin, fleet: list[Phone]) -> None:
    for count in (0, 2, 4):
        assert_nothing_queued(admin.command(to=EVERYONE, expect_count=count), 409, "audience_changed")
    assert admin.command(to=EVERYONE, expect_count=3).status == 200


TARGETS_REFUSED: Final[dict[str, Any]] = {
    "none": {},
    "two kinds": {"all": True, "tags": ["lobby"]},
    "ids and aliases": {"device_ids": ["0192f0c1-a2b3-7d4e-8f90-a1b2c3d4e5f6"], "aliases": ["desk-1"]},
    "all false": {"all": False},
    "all a number": {"all": 1},
    "no ids": {"device_ids": []},
    "no aliases": {"aliases": []},
    "no tags": {"tags": []},
    "a malformed id": {"device_ids": ["phone-1"]},
    "an id in capitals": {"device_ids": ["0192F0C1-A2B3-7D4E-8F90-A1B2C3D4E5F6"]},
    "an id without hyphens": {"device_ids": ["0192f0c1a2b37d4e8f90a1b2c3d4e5f6"]},
    "a malformed tag": {"tags": ["first floor"]},
    "a tag and a line feed": {"tags": ["lobby\n"]},
    "an empty alias": {"aliases": [""]},
    "NUL in an alias": {"aliases": ["desk\x001"]},
    "a list": [],
    "an unknown kind": {"group": "lobby"},
}


@pytest.mark.parametrize("target", TARGETS_REFUSED.values(), ids=TARGETS_REFUSED)
def test_a_target_is_exactly_one_kind_and_well_formed(admin: Admin, phone: Phone, target: Any) -> None:
    answer = admin.post("/admin/command", {"action": "ping", "target": target})
    assert_nothing_queued(answer, 422, "invalid_request")
    assert answer.json["errors"][0]["loc"][:2] == ["body", "target"]


def test_every_action_of_the_catalogue_is_tested_here() -> None:
    assert set(GOOD) == set(BAD) == set(actions.CATALOGUE)


@pytest.mark.parametrize(("action", "params"), [(action, params) for action in GOOD for params in GOOD[action]])
def test_valid_parameters_reach_the_phone_unchanged(
    admin: Admin, phone: Phone, action: str, params: dict[str, Any]
) -> None:
    assert admin.command(action, to=phone, params=params).status == 200
    (envelope,) = phone.heartbeat().json["commands"]
    assert (envelope["action"], json.loads(envelope["params"])) == (action, params)


@pytest.mark.parametrize(("action", "params"), [(action, params) for action in BAD for params in BAD[action]])
def test_bad_parameters_are_refused(admin: Admin, phone: Phone, action: str, params: dict[str, Any]) -> None:
    answer = admin.command(action, to=phone, params=params)
    assert_nothing_queued(answer, 422, "invalid_request")
    assert answer.json["errors"][0]["loc"][:2] == ["body", "params"]


@pytest.mark.parametrize("action", ["", "dance", "PING", "ping\x00", "x" * 65, None, 1])
def test_an_unknown_action_is_refused(admin: Admin, phone: Phone, action: Any) -> None:
    answer = admin.command(action, to=phone)
    assert_nothing_queued(answer, 422, "invalid_request")
    assert answer.json["errors"][0]["loc"] == ["body", "action"]


def nested(levels: int) -> dict[str, Any]:
    return {} if levels == 1 else {"deeper": nested(levels - 1)}


def test_free_json_may_be_16_deep_and_no_deeper(admin: Admin, phone: Phone) -> None:
    too_deep = admin.command("launch_app", to=phone, params={"package": "a", "extras": nested(17)})
    assert_nothing_queued(too_deep, 422, "invalid_request")
    assert admin.command("launch_app", to=phone, params={"package": "a", "extras": nested(15)}).status == 200


FIELDS_REFUSED: Final[dict[str, dict[str, Any]]] = {
    "an unknown field": {"expires_in_second": 60},
    "expiry 0": {"expires_in_seconds": 0},
    "expiry beyond four weeks": {"expires_in_seconds": 2_419_201},
    "expiry as text": {"expires_in_seconds": "60"},
    "expiry as a fraction": {"expires_in_seconds": 60.5},
    "another priority": {"priority": "urgent"},
    "dry_run as text": {"dry_run": "true"},
    "dry_run as a number": {"dry_run": 1},
    "supersede as text": {"supersede": "yes"},
    "a negative expect_count": {"expect_count": -1},
    "expect_count beyond its column": {"expect_count": 2**31},
    "expect_count beyond 64 bit": {"expect_count": 2**64},
    "params as a list": {"params": []},
    "params null": {"params": None},
    "a note over 200": {"note": "x" * 201},
    "NUL in the note": {"note": "a\x00b"},
}


@pytest.mark.parametrize("fields", FIELDS_REFUSED.values(), ids=FIELDS_REFUSED)
def test_a_field_out_of_bounds_or_unknown_is_refused(admin: Admin, phone: Phone, fields: dict[str, Any]) -> None:
    answer = admin.command(to=phone, **fields)
    assert_nothing_queued(answer, 422, "invalid_request")
    assert answer.json["errors"][0]["loc"] == ["body", *fields]


@pytest.mark.parametrize("fields", [{"expires_in_seconds": 1}, {"expires_in_seconds": 2_419_200}, {"note": "é" * 200}])
def test_the_bounds_themselves_are_accepted(admin: Admin, phone: Phone, fields: dict[str, Any]) -> None:
    assert admin.command(to=phone, **fields).status == 200


def test_a_refused_command_is_audited_but_not_queued(admin: Admin, phone: Phone) -> None:
    assert_nothing_queued(admin.command("dance", to=phone), 422, "invalid_request")
    entry = AuditEntry.objects.latest("id")
    assert (entry.path, entry.status, entry.code, entry.request_id) == ("/admin/command", 422, "invalid_request", None)


@pytest.mark.parametrize("target", [EVERYONE, {"tags": ["lobby"]}, {"aliases": ["desk-1"]}])
def test_wipe_requires_device_ids(admin: Admin, fleet: list[Phone], target: dict[str, Any]) -> None:
    assert_nothing_queued(admin.command("wipe", to=target, expect_count=1), 422, "invalid_request")
    refused = admin.command("wipe", to=target, dry_run=True)
    assert_nothing_queued(refused, 422, "invalid_request")
    assert refused.json["detail"] == "`wipe` requires `target.device_ids`. No command was sent."


def test_wipe_of_several_devices_requires_expect_count(admin: Admin, fleet: list[Phone]) -> None:
    refused = admin.command("wipe", to=fleet)
    assert_nothing_queued(refused, 422, "invalid_request")
    assert refused.json["detail"] == "`wipe` of several devices requires `expect_count`. No command was sent."
    assert_nothing_queued(admin.command("wipe", to=fleet, expect_count=2), 409, "audience_changed")
    assert admin.command("wipe", to=fleet, expect_count=3).json["device_count"] == 3


def test_wipe_of_one_device_needs_no_expect_count_even_if_its_id_is_repeated(admin: Admin, phone: Phone) -> None:
    assert admin.command("wipe", to=[phone, phone]).json["device_count"] == 1


def body_of_size(bytes_wanted: int) -> str:
    """Return a message body with which the six keys and values of its envelope take this many bytes in UTF-8."""
    keys = sum(map(len, ("request_id", "action", "params", "issued_at", "expires_at", "signature")))
    values = len(str(uuid4())) + len("message") + 2 * len("2026-01-01T00:00:00Z") + 64
    left = bytes_wanted - keys - values - len('{"title":"t","body":""}')
    return "é" * (left // 2) + "x" * (left % 2)


def test_a_command_of_4096_bytes_fits_into_a_push(admin: Admin, phone: Phone) -> None:
    assert admin.command("message", to=phone, params={"title": "t", "body": body_of_size(4096)}).status == 200
    (envelope,) = phone.heartbeat().json["commands"]
    assert sum(len(key) + len(value.encode()) for key, value in envelope.items()) == 4096


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_command_of_4097_bytes_is_refused(admin: Admin, phone: Phone, dry_run: bool) -> None:
    params = {"title": "t", "body": body_of_size(4097)}
    answer = admin.command("message", to=phone, params=params, dry_run=dry_run)
    assert_nothing_queued(answer, 422, "push_payload_too_large")


def states() -> dict[str, str]:
    return {
        f"{delivery.command.note} {delivery.device.alias}": delivery.state
        for delivery in Delivery.objects.select_related("command", "device")
    }


def test_supersede_cancels_older_open_deliveries_of_the_same_action_on_those_devices(
    admin: Admin, fleet: list[Phone]
) -> None:
    one, two, _ = fleet
    done = admin.command(to=one, note="done").json["request_id"]
    one.report(done, "succeeded")
    admin.command(to=[one, two], note="old")
    admin.command("lock", to=one, note="other action")
    admin.command(to=one, note="new", supersede=True)
    assert states() == {
        "done desk-1": "succeeded",
        "old desk-1": "cancelled",
        "old desk-2": "pending",
        "other action desk-1": "pending",
        "new desk-1": "pending",
    }


def test_without_supersede_older_deliveries_stay_open(admin: Admin, phone: Phone) -> None:
    admin.command(to=phone)
    admin.command(to=phone)
    assert Delivery.objects.filter(state="pending").count() == 2


def test_a_command_that_was_superseded_is_cancelled_without_a_time_of_cancellation(admin: Admin, phone: Phone) -> None:
    old = admin.command(to=phone).json["request_id"]
    admin.command(to=phone, supersede=True)
    command = admin.get(f"/admin/commands/{old}").json
    assert (command["state"], command["counts"]["cancelled"], command["cancelled_at"]) == ("cancelled", 1, None)


def test_a_dry_run_counts_and_changes_nothing(admin: Admin, phone: Phone) -> None:
    admin.command(to=phone)
    answer = admin.command(to=EVERYONE, dry_run=True, supersede=True, expect_count=1)
    assert set(answer.json) == ANSWER_KEYS
    assert (answer.json["request_id"], answer.json["dry_run"], answer.json["device_count"]) == (None, True, 1)
    assert answer.json["push"] == {"queued": 0, "no_push_token": 1}
    assert Command.objects.count() == 1
    assert Delivery.objects.get().state == "pending"


def test_a_dry_run_is_refused_like_the_command_itself(admin: Admin, phone: Phone) -> None:
    unknown = {"device_ids": [str(uuid4())]}
    assert_nothing_queued(admin.command(to=unknown, dry_run=True), 422, "unknown_devices")
    assert_nothing_queued(admin.command(to=phone, dry_run=True, expect_count=2), 409, "audience_changed")
    assert_nothing_queued(admin.command("ring", to=phone, dry_run=True), 422, "invalid_request")


@pytest.fixture
def a_commit_that_fails(transactional_db: None) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("""
            CREATE FUNCTION refuse_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE 'not today' USING ERRCODE = 'data_exception';
            END $$;
            CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON commands_command DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION refuse_at_commit();
        """)
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION refuse_at_commit CASCADE")


def test_the_200_is_sent_after_the_commit(a_commit_that_fails: None, admin: Admin, phone: Phone) -> None:
    assert_nothing_queued(admin.command(to=phone), 500, "internal")


def test_a_parameter_that_could_be_a_secret_is_not_shown(admin: Admin, phone: Phone) -> None:
    answer = admin.command("ping", to=phone, params={"nxs_live_" + "q7Z" * 20: 1})
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert [error["loc"] for error in answer.json["errors"]] == [["body", "params", "…"]]
    assert b"q7Z" not in answer.body
