"""Each fact has exactly one event, with what a reader needs to know of it; nothing rolled back has one."""

from typing import Any
from uuid import uuid4

import pytest

from commands import finishing, queue
from devices import push_targets
from devices.push_targets import Death
from nexmdm.common import database
from tests.support import feed
from tests.support.actors import Admin, Phone

pytestmark = pytest.mark.django_db


def types() -> list[str]:
    return [row[0] for row in feed.rows()]


def last() -> tuple[Any, ...]:
    return feed.rows()[-1]


def test_a_new_device_is_enrolled_once(admin: Admin) -> None:
    phone = admin.enrol("serial-1", alias="till 7")
    assert feed.rows() == [("device.enrolled", phone.device_id, None, {"alias": "till 7", "tags": []})]


def test_a_device_that_registers_again_is_re_enrolled(admin: Admin) -> None:
    phone = admin.enrol("serial-1")
    assert phone.heartbeat().status == 200
    assert phone.register(admin.enrollment_token(re_enroll=True, tags=["kiosk"])).status == 200
    assert last() == ("device.re_enrolled", phone.device_id, None, {"alias": None, "tags": ["kiosk"]})


def test_a_registration_repeated_after_a_lost_answer_is_no_second_event(admin: Admin) -> None:
    token = admin.enrollment_token()
    phone = Phone(admin.client, "serial-1")
    assert phone.register(token).status == phone.register(token).status == 200
    assert types() == ["device.enrolled"]


def test_a_refused_registration_has_no_event(admin: Admin) -> None:
    admin.enrol("serial-1", alias="till 7")
    assert Phone(admin.client, "serial-2").register(admin.enrollment_token(), alias="till 7").code == "alias_taken"
    assert types() == ["device.enrolled"]


@pytest.mark.parametrize("change", [{"alias": "till 7"}, {"tags": ["kiosk"]}])
def test_a_changed_device_is_updated_and_the_same_change_again_is_no_event(
    admin: Admin, change: dict[str, Any]
) -> None:
    phone = admin.enrol("serial-1")
    for _ in range(2):
        assert admin.call("PATCH", f"/admin/devices/{phone.device_id}", change).status == 200
    assert types() == ["device.enrolled", "device.updated"]
    assert last() == ("device.updated", phone.device_id, None, {"alias": None, "tags": []} | change)


def test_a_tag_updates_only_the_devices_that_change(admin: Admin) -> None:
    first, second, third = admin.enrol_fleet(3)
    ids = [first.device_id, second.device_id]
    assert admin.post("/admin/tags/kiosk", {"add": ids}).json["added"] == 2
    body = {"add": [first.device_id, third.device_id], "remove": [second.device_id, third.device_id]}
    assert admin.post("/admin/tags/kiosk", body).json == {"tag": "kiosk", "added": 0, "removed": 1}
    updates = [(row[1], row[3]["tags"]) for row in feed.rows() if row[0] == "device.updated"]
    assert updates == [*((device_id, ["kiosk"]) for device_id in sorted(ids)), (second.device_id, [])]


def test_revocation_reinstatement_and_retirement_have_one_event_each(admin: Admin) -> None:
    phone = admin.enrol("serial-1", alias="till 7")
    for what in ("revoke", "revoke", "reinstate", "reinstate", "retire", "retire"):
        assert admin.post(f"/admin/devices/{phone.device_id}/{what}").status == 200
    assert types()[1:] == ["device.revoked", "device.reinstated", "device.retired"]
    assert last()[3] == {"alias": "till 7", "tags": []}


def test_a_push_target_that_dies_has_one_event_without_the_target(admin: Admin) -> None:
    phone = admin.enrol("serial-1", push_token="install:secret-part")
    for _ in range(2):
        push_targets.mark_dead([Death("token", "install:secret-part", database.now())])
    assert types() == ["device.enrolled", "device.push_dead"]
    assert last() == ("device.push_dead", phone.device_id, None, {"kind": "token"})


def test_a_phone_that_sends_a_dead_push_target_has_one_event(admin: Admin) -> None:
    push_targets.mark_dead([Death("token", "install:gone", database.now())])
    phone = admin.enrol("serial-1", push_token="install:gone")
    assert phone.heartbeat(push_token="install:gone").status == 200
    assert types().count("device.push_dead") == 1


def test_a_command_to_a_fleet_is_issued_once(admin: Admin) -> None:
    admin.enrol_fleet(3)
    issued = admin.command("ping").json
    found = [row for row in feed.rows() if row[0].startswith(("command", "delivery"))]
    data = {
        "action": "ping", "device_count": 3, "expires_at": issued["expires_at"].replace("Z", ".000000Z"),
        "issued_by": "admin",
    }  # fmt: skip
    assert found == [("command.issued", None, issued["request_id"], data)]


def test_a_refused_command_or_a_dry_run_is_not_issued(admin: Admin) -> None:
    admin.enrol("serial-1")
    assert admin.command("ping", dry_run=True).status == 200
    assert admin.command("ping", expect_count=7).code == "audience_changed"
    assert "command.issued" not in types()


def test_a_refused_write_has_an_event_without_its_body(admin: Admin) -> None:
    assert admin.command("dance").status == 422
    data = last()[3]
    assert last()[:3] == ("audit.refused", None, None)
    assert data["code"] == "invalid_request"
    assert {data["method"], data["path"], data["status"]} == {"POST", "/admin/command", 422}


def test_reports_show_that_a_delivery_was_received_and_how_it_settled(admin: Admin) -> None:
    phone = admin.enrol("serial-1")
    request_id = admin.command().json["request_id"]
    for status in ("received", "running", "succeeded", "succeeded"):
        output = {"output": {"battery": 81}} if status == "succeeded" else {}
        assert phone.report(request_id, status, via="push", **output).status == 200
    received, settled = (row for row in feed.rows() if row[0].startswith("delivery"))
    assert received == ("delivery.received", phone.device_id, request_id, {"via": "push"})
    assert settled[:3] == ("delivery.settled", phone.device_id, request_id)
    assert settled[3]["state"] == "succeeded"
    assert settled[3]["late"] is False
    assert settled[3]["result"] == {
        "status": "succeeded", "message": "", "output": {"battery": 81}, "finished_at": None,
        "reported_at": settled[3]["result"]["reported_at"],
    }  # fmt: skip


def cancel(admin: Admin, phone: Phone, request_id: str) -> None:
    assert admin.post(f"/admin/commands/{request_id}/cancel").status == 200


def revoke(admin: Admin, phone: Phone, request_id: str) -> None:
    assert admin.post(f"/admin/devices/{phone.device_id}/revoke").status == 200


def supersede(admin: Admin, phone: Phone, request_id: str) -> None:
    assert admin.command("ping", supersede=True).status == 200


def enroll_again(admin: Admin, phone: Phone, request_id: str) -> None:
    assert phone.register(admin.enrollment_token(re_enroll=True)).status == 200


@pytest.mark.parametrize(
    ("withdraw", "by"),
    [(cancel, "admin"), (revoke, "revocation"), (supersede, "superseded"), (enroll_again, "enrollment")],
)
def test_a_withdrawn_delivery_settles_once_with_the_cause(admin: Admin, withdraw: Any, by: str) -> None:
    phone = admin.enrol("serial-1")
    assert phone.heartbeat().status == 200
    request_id = admin.command("ping").json["request_id"]
    withdraw(admin, phone, request_id)
    settled = [row for row in feed.rows() if row[0] == "delivery.settled"]
    data = {"state": "cancelled", "withdrawn_by": by, "result": None, "late": False}
    assert settled == [("delivery.settled", phone.device_id, request_id, data)]


def let_expire(request_id: str) -> None:
    database.execute(
        "UPDATE commands_delivery SET open_until = now() - interval '1 second' WHERE command_id = %s", [request_id]
    )


def test_an_expired_delivery_settles_once_when_it_is_marked(admin: Admin) -> None:
    phone = admin.enrol("serial-1")
    request_id = admin.command("ping").json["request_id"]
    let_expire(request_id)
    assert (len(queue.expire(10)), len(queue.expire(10))) == (1, 0)
    settled = [row for row in feed.rows() if row[0] == "delivery.settled"]
    data = {"state": "expired", "withdrawn_by": None, "result": None, "late": False}
    assert settled == [("delivery.settled", phone.device_id, request_id, data)]


@pytest.mark.parametrize("marked", [True, False])
def test_a_late_result_has_its_own_event_after_the_expiry(admin: Admin, marked: bool) -> None:
    phone = admin.enrol("serial-1")
    request_id = admin.command("ping").json["request_id"]
    let_expire(request_id)
    if marked:
        queue.expire(10)
    for _ in range(2):
        assert phone.report(request_id, "failed").status == 200
    settled = [row[3] for row in feed.rows() if row[0] == "delivery.settled"]
    assert [(one["state"], one["late"]) for one in settled] == [("expired", False), ("expired", True)]
    assert settled[1]["result"]["status"] == "failed"


def test_a_command_finishes_once_with_its_counts(admin: Admin) -> None:
    one, two = admin.enrol_fleet(2)
    request_id = admin.command("ping").json["request_id"]
    assert one.report(request_id, "succeeded").status == 200
    assert finishing.finish_recent(10) == 0
    assert two.report(request_id, "failed").status == 200
    assert (finishing.finish_recent(10), finishing.finish_recent(10)) == (1, 0)
    finished = [row for row in feed.rows() if row[0] == "command.finished"]
    counts = {"pending": 0, "received": 0, "succeeded": 1, "failed": 1, "expired": 0, "cancelled": 0, "late": 0}
    data = {"action": "ping", "state": "completed", "outcome": "partial", "device_count": 2, "counts": counts}
    assert finished == [("command.finished", None, request_id, data)]


def test_many_deliveries_of_one_statement_share_rows_and_have_an_event_each(admin: Admin) -> None:
    admin.enrol("serial-1")
    database.execute("""
        INSERT INTO devices_device
            (id, hardware_id, hardware_key, tags, manufacturer, model, os_version, push_kind, push_failures, token_hash,
             token_digest_key, command_key_id, generation, next_hash, next_digest_key, next_command_key_id,
             next_generation, enrolled_with_id)
        SELECT gen_random_uuid(), 'made-' || n, 'made-' || n, '{}', '', '', '', 'token', 0, '', '', '', 1, '', '',
            '', 1, enrolled_with_id
        FROM devices_device, generate_series(1, 2500) n
    """)
    request_id = admin.command("ping").json["request_id"]
    assert admin.post(f"/admin/commands/{request_id}/cancel").json["cancelled"] == 2501
    settled = [row for row in feed.rows() if row[0] == "delivery.settled"]
    assert len(settled) == len({row[1] for row in settled}) == 2501
    (count,) = database.row("SELECT count(*) FROM nexmdm_event WHERE type = 'delivery.settled'")
    assert count == 3


def test_an_unknown_device_in_a_command_leaves_no_event(admin: Admin) -> None:
    admin.enrol("serial-1")
    assert admin.command(to={"device_ids": [str(uuid4())]}).code == "unknown_devices"
    assert types() == ["device.enrolled", "audit.refused"]
