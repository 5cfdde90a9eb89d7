"""Retirement: an admin or a final report removes a device for good, and its hardware may register again."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import structlog
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from commands.models import Delivery, Report
from devices.models import Device
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.models import AuditEntry
from tests.support.actors import Admin, Answer, Phone
from tests.support.moments import let_pass

pytestmark = pytest.mark.django_db(transaction=True)


def retire(admin: Admin, phone: Phone) -> Answer:
    return admin.post(f"/admin/devices/{phone.device_id}/retire")


def shown(admin: Admin, phone: Phone) -> Any:
    return admin.get(f"/admin/devices/{phone.device_id}").json


def listed(admin: Admin, status: str) -> list[str]:
    return [row["device_id"] for row in admin.get(f"/admin/devices?status={status}").json["items"]]


def refusals(*answers: Answer) -> set[tuple[int, str | None]]:
    return {(answer.status, answer.code) for answer in answers}


def wiped(admin: Admin, phone: Phone, **fields: Any) -> str:
    """Issue a wipe for a phone."""
    return str(admin.command("wipe", to=phone, **fields).json["request_id"])


def audited_devices(admin: Admin) -> int:
    """The device_count of the newest audit entry."""
    count: int = admin.get("/admin/audit").json["items"][0]["summary"]["device_count"]
    return count


def test_a_retired_device_is_refused_and_counts_only_as_retired(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    request_id = admin.command("ping", to=phone).json["request_id"]
    answer = retire(admin, phone)
    assert (answer.status, answer.json["retired_at"] is not None) == (200, True)
    assert refusals(phone.heartbeat(), phone.report(request_id, "succeeded"), phone.rotate()) == {
        (403, "device_revoked")
    }
    assert admin.get("/admin/summary").json["devices"] == {
        "online": 0, "offline": 0, "never": 0, "revoked": 0, "retired": 1,
    }  # fmt: skip
    assert (listed(admin, "retired"), shown(admin, phone)["presence"]) == ([phone.device_id], "retired")
    assert [listed(admin, status) for status in ("online", "offline", "never", "revoked")] == [[], [], [], []]


def test_a_revoked_device_is_listed_as_such(admin: Admin, phone: Phone) -> None:
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    assert (listed(admin, "revoked"), listed(admin, "retired")) == ([phone.device_id], [])


def test_the_open_commands_of_a_retired_device_are_cancelled_and_its_history_stays(admin: Admin, phone: Phone) -> None:
    done = admin.command("ping", to=phone).json["request_id"]
    phone.report(done, "succeeded")
    lock = admin.command("lock", to=phone).json["request_id"]
    assert retire(admin, phone).json["withdrawn"] == [{"request_id": lock, "action": "lock", "may_still_run": False}]
    path = f"/admin/commands/{lock}/deliveries/{phone.device_id}"
    row = admin.get(path).json
    assert (row["state"], row["why_unfinished"]) == ("cancelled", "The device was retired.")
    assert row["timeline"][-1]["detail"] == "the device was retired"
    assert admin.get(f"/admin/commands/{done}").json["outcome"] == "succeeded"


def test_the_alias_of_a_retired_device_is_free_and_a_command_to_it_names_it_as_retired(admin: Admin) -> None:
    phone = admin.enrol("phone-1", alias="front-desk")
    retire(admin, phone)
    assert shown(admin, phone)["alias"] is None
    assert admin.enrol("phone-2", alias="front-desk").device_id != phone.device_id
    unknown = str(uuid4())
    answer = admin.command("ping", to={"device_ids": [phone.device_id, unknown]})
    assert refusals(answer) == {(422, "unknown_devices")}
    assert {error["msg"] for error in answer.json["errors"]} == {
        f"{phone.device_id} is retired", f"{unknown} is unknown",
    }  # fmt: skip


def test_commands_to_all_and_to_tags_skip_a_retired_device(admin: Admin) -> None:
    phone = admin.enrol("phone-1", tags=["lobby"])
    retire(admin, phone)
    for target in ({"all": True}, {"tags": ["lobby"]}):
        assert refusals(admin.command("ping", to=target)) == {(422, "empty_audience")}


def test_a_device_is_retired_once_and_never_reinstated(admin: Admin, phone: Phone) -> None:
    first = retire(admin, phone).json
    with structlog.testing.capture_logs() as lines:
        assert retire(admin, phone).json == first
    assert [line["event"] for line in lines if line["event"].startswith("device.")] == []
    assert audited_devices(admin) == 0
    reinstated = admin.post(f"/admin/devices/{phone.device_id}/reinstate")
    assert refusals(reinstated) == {(409, "device_retired")}
    assert refusals(phone.heartbeat()) == {(403, "device_revoked")}


def test_a_revoked_device_can_be_retired(admin: Admin, phone: Phone) -> None:
    revoked_at = admin.post(f"/admin/devices/{phone.device_id}/revoke").json["revoked_at"]
    row = retire(admin, phone).json
    assert (row["revoked_at"], row["retired_at"] is not None) == (revoked_at, True)


def test_an_unknown_device_cannot_be_retired(admin: Admin) -> None:
    assert refusals(admin.post(f"/admin/devices/{uuid4()}/retire")) == {(404, "not_found")}


def test_a_retirement_is_audited(admin: Admin, phone: Phone) -> None:
    with structlog.testing.capture_logs() as lines:
        retire(admin, phone)
    entry = AuditEntry.objects.latest("id")
    assert (entry.status, entry.path) == (200, f"/admin/devices/{phone.device_id}/retire")
    assert audited_devices(admin) == 1
    (line,) = [line for line in lines if line["event"] == "device.retired"]
    assert {"device_id": phone.device_id, "principal": "admin"}.items() <= line.items()
    assert "by" not in line


def test_a_retirement_by_a_wipe_is_logged_as_that_and_withdraws_the_rest(admin: Admin, phone: Phone) -> None:
    request_id, other = wiped(admin, phone), admin.command("ping", to=phone).json["request_id"]
    with structlog.testing.capture_logs() as lines:
        phone.report(request_id, "succeeded")
    (line,) = [line for line in lines if line["event"] == "device.retired"]
    assert (line["device_id"], line["by"]) == (phone.device_id, "wipe")
    row = admin.get(f"/admin/commands/{other}/deliveries/{phone.device_id}").json
    assert (row["state"], row["why_unfinished"]) == ("cancelled", "The device was retired.")


def test_the_hardware_of_a_retired_device_registers_again_as_the_same_device(admin: Admin) -> None:
    phone = admin.enrol("phone-1", tags=["lobby"], alias="front-desk", push_token="token-1")
    old_token = phone.device_token
    phone.heartbeat()
    retire(admin, phone)

    again = phone.register(admin.enrollment_token(tags=["floor-2"]))
    assert (again.status, again.json["re_enrolled"], again.json["device_id"]) == (200, True, phone.device_id)
    row = shown(admin, phone)
    assert (row["tags"], row["alias"], row["push"]) == (["floor-2"], None, "none")
    assert (row["revoked_at"], row["retired_at"]) == (None, None)
    assert phone.heartbeat().status == 200
    assert refusals(phone.send("/v1/heartbeat", {}, old_token)) == {(401, "invalid_token")}
    assert admin.command("ping", to=phone).json["device_count"] == 1


@pytest.mark.parametrize("word", ["succeeded", "failed"])
def test_a_wipe_retires_its_device_if_it_is_reported_as_succeeded(admin: Admin, phone: Phone, word: str) -> None:
    request_id, other = wiped(admin, phone), admin.command("ping", to=phone).json["request_id"]
    answer = phone.report(request_id, word)
    assert (answer.status, answer.json["state"]) == (200, word)
    is_retired = word == "succeeded"
    assert (shown(admin, phone)["retired_at"] is not None) is is_retired
    assert phone.heartbeat().status == (403 if is_retired else 200)
    assert admin.get(f"/admin/commands/{other}").json["state"] == ("cancelled" if is_retired else "open")


def test_no_other_success_retires_a_device(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("lock", to=phone).json["request_id"]
    phone.report(request_id, "succeeded")
    assert shown(admin, phone)["retired_at"] is None


def test_a_late_success_of_a_wipe_retires_its_device_too(admin: Admin, phone: Phone) -> None:
    request_id = wiped(admin, phone, expires_in_seconds=60)
    let_pass(hours=2)
    answer = phone.report(request_id, "succeeded").json
    assert (answer["state"], answer["late"]) == ("expired", True)
    assert shown(admin, phone)["retired_at"] is not None
    assert admin.get(f"/admin/commands/{request_id}").json["outcome"] == "expired"


@pytest.mark.parametrize(
    ("withdrawn_by", "reason"),
    [
        ("cancel", "An admin cancelled the command."),
        ("supersede", "A newer command of the same action took its place."),
        ("revoke", "The device was revoked."),
    ],
)
def test_a_withdrawn_wipe_that_succeeded_anyway_retires_its_device(
    admin: Admin, phone: Phone, withdrawn_by: str, reason: str
) -> None:
    request_id = wiped(admin, phone)
    if withdrawn_by == "cancel":
        admin.post(f"/admin/commands/{request_id}/cancel")
    elif withdrawn_by == "supersede":
        wiped(admin, phone, supersede=True)
    else:
        for verb in ("revoke", "reinstate"):
            admin.post(f"/admin/devices/{phone.device_id}/{verb}")
    for is_repeat in (False, True):
        answer = phone.report(request_id, "succeeded").json
        assert answer == {"request_id": request_id, "state": "cancelled", "duplicate": is_repeat, "late": True}
    assert shown(admin, phone)["retired_at"] is not None
    assert refusals(phone.heartbeat()) == {(403, "device_revoked")}
    row = admin.get(f"/admin/commands/{request_id}/deliveries/{phone.device_id}").json
    assert (row["why_unfinished"], row["late_result"]["status"]) == (reason, "succeeded")
    assert not Delivery.objects.open().exists()


@pytest.mark.parametrize("by_wipe", [False, True])
def test_no_push_is_sent_to_a_retired_device(admin: Admin, fcm: FcmStandin, by_wipe: bool) -> None:
    phone, other = (admin.enrol(name, push_token=f"ok-{name}") for name in ("phone-1", "phone-2"))
    request_id = wiped(admin, phone)
    admin.command("ping", to=[phone, other])
    if by_wipe:
        phone.report(request_id, "succeeded", via="heartbeat")
    else:
        retire(admin, phone)
    admin.command("ping", to={"all": True})
    call_command("dispatch", once=True)
    assert {send.push_token for send in fcm.journal.sends()} == {"ok-phone-2"}


def test_the_alias_of_a_wiped_device_is_free(admin: Admin) -> None:
    phone = admin.enrol("phone-1", alias="front-desk")
    phone.report(wiped(admin, phone), "succeeded")
    assert shown(admin, phone)["alias"] is None
    again = admin.enrol("phone-2", alias="Front-Desk")
    assert again.device_id != phone.device_id
    assert admin.command("ping", to={"aliases": ["front-desk"]}).json["device_count"] == 1


def test_a_wiped_phone_may_repeat_its_final_report_for_a_day_and_send_nothing_else(admin: Admin, phone: Phone) -> None:
    other = admin.command("ping", to=phone).json["request_id"]
    phone.report(other, "succeeded")
    request_id = wiped(admin, phone)
    phone.report(request_id, "succeeded")

    again = phone.report(request_id, "succeeded")
    assert (again.status, again.json["state"], again.json["duplicate"]) == (200, "succeeded", True)
    elsewhere = phone.report(str(uuid4()), "succeeded")
    others = (phone.report(request_id, "failed"), phone.report(other, "succeeded"), elsewhere, phone.heartbeat())
    assert refusals(*others) == {(403, "device_revoked")}

    Device.objects.update(retired_at=Now() - timedelta(hours=24, seconds=1))
    assert refusals(phone.report(request_id, "succeeded")) == {(403, "device_revoked")}


def test_a_repeat_of_a_success_retires_a_device_that_is_not_retired_yet(admin: Admin, phone: Phone) -> None:
    request_id = wiped(admin, phone)
    phone.report(request_id, "succeeded")
    Device.objects.update(revoked_at=None, retired_at=None)
    assert phone.report(request_id, "succeeded").json["duplicate"] is True
    assert shown(admin, phone)["retired_at"] is not None


def test_a_success_after_a_failure_retires_no_device(admin: Admin, phone: Phone) -> None:
    request_id = wiped(admin, phone)
    phone.report(request_id, "failed")
    assert phone.report(request_id, "succeeded").json["duplicate"] is True
    assert shown(admin, phone)["retired_at"] is None


def test_the_final_report_of_an_earlier_enrollment_is_refused(admin: Admin, phone: Phone) -> None:
    request_id = wiped(admin, phone)
    phone.report(request_id, "succeeded")
    phone.register(admin.enrollment_token())
    retire(admin, phone)
    assert refusals(phone.report(request_id, "succeeded")) == {(403, "device_revoked")}


def wiped_before_it_was_enrolled_again(admin: Admin, phone: Phone, *, lapsed: bool) -> str:
    """Issue a wipe that a new enrollment withdraws, or whose time is over by then; return its request_id."""
    request_id = wiped(admin, phone, expires_in_seconds=60)
    if lapsed:
        let_pass(hours=2)
    phone.register(admin.enrollment_token(re_enroll=True))
    return request_id


@pytest.mark.parametrize("lapsed", [False, True])
def test_a_wipe_from_before_a_new_enrollment_may_not_be_repeated_after_a_retirement_by_an_admin(
    admin: Admin, phone: Phone, lapsed: bool
) -> None:
    request_id = wiped_before_it_was_enrolled_again(admin, phone, lapsed=lapsed)
    assert phone.report(request_id, "succeeded").json["late"] is True
    retire(admin, phone)
    assert refusals(phone.report(request_id, "succeeded")) == {(403, "device_revoked")}
    assert Report.objects.count() == 1


def test_a_second_retirement_frees_an_alias_that_it_got_meanwhile(admin: Admin, phone: Phone) -> None:
    retire(admin, phone)
    Device.objects.update(alias="kiosk-1")  # by the version before
    answer = admin.call("PATCH", f"/admin/devices/{admin.enrol('phone-2').device_id}", {"alias": "kiosk-1"})
    assert (answer.code, "retire that device again" in answer.json["detail"]) == ("alias_taken", True)
    assert retire(admin, phone).json["alias"] is None
    assert audited_devices(admin) == 1


@pytest.mark.parametrize("body", [{"alias": "kiosk-1"}, {"alias": None}, {"tags": ["lobby"]}, {"tags": []}])
def test_the_alias_and_tags_of_a_retired_device_cannot_be_changed(admin: Admin, phone: Phone, body: Any) -> None:
    admin.post("/admin/tags/floor-1", {"add": [phone.device_id]})
    retire(admin, phone)
    answer = admin.call("PATCH", f"/admin/devices/{phone.device_id}", body)
    assert (answer.status, answer.code) == (409, "device_retired")
    assert (shown(admin, phone)["alias"], shown(admin, phone)["tags"]) == (None, ["floor-1"])
    assert admin.enrol("phone-2", alias="kiosk-1").last["re_enrolled"] is False


@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_tag_of_a_retired_device_cannot_be_changed_together_with_others(
    admin: Admin, phone: Phone, change: str
) -> None:
    other = admin.enrol("phone-2")
    retire(admin, phone)
    answer = admin.post("/admin/tags/floor-1", {"add": [other.device_id], change: [other.device_id, phone.device_id]})
    assert (answer.status, answer.code) == (422, "unknown_devices")
    assert [one["msg"] for one in answer.json["errors"]] == [f"{phone.device_id} is retired"]
    assert admin.get(f"/admin/devices/{other.device_id}").json["tags"] == []


def test_a_device_that_registers_again_after_its_retirement_can_be_changed(admin: Admin, phone: Phone) -> None:
    retire(admin, phone)
    phone.register(admin.enrollment_token())
    answer = admin.call("PATCH", f"/admin/devices/{phone.device_id}", {"alias": "kiosk-1", "tags": ["lobby"]})
    assert (answer.json["alias"], answer.json["tags"]) == ("kiosk-1", ["lobby"])


def test_the_version_before_cannot_reinstate_a_retired_device(admin: Admin, phone: Phone) -> None:
    retire(admin, phone)
    with pytest.raises(IntegrityError, match="device_retired_is_revoked"), transaction.atomic():
        Device.objects.filter(id=phone.device_id).update(revoked_at=None)
    assert refusals(phone.heartbeat()) == {(403, "device_revoked")}


def test_a_refused_success_retires_no_device(admin: Admin, phone: Phone) -> None:
    request_id = wiped(admin, phone)
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    assert refusals(phone.report(request_id, "succeeded")) == {(403, "device_revoked")}
    assert Report.objects.count() == 0
    assert shown(admin, phone)["retired_at"] is None


@pytest.mark.parametrize("lapsed", [False, True])
def test_a_wipe_from_before_a_new_enrollment_does_not_retire_the_device(
    admin: Admin, phone: Phone, lapsed: bool
) -> None:
    request_id = wiped_before_it_was_enrolled_again(admin, phone, lapsed=lapsed)
    answer = phone.report(request_id, "succeeded").json
    assert (answer["state"], answer["late"]) == ("expired" if lapsed else "cancelled", True)
    assert shown(admin, phone)["retired_at"] is None
    assert phone.heartbeat().status == 200


def test_a_device_enrolled_again_after_its_wipe_is_not_retired_by_a_repeat(admin: Admin, phone: Phone) -> None:
    request_id = wiped(admin, phone)
    phone.report(request_id, "succeeded")
    phone.register(admin.enrollment_token())
    assert phone.report(request_id, "succeeded").json["duplicate"] is True
    assert (shown(admin, phone)["retired_at"], phone.heartbeat().status) == (None, 200)
    assert Delivery.objects.get().state == "succeeded"
