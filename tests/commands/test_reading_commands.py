"""Reading and cancelling commands: lists, counts, deliveries and their timelines, waiting, and cancellation."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from uuid_utils.compat import uuid7

from commands import queue
from commands.models import Attempt, AttemptOutcome, Command, Delivery, PushState
from devices.models import Presence
from nexmdm.common import pagination
from nexmdm.models import AuditEntry
from tests.support.actors import Admin, Answer, Client, Phone
from tests.support.moments import let_pass

COUNTS: Final = {
    "pending": 0, "received": 0, "succeeded": 0, "failed": 0, "expired": 0, "cancelled": 0, "late": 0,
}  # fmt: skip
PUSH: Final = {"waiting": 0, "accepted": 0, "retrying": 0, "undeliverable": 0, "superseded": 0, "no_push_token": 0}
ROW_KEYS: Final = {
    "request_id", "device_id", "alias", "state", "delivered_via", "push", "issued_at", "expires_at", "received_at",
    "settled_at", "result", "late_result", "why_open", "why_unfinished",
}  # fmt: skip


def issue(admin: Admin, to: Any, action: str = "ping", **fields: Any) -> str:
    answer = admin.command(action, to=to, **fields)
    assert answer.status == 200, answer.body
    return str(answer.json["request_id"])


def attempted(request_id: str, number: int = 1, **fields: Any) -> None:
    """Write an attempt as the dispatcher does."""
    delivery = Delivery.objects.get(command_id=request_id)
    finished = {} if fields.get("outcome") == AttemptOutcome.IN_FLIGHT else {"finished_at": Now()}
    Attempt.objects.create(delivery=delivery, number=number, **finished, **fields)
    Delivery.objects.filter(id=delivery.id).update(attempt_count=number)


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [item["request_id"] for item in answer.json["items"]]


def pages(admin: Admin, target: str) -> Iterator[list[dict[str, Any]]]:
    cursor = ""
    while True:
        page = admin.get(target + cursor).json
        yield page["items"]
        if page["next_cursor"] is None:
            return
        cursor = f"&cursor={page['next_cursor']}"


def test_commands_are_listed_newest_first_with_their_content(admin: Admin, phone: Phone) -> None:
    first = issue(admin, phone)
    second = issue(admin, {"all": True}, "ring", params={"duration_seconds": 5}, note="lost", priority="normal")
    newest, oldest = admin.get("/admin/commands").json["items"]
    assert (newest["request_id"], oldest["request_id"]) == (second, first)
    assert (newest["action"], newest["params"], newest["target"]) == ("ring", {"duration_seconds": 5}, {"all": True})
    assert (newest["note"], newest["priority"], newest["issued_by"]) == ("lost", "normal", "admin")
    assert (newest["state"], newest["device_count"]) == ("open", 1)


def test_commands_are_filtered_by_action_state_device_and_time(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    done = issue(admin, phone)
    phone.report(done, "failed")
    cancelled = issue(admin, phone, "lock")
    admin.post(f"/admin/commands/{cancelled}/cancel")
    still_open = issue(admin, other)
    Command.objects.filter(id=done).update(issued_at="2026-01-01T00:00:00Z")

    assert ids(admin.get("/admin/commands?action=lock")) == [cancelled]
    assert ids(admin.get("/admin/commands?state=open")) == [still_open]
    assert ids(admin.get("/admin/commands?state=completed")) == [done]
    assert ids(admin.get("/admin/commands?state=cancelled")) == [cancelled]
    assert ids(admin.get(f"/admin/commands?device_id={phone.device_id}")) == [cancelled, done]
    assert ids(admin.get(f"/admin/commands?device_id={uuid4()}")) == []
    assert ids(admin.get("/admin/commands?until=2026-01-01T00:00:01Z")) == [done]
    assert ids(admin.get("/admin/commands?until=2026-01-01T00:00:00Z")) == []
    assert ids(admin.get("/admin/commands?since=2026-01-01T00:00:01Z")) == [still_open, cancelled]
    assert ids(admin.get(f"/admin/commands?action=ping&state=completed&device_id={phone.device_id}")) == [done]


def test_a_command_past_its_time_is_not_open_before_it_is_marked(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone)
    let_pass(hours=2)
    assert Delivery.objects.get().state == "pending"
    assert ids(admin.get("/admin/commands?state=open")) == []
    assert ids(admin.get("/admin/commands?state=expired")) == [request_id]


def test_pages_are_stable_while_new_commands_arrive(admin: Admin, phone: Phone) -> None:
    expected = [issue(admin, phone) for _ in range(5)][::-1]
    seen: list[str] = []
    sizes: list[int] = []
    for page in pages(admin, "/admin/commands?limit=2"):
        seen += [item["request_id"] for item in page]
        sizes.append(len(page))
        issue(admin, phone)
    assert (seen, sizes) == (expected, [2, 2, 1])


def test_a_page_has_a_hundred_rows_by_default(admin: Admin, phone: Phone) -> None:
    issue(admin, phone)
    issued = Command.objects.values().get()
    Command.objects.bulk_create(Command(**issued | {"id": uuid7()}) for _ in range(100))
    sizes = [len(admin.get(f"/admin/commands{query}").json["items"]) for query in ("", "?limit=99", "?limit=500")]
    assert sizes == [100, 99, 101]


def test_every_list_goes_newest_first_page_by_page(admin: Admin) -> None:
    phones = [admin.enrol(f"phone-{number}") for number in range(3)]
    request_id = issue(admin, phones)
    for _ in range(2):
        issue(admin, phones)
    names = {"commands": "request_id", f"commands/{request_id}/deliveries": "device_id", "devices": "device_id",
        "enrollment-tokens": "id", "audit": "correlation_id"}  # fmt: skip
    for name, key in names.items():
        whole = [item[key] for item in admin.get(f"/admin/{name}").json["items"]]
        paged = [item[key] for page in pages(admin, f"/admin/{name}?limit=2") for item in page]
        assert len(set(whole)) >= 3, name
        assert paged == whole == sorted(whole, reverse=True), name


def test_a_full_last_page_has_no_next_cursor(admin: Admin, phone: Phone) -> None:
    for _ in range(2):
        issue(admin, phone)
    assert admin.get("/admin/commands?limit=2").json["next_cursor"] is None


def test_a_filter_applies_to_all_pages(admin: Admin, phone: Phone) -> None:
    locks = [issue(admin, phone, action) for action in ("lock", "ping", "lock", "ping", "lock")][::-2]
    found = [item["request_id"] for page in pages(admin, "/admin/commands?limit=1&action=lock") for item in page]
    assert found == locks


QUERIES_REFUSED: Final = (
    "limit=0", "limit=501", "limit=-1", "limit=many", "limit=", "cursor=", "cursor=x", "cursor=MQ", "cursor=%00",
    "state=done", "state=", "device_id=phone-1", "device_id=0192F0C1-A2B3-7D4E-8F90-A1B2C3D4E5F6", "action=%00",
    "since=yesterday", "since=2026-01-01T00:00:00", "since=2026-01-01", "since=1700000000", "until=", "page=2",
    "since=2026-01-01T00:00:00%E2%88%9202:00",
    "Limit=5", "x", "wait_seconds=1",
)  # fmt: skip


@pytest.mark.parametrize("query", QUERIES_REFUSED)
def test_an_invalid_query_is_refused(admin: Admin, query: str) -> None:
    answer = admin.get(f"/admin/commands?{query}")
    assert (answer.status, answer.code) == (422, "invalid_request")


def test_every_list_accepts_1_to_500_rows_and_only_its_own_cursors(admin: Admin, phone: Phone) -> None:
    deliveries = f"commands/{issue(admin, phone)}/deliveries"
    numbers, ids = [pagination.encode(key) for key in (7, uuid7())]
    foreign = {
        "commands": numbers, "devices": numbers, "enrollment-tokens": numbers, deliveries: ids, "audit": ids,
    }  # fmt: skip
    for name, cursor in foreign.items():
        for query in ("limit=0", "limit=501", "cursor=x", f"cursor={cursor}"):
            answer = admin.get(f"/admin/{name}?{query}")
            assert (answer.status, answer.code) == (422, "invalid_request"), (name, query)
        assert len(admin.get(f"/admin/{name}?limit=1").json["items"]) == 1, name
        assert admin.get(f"/admin/{name}?limit=500").status == 200, name


def numbers_in_queries(client: Client) -> list[tuple[str, str, str]]:
    """The path, name and type of each number in the query of an operation."""
    paths = client.request("GET", "/openapi.json").json["paths"]
    return [
        (re.sub(r"{\w+}", str(uuid7()), path), parameter["name"], parameter["schema"]["type"])
        for path, methods in paths.items()
        for parameter in methods.get("get", {}).get("parameters", [])
        if parameter.get("in") == "query" and parameter["schema"].get("type") in ("integer", "number")
    ]


def test_a_number_in_a_query_is_written_in_digits_only(admin: Admin, client: Client) -> None:
    found = numbers_in_queries(client)
    assert {name for _, name, _ in found} >= {"limit", "wait_seconds"}
    for path, name, kind in found:
        for number in (
            "5_0",
            "%205",
            "5%20",
            "%2B5",
            "+5",
            "5e0",
            "%D9%A5",
            "%EF%BC%95",
            *(["5.0"] * (kind == "integer")),
        ):
            answer = admin.get(f"{path}?{name}={number}")
            assert (answer.status, answer.code) == (422, "invalid_request"), (path, name, number)
            assert answer.json["errors"][0]["loc"] == ["query", name]


@pytest.mark.parametrize("query", ["limit=1", "limit=500", "since=2026-01-01T00:00:00.5Z"])
def test_a_query_within_its_bounds_is_served(admin: Admin, query: str) -> None:
    assert admin.get(f"/admin/commands?{query}").json == {"items": [], "next_cursor": None}


def test_unknown_query_parameters_are_refused_everywhere(admin: Admin, phone: Phone) -> None:
    one = f"/admin/commands/{issue(admin, phone)}"
    reads = [one, f"{one}/deliveries", f"{one}/deliveries/{phone.device_id}", "/admin/devices", "/admin/summary"]
    reads += [f"/admin/devices/{phone.device_id}", "/admin/enrollment-tokens", "/admin/audit"]
    assert [admin.get(f"{target}?verbose=1").code for target in reads] == ["invalid_request"] * len(reads)
    assert admin.post(f"{one}/cancel?force=1").code == "invalid_request"
    assert phone.send("/v1/heartbeat?verbose=1", {}).code == "invalid_request"
    for target in ("/healthz", "/readyz", "/metrics"):
        assert admin.client.request("GET", f"{target}?verbose=1").code == "invalid_request", target
    assert Delivery.objects.get().state == "pending"


def test_a_command_counts_its_deliveries_and_pushes(admin: Admin) -> None:
    phones = [admin.enrol(f"phone-{number}") for number in range(4)]
    pushed = admin.enrol("phone-4", push_token="token-4")
    request_id = issue(admin, [*phones, pushed])
    phones[0].report(request_id, "succeeded")
    phones[1].report(request_id, "failed")
    phones[2].report(request_id, "running")

    command = admin.get(f"/admin/commands/{request_id}").json
    assert command["counts"] == COUNTS | {"pending": 2, "received": 1, "succeeded": 1, "failed": 1}
    assert command["push"] == PUSH | {"waiting": 1, "no_push_token": 4}
    assert (command["state"], command["completed_at"], command["device_count"]) == ("open", None, 5)


@pytest.mark.parametrize("push_state", PushState.values)
def test_a_command_counts_each_state_of_a_push(admin: Admin, phone: Phone, push_state: str) -> None:
    request_id = issue(admin, phone)
    Delivery.objects.update(push_state=push_state)
    assert admin.get(f"/admin/commands/{request_id}").json["push"] == PUSH | {push_state: 1}


def by_heartbeat(admin: Admin, phone: Phone, request_id: str) -> None:
    phone.heartbeat()
    phone.report(request_id, "succeeded", via="heartbeat")


def by_cancellation(admin: Admin, phone: Phone, request_id: str) -> None:
    admin.post(f"/admin/commands/{request_id}/cancel")


def by_a_newer_one(admin: Admin, phone: Phone, request_id: str) -> None:
    issue(admin, phone, supersede=True)


def by_time(admin: Admin, phone: Phone, request_id: str) -> None:
    let_pass(hours=2)


def by_the_sweep(admin: Admin, phone: Phone, request_id: str) -> None:
    let_pass(hours=2)
    assert len(queue.expire(10)) == 1


def pushes_of(admin: Admin, request_id: str, device_id: str) -> list[Any]:
    """Return the push state in the list and in the delivery's own answer, and the counts of the command."""
    path = f"/admin/commands/{request_id}"
    (row,) = admin.get(f"{path}/deliveries").json["items"]
    detail = admin.get(f"{path}/deliveries/{device_id}").json
    counted = {state for state, count in admin.get(path).json["push"].items() if count}
    return [(one["push"]["state"], one["push"]["next_attempt_at"] is None) for one in (row, detail)] + [counted]


@pytest.mark.parametrize("settle", [by_heartbeat, by_cancellation, by_a_newer_one, by_time, by_the_sweep])
@pytest.mark.parametrize("push_state", [PushState.WAITING, PushState.RETRYING])
def test_a_waiting_or_retried_push_is_superseded_once_its_delivery_is_settled_otherwise(
    admin: Admin, push_state: PushState, settle: Callable[[Admin, Phone, str], None]
) -> None:
    phone = admin.enrol("phone-1", push_token="token-1")
    request_id = issue(admin, phone)
    Delivery.objects.update(push_state=push_state)
    assert pushes_of(admin, request_id, phone.device_id) == [(push_state, False)] * 2 + [{push_state}]

    settle(admin, phone, request_id)

    assert pushes_of(admin, request_id, phone.device_id) == [("superseded", True)] * 2 + [{"superseded"}]


@pytest.mark.parametrize("push_state", [PushState.ACCEPTED, PushState.UNDELIVERABLE, PushState.NO_PUSH_TOKEN])
def test_a_finished_push_keeps_its_state_when_its_delivery_is_settled(
    admin: Admin, phone: Phone, push_state: PushState
) -> None:
    request_id = issue(admin, phone)
    Delivery.objects.update(push_state=push_state)
    phone.report(request_id, "succeeded")
    assert pushes_of(admin, request_id, phone.device_id) == [(push_state, True)] * 2 + [{push_state}]


def test_a_command_is_completed_when_its_last_delivery_settles(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    request_id = issue(admin, [phone, other])
    phone.report(request_id, "succeeded")
    Delivery.objects.filter(state="succeeded").update(settled_at=Now() - timedelta(minutes=5))
    assert admin.get(f"/admin/commands/{request_id}").json["state"] == "open"

    other.report(request_id, "failed")
    last = Delivery.objects.get(state="failed").settled_at
    command = admin.get(f"/admin/commands/{request_id}").json
    assert command["state"] == "completed"
    assert datetime.fromisoformat(command["completed_at"]) == last


def test_a_delivery_past_its_time_counts_as_expired_marked_or_not(admin: Admin, phone: Phone) -> None:
    phone.heartbeat(push_token="token-1")
    request_id = issue(admin, phone)
    let_pass(hours=2)
    one = f"/admin/commands/{request_id}"
    unswept = [admin.get(target).body for target in (one, f"{one}/deliveries", f"{one}/deliveries/{phone.device_id}")]
    assert admin.get(one).json["counts"] == COUNTS | {"expired": 1}
    assert admin.get(one).json["completed_at"] == admin.get(one).json["expires_at"]

    assert len(queue.expire(10)) == 1
    swept = [admin.get(target).body for target in (one, f"{one}/deliveries", f"{one}/deliveries/{phone.device_id}")]
    assert swept == unswept


def test_a_delivery_past_its_time_is_not_offered_counted_as_open_superseded_or_cancelled(
    admin: Admin, phone: Phone
) -> None:
    request_id = issue(admin, phone)
    let_pass(hours=2)
    assert phone.heartbeat().json["commands"] == []
    assert admin.get("/admin/summary").json["open_deliveries"] == 0
    issue(admin, phone, supersede=True)
    assert cancel(admin, request_id) == {"cancelled": 0, "already_settled": 1, "may_still_run": 0}
    assert admin.get(f"/admin/commands/{request_id}").json["counts"] == COUNTS | {"expired": 1}


def test_a_phone_that_reported_running_has_an_hour_more(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone)
    phone.report(request_id, "running")
    until = Delivery.objects.get().open_until
    assert until == Command.objects.get().expires_at + timedelta(hours=1)
    let_pass(minutes=69)
    assert admin.get(f"/admin/commands/{request_id}").json["counts"] == COUNTS | {"received": 1}
    let_pass(minutes=2)
    assert admin.get(f"/admin/commands/{request_id}").json["counts"] == COUNTS | {"expired": 1}


@pytest.mark.parametrize("ending", ["expired", "cancelled"])
def test_a_result_that_comes_too_late_is_shown_but_changes_no_state(admin: Admin, phone: Phone, ending: str) -> None:
    request_id = issue(admin, phone)
    if ending == "expired":
        let_pass(hours=2)
    else:
        admin.post(f"/admin/commands/{request_id}/cancel")
    taken = phone.report(request_id, "succeeded", message="sorry").json
    assert (taken["state"], taken["late"], taken["duplicate"]) == (ending, True, False)

    counts = admin.get(f"/admin/commands/{request_id}").json["counts"]
    (delivery,) = admin.get(f"/admin/commands/{request_id}/deliveries").json["items"]
    assert counts == COUNTS | {ending: 1, "late": 1}
    assert (delivery["state"], delivery["result"]) == (ending, None)
    assert (delivery["late_result"]["status"], delivery["late_result"]["message"]) == ("succeeded", "sorry")


def by_an_admin(admin: Admin, phone: Phone, request_id: str) -> None:
    admin.post(f"/admin/commands/{request_id}/cancel")


def by_a_newer_command(admin: Admin, phone: Phone, _: str) -> None:
    admin.command("ping", to=phone, supersede=True)


def by_revocation(admin: Admin, phone: Phone, _: str) -> None:
    admin.post(f"/admin/devices/{phone.device_id}/revoke")


def by_enrolment(admin: Admin, phone: Phone, _: str) -> None:
    phone.heartbeat()
    assert phone.register(admin.enrollment_token(re_enroll=True)).json["re_enrolled"]


@pytest.mark.parametrize(
    ("withdraw", "said"),
    [
        (by_an_admin, "an admin cancelled the command"),
        (by_a_newer_command, "a newer command of the same action took its place"),
        (by_revocation, "the device was revoked"),
        (by_enrolment, "the device was enrolled again"),
    ],
)
def test_the_timeline_shows_what_cancelled_a_delivery(
    admin: Admin, phone: Phone, withdraw: Callable[[Admin, Phone, str], None], said: str
) -> None:
    request_id = issue(admin, phone)
    withdraw(admin, phone, request_id)
    *_, last = admin.get(f"/admin/commands/{request_id}/deliveries/{phone.device_id}").json["timeline"]
    assert (last["event"], last["state"], last["detail"]) == ("settled", "cancelled", said)


@pytest.mark.parametrize("path", ["", "/deliveries", "/deliveries/{device}"])
def test_an_unknown_command_is_not_found(admin: Admin, phone: Phone, path: str) -> None:
    for request_id in (str(uuid4()), "nonsense", str(uuid4()).upper(), uuid4().hex):
        answer = admin.get(f"/admin/commands/{request_id}{path.replace('{device}', phone.device_id)}")
        assert (answer.status, answer.code) == (404, "not_found")


def test_a_delivery_to_a_device_outside_the_target_is_not_found(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    request_id = issue(admin, phone)
    for device_id in (other.device_id, str(uuid4()), "nonsense"):
        answer = admin.get(f"/admin/commands/{request_id}/deliveries/{device_id}")
        assert (answer.status, answer.code) == (404, "not_found")


def test_waiting_for_a_command_with_nothing_open_answers_immediately(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone)
    phone.report(request_id, "succeeded")
    started = time.monotonic()
    answer = admin.get(f"/admin/commands/{request_id}?wait_seconds=30")
    assert answer.json["state"] == "completed"
    assert time.monotonic() - started < 5


def test_waiting_ends_when_the_last_delivery_settles(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone)
    target = f"/admin/commands/{request_id}?wait_seconds=30"

    async def both() -> tuple[Answer, Answer]:
        bearer = {"Authorization": f"Bearer {phone.device_token}"}
        report = {"request_id": request_id, "status": "succeeded"}
        return await asyncio.gather(
            admin.client.arequest("GET", target, None, admin.headers("GET", target, b"")),
            admin.client.arequest("POST", "/v1/action-result", report, bearer),
        )

    started = time.monotonic()
    waited, _ = async_to_sync(both)()
    assert waited.json["counts"] == COUNTS | {"succeeded": 1}
    assert time.monotonic() - started < 5


def test_a_waiting_client_is_answered_by_the_first_check_after_the_last_result_and_checks_are_less_than_200_ms_apart(
    admin: Admin, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = issue(admin, phone)
    naps: list[float] = []
    turn = asyncio.sleep

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            report = {"request_id": request_id, "status": "succeeded"}
            bearer = {"Authorization": f"Bearer {phone.device_token}"}
            assert (await admin.client.arequest("POST", "/v1/action-result", report, bearer)).status == 200
        await turn(0)

    monkeypatch.setattr("commands.admin_api.asyncio.sleep", nap)
    answer = admin.get(f"/admin/commands/{request_id}?wait_seconds=30")
    assert (answer.json["state"], len(naps)) == ("completed", 3)
    assert max(naps) < 0.2


def test_the_counts_are_read_once_for_all_clients_that_wait_for_a_command(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone)
    phone.report(request_id, "succeeded")
    target = f"/admin/commands/{request_id}?wait_seconds=30"

    async def all_waiting() -> list[Answer]:
        headers = [admin.headers("GET", target, b"") for _ in range(5)]
        return await asyncio.gather(*(admin.client.arequest("GET", target, None, one) for one in headers))

    with CaptureQueriesContext(connection) as queries:
        answers = async_to_sync(all_waiting)()
    assert {answer.json["counts"]["succeeded"] for answer in answers} == {1}
    assert len([query for query in queries if "LATERAL" in query["sql"]]) < 5


def test_a_wait_that_ends_without_results_answers_with_the_present_state(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone)
    answer = admin.get(f"/admin/commands/{request_id}?wait_seconds=0.05")
    assert (answer.status, answer.json["state"]) == (200, "open")


@pytest.mark.parametrize("seconds", ["-1", "30.1", "31", "nan", "inf", "soon", ""])
def test_wait_seconds_is_0_to_30(admin: Admin, phone: Phone, seconds: str) -> None:
    answer = admin.get(f"/admin/commands/{issue(admin, phone)}?wait_seconds={seconds}")
    assert (answer.status, answer.code) == (422, "invalid_request")


def test_waiting_for_an_unknown_command_is_404_immediately(admin: Admin) -> None:
    assert admin.get(f"/admin/commands/{uuid4()}?wait_seconds=30").code == "not_found"


def test_a_delivery_shows_the_result_as_the_phone_sent_it(admin: Admin) -> None:
    phone = admin.enrol("phone-1", alias="lobby")
    request_id = issue(admin, phone)
    phone.report(request_id, "received", via="heartbeat")
    said = {"message": "ok", "output": {"ms": 12}, "finished_at": "2026-01-01T00:00:01Z"}
    phone.report(request_id, "succeeded", via="push", **said)

    (row,) = admin.get(f"/admin/commands/{request_id}/deliveries").json["items"]
    assert set(row) == ROW_KEYS
    assert (row["device_id"], row["alias"], row["state"]) == (phone.device_id, "lobby", "succeeded")
    assert (row["delivered_via"], row["late_result"], row["why_open"]) == ("heartbeat", None, None)
    assert row["result"].pop("reported_at") <= row["settled_at"]
    assert row["result"] == {"status": "succeeded", **said}


def test_a_delivery_sums_up_its_push(admin: Admin) -> None:
    phone = admin.enrol("phone-1", push_token="token-1")
    request_id = issue(admin, phone)
    attempted(request_id, 1, outcome=AttemptOutcome.RETRY_LATER, http_status=503, fcm_error="UNAVAILABLE")
    attempted(request_id, 2, outcome=AttemptOutcome.ACCEPTED, http_status=200, message_id="projects/x/messages/1")
    Delivery.objects.update(push_state=PushState.ACCEPTED, next_attempt_at=None)
    (row,) = admin.get(f"/admin/commands/{request_id}/deliveries").json["items"]
    assert row["push"] == {
        "state": "accepted",
        "attempts": 2,
        "last_http_status": 200,
        "last_fcm_error": None,
        "message_id": "projects/x/messages/1",
        "next_attempt_at": None,
    }
    assert row["state"] == "pending"


def test_an_open_delivery_shows_when_its_next_push_is_due(admin: Admin) -> None:
    phone = admin.enrol("phone-1", push_token="token-1")
    request_id = issue(admin, phone)
    attempted(request_id, outcome=AttemptOutcome.RETRY_LATER, http_status=503, fcm_error="UNAVAILABLE")
    Delivery.objects.update(push_state=PushState.RETRYING, next_attempt_at=Now() + timedelta(minutes=1))
    one = f"/admin/commands/{request_id}/deliveries/{phone.device_id}"
    push = admin.get(one).json["push"]
    assert (push["state"], push["last_http_status"], push["last_fcm_error"]) == ("retrying", 503, "UNAVAILABLE")
    assert datetime.fromisoformat(push["next_attempt_at"]) == Delivery.objects.get().next_attempt_at
    phone.report(request_id, "succeeded")
    assert admin.get(one).json["push"]["next_attempt_at"] is None


def test_deliveries_are_filtered_by_state_and_come_in_pages(admin: Admin) -> None:
    phones = [admin.enrol(f"phone-{number}") for number in range(5)]
    request_id = issue(admin, phones)
    phones[0].report(request_id, "succeeded")
    phones[1].report(request_id, "deferred")
    Delivery.objects.filter(device_id=phones[2].device_id).update(open_until=Now() - timedelta(minutes=1))
    one = f"/admin/commands/{request_id}/deliveries"

    def devices(query: str) -> set[str]:
        return {item["device_id"] for item in admin.get(f"{one}?{query}").json["items"]}

    assert devices("state=succeeded") == {phones[0].device_id}
    assert devices("state=received") == {phones[1].device_id}
    assert devices("state=expired") == {phones[2].device_id}
    assert devices("state=pending") == {phones[3].device_id, phones[4].device_id}
    assert devices("state=cancelled") == set()
    paged = [item["device_id"] for page in pages(admin, f"{one}?limit=2") for item in page]
    assert sorted(paged) == sorted(phone.device_id for phone in phones)
    assert admin.get(f"{one}?state=open").code == "invalid_request"


def test_the_timeline_has_issue_attempts_reports_and_settlement_in_order(admin: Admin) -> None:
    phone = admin.enrol("phone-1", push_token="token-1")
    request_id = issue(admin, phone)
    attempted(
        request_id, 1, outcome=AttemptOutcome.RETRY_LATER, http_status=503, fcm_error="UNAVAILABLE", latency_ms=80
    )
    attempted(request_id, 2, outcome=AttemptOutcome.ACCEPTED, http_status=200, message_id="projects/x/messages/1")
    for status in ("received", "running", "succeeded", "succeeded"):
        phone.report(request_id, status, via="push")

    delivery = admin.get(f"/admin/commands/{request_id}/deliveries/{phone.device_id}").json
    assert set(delivery) == ROW_KEYS | {"timeline"}
    issued, first, second, *reports = [event for event in delivery["timeline"] if event["event"] != "settled"]
    (settled,) = [event for event in delivery["timeline"] if event["event"] == "settled"]
    assert (issued["event"], issued["at"]) == ("issued", delivery["issued_at"])
    assert (first["attempt"], first["fcm_error"], first["latency_ms"]) == (1, "UNAVAILABLE", 80)
    assert (second["attempt"], second["http_status"], second["outcome"]) == (2, 200, "accepted")
    assert [report["status"] for report in reports] == ["received", "running", "succeeded", "succeeded"]
    assert [report["duplicate"] for report in reports] == [False, False, False, True]
    assert (settled["state"], settled["at"]) == ("succeeded", delivery["settled_at"])


def cancel(admin: Admin, request_id: str) -> dict[str, Any]:
    answer = admin.post(f"/admin/commands/{request_id}/cancel")
    assert (answer.status, answer.json.pop("request_id")) == (200, request_id)
    return {name: count for name, count in answer.json.items() if name != "request_id"}


def test_a_cancellation_withdraws_open_deliveries_and_leaves_settled_ones(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    request_id = issue(admin, [phone, other])
    other.report(request_id, "succeeded")
    assert cancel(admin, request_id) == {"cancelled": 1, "already_settled": 1, "may_still_run": 0}

    command = admin.get(f"/admin/commands/{request_id}").json
    assert (command["state"], command["counts"]) == ("cancelled", COUNTS | {"succeeded": 1, "cancelled": 1})
    assert command["completed_at"] is not None
    assert phone.heartbeat().json["commands"] == []
    assert AuditEntry.objects.latest("id").request_id == Command.objects.get().id


def test_a_second_cancellation_changes_nothing(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone)
    cancel(admin, request_id)
    assert cancel(admin, request_id) == {"cancelled": 0, "already_settled": 1, "may_still_run": 0}


def test_an_expired_command_that_is_cancelled_stays_expired(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone)
    let_pass(hours=2)
    assert cancel(admin, request_id) == {"cancelled": 0, "already_settled": 1, "may_still_run": 0}
    assert admin.get(f"/admin/commands/{request_id}").json["state"] == "expired"


@pytest.mark.parametrize(
    ("outcome", "may_still_run"),
    [
        (AttemptOutcome.ACCEPTED, 1), (AttemptOutcome.UNKNOWN, 1), (AttemptOutcome.IN_FLIGHT, 1),
        (AttemptOutcome.REJECTED, 0), (AttemptOutcome.TOKEN_DEAD, 0), (AttemptOutcome.RETRY_LATER, 0),
        (AttemptOutcome.BLOCKED, 0),
    ],
)  # fmt: skip
def test_a_push_that_may_have_arrived_may_still_run(
    admin: Admin, phone: Phone, outcome: AttemptOutcome, may_still_run: int
) -> None:
    request_id = issue(admin, phone)
    attempted(request_id, outcome=outcome)
    assert cancel(admin, request_id) == {"cancelled": 1, "already_settled": 0, "may_still_run": may_still_run}


def test_a_phone_that_reported_or_sent_a_heartbeat_since_the_issue_may_still_run_it(admin: Admin) -> None:
    silent, earlier, beat, reported = [admin.enrol(f"phone-{number}") for number in range(4)]
    request_id = issue(admin, [silent, earlier, beat, reported])
    beat.heartbeat()
    Presence.objects.filter(device_id=earlier.device_id).update(last_seen_at=Now() - timedelta(minutes=1))
    reported.report(request_id, "deferred")
    assert cancel(admin, request_id) == {"cancelled": 4, "already_settled": 0, "may_still_run": 2}


def test_cancelling_takes_no_body_or_an_empty_one(admin: Admin, phone: Phone) -> None:
    request_id = issue(admin, phone)
    assert admin.post(f"/admin/commands/{request_id}/cancel", {"force": True}).code == "invalid_request"
    assert Delivery.objects.get().state == "pending"
    assert admin.post(f"/admin/commands/{request_id}/cancel", {}).json["cancelled"] == 1


def test_an_unknown_command_cannot_be_cancelled(admin: Admin) -> None:
    for request_id in (str(uuid4()), "nonsense"):
        answer = admin.post(f"/admin/commands/{request_id}/cancel")
        assert (answer.status, answer.code) == (404, "not_found")
