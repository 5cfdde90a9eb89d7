"""Revocation and its end, in the answer, the audit and the log."""

from datetime import timedelta
from typing import Any

import pytest
import structlog
from django.core.management import call_command
from django.db.models.functions import Now

from devices.models import Presence
from loadtest.fake_fcm.server import FcmStandin
from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass

pytestmark = pytest.mark.django_db(transaction=True)


def shown(admin: Admin, phone: Phone) -> Any:
    return admin.get(f"/admin/devices/{phone.device_id}").json


def audited_devices(admin: Admin) -> int:
    """The device_count of the newest audit entry."""
    count: int = admin.get("/admin/audit").json["items"][0]["summary"]["device_count"]
    return count


@pytest.mark.parametrize("verb", ["revoke", "retire"])
def test_a_withdrawn_wipe_that_the_phone_may_have_may_still_run(admin: Admin, fcm: FcmStandin, verb: str) -> None:
    def withdrawn(phone: Phone) -> list[tuple[str, bool]]:
        found = admin.post(f"/admin/devices/{phone.device_id}/{verb}").json["withdrawn"]
        return [(one["action"], one["may_still_run"]) for one in found]

    pushed, refused = (admin.enrol(answer, push_token=f"{answer}-1") for answer in ("ok", "unregistered"))
    offered, reported = (admin.enrol(name) for name in ("offered", "reported"))
    offered.heartbeat()
    Presence.objects.update(last_seen_at=Now() - timedelta(minutes=1))
    for phone in (pushed, refused, offered, reported):
        admin.command("lock", to=phone)
    call_command("dispatch", once=True)
    let_pass(seconds=10)
    offered.heartbeat()
    wipe = {phone.device_id: admin.command("wipe", to=phone).json["request_id"] for phone in (offered, reported)}
    Presence.objects.filter(device__hardware_id="offered").update(last_seen_at=Now() - timedelta(seconds=5))
    reported.report(wipe[reported.device_id], "received")
    assert withdrawn(pushed) == [("lock", True)]
    assert withdrawn(refused) == [("lock", False)]
    assert withdrawn(offered) == [("lock", True), ("wipe", False)]
    assert withdrawn(reported) == [("lock", False), ("wipe", True)]


@pytest.mark.parametrize(
    ("before", "verb"),
    [(["revoke"], "revoke"), (["retire"], "revoke"), ([], "reinstate"), (["revoke", "reinstate"], "reinstate")],
)
def test_a_write_without_a_change_counts_no_device_and_logs_no_event(
    admin: Admin, phone: Phone, before: list[str], verb: str
) -> None:
    for earlier in before:
        admin.post(f"/admin/devices/{phone.device_id}/{earlier}")
    was = shown(admin, phone)
    with structlog.testing.capture_logs() as lines:
        assert admin.post(f"/admin/devices/{phone.device_id}/{verb}").status == 200
    assert shown(admin, phone) == was
    assert [line["event"] for line in lines if line["event"].startswith("device.")] == []
    assert audited_devices(admin) == 0


def test_a_revocation_and_its_end_are_logged_with_their_principal(admin: Admin, phone: Phone) -> None:
    for verb in ("revoke", "reinstate"):
        with structlog.testing.capture_logs() as lines:
            admin.post(f"/admin/devices/{phone.device_id}/{verb}")
        (line,) = [line for line in lines if line["event"].startswith("device.")]
        assert (line["event"], line["principal"]) == (f"device.{verb}d", "admin")
        assert line["device_id"] == phone.device_id
        assert audited_devices(admin) == 1


def test_the_end_of_a_revocation_names_the_wipe_and_lock_that_it_has_withdrawn(admin: Admin, phone: Phone) -> None:
    path = f"/admin/devices/{phone.device_id}"
    admin.command("lock", to=phone)
    phone.heartbeat()
    let_pass(minutes=1)
    for action in ("wipe", "ping"):
        admin.command(action, to=phone)
    withdrawn = admin.post(f"{path}/revoke").json["withdrawn"]
    assert [(one["action"], one["may_still_run"]) for one in withdrawn] == [("lock", True), ("wipe", False)]
    phone.heartbeat()
    reinstated = admin.post(f"{path}/reinstate").json
    assert reinstated == shown(admin, phone) | {"withdrawn": withdrawn}
    for verb in ("reinstate", "revoke", "reinstate"):
        assert admin.post(f"{path}/{verb}").json["withdrawn"] == []
