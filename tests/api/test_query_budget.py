"""The cost of the hot paths on the database: their statements, pinned."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from commands.models import AttemptOutcome, Delivery, Report
from commands.push import attempts, outbox
from commands.push.outbox import Sent
from devices import tokens
from devices.models import Device, Presence
from nexmdm.common import database
from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import Event, EventType
from nexmdm.webhooks import leases
from nexmdm.webhooks.leases import Attempted, Results
from nexmdm.webhooks.run import Run
from tests.support.actors import Admin, Phone
from tests.support.moments import in_one_batch, let_pass, reports_in_one_batch, signed_in_one_batch, thread_hops

# The two statements are sent together, and PostgreSQL runs them as one transaction.
FLUSH = ["WITH + SELECT"]
# The locks first, in their own statement.
OTHERS = ["SELECT + WITH + SELECT"]
REPORTS = ["SELECT + WITH"]


def result(request_id: str) -> dict[str, str]:
    return {"request_id": request_id, "status": "succeeded"}


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collect the first word of each statement; a + joins the words of one round trip."""
    words: list[str] = []
    with CaptureQueriesContext(connection) as queries:
        yield words
    words += [" + ".join(one.split()[0] for one in query["sql"].split(";")) for query in queries]


@pytest.fixture
def fleet(admin: Admin) -> list[Phone]:
    """Thirty phones that are online."""
    phones = admin.enrol_fleet(30)
    in_one_batch(*((phone.device_token, {}) for phone in phones))
    return phones


def test_one_heartbeat_costs_two_statements_in_one_round_trip(phone: Phone) -> None:
    phone.heartbeat()
    with statements() as made:
        phone.heartbeat(status={"battery_pct": 83}, agent_version="2")
    assert made == FLUSH


def test_the_first_use_of_a_token_costs_one_further_round_trip(admin: Admin, phone: Phone) -> None:
    phone.heartbeat()
    assert phone.register(admin.enrollment_token(re_enroll=True)).status == 200
    assert Device.objects.get().token_used_at is None
    with statements() as first:
        phone.heartbeat()
    with statements() as second:
        phone.heartbeat()
    assert Device.objects.get().token_used_at is not None
    assert (first, second) == (FLUSH + OTHERS, FLUSH)


def test_devices_that_were_offline_cost_a_batch_one_further_round_trip(fleet: list[Phone]) -> None:
    let_pass(hours=1)
    with statements() as made:
        answers = in_one_batch(*((phone.device_token, {}) for phone in fleet))
    assert [answer.status for answer in answers] == [200] * 30
    assert made == FLUSH + OTHERS
    with statements() as made:
        in_one_batch(*((phone.device_token, {}) for phone in fleet))
    assert made == FLUSH


def test_a_push_token_that_has_not_changed_costs_nothing(phone: Phone) -> None:
    phone.heartbeat(push_token="fcm-1")
    with statements() as made:
        phone.heartbeat(push_token="fcm-1")
    assert made == FLUSH


def test_the_heartbeats_of_a_batch_cost_as_much_as_one(fleet: list[Phone]) -> None:
    with statements() as made:
        answers = in_one_batch(*((phone.device_token, {"status": {"a": 1}}) for phone in fleet))
    assert [answer.status for answer in answers] == [200] * 30
    assert Presence.objects.filter(last_status={"a": 1}).count() == 30
    assert made == FLUSH


def test_open_commands_cost_no_further_statement(admin: Admin, fleet: list[Phone]) -> None:
    for _ in range(3):
        admin.command()
    with statements() as made:
        answers = in_one_batch(*((phone.device_token, {}) for phone in fleet))
    assert {len(answer.json["commands"]) for answer in answers} == {3}
    assert made == FLUSH


def test_bad_tokens_in_a_batch_cost_the_flush_nothing(fleet: list[Phone]) -> None:
    wrong = [tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text for phone in fleet[:5]]
    with statements() as made:
        answers = in_one_batch(*((text, {}) for text in (*wrong, *(phone.device_token for phone in fleet))))
    assert sorted(answer.status for answer in answers) == [200] * 30 + [401] * 5
    # The statements after the flush count the failures of this address.
    assert (made[:1], set(made[1:])) == (FLUSH, {"INSERT", "UPDATE"})


def test_a_heartbeat_changes_threads_once(phone: Phone) -> None:
    with thread_hops() as hops:
        assert phone.heartbeat(status={"battery_pct": 83}).status == 200
    assert len(hops) == 1


def test_the_heartbeats_of_a_batch_change_threads_once_together(fleet: list[Phone]) -> None:
    with thread_hops() as hops:
        answers = in_one_batch(*((phone.device_token, {}) for phone in fleet))
    assert [answer.status for answer in answers] == [200] * 30
    assert len(hops) == 1


@pytest.mark.parametrize("status", ["received", "running", "deferred", "succeeded", "failed"])
def test_a_report_costs_two_statements_in_one_round_trip(admin: Admin, phone: Phone, status: str) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    for _ in range(2):
        with statements() as made:
            phone.report(request_id, status, via="push", output={"a": 1})
        assert made == REPORTS
    let_pass(hours=2)
    with statements() as made:
        phone.report(request_id, "succeeded")
    assert made == REPORTS


def test_a_repeated_result_writes_no_delivery(admin: Admin, phone: Phone) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    phone.report(request_id, "succeeded", via="push")
    (version,) = database.row("SELECT xmin::text FROM commands_delivery")
    phone.report(request_id, "succeeded", via="push")
    assert database.row("SELECT xmin::text, ctid::text FROM commands_delivery")[0] == version
    assert Report.objects.count() == 2


def test_the_reports_of_a_batch_cost_as_much_as_one_and_change_threads_once_together(
    admin: Admin, fleet: list[Phone]
) -> None:
    request_id = admin.command(to=fleet).json["request_id"]
    with statements() as made, thread_hops() as hops:
        answers = reports_in_one_batch(*((phone.device_token, result(request_id)) for phone in fleet))
    assert [answer.json["state"] for answer in answers] == ["succeeded"] * 30
    assert (made, len(hops)) == (REPORTS, 1)


def test_a_report_that_may_retire_its_device_costs_a_transaction_of_its_own(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("wipe", to=phone).json["request_id"]
    with statements() as made:
        assert phone.report(request_id, "running").status == 200
    assert made == REPORTS
    with statements() as made:
        assert phone.report(request_id, "succeeded").status == 200
    assert made[:1] == REPORTS
    assert 5 <= len(made) <= 20


# Our transaction shows as a savepoint, because a test is a transaction too.
COMMAND = [
    "INSERT",  # the limit, in its own transaction
    "SAVEPOINT",
    "SELECT + SELECT",  # the keys, and their stored answers
    "SELECT + SELECT",  # the time, and the devices
    "WITH",
    "INSERT + SET + INSERT",  # the stored answers, the foreign keys, the audit
    "RELEASE",
]


def test_a_signed_command_costs_four_messages_without_the_limit_and_one_change_of_threads(
    admin: Admin, phone: Phone
) -> None:
    admin.command(to=phone)
    with statements() as made, thread_hops() as hops:
        assert admin.command(to=phone).status == 200
    assert (made, len(hops)) == (COMMAND, 1)


def test_the_small_commands_of_a_batch_cost_as_much_as_one(admin: Admin, fleet: list[Phone]) -> None:
    with statements() as made, thread_hops() as hops:
        answers = signed_in_one_batch(
            admin,
            *(("/admin/command", {"action": "ping", "target": {"device_ids": [one.device_id]}}, None) for one in fleet),
        )
    assert [answer.status for answer in answers] == [200] * 30
    assert (made, len(hops)) == (COMMAND, 1)


@pytest.mark.django_db(transaction=True)
def test_a_transaction_begins_in_the_message_of_its_first_statement_and_may_end_in_that_of_its_last(
    tmp_path: Path,
) -> None:
    connection.ensure_connection()
    with (tmp_path / "trace").open("w+") as trace:
        connection.connection.pgconn.trace(trace.fileno())
        with transaction.atomic():
            assert database.row("SELECT 1") == (1,)
            assert database.row("SELECT 2") == (2,)
        with transaction.atomic():
            assert database.row("SELECT 3") == (3,)
            database.execute_last_batch("SELECT 4", "SELECT 5", parameters={})
        connection.connection.pgconn.untrace()
        trace.seek(0)
        sent = [line.split('"')[1] for line in trace.read().splitlines() if "\tQuery\t" in line]
    assert sent == ["BEGIN;SELECT 1", "SELECT 2", "COMMIT", "BEGIN;SELECT 3", "SELECT 4;SELECT 5;COMMIT"]


def test_a_page_of_deliveries_costs_the_same_for_any_number_and_any_reason(admin: Admin, fleet: list[Phone]) -> None:
    fleet[0].heartbeat(push_token="ok-1")
    targets = [f"/admin/commands/{admin.command(to=some).json['request_id']}/deliveries" for some in (fleet[:1], fleet)]
    outbox.claim_due(100)
    for phone in fleet[1:]:
        phone.report(targets[1].split("/")[3], "deferred")
    made: list[int] = []
    for target in targets:
        with statements() as words:
            assert admin.get(target).status == 200
        made.append(words.count("SELECT"))
    assert made == [4, 4]


def test_a_batch_of_pushes_is_claimed_by_one_round_trip_and_recorded_by_two(admin: Admin, fleet: list[Phone]) -> None:
    for number, phone in enumerate(fleet):
        phone.heartbeat(push_token=f"ok-{number}")
    admin.command()
    with statements() as made:
        claimed = outbox.claim_due(100)
        attempts.record_attempts([Sent(one, AttemptOutcome.ACCEPTED, http_status=200) for one in claimed])
    assert made == ["SET + SET + WITH", "SAVEPOINT", "SELECT + SELECT", "WITH", "RELEASE"]
    assert Delivery.objects.filter(push_state="accepted").count() == len(fleet)


def without_ends(made: list[str]) -> list[str]:
    """Return statements without those that begin and end a transaction."""
    words = [word for one in made for word in one.split(" + ")]
    return [word for word in words if word not in ("BEGIN", "COMMIT")]


@pytest.mark.parametrize("number", [1, 150])
@pytest.mark.django_db(transaction=True)
def test_a_look_for_webhooks_costs_two_statements_and_a_page_of_events_nine(admin: Admin, number: int) -> None:
    admin.post("/admin/webhooks", {"url": "https://hooks.example.com/"})
    with statements() as made:
        assert leases.claim(50, 25) == []
    assert without_ends(made) == ["SELECT", "WITH"]
    events.append(*(Event(EventType.DEVICE_UPDATED) for _ in range(number)))
    with statements() as made:
        (webhook,) = leases.claim(50, 25)
    assert without_ends(made) == ["SELECT", "WITH", "SELECT"]

    run = Run(webhook, SimpleNamespace(), SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    with statements() as made:
        page = run.read()
    assert (len(page.events), without_ends(made)) == (number, ["SELECT", "SELECT", "WITH", "SELECT"])
    attempts = [Attempted(one.id, one.type, one.at, 200, "", 1) for one in page.events]
    results = Results(page.next_cursor, attempts, was_tested=False, was_acknowledged=True, failure="", obstacle="")
    with statements() as made:
        assert leases.store(webhook, results, ends=True) is not None
    assert without_ends(made) == ["SELECT", "SELECT", "UPDATE", "INSERT"]


def test_a_claim_reads_no_more_rows_than_it_takes_with_any_statistics(admin: Admin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    database.execute(_PINGS)
    database.execute(_DELIVERIES, {"device_id": phone.device_id})
    database.execute("ANALYZE commands_delivery")
    Delivery.objects.update(state="pending", settled_at=None, next_attempt_at=Now())
    let_pass(minutes=1)
    read = database.row(_READ)
    assert len(outbox.claim_due(10)) == 10
    assert database.row(_READ)[0] - read[0] < 100


_PINGS = """
    INSERT INTO commands_command
        (id, action, params, priority, target, note, issued_by, issued_at, expires_at, device_count)
    SELECT gen_random_uuid(), 'ping', '{}', 'high', '{}', '', 'admin', now(), now() + interval '1 hour', 1
    FROM generate_series(1, 3000)
"""
_DELIVERIES = """
    INSERT INTO commands_delivery (command_id, device_id, state, open_until, push_state, attempt_count, failure_count,
        settled_at)
    SELECT id, %(device_id)s, 'succeeded', expires_at, 'waiting', 0, 0, now() FROM commands_command
"""
_READ = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'commands_delivery'"


@pytest.mark.parametrize("target", ["/v1/heartbeat", "/v1/action-result", "/v1/token/rotate", "/v1/register"])
def test_a_malformed_token_is_refused_before_any_work_for_it(phone: Phone, target: str) -> None:
    bodies = {
        "/v1/action-result": {"request_id": phone.device_id, "status": "received"},
        "/v1/register": {"hardware_id": "imei-1"},
    }
    mistyped = phone.device_token[:-1] + ("0" if phone.device_token[-1] != "0" else "1")
    with CaptureQueriesContext(connection) as queries:
        assert phone.send(target, bodies.get(target, {}), mistyped).status == 401
    assert [query["sql"] for query in queries if "devices_" in query["sql"]] == []
