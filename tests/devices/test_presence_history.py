"""The history of presence: spans and their events, the service's own absence, and what the API shows of them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import structlog
from django.core.management import call_command
from django.db.models.functions import Now
from pytest_django import Settings

from devices.models import Presence, PresenceSpan, ServiceGap, ServiceMark
from devices.presence import history, service_time, spans
from nexmdm.common import database
from nexmdm.models import Event
from tests.support import feed
from tests.support.actors import Admin, Answer, Phone
from tests.support.moments import in_parallel, let_pass, overtaken

pytestmark = pytest.mark.django_db(transaction=True)

WINDOW: Final = timedelta(minutes=5)
"""2.5 intervals of 120 s."""

UNKNOWN_ID: Final = "00000000-0000-7000-8000-000000000000"


@pytest.fixture(autouse=True)
def forget_the_last_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_time, "_latest", None)


@pytest.fixture(params=["a process that wrote the marks", "another process"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that writes the mark of a web worker: of the one that gets the heartbeats, or of another one."""

    def mark() -> None:
        service_time.mark()
        if request.param == "another process":
            monkeypatch.setattr(service_time, "_latest", None)

    mark()
    return mark


def serve(**length: float) -> None:
    """Let time pass in which web workers run."""
    let_pass(**length)
    ServiceMark.objects.update(at=Now())


def end_silent() -> int:
    return spans.end_silent(100)


def happened(admin: Admin) -> list[tuple[str, str]]:
    """The events of presence so far: type and device."""
    return [(event["type"], event["device_id"]) for event in feed.all_events(admin, types="device.o*")]


def presence(admin: Admin, phone: Phone, query: str = "") -> Any:
    answer = admin.get(f"/admin/devices/{phone.device_id}/presence{query}")
    assert answer.status == 200, answer
    return answer.json


def states(shown: Any) -> list[str]:
    return [item["state"] for item in shown["items"]]


def minutes(shown: Any) -> list[tuple[str, float]]:
    """The states with their lengths in minutes."""
    now = datetime.now(UTC)
    pairs = [(moment(item["from"]), moment(item["to"]) if item["to"] else now) for item in shown["items"]]
    return [
        (item["state"], round((to - at) / timedelta(minutes=1), 1))
        for item, (at, to) in zip(shown["items"], pairs, strict=True)
    ]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def row(admin: Admin, phone: Phone) -> Any:
    return admin.get(f"/admin/devices/{phone.device_id}").json


def test_the_first_heartbeat_begins_a_span_with_one_event(admin: Admin, phone: Phone) -> None:
    assert presence(admin, phone) == {"items": [], "uptime_ratio": None}
    phone.heartbeat()
    shown = presence(admin, phone)
    assert shown["items"] == [{"state": "online", "from": row(admin, phone)["last_seen_at"], "to": None}]
    assert shown["uptime_ratio"] in (1.0, None)
    assert happened(admin) == [("device.online", phone.device_id)]


def test_steady_heartbeats_write_no_rows(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    began = Presence.objects.get().online_from
    for _ in range(3):
        let_pass(minutes=4)
        assert phone.heartbeat(status={"battery_pct": 1}).status == 200
        assert end_silent() == 0
    assert PresenceSpan.objects.count() == 0
    assert began is not None
    assert Presence.objects.get().online_from == began - timedelta(minutes=12)
    assert happened(admin) == [("device.online", phone.device_id)]
    assert minutes(presence(admin, phone)) == [("online", 12.0)]


def test_a_silent_device_goes_offline_once_2_5_intervals_after_its_last_heartbeat(admin: Admin, phone: Phone) -> None:
    admin.call("PATCH", f"/admin/devices/{phone.device_id}", {"alias": "till 7", "tags": ["shop"]})
    phone.heartbeat()
    serve(minutes=4)
    assert end_silent() == 0
    assert row(admin, phone)["offline_since"] is None
    serve(minutes=16)
    assert [end_silent(), end_silent()] == [1, 0]
    shown, now_shown = presence(admin, phone), row(admin, phone)
    offline_at = moment(now_shown["last_seen_at"]) + WINDOW
    assert minutes(shown) == [("online", 5.0), ("offline", 15.0)]
    assert moment(shown["items"][0]["to"]) == moment(shown["items"][1]["from"]) == offline_at
    assert shown["uptime_ratio"] == pytest.approx(0.25, abs=0.001)
    assert (now_shown["presence"], moment(now_shown["offline_since"])) == ("offline", offline_at)
    (event,) = feed.all_events(admin, types="device.offline")
    data = event["data"]
    assert (event["device_id"], data["alias"], data["tags"]) == (phone.device_id, "till 7", ["shop"])
    assert (moment(data["last_seen_at"]), moment(data["offline_at"])) == (offline_at - WINDOW, offline_at)


@pytest.mark.parametrize("task_ran", [True, False], ids=["the task ran before", "the heartbeat comes first"])
def test_a_device_that_returns_has_two_spans_and_three_events(admin: Admin, phone: Phone, *, task_ran: bool) -> None:
    phone.heartbeat()
    serve(minutes=20)
    if task_ran:
        assert end_silent() == 1
    assert minutes(presence(admin, phone)) == [("online", 5.0), ("offline", 15.0)]
    phone.heartbeat()
    assert end_silent() == 0
    serve(minutes=1)
    shown = presence(admin, phone)
    assert minutes(shown) == [("online", 5.0), ("offline", 15.0), ("online", 1.0)]
    assert shown["uptime_ratio"] == pytest.approx(6 / 21, abs=0.001)
    assert shown["items"][-1]["to"] is None
    assert [kind for kind, _ in happened(admin)] == ["device.online", "device.offline", "device.online"]
    assert row(admin, phone)["offline_since"] is None


def test_two_racing_heartbeats_begin_one_span(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    serve(minutes=20)
    answers = in_parallel([phone.heartbeat, phone.heartbeat], all_wait_for="devices_presence")
    assert [answer.status for answer in answers] == [200, 200]
    assert PresenceSpan.objects.count() == 1
    assert [kind for kind, _ in happened(admin)] == ["device.online", "device.offline", "device.online"]
    assert states(presence(admin, phone)) == ["online", "offline", "online"]


def test_a_heartbeat_that_waits_for_the_end_of_its_span_begins_another(admin: Admin, phone: Phone) -> None:
    def steady() -> Answer:
        return phone.heartbeat()

    phone.heartbeat()
    serve(minutes=4, seconds=59)

    def end() -> None:
        # The heartbeat began before the window ended, and waits; the task, which ends the span, began after that.
        Presence.objects.update(last_seen_at=Now() - timedelta(minutes=6))
        assert end_silent() == 1
        Presence.objects.update(last_seen_at=Now() - timedelta(minutes=4, seconds=59))

    answer = overtaken(end, steady)
    assert answer.status == 200
    assert [kind for kind, _ in happened(admin)] == ["device.online", "device.offline", "device.online"]
    assert Presence.objects.get().online_from is not None


def test_the_task_leaves_a_device_whose_heartbeat_is_being_recorded(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    serve(minutes=20)
    assert overtaken(phone.heartbeat, end_silent) == 0
    assert end_silent() == 0
    assert PresenceSpan.objects.count() == 1
    assert [kind for kind, _ in happened(admin)] == ["device.online", "device.offline", "device.online"]


def test_the_dispatcher_ends_spans(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    serve(minutes=20)
    call_command("dispatch", once=True)
    assert happened(admin)[-1] == ("device.offline", phone.device_id)


def test_while_no_web_worker_runs_no_device_goes_offline(
    admin: Admin, phone: Phone, served: Callable[[], None]
) -> None:
    phone.heartbeat()
    serve(minutes=1)
    let_pass(minutes=10)
    assert end_silent() == 0
    assert row(admin, phone)["presence"] == "online"
    assert admin.get("/admin/summary").json["devices"]["online"] == 1
    assert admin.get("/admin/devices?status=offline").json["items"] == []
    assert minutes(presence(admin, phone)) == [("online", 1.0), ("unknown", 10.0)]
    assert happened(admin) == [("device.online", phone.device_id)]


def test_a_gap_is_bridged_by_the_span_of_a_device_that_returns(
    admin: Admin, phone: Phone, served: Callable[[], None]
) -> None:
    phone.heartbeat()
    serve(minutes=2)
    let_pass(minutes=10)
    with structlog.testing.capture_logs() as logs:
        served()
    assert [(entry["event"], entry["seconds"]) for entry in logs] == [("service.gap", 600)]
    serve(minutes=2)
    assert end_silent() == 0
    assert row(admin, phone)["presence"] == "online"
    assert phone.heartbeat().status == 200
    assert happened(admin) == [("device.online", phone.device_id)]
    assert PresenceSpan.objects.count() == 0
    shown = presence(admin, phone)
    assert minutes(shown) == [("online", 2.0), ("unknown", 10.0), ("online", 2.0)]
    assert shown["uptime_ratio"] == 1.0


def test_after_a_gap_a_silent_device_goes_offline_after_the_rest_of_its_window(
    admin: Admin, phone: Phone, served: Callable[[], None]
) -> None:
    phone.heartbeat()
    serve(minutes=2)
    for _ in range(2):
        let_pass(minutes=10)
        served()
        serve(minutes=1)
    assert (end_silent(), row(admin, phone)["presence"]) == (0, "online")
    serve(minutes=2)
    assert row(admin, phone)["presence"] == "offline"
    assert moment(row(admin, phone)["offline_since"]) == pytest.approx(
        moment(row(admin, phone)["last_seen_at"]) + timedelta(minutes=25), abs=timedelta(seconds=1)
    )
    assert phone.heartbeat().status == 200
    assert minutes(presence(admin, phone))[:-1] == [
        ("online", 2.0), ("unknown", 10.0), ("online", 1.0), ("unknown", 10.0), ("online", 2.0), ("offline", 1.0),
    ]  # fmt: skip
    assert [kind for kind, _ in happened(admin)] == ["device.online", "device.offline", "device.online"]


def test_a_gap_counts_no_longer_once_a_whole_window_was_served_after_it(
    admin: Admin, phone: Phone, served: Callable[[], None]
) -> None:
    phone.heartbeat()
    serve(minutes=1)
    let_pass(minutes=10)
    served()
    for _ in range(3):
        serve(minutes=2)
        phone.heartbeat()
    serve(minutes=6)
    assert (row(admin, phone)["presence"], end_silent()) == ("offline", 1)
    phone.heartbeat()
    assert minutes(presence(admin, phone))[:4] == [
        ("online", 1.0), ("unknown", 10.0), ("online", 11.0), ("offline", 1.0),
    ]  # fmt: skip


def test_a_device_that_was_offline_before_a_gap_stays_offline(
    admin: Admin, phone: Phone, served: Callable[[], None]
) -> None:
    phone.heartbeat()
    serve(minutes=6)
    let_pass(minutes=10)
    assert row(admin, phone)["presence"] == "offline"
    served()
    assert end_silent() == 1
    serve(minutes=3)
    shown = presence(admin, phone)
    assert minutes(shown) == [("online", 5.0), ("offline", 1.0), ("unknown", 10.0), ("offline", 3.0)]
    assert shown["uptime_ratio"] == pytest.approx(5 / 9, abs=0.001)


def test_a_short_pause_is_no_gap(admin: Admin, served: Callable[[], None]) -> None:
    let_pass(seconds=service_time.LONGEST_PAUSE.total_seconds() - 1)
    served()
    assert ServiceGap.objects.count() == 0


def test_two_workers_that_return_store_one_gap(served: Callable[[], None]) -> None:
    let_pass(minutes=10)
    overtaken(service_time.mark, service_time.mark)
    assert ServiceGap.objects.count() == 1


def test_a_page_about_a_time_begins_there(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    serve(minutes=20)
    phone.heartbeat()
    serve(minutes=1)
    since = f"?since={(datetime.now(UTC) - timedelta(minutes=11)).isoformat().replace('+00:00', 'Z')}"
    shown = presence(admin, phone, since)
    assert minutes(shown) == [("offline", 10.0), ("online", 1.0)]
    assert shown["uptime_ratio"] == pytest.approx(1 / 11, abs=0.001)
    end_silent()
    serve(minutes=4)
    assert presence(admin, phone, "?since=2000-01-01T00:00:00Z") == presence(admin, phone) | {
        "uptime_ratio": pytest.approx(10 / 25, abs=0.001)
    }
    assert presence(admin, phone, "?since=2999-01-01T00:00:00Z") == {"items": [], "uptime_ratio": None}


def test_an_answer_has_the_newest_spans(admin: Admin, phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST", 2)
    for _ in range(4):
        phone.heartbeat()
        serve(minutes=10)
    end_silent()
    assert minutes(presence(admin, phone)) == [("online", 5.0), ("offline", 5.0)] * 2


def test_a_device_that_was_online_before_the_upgrade_has_a_span_without_an_event(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    Event.objects.all().delete()
    Presence.objects.update(online_from=None)
    serve(minutes=2)
    assert minutes(presence(admin, phone)) == [("online", 2.0)]
    phone.heartbeat()
    serve(minutes=10)
    assert end_silent() == 1
    assert minutes(presence(admin, phone)) == [("online", 7.0), ("offline", 5.0)]
    assert happened(admin) == [("device.offline", phone.device_id)]


def test_a_device_that_is_silent_since_the_upgrade_is_offline_without_an_event(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    Event.objects.all().delete()
    Presence.objects.update(online_from=None)
    serve(minutes=20)
    assert (end_silent(), happened(admin)) == (0, [])
    assert minutes(presence(admin, phone)) == [("online", 5.0), ("offline", 15.0)]
    phone.heartbeat()
    assert happened(admin) == [("device.online", phone.device_id)]


@pytest.mark.parametrize("shut_out", ["revoke", "retire"])
def test_the_span_of_a_device_that_was_shut_out_ends_without_an_event(
    admin: Admin, phone: Phone, shut_out: str
) -> None:
    other = admin.enrol("phone-2")
    for one in (phone, other):
        one.heartbeat()
    assert admin.post(f"/admin/devices/{phone.device_id}/{shut_out}").status == 200
    serve(minutes=20)
    assert (end_silent(), end_silent()) == (2, 0)
    assert [event for event in happened(admin) if event[0] == "device.offline"] == [("device.offline", other.device_id)]
    assert minutes(presence(admin, phone)) == [("online", 5.0), ("offline", 15.0)]


def test_a_revoked_device_goes_offline_like_any_other(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    serve(minutes=1)
    assert phone.heartbeat().status == 403
    serve(minutes=19)
    assert end_silent() == 1
    assert minutes(presence(admin, phone)) == [("online", 5.0), ("offline", 15.0)]
    assert (row(admin, phone)["presence"], row(admin, phone)["offline_since"]) == ("revoked", None)
    admin.post(f"/admin/devices/{phone.device_id}/reinstate")
    phone.heartbeat()
    assert states(presence(admin, phone)) == ["online", "offline", "online"]


def test_a_new_enrollment_continues_the_span(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    serve(minutes=2)
    assert phone.register(admin.enrollment_token(re_enroll=True)).status == 200
    phone.heartbeat()
    assert minutes(presence(admin, phone)) == [("online", 2.0)]
    assert happened(admin) == [("device.online", phone.device_id)]


def test_old_spans_and_gaps_are_deleted_but_never_the_present_span(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    settings.EVENT_RETENTION_DAYS = 30
    service_time.mark()
    phone.heartbeat()
    serve(minutes=10)
    phone.heartbeat()
    let_pass(minutes=2)
    service_time.mark()
    phone.heartbeat()
    assert (PresenceSpan.objects.count(), ServiceGap.objects.count()) == (1, 1)
    call_command("dispatch", once=True)
    assert (PresenceSpan.objects.count(), ServiceGap.objects.count()) == (1, 1)
    serve(days=31)
    Presence.objects.update(last_seen_at=Now())
    call_command("dispatch", once=True)
    assert PresenceSpan.objects.count() == 0
    assert Presence.objects.get().online_from is not None
    assert ServiceGap.objects.count() == 0


def test_the_history_of_an_unknown_device_is_404_and_other_parameters_are_422(admin: Admin, phone: Phone) -> None:
    assert admin.get(f"/admin/devices/{UNKNOWN_ID}/presence").status == 404
    assert admin.get("/admin/devices/x/presence").status == 404
    for query in ("since=yesterday", "until=2026-01-01T00:00:00Z"):
        assert admin.get(f"/admin/devices/{phone.device_id}/presence?{query}").status == 422


def test_many_devices_go_offline_in_batches(admin: Admin) -> None:
    phones = admin.enrol_fleet(5)
    for phone in phones:
        phone.heartbeat()
    serve(minutes=20)
    assert [spans.end_silent(2) for _ in range(4)] == [2, 2, 1, 0]
    offline = [device_id for kind, device_id in happened(admin) if kind == "device.offline"]
    assert sorted(offline) == sorted(phone.device_id for phone in phones)
    assert database.row("SELECT count(DISTINCT device_id) FROM devices_presencespan") == (5,)
