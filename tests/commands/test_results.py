"""Action results: each report of a phone is stored, and the first final report counts."""

from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db.models.functions import Now
from prometheus_client import REGISTRY
from pytest_django import Settings

from commands import queue
from commands.models import Attempt, Delivery, Report
from tests.support.actors import Admin, Client, Phone
from tests.support.moments import in_parallel, let_pass

ABSENT = "0192f0c1-b000-7abc-8def-0123456789ab"


@pytest.fixture
def request_id(admin: Admin, phone: Phone) -> str:
    """A command that is open for the phone."""
    return str(admin.command("reboot", to=phone, expires_in_seconds=600).json["request_id"])


def delivery_of(admin: Admin, phone: Phone, request_id: str) -> Any:
    return admin.get(f"/admin/commands/{request_id}/deliveries/{phone.device_id}").json


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("received", "received"),
        ("running", "received"),
        ("deferred", "received"),
        ("succeeded", "succeeded"),
        ("failed", "failed"),
    ],
)
def test_each_status_leads_to_its_state(phone: Phone, request_id: str, status: str, state: str) -> None:
    answer = phone.report(request_id, status)
    assert (answer.status, answer.json) == (
        200,
        {"request_id": request_id, "state": state, "duplicate": False, "late": False},
    )
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.settled_at is None) == (state, state == "received")
    assert delivery.received_at is not None
    assert delivery.reported_at is not None


def test_a_result_is_stored_as_the_phone_sent_it(admin: Admin, phone: Phone, request_id: str) -> None:
    content: dict[str, Any] = {
        "message": "done ✓",
        "output": {"exit": 0, "lines": ["a", "b"]},
        "finished_at": "2026-01-01T02:00:00.5+02:00",
        "via": "push",
    }
    phone.report(request_id, "succeeded", **content)
    shown = delivery_of(admin, phone, request_id)
    result = shown["result"]
    assert (result["status"], result["message"], result["output"]) == (
        "succeeded",
        content["message"],
        content["output"],
    )
    assert (result["finished_at"], shown["delivered_via"]) == ("2026-01-01T00:00:00.500000Z", "push")
    assert shown["late_result"] is None


def kept() -> list[tuple[str, str, int]]:
    """Return the status and message of each stored report, and how many times in succession it was sent."""
    rows = Report.objects.order_by("id").values_list("status", "message", "repeat_count")
    return [(status, message, repeats + 1) for status, message, repeats in rows]


def test_every_report_is_stored_and_equal_ones_in_a_row_as_one_unless_they_are_final(
    phone: Phone, request_id: str
) -> None:
    sent = ["received", "deferred", "running", "running", "deferred", "succeeded", "succeeded", "failed", "running"]
    for status in [*sent, "running"]:
        assert phone.report(request_id, status).status == 200
    rows = Report.objects.order_by("id").values_list("status", "repeat_count", "duplicate", "late")
    assert list(rows) == [
        ("received", 0, False, False),
        ("deferred", 0, False, False),
        ("running", 1, False, False),
        ("deferred", 0, False, False),
        ("succeeded", 0, False, False),
        ("succeeded", 0, True, False),
        ("failed", 0, True, False),
        ("running", 1, True, False),
    ]


@pytest.mark.parametrize(
    "new", [{"message": "step 2"}, {"output": {"step": 2}}, {"via": "push"}, {"finished_at": "2026-01-01T00:00:00Z"}]
)
def test_a_report_with_new_content_is_stored_separately(phone: Phone, request_id: str, new: dict[str, Any]) -> None:
    for fields in ({}, new, new, {}):
        phone.report(request_id, "running", **fields)
    assert [count for _, _, count in kept()] == [1, 2, 1]


def test_a_repeated_report_is_one_event_with_its_count_and_last_time(
    admin: Admin, phone: Phone, request_id: str
) -> None:
    phone.report(request_id, "running", message="still")
    first = Report.objects.get().reported_at
    let_pass(seconds=30)
    for _ in range(2):
        phone.report(request_id, "running", message="still")
    (event,) = [one for one in delivery_of(admin, phone, request_id)["timeline"] if one["event"] == "report"]
    assert (event["status"], event["message"], event["count"]) == ("running", "still", 3)
    assert (datetime.fromisoformat(event["last_at"]) - datetime.fromisoformat(event["at"])).total_seconds() >= 30
    assert datetime.fromisoformat(event["at"]) == first - timedelta(seconds=30)


def reported_without_end(phone: Phone, request_id: str, number: int, status: str = "running") -> None:
    """Send this number of reports, each with new content."""
    for at in range(number):
        assert phone.report(request_id, status, message=f"{status} {at}").status == 200


def test_the_first_hundred_reports_and_the_result_are_stored_and_the_others_counted(
    admin: Admin, phone: Phone, request_id: str, settings: Settings
) -> None:
    settings.DEVICE_RATE_LIMIT = "10000/m"
    before = REGISTRY.get_sample_value("nexmdm_reports_not_kept_total") or 0
    reported_without_end(phone, request_id, 103)
    answer = phone.report(request_id, "succeeded", message="done")
    assert answer.json == {"request_id": request_id, "state": "succeeded", "duplicate": False, "late": False}
    again = phone.report(request_id, "failed", message="or not")
    assert again.json == {"request_id": request_id, "state": "succeeded", "duplicate": True, "late": False}

    assert [message for _, message, _ in kept()] == [*(f"running {at}" for at in range(100)), "done"]
    assert Delivery.objects.get().reports_not_kept == 3 + 1
    assert REGISTRY.get_sample_value("nexmdm_reports_not_kept_total") == before + 4
    shown = delivery_of(admin, phone, request_id)
    assert (shown["state"], shown["result"]["message"]) == ("succeeded", "done")
    (left_out,) = [event for event in shown["timeline"] if event["event"] == "left_out"]
    assert (left_out["count"], left_out["detail"]) == (4, "4 further reports were counted but not stored")


@pytest.mark.parametrize("ending", ["expired", "cancelled"])
def test_beyond_the_hundred_the_first_late_result_is_stored(
    admin: Admin, phone: Phone, request_id: str, settings: Settings, ending: str
) -> None:
    settings.DEVICE_RATE_LIMIT = "10000/m"
    reported_without_end(phone, request_id, 101)
    if ending == "expired":
        let_pass(hours=3)
    else:
        admin.post(f"/admin/commands/{request_id}/cancel")
    for status, duplicate in (("failed", False), ("succeeded", True)):
        answer = phone.report(request_id, status)
        assert answer.json == {"request_id": request_id, "state": ending, "duplicate": duplicate, "late": True}
    assert Report.objects.count() == 101
    assert Delivery.objects.get().reports_not_kept == 2
    assert delivery_of(admin, phone, request_id)["late_result"]["status"] == "failed"


def test_a_report_that_is_not_stored_still_counts_for_the_delivery(
    phone: Phone, request_id: str, settings: Settings
) -> None:
    settings.DEVICE_RATE_LIMIT = "10000/m"
    reported_without_end(phone, request_id, 100, "deferred")
    let_pass(minutes=5)
    before = Delivery.objects.get()
    assert phone.report(request_id, "running", via="push").json["state"] == "received"
    after = Delivery.objects.get()
    assert (after.reports_not_kept, after.delivered_via) == (1, "push")
    assert before.reported_at is not None
    assert after.reported_at is not None
    assert (after.reported_at - before.reported_at).total_seconds() >= 300
    assert after.open_until - before.open_until == timedelta(hours=1)


def test_the_timeline_limits_the_reports_of_an_older_version_and_shows_the_limit(
    admin: Admin, phone: Phone, request_id: str
) -> None:
    phone.report(request_id, "succeeded", message="done", output={"exit": 0})
    delivery = Delivery.objects.get()
    Report.objects.bulk_create(
        Report(delivery=delivery, status="running", message=f"said {number}", output={"n": number}, duplicate=True)
        for number in range(500)
    )
    shown = delivery_of(admin, phone, request_id)
    assert (shown["result"]["message"], shown["result"]["output"]) == ("done", {"exit": 0})
    events = [event["event"] for event in shown["timeline"]]
    assert (events.count("report"), events.count("left_out")) == (102, 1)
    assert shown["timeline"][-1]["message"] == "said 499"
    (left_out,) = [event for event in shown["timeline"] if event["event"] == "left_out"]
    assert (left_out["detail"], left_out["count"]) == ("earlier reports are not shown", None)
    (row,) = admin.get(f"/admin/commands/{request_id}/deliveries").json["items"]
    assert row["result"] == shown["result"]


def test_the_timeline_limits_the_attempts_and_shows_the_limit(
    admin: Admin, phone: Phone, request_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.queries.timeline.MOST_ATTEMPTS", 3)
    delivery = Delivery.objects.get()
    Attempt.objects.bulk_create(
        Attempt(delivery=delivery, number=number, outcome="unknown", finished_at=Now(), started_at=Now())
        for number in range(1, 6)
    )
    events = delivery_of(admin, phone, request_id)["timeline"]
    assert [event["attempt"] for event in events if event["event"] == "attempt"] == [3, 4, 5]
    assert [event["detail"] for event in events if event["event"] == "left_out"] == ["earlier attempts are not shown"]


def test_the_times_of_a_delivery_are_those_of_its_first_and_its_final_report(phone: Phone, request_id: str) -> None:
    phone.report(request_id, "received")
    let_pass(minutes=5)
    before = Delivery.objects.get()
    phone.report(request_id, "running")
    after = Delivery.objects.get()
    assert after.received_at == before.received_at
    assert before.reported_at is not None
    assert after.reported_at is not None
    assert (after.reported_at - before.reported_at).total_seconds() >= 300


def test_a_phone_that_has_reported_gets_no_more_pushes(admin: Admin, phone: Phone) -> None:
    phone.heartbeat(push_token="fcm-1")
    request_id = admin.command(to=phone).json["request_id"]
    assert Delivery.objects.get().next_attempt_at is not None
    phone.report(request_id, "deferred")
    assert Delivery.objects.get().next_attempt_at is None


def test_a_field_that_a_newer_agent_sends_is_ignored(phone: Phone, request_id: str) -> None:
    assert phone.report(request_id, "running", progress=0.5, state="succeeded").json["state"] == "received"


@pytest.mark.parametrize("again", ["received", "running", "deferred", "succeeded", "failed"])
@pytest.mark.parametrize("first", ["succeeded", "failed"])
def test_the_first_final_status_wins(phone: Phone, request_id: str, first: str, again: str) -> None:
    phone.report(request_id, first, message="first")
    before = Delivery.objects.values().get()
    answer = phone.report(request_id, again, message="again")
    assert (answer.status, answer.json) == (
        200,
        {"request_id": request_id, "state": first, "duplicate": True, "late": False},
    )
    assert Delivery.objects.values().get() == before


@pytest.mark.parametrize("status", ["received", "running", "deferred"])
def test_a_repeat_before_the_final_status_is_no_duplicate(phone: Phone, request_id: str, status: str) -> None:
    phone.report(request_id, status)
    assert phone.report(request_id, status).json["duplicate"] is False
    assert phone.report(request_id, "succeeded").json["duplicate"] is False


def test_the_result_shown_is_the_first_one(admin: Admin, phone: Phone, request_id: str) -> None:
    phone.report(request_id, "failed", message="no root")
    phone.report(request_id, "succeeded", message="after all")
    shown = delivery_of(admin, phone, request_id)
    assert (shown["state"], shown["result"]["status"], shown["result"]["message"]) == ("failed", "failed", "no root")
    assert [event.get("duplicate") for event in shown["timeline"] if event["event"] == "report"] == [False, True]


@pytest.mark.django_db(transaction=True)
def test_of_final_reports_at_the_same_moment_one_wins(admin: Admin) -> None:
    phone = admin.enrol("phone-1")
    phone.heartbeat()
    request_id = admin.command(to=phone).json["request_id"]
    phones = [Phone(Client(), "phone-1", device_token=phone.device_token) for _ in range(6)]
    words = ["succeeded", "failed"] * 3
    calls = [partial(one.report, request_id, word) for one, word in zip(phones, words, strict=True)]
    answers = in_parallel(calls, all_wait_for="commands_report")
    assert sorted(answer.json["duplicate"] for answer in answers) == [False] + [True] * 5
    assert {answer.json["state"] for answer in answers} == {Delivery.objects.get().state}
    winner = Report.objects.get(duplicate=False)
    assert (winner.status, Report.objects.count()) == (Delivery.objects.get().state, 6)


def test_the_first_via_that_is_sent_is_kept(phone: Phone, request_id: str) -> None:
    phone.report(request_id, "received")
    assert Delivery.objects.get().delivered_via is None
    phone.report(request_id, "running", via="heartbeat")
    phone.report(request_id, "succeeded", via="push")
    assert Delivery.objects.get().delivered_via == "heartbeat"
    assert list(Report.objects.order_by("id").values_list("via", flat=True)) == [None, "heartbeat", "push"]


def test_a_via_that_is_sent_after_the_result_still_counts(phone: Phone, request_id: str) -> None:
    phone.report(request_id, "succeeded")
    phone.report(request_id, "succeeded", via="push")
    assert (Delivery.objects.get().delivered_via, Delivery.objects.get().state) == ("push", "succeeded")


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_a_result_after_expiry_is_late_and_shown_as_such(
    admin: Admin, phone: Phone, request_id: str, status: str, swept: bool
) -> None:
    let_pass(seconds=602)
    if swept:
        queue.expire(100)
    answer = phone.report(request_id, status, message="slow")
    assert answer.json == {"request_id": request_id, "state": "expired", "duplicate": False, "late": True}
    shown = delivery_of(admin, phone, request_id)
    assert (shown["state"], shown["result"]) == ("expired", None)
    assert (shown["late_result"]["status"], shown["late_result"]["message"]) == (status, "slow")
    assert shown["settled_at"] == shown["expires_at"]
    counts = admin.get(f"/admin/commands/{request_id}").json["counts"]
    assert (counts["expired"], counts["late"], counts["succeeded"], counts["failed"]) == (1, 1, 0, 0)


def test_a_result_after_cancellation_is_late_and_shown_as_such(admin: Admin, phone: Phone, request_id: str) -> None:
    phone.report(request_id, "running")
    admin.post(f"/admin/commands/{request_id}/cancel")
    answer = phone.report(request_id, "succeeded")
    assert answer.json == {"request_id": request_id, "state": "cancelled", "duplicate": False, "late": True}
    shown = delivery_of(admin, phone, request_id)
    assert (shown["state"], shown["result"], shown["late_result"]["status"]) == ("cancelled", None, "succeeded")


def test_the_first_late_result_is_the_one_shown(admin: Admin, phone: Phone, request_id: str) -> None:
    admin.post(f"/admin/commands/{request_id}/cancel")
    phone.report(request_id, "failed", message="first")
    again = phone.report(request_id, "succeeded").json
    assert (again["state"], again["duplicate"]) == ("cancelled", True)
    assert delivery_of(admin, phone, request_id)["late_result"]["message"] == "first"
    assert admin.get(f"/admin/commands/{request_id}").json["counts"]["late"] == 1


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize("action", ["reboot", "wipe"])
def test_a_late_success_that_is_repeated_is_late_and_a_duplicate_and_changes_nothing(
    admin: Admin, phone: Phone, action: str, is_cancelled: bool
) -> None:
    request_id = admin.command(action, to=phone, expires_in_seconds=600).json["request_id"]
    if is_cancelled:
        admin.post(f"/admin/commands/{request_id}/cancel")
    else:
        let_pass(seconds=602)
    state = "cancelled" if is_cancelled else "expired"
    first = phone.report(request_id, "succeeded", message="first")
    assert first.json == {"request_id": request_id, "state": state, "duplicate": False, "late": True}
    shown = delivery_of(admin, phone, request_id)
    for _ in range(2):
        again = phone.report(request_id, "succeeded", message="again")
        assert again.json == {"request_id": request_id, "state": state, "duplicate": True, "late": True}
    kept = list(Report.objects.order_by("id").values_list("status", "message", "late", "duplicate"))
    assert kept == [("succeeded", "first", True, False), *[("succeeded", "again", True, True)] * 2]
    assert Delivery.objects.get().state == state
    assert delivery_of(admin, phone, request_id) | {"timeline": None} == shown | {"timeline": None}
    assert admin.get(f"/admin/commands/{request_id}").json["counts"]["late"] == 1


@pytest.mark.parametrize("status", ["received", "running", "deferred"])
def test_only_a_final_report_is_late(admin: Admin, phone: Phone, request_id: str, status: str) -> None:
    let_pass(seconds=602)
    answer = phone.report(request_id, status)
    assert answer.json == {"request_id": request_id, "state": "expired", "duplicate": False, "late": False}
    assert delivery_of(admin, phone, request_id)["late_result"] is None
    assert Report.objects.count() == 1


def test_a_result_before_a_cancellation_stays(admin: Admin, phone: Phone, request_id: str) -> None:
    phone.report(request_id, "succeeded")
    cancelled = admin.post(f"/admin/commands/{request_id}/cancel").json
    assert (cancelled["cancelled"], cancelled["already_settled"]) == (0, 1)
    assert Delivery.objects.get().state == "succeeded"


@pytest.mark.parametrize("status", ["received", "running"])
def test_a_phone_that_reported_received_or_running_has_an_hour_more_for_the_final_report(
    phone: Phone, request_id: str, status: str
) -> None:
    phone.report(request_id, status)
    let_pass(minutes=69)
    assert len(queue.expire(100)) == 0
    answer = phone.report(request_id, "succeeded")
    assert (answer.json["state"], answer.json["late"]) == ("succeeded", False)


def test_the_hour_ends(phone: Phone, request_id: str) -> None:
    phone.report(request_id, "running")
    let_pass(minutes=69)
    phone.report(request_id, "running")
    let_pass(minutes=2)
    answer = phone.report(request_id, "succeeded")
    assert (answer.json["state"], answer.json["late"]) == ("expired", True)


def test_a_phone_that_only_defers_has_no_hour_more(phone: Phone, request_id: str) -> None:
    phone.report(request_id, "deferred")
    let_pass(seconds=602)
    answer = phone.report(request_id, "succeeded")
    assert (answer.json["state"], answer.json["late"]) == ("expired", True)


def test_a_phone_that_defers_after_received_keeps_the_hour(phone: Phone, request_id: str) -> None:
    phone.report(request_id, "received")
    phone.report(request_id, "deferred")
    let_pass(minutes=69)
    assert phone.report(request_id, "succeeded").json["state"] == "succeeded"


def test_an_expired_delivery_is_settled_at_the_moment_its_time_was_over(phone: Phone, request_id: str) -> None:
    let_pass(hours=2)
    assert len(queue.expire(100)) == 1
    delivery = Delivery.objects.select_related("command").get()
    assert (delivery.state, delivery.settled_at) == ("expired", delivery.command.expires_at)
    assert len(queue.expire(100)) == 0


def test_an_unknown_request_id_is_404(phone: Phone) -> None:
    answer = phone.report(ABSENT, "succeeded")
    assert (answer.status, answer.code, Report.objects.count()) == (404, "unknown_request", 0)


def test_a_device_cannot_report_for_another(admin: Admin, phone: Phone, request_id: str) -> None:
    other = admin.enrol("phone-2")
    foreign, absent = other.report(request_id, "succeeded"), other.report(ABSENT, "succeeded")
    assert (foreign.status, foreign.code) == (404, "unknown_request")
    assert foreign.body == absent.body
    assert (Delivery.objects.get().state, Report.objects.count()) == ("pending", 0)


def test_a_report_changes_only_its_own_delivery(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    request_id = admin.command(to=[phone, other]).json["request_id"]
    other.report(request_id, "failed")
    states = dict(Delivery.objects.values_list("device__hardware_id", "state"))
    assert states == {"phone-1": "pending", "phone-2": "failed"}


def test_a_result_stays_after_a_re_enrollment(admin: Admin, phone: Phone, request_id: str) -> None:
    phone.register(admin.enrollment_token(re_enroll=True))
    answer = phone.report(request_id, "succeeded")
    assert (answer.status, answer.json["state"], answer.json["late"]) == (200, "cancelled", True)


def output_of(size: int) -> dict[str, str]:
    return {"a": "x" * (size - len('{"a":""}'))}


@pytest.mark.parametrize(
    "fields",
    [
        {"message": "é" * 1000},
        {"message": None, "output": None, "finished_at": None, "via": None},
        {"output": output_of(16 * 1024)},
        {"output": {}},
        {"finished_at": "2026-01-01T00:00:00Z"},
        {"finished_at": "2026-01-01T00:00:00.123456-11:00"},
    ],
)
def test_a_report_within_the_limits_is_stored(phone: Phone, request_id: str, fields: dict[str, Any]) -> None:
    assert phone.report(request_id, "succeeded", **fields).status == 200
    report = Report.objects.get()
    assert (report.message, report.output) == (fields.get("message") or "", fields.get("output"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", "x"),
        ("request_id", ABSENT.upper()),
        ("request_id", ABSENT.replace("-", "")),
        ("request_id", None),
        ("request_id", 7),
        ("status", "expired"),
        ("status", "SUCCEEDED"),
        ("status", None),
    ],
)
def test_a_report_on_no_request_or_without_a_known_status_is_422_and_changes_nothing(
    phone: Phone, request_id: str, field: str, value: object
) -> None:
    body = {"request_id": request_id, "status": "succeeded", field: value}
    answer = phone.send("/v1/action-result", body)
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert answer.json["errors"][0]["loc"] == ["body", field]
    assert (Delivery.objects.get().state, Report.objects.count()) == ("pending", 0)


@pytest.mark.parametrize("missing", ["request_id", "status"])
def test_a_report_requires_request_id_and_status(phone: Phone, request_id: str, missing: str) -> None:
    body = {"request_id": request_id, "status": "succeeded"}
    del body[missing]
    answer = phone.send("/v1/action-result", body)
    assert (answer.status, answer.json["errors"][0]["loc"]) == (422, ["body", missing])


def test_a_report_is_counted_in_the_answer_about_its_command(admin: Admin, phone: Phone, request_id: str) -> None:
    phone.report(request_id, "succeeded")
    command = admin.get(f"/admin/commands/{request_id}").json
    assert (command["state"], command["counts"]["succeeded"]) == ("completed", 1)
    assert command["completed_at"] == delivery_of(admin, phone, request_id)["settled_at"]
