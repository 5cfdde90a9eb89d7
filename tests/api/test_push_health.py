"""Push health: its counts, the fields that it counts by, and the equality of stored hours and rows."""

from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db.models import F
from django.db.models.functions import Now

from commands.models import Attempt, Delivery
from devices.models import Device
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.common import database
from nexmdm.models import PushHealthHour
from nexmdm.monitoring import push_health
from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass

pytestmark = pytest.mark.django_db(transaction=True)

HIGH_TO_NORMAL = {"priority": "normal", "original_priority": "high"}


def health(admin: Admin, **query: Any) -> dict[str, dict[str, Any]]:
    """Return the rows of push health by their keys."""
    rows = admin.get(f"/admin/push-health?{urlencode({'by': 'model'} | query)}").json["items"]
    return {row.pop("key"): row for row in rows}


def pushed(admin: Admin, fcm: FcmStandin, *phones: Phone) -> str:
    """Send a ping to these phones by push."""
    request_id: str = admin.command("ping", to=list(phones), expires_in_seconds=86_400).json["request_id"]
    call_command("dispatch", once=True)
    return request_id


def hours_pass(*, hours: int) -> None:
    """Let time pass in which no dispatcher ran, so that no hour is counted."""
    let_pass(hours=hours)
    PushHealthHour.objects.all().delete()


def answered_after(seconds: float, phone: Phone, request_id: str, **fields: Any) -> None:
    """Report the success of a command this long after FCM accepted its push."""
    delivery = Delivery.objects.get(command_id=UUID(request_id), device_id=UUID(phone.device_id))
    Attempt.objects.filter(delivery=delivery).update(finished_at=Now() - timedelta(seconds=seconds))
    phone.report(request_id, "succeeded", **fields)
    at = Attempt.objects.get(delivery=delivery).finished_at
    assert at is not None
    Delivery.objects.filter(id=delivery.id).update(received_at=at + timedelta(seconds=seconds))


def fleet_of_two_models(admin: Admin, fcm: FcmStandin) -> tuple[Phone, Phone, Phone]:
    """Two phones of one model get the command by push, and one phone of another model gets it by heartbeat."""
    text = admin.enrollment_token(max_uses=3)
    phones = [Phone(admin.client, f"phone-{number}") for number in range(3)]
    for number, phone in enumerate(phones):
        phone.register(text, push_token=f"ok-{number}", model="A" if number < 2 else "B", os_version="16")
    request_id = pushed(admin, fcm, *phones)
    answered_after(1, phones[0], request_id, via="push")
    answered_after(10, phones[1], request_id, via="push", push=HIGH_TO_NORMAL)
    answered_after(99, phones[2], request_id, via="heartbeat")
    return phones[0], phones[1], phones[2]


def test_pushes_and_answers_are_counted_by_model(admin: Admin, fcm: FcmStandin) -> None:
    fleet_of_two_models(admin, fcm)
    assert health(admin) == {
        "A": {
            "devices": 2, "attempts": 2, "accepted": 2, "answered_by_push": 2, "answered_by_heartbeat": 0,
            "downgraded": 1, "p50_ms": pytest.approx(1_000, rel=0.05), "p95_ms": pytest.approx(10_000, rel=0.05),
        },
        "B": {
            "devices": 1, "attempts": 1, "accepted": 1, "answered_by_push": 0, "answered_by_heartbeat": 1,
            "downgraded": 0, "p50_ms": None, "p95_ms": None,
        },
    }  # fmt: skip
    assert health(admin, by="os_version")["16"]["attempts"] == 3
    assert set(health(admin, by="manufacturer")) == set(health(admin, by="agent_version")) == {""}


def test_an_attempt_that_fcm_did_not_accept_counts_as_an_attempt_only(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="unavailable-1", model="A")
    pushed(admin, fcm, phone)
    row = health(admin)["A"]
    assert (row["attempts"], row["accepted"]) == (1, 0)


def test_revoked_devices_are_not_among_the_devices(admin: Admin, fcm: FcmStandin) -> None:
    phones = fleet_of_two_models(admin, fcm)
    admin.post(f"/admin/devices/{phones[0].device_id}/revoke")
    assert health(admin)["A"]["devices"] == 1


def test_stored_hours_and_the_rows_of_the_rest_add_up_to_the_same(admin: Admin, fcm: FcmStandin) -> None:
    phones = fleet_of_two_models(admin, fcm)
    hours_pass(hours=30)
    fleet = pushed(admin, fcm, *phones)
    answered_after(2, phones[0], fleet, via="push")
    since = "2026-01-01T00:00:00Z"
    before = health(admin, since=since)
    push_health.count_hours(100)
    assert PushHealthHour.objects.filter(field="").count() in (29, 30, 31)
    assert PushHealthHour.objects.filter(field="model").exists()
    assert health(admin, since=since) == before
    assert (before["A"]["attempts"], health(admin)["A"]["attempts"]) == (4, 2)


def test_a_counted_hour_outlives_its_rows(admin: Admin, fcm: FcmStandin) -> None:
    fleet_of_two_models(admin, fcm)
    hours_pass(hours=30)
    push_health.count_hours(100)
    Delivery.objects.all().delete()
    assert health(admin, since="2026-01-01T00:00:00Z")["A"]["answered_by_push"] == 2


def test_an_hour_is_counted_once_and_not_before_it_is_over(admin: Admin, fcm: FcmStandin) -> None:
    fleet_of_two_models(admin, fcm)
    assert push_health.count_hours(100) == 0
    hours_pass(hours=2)
    assert push_health.count_hours(100) in (1, 2)
    assert push_health.count_hours(100) == 0


def test_an_hour_waits_for_deliveries_that_are_past_their_time(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    request_id = admin.command("ping", to=phone, expires_in_seconds=60).json["request_id"]
    call_command("dispatch", once=True)
    phone.report(request_id, "running", via="push")
    hours_pass(hours=3)
    counted = push_health.count_hours(100)
    assert Delivery.objects.get().open_until < database.now()
    last = PushHealthHour.objects.filter(field="").order_by("starts_at").last()
    assert counted == 0 or (last and last.starts_at + timedelta(hours=1) <= Delivery.objects.get().open_until)
    call_command("dispatch", once=True)
    assert health(admin)[""]["answered_by_push"] == 1
    assert admin.get("/admin/push-health").json["items"][0]["answered_by_push"] == 1


def test_prune_deletes_old_hours(admin: Admin, fcm: FcmStandin) -> None:
    fleet_of_two_models(admin, fcm)
    hours_pass(hours=3)
    push_health.count_hours(100)
    PushHealthHour.objects.update(starts_at=F("starts_at") - timedelta(days=91))
    call_command("prune")
    assert not PushHealthHour.objects.exists()


@pytest.mark.parametrize(("query", "field"), [({"by": "alias"}, "by"), ({"since": "now"}, "since"), ({"x": "1"}, "x")])
def test_other_queries_are_refused(admin: Admin, query: dict[str, str], field: str) -> None:
    answer = admin.get(f"/admin/push-health?{urlencode(query)}")
    assert (answer.status, answer.json["errors"][0]["loc"]) == (422, ["query", field])


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ({"priority": 2, "original_priority": 1}, {"priority": "normal", "original_priority": "high"}),
        ({"priority": "HIGH", "sent_at": None}, {"priority": "high"}),
        ({"priority": "urgent", "received_at": "2026-01-01T00:00:00Z"}, {"received_at": "2026-01-01T00:00:00+00:00"}),
        ({"priority": "urgent"}, None),
        ("high", None),
    ],
)
def test_the_first_report_with_the_arrival_of_its_push_is_kept(
    admin: Admin, phone: Phone, sent: Any, stored: Any
) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    phone.report(request_id, "received", push=sent)
    assert Delivery.objects.get().push_arrival == stored
    phone.report(request_id, "succeeded", push={"priority": "unknown"})
    assert Delivery.objects.get().push_arrival == (stored or {"priority": "unknown"})


def test_a_device_is_counted_under_the_value_that_it_has_now(admin: Admin, fcm: FcmStandin) -> None:
    fleet_of_two_models(admin, fcm)
    Device.objects.update(model="C")
    assert list(health(admin)) == ["C"]
