"""The reason why a delivery did not succeed: once the delivery's time is over, later events do not change the
reason.
"""

from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db.models import Subquery
from django.db.models.functions import Now
from pytest_django import Settings

from commands import queue, reports
from commands.models import Delivery, ReportStatus
from commands.reports import ReportInput
from devices.models import Presence
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.common.types import rfc3339
from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass, overtaken

pytestmark = pytest.mark.django_db(transaction=True)

HEARD_FROM_AFTER_THE_END: Final = (
    "The phone reported nothing in time, and its last heartbeat before the expiry is not known"
)


def why_unfinished(admin: Admin) -> str | None:
    """Return the reason of the only delivery; the list and the delivery's own answer must agree."""
    delivery = Delivery.objects.get()
    path = f"/admin/commands/{delivery.command_id}/deliveries"
    (row,) = admin.get(path).json["items"]
    detail = admin.get(f"{path}/{delivery.device_id}").json
    assert (detail["why_unfinished"], detail["why_open"]) == (row["why_unfinished"], row["why_open"])
    assert row["why_open"] is None or row["why_unfinished"] is None
    reason: str | None = row["why_unfinished"]
    return reason


def seen_at() -> str:
    last = Presence.objects.get().last_seen_at
    assert last is not None
    return rfc3339(last.replace(microsecond=0))


def expire() -> None:
    """Let the time of the only delivery be over, and mark the delivery as expired."""
    let_pass(hours=2)
    assert len(queue.expire(10)) == 1


def test_an_open_delivery_or_one_reported_in_time_has_no_such_reason(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    assert why_unfinished(admin) is None
    phone.report(request_id, "failed")
    assert why_unfinished(admin) is None


def test_the_reason_of_an_offline_phone_stays_after_it_is_back(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    Presence.objects.update(last_seen_at=Now() - timedelta(hours=3))
    request_id = admin.command("wipe", to=phone, expires_in_seconds=60).json["request_id"]
    expire()
    reason = f"Offline since {seen_at()}; the device had no live push token."
    assert why_unfinished(admin) == reason

    phone.heartbeat(push_token="token-1")
    phone.report(request_id, "succeeded")
    assert why_unfinished(admin) == reason


def test_a_delivery_that_is_not_marked_yet_has_the_same_reason(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    Presence.objects.update(last_seen_at=Now() - timedelta(hours=3))
    admin.command("ping", to=phone)
    let_pass(hours=2)
    assert Delivery.objects.get().state == "pending"
    assert why_unfinished(admin) == f"Offline since {seen_at()}; the device had no live push token."


def test_a_late_report_keeps_the_time_of_the_last_heartbeat(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    Presence.objects.update(last_seen_at=Now() - timedelta(hours=3))
    request_id = admin.command("ping", to=phone).json["request_id"]
    let_pass(hours=2)
    offline = f"Offline since {seen_at()}; the device had no live push token."
    assert phone.report(request_id, "succeeded").json["late"] is True
    phone.heartbeat()
    assert why_unfinished(admin) == offline


def test_the_reason_says_that_a_device_never_sent_a_heartbeat(admin: Admin, phone: Phone) -> None:
    admin.command("ping", to=phone)
    expire()
    never = "The device had never sent a heartbeat; the device had no live push token."
    assert why_unfinished(admin) == never
    phone.heartbeat()
    assert why_unfinished(admin) == never


def test_a_late_report_keeps_the_fact_that_the_phone_had_sent_no_heartbeat(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    let_pass(hours=2)
    assert phone.report(request_id, "succeeded").json["late"] is True
    phone.heartbeat()
    assert why_unfinished(admin) == "The device had never sent a heartbeat; the device had no live push token."


def test_a_fact_that_the_version_before_did_not_store_is_unknown_after_the_next_heartbeat(
    admin: Admin, phone: Phone
) -> None:
    admin.command("ping", to=phone)
    expire()
    Delivery.objects.update(device_was=None)
    assert why_unfinished(admin) == "The device had never sent a heartbeat; the device had no live push token."
    phone.heartbeat()
    reason = f"{HEARD_FROM_AFTER_THE_END}; the device had no live push token."
    assert why_unfinished(admin) == reason


def test_a_phone_that_was_online_and_did_not_answer_has_its_own_reason(admin: Admin, phone: Phone) -> None:
    admin.command("ping", to=phone)
    phone.heartbeat()
    expire()
    assert (
        why_unfinished(admin)
        == f"Last heartbeat at {seen_at()}, and the device did not answer in time; the device had no live push token."
    )


@pytest.mark.parametrize(
    ("silence", "sign"), [(299, "Last heartbeat at {}, before the command was issued"), (301, "Offline since {}")]
)
def test_a_phone_was_offline_if_its_silence_was_longer_than_the_online_window(
    admin: Admin, phone: Phone, settings: Settings, silence: float, sign: str
) -> None:
    settings.HEARTBEAT_INTERVAL_SECONDS = 120
    admin.command("ping", to=phone)
    Presence.objects.update(last_seen_at=Now() - timedelta(seconds=2))
    seen = Subquery(Presence.objects.values("last_seen_at")[:1])
    Delivery.objects.update(open_until=seen + timedelta(seconds=silence))
    let_pass(hours=2)
    assert len(queue.expire(10)) == 1
    assert why_unfinished(admin) == f"{sign.format(seen_at())}; the device had no live push token."


def test_a_heartbeat_between_the_end_and_its_mark_hides_those_before_and_the_reason_stays(
    admin: Admin, phone: Phone
) -> None:
    admin.command("ping", to=phone)
    let_pass(hours=2)
    phone.heartbeat()
    reason = f"{HEARD_FROM_AFTER_THE_END}; the device had no live push token."
    assert why_unfinished(admin) == reason
    assert len(queue.expire(10)) == 1
    for _ in range(2):
        assert why_unfinished(admin) == reason
        phone.heartbeat()


@pytest.mark.parametrize("status", ["received", "running", "deferred"])
def test_the_last_report_of_the_phone_is_the_reason(admin: Admin, phone: Phone, status: str) -> None:
    phone.heartbeat()
    request_id = admin.command("ping", to=phone).json["request_id"]
    phone.report(request_id, status)
    expire()
    phone.report(request_id, "succeeded")
    phone.report(request_id, "received")
    assert why_unfinished(admin) == f"The phone reported {status}, but sent no final report in time."


@pytest.mark.parametrize(
    ("message", "quoted"),
    [
        ("low battery", ' ("low battery")'),
        (" two\n lines ", ' ("two lines")'),
        ("x" * 100, f' ("{"x" * 100}")'),
        ("x" * 101, f' ("{"x" * 99}…")'),
        ("", ""),
    ],
)
def test_the_message_of_the_last_report_is_quoted(admin: Admin, phone: Phone, message: str, quoted: str) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    phone.report(request_id, "running", message="half")
    phone.report(request_id, "deferred", message=message)
    expire()
    assert why_unfinished(admin) == f"The phone reported deferred{quoted}, but sent no final report in time."


@pytest.mark.parametrize(
    ("push_token", "came_to"),
    [
        ("ok-1", "FCM accepted the push"),
        ("unavailable-1", "push failed once"),
        ("invalid-1", "FCM refused the push"),
        ("unregistered-1", "the push token was dead"),
    ],
)
def test_the_reason_contains_the_result_of_the_push(
    admin: Admin, fcm: FcmStandin, push_token: str, came_to: str
) -> None:
    phone = admin.enrol("phone-1", push_token=push_token)
    phone.heartbeat()
    Presence.objects.update(last_seen_at=Now() - timedelta(hours=3))
    admin.command("ping", to=phone)
    call_command("dispatch", once=True)
    expire()
    assert why_unfinished(admin) == f"Offline since {seen_at()}; {came_to}."


def test_the_reason_says_that_no_push_was_sent(admin: Admin) -> None:
    phone = admin.enrol("phone-1", push_token="token-1")
    admin.command("ping", to=phone)
    expire()
    assert why_unfinished(admin) == "The device had never sent a heartbeat; no push was sent."


def test_the_reason_of_a_withdrawn_delivery_names_what_withdrew_it(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    admin.post(f"/admin/commands/{request_id}/cancel")
    assert why_unfinished(admin) == "An admin cancelled the command."


@pytest.mark.parametrize(
    ("push_token", "came_to"),
    [
        (None, ""),
        ("ok-1", "; FCM accepted the push"),
        ("unavailable-1", "; push failed once"),
        ("invalid-1", "; FCM refused the push"),
        ("unregistered-1", "; the push token was dead"),
    ],
)
@pytest.mark.parametrize(("verb", "by"), [("revoke", "The device was revoked"), ("retire", "The device was retired")])
def test_a_withdrawn_delivery_keeps_the_result_of_its_push(
    admin: Admin, fcm: FcmStandin, push_token: str | None, came_to: str, verb: str, by: str
) -> None:
    phone = admin.enrol("phone-1", push_token=push_token)
    admin.command("ping", to=phone)
    call_command("dispatch", once=True)
    admin.post(f"/admin/devices/{phone.device_id}/{verb}")
    assert why_unfinished(admin) == f"{by}{came_to}."


@pytest.mark.parametrize(
    ("ending", "by"),
    [
        ("cancel", "An admin cancelled the command"),
        ("supersede", "A newer command of the same action took its place"),
        ("revoke", "The device was revoked"),
    ],
)
@pytest.mark.parametrize("is_offered", [False, True])
def test_a_withdrawn_delivery_keeps_the_fact_that_a_heartbeat_may_have_delivered_it(
    admin: Admin, phone: Phone, ending: str, by: str, is_offered: bool
) -> None:
    phone.heartbeat()
    let_pass(minutes=1)
    request_id = admin.command("lock", to=phone).json["request_id"]
    if is_offered:
        phone.heartbeat()
    if ending == "cancel":
        admin.post(f"/admin/commands/{request_id}/cancel")
    elif ending == "supersede":
        admin.command("lock", to=phone, supersede=True)
        Delivery.objects.exclude(state="cancelled").delete()
    else:
        for verb in ("revoke", "reinstate"):
            admin.post(f"/admin/devices/{phone.device_id}/{verb}")
    for _ in range(2):
        assert (
            why_unfinished(admin)
            == f"{by}{'; the phone may have got the command with a heartbeat' if is_offered else ''}."
        )
        phone.heartbeat()


def test_the_reason_of_a_withdrawn_delivery_omits_an_unsent_push(admin: Admin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    admin.command("ping", to=phone)
    admin.command("ping", to=phone, supersede=True)
    Delivery.objects.exclude(state="cancelled").delete()
    assert why_unfinished(admin) == "A newer command of the same action took its place."


def test_a_withdrawn_delivery_keeps_the_last_report_of_the_phone(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    phone.report(request_id, "received", message="soon")
    admin.post(f"/admin/commands/{request_id}/cancel")
    for _ in range(2):
        assert why_unfinished(admin) == 'An admin cancelled the command; the phone had reported received ("soon").'
        phone.report(request_id, "running")


def test_a_report_on_a_withdrawn_delivery_does_not_change_the_reason(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    admin.post(f"/admin/commands/{request_id}/cancel")
    phone.report(request_id, "running")
    assert why_unfinished(admin) == "An admin cancelled the command."


def test_a_report_that_a_cancellation_waited_for_was_in_time(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    word = partial(reports.record_report, UUID(phone.device_id), UUID(request_id), ReportInput(ReportStatus.RECEIVED))
    overtaken(word, lambda: admin.post(f"/admin/commands/{request_id}/cancel"))
    assert why_unfinished(admin) == "An admin cancelled the command; the phone had reported received."
