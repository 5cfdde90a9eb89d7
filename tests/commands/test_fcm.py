"""The table of FCM's answers, row by row, through the real sender and a real socket; then the effect of many."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.db.models import F
from django.db.models.functions import Now
from firebase_admin import messaging
from prometheus_client import REGISTRY
from pytest_django import Settings
from structlog.testing import capture_logs

from commands.models import Attempt, AttemptOutcome, Delivery
from commands.push import circuit_breaker, fcm_outcomes
from commands.push.circuit_breaker import Circuit, Fault
from commands.push.dispatcher import Dispatcher
from commands.push.fcm import MAX_TTL_SECONDS, FcmMessage, FcmResponse, NotSent, Sender, encode, parse
from commands.push.rate import Pace
from devices.models import Device
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.models import DispatcherSeen
from tests.support.actors import Admin
from tests.support.moments import thread_hops

pytestmark = pytest.mark.django_db(transaction=True)

R = TypeVar("R")


def push_to(admin: Admin, push_token: str) -> tuple[Attempt, Delivery]:
    """Send one ping to a phone with this push token, dispatch once, and return the state in the rows."""
    admin.command("ping", to=admin.enrol("phone-1", push_token=push_token), expires_in_seconds=86_400)
    call_command("dispatch", once=True)
    return Attempt.objects.get(), Delivery.objects.get()


def fleet(admin: Admin, push_token: str, size: int) -> None:
    """Register this number of phones whose push tokens begin with this, and send them a ping."""
    admin.enrol_fleet(size, push_token)
    admin.command("ping", to={"all": True}, expires_in_seconds=86_400)


def with_sender(fcm: FcmStandin, work: Callable[[Sender], Awaitable[R]]) -> R:
    """Run a function with a real sender to the fake FCM."""

    async def working() -> R:
        async with Sender(fcm.service_account(), fcm.base_url, connections=100) as sender:
            return await work(sender)

    return async_to_sync(working)()


def dispatched(fcm: FcmStandin, breaker: Circuit | None = None) -> Dispatcher:
    """Send the due pushes through the real sender, and return the dispatcher after that."""

    async def dispatch(sender: Sender) -> Dispatcher:
        dispatcher = Dispatcher(sender, per_second=5000)
        dispatcher.circuit = breaker or dispatcher.circuit
        await dispatcher.run_once()
        return dispatcher

    return with_sender(fcm, dispatch)


def ping(push_token: str, *, seconds_left: float = 60, leaves_within: float = 60) -> FcmMessage:
    """Return a push whose command lives this long, and that may be sent within this time."""
    now = time.monotonic()
    return FcmMessage("token", push_token, {"action": "ping"}, "high", now + seconds_left, now + leaves_within)


def seconds_to_next(delivery: Delivery) -> float:
    """Return how long after its last attempt a delivery is due again."""
    finished_at = Attempt.objects.get().finished_at
    assert delivery.next_attempt_at is not None
    assert finished_at is not None
    return (delivery.next_attempt_at - finished_at).total_seconds()


def times_opened(cause: str) -> float:
    """Return how often /metrics shows that a circuit has opened for this cause."""
    return REGISTRY.get_sample_value("nexmdm_circuit_opened_total", {"cause": cause}) or 0.0


def push_token_is_live() -> bool:
    return Device.objects.reachable_by_push().exists()


def test_200_is_accepted_with_its_message_id_and_never_called_delivered(admin: Admin, fcm: FcmStandin) -> None:
    attempt, delivery = push_to(admin, "ok-1")
    assert (attempt.outcome, attempt.http_status, attempt.fcm_error) == ("accepted", 200, "")
    assert attempt.message_id == fcm.journal.sends()[0].message_id
    assert (delivery.state, delivery.push_state, delivery.next_attempt_at) == ("pending", "accepted", None)


@pytest.mark.parametrize(
    ("push_token", "status", "code"),
    [("unregistered-1", 404, "UNREGISTERED"), ("mismatch-1", 403, "SENDER_ID_MISMATCH")],
)
def test_unregistered_and_sender_id_mismatch_kill_the_push_token_and_leave_the_delivery_open(
    admin: Admin, fcm: FcmStandin, push_token: str, status: int, code: str
) -> None:
    attempt, delivery = push_to(admin, push_token)
    assert (attempt.outcome, attempt.http_status, attempt.fcm_error) == ("token_dead", status, code)
    assert (delivery.state, delivery.push_state, delivery.next_attempt_at) == ("pending", "undeliverable", None)
    assert not push_token_is_live()


@pytest.mark.parametrize(
    ("push_token", "status"), [("missing-1", 404), ("forbidden-1", 403), ("unauthenticated-1", 401)]
)
def test_a_fault_of_our_own_blocks_the_attempt_and_keeps_the_push_token(
    admin: Admin, fcm: FcmStandin, push_token: str, status: int
) -> None:
    attempt, delivery = push_to(admin, push_token)
    assert (attempt.outcome, attempt.http_status, attempt.fcm_error) == ("blocked", status, "")
    assert (delivery.push_state, delivery.failure_count) == ("retrying", 1)
    assert 30 <= seconds_to_next(delivery) <= 33.5
    assert push_token_is_live()


@pytest.mark.parametrize(
    ("push_token", "status"),
    [
        ("blank401-1", 401), ("blank403-1", 403), ("blank404-1", 404), ("html401-1", 401), ("html403-1", 403),
        ("html404-1", 404), ("html400-1", 400), ("html302-1", 302), ("blank204-1", 204), ("html502-1", 502),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_fcms_own_is_tried_again_with_growing_backoff(
    admin: Admin, fcm: FcmStandin, push_token: str, status: int
) -> None:
    attempt, delivery = push_to(admin, push_token)
    assert (attempt.outcome, attempt.http_status, attempt.fcm_error) == ("retry_later", status, "")
    assert (delivery.push_state, delivery.failure_count) == ("retrying", 1)
    assert 10 <= seconds_to_next(delivery) <= 20.5
    assert push_token_is_live()

    answer = parse(status, "", b"<html>")
    later = [fcm_outcomes.decide(answer, failures=6).retry_in_seconds or 0 for _ in range(50)]
    assert max(later) > 60


@pytest.mark.parametrize("bad", ["blank401-1", "html404-1", "forbidden-1", "missing-1", "unauthenticated-1"])
def test_a_single_push_token_that_always_fails_stops_no_other_push(admin: Admin, fcm: FcmStandin, bad: str) -> None:
    admin.enrol("the-odd-one", push_token=bad)
    admin.enrol_fleet(3, "ok-")
    dispatchers = []
    for _ in range(4):
        admin.command("ping", to={"all": True}, expires_in_seconds=86_400)
        Delivery.objects.filter(next_attempt_at__isnull=False).update(next_attempt_at=Now())
        dispatchers.append(dispatched(fcm))
    assert {one.circuit.state for one in dispatchers} == {circuit_breaker.CLOSED}
    assert Attempt.objects.filter(outcome="accepted").count() == 4 * 3
    assert Delivery.objects.filter(push_state="retrying").count() == 4


def test_a_page_instead_of_every_25th_answer_stops_no_other_push(admin: Admin, fcm: FcmStandin) -> None:
    for number in range(1, 51):
        admin.enrol(f"phone-{number}", push_token=f"{'html404' if number % 25 == 0 else 'ok'}-{number}")
    admin.command("ping", to={"all": True}, expires_in_seconds=86_400)
    with capture_logs() as lines:
        assert dispatched(fcm).circuit.state == circuit_breaker.CLOSED
    assert [line for line in lines if line["event"] == "push.circuit"] == []
    assert Attempt.objects.filter(outcome="accepted").count() == 48
    odd = Attempt.objects.filter(outcome="retry_later", http_status=404)
    assert {attempt.detail.partition(".")[0] for attempt in odd} == {"The answer is not from FCM"}
    assert odd.count() == 2


@pytest.mark.parametrize(
    ("push_token", "advice"),
    [
        ("missing-", "Check the service account's project_id, and FCM_BASE_URL"),
        ("forbidden-", "The service account has no right to send pushes"),
        ("unauthenticated-", "Check the service account's key"),
    ],
)
def test_a_fault_of_our_own_at_several_devices_opens_the_circuit_and_the_log_says_what_to_repair(
    admin: Admin, fcm: FcmStandin, push_token: str, advice: str
) -> None:
    fleet(admin, push_token, 3)
    opened = times_opened("configuration")
    with capture_logs() as lines:
        dispatcher = dispatched(fcm)
    (alarm,) = [line for line in lines if line["event"] == "push.circuit"]
    assert (alarm["log_level"], alarm["state"], alarm["cause"]) == ("error", "open", "configuration")
    assert times_opened("configuration") == opened + 1
    assert advice in alarm["reason"]
    assert advice in Attempt.objects.latest("id").detail

    Delivery.objects.update(next_attempt_at=Now())
    assert async_to_sync(dispatcher.dispatch_once)() == 0, "the probe is not due yet"


@pytest.mark.parametrize(
    ("push_token", "statuses"),
    [("unauthenticated-1", [401, 401]), ("forbidden-1", [403, 403]), ("mismatch-1", [403]), ("missing-1", [404])],
)
def test_401_and_other_403_refresh_the_access_token_once_before_the_attempt_counts(
    admin: Admin, fcm: FcmStandin, push_token: str, statuses: list[int]
) -> None:
    issued = fcm.access_tokens.issued
    push_to(admin, push_token)
    assert [send.status for send in fcm.journal.sends()] == statuses
    assert fcm.access_tokens.issued == issued + len(statuses)


def test_an_access_token_that_fcm_refuses_is_refreshed_once_for_all_pushes_under_way(fcm: FcmStandin) -> None:
    issued = fcm.access_tokens.issued

    async def sends(sender: Sender) -> list[FcmResponse]:
        await sender.send(ping("ok-1"))
        fcm.revoke_access_tokens()
        return await asyncio.gather(*(sender.send(ping(f"ok-{number}")) for number in range(20)))

    answers = with_sender(fcm, sends)
    assert {answer.http_status for answer in answers} == {200}
    assert fcm.access_tokens.issued == issued + 2


def test_an_access_token_that_one_push_is_refused_with_still_serves_the_others_while_oauth_is_down(
    admin: Admin, fcm: FcmStandin
) -> None:
    async def sends(sender: Sender) -> list[FcmResponse]:
        first = await sender.send(ping("ok-1"))
        fcm.oauth_down = True
        return [first, await sender.send(ping("unauthenticated-1")), await sender.send(ping("ok-2"))]

    answers = with_sender(fcm, sends)
    assert [answer.http_status for answer in answers] == [200, 401, 200]
    assert not any(answer.oauth_failed for answer in answers)


def test_400_rejects_the_message_keeps_the_push_token_and_is_logged_as_an_error(admin: Admin, fcm: FcmStandin) -> None:
    with capture_logs() as lines:
        attempt, delivery = push_to(admin, "invalid-1")
    assert [line["log_level"] for line in lines if line["event"] == "command.sent"] == ["error"]
    assert (attempt.outcome, attempt.http_status, attempt.fcm_error) == ("rejected", 400, "INVALID_ARGUMENT")
    assert (delivery.state, delivery.push_state, delivery.next_attempt_at) == ("pending", "undeliverable", None)
    assert push_token_is_live()


def test_a_400_that_names_the_push_token_calls_it_dead(admin: Admin, fcm: FcmStandin) -> None:
    attempt, delivery = push_to(admin, "malformed-1")
    assert (attempt.outcome, attempt.http_status, attempt.fcm_error) == ("token_dead", 400, "INVALID_ARGUMENT")
    assert (delivery.state, delivery.push_state, delivery.next_attempt_at) == ("pending", "undeliverable", None)
    (device,) = admin.get("/admin/devices").json["items"]
    assert device["push"] == "dead"
    assert admin.command("ping").json["push"] == {"queued": 0, "no_push_token": 1}


NOT_A_TOKEN = "The registration token is not a valid FCM registration token"


def invalid_argument(message: str = "Request contains an invalid argument.", *fields: str, text: str = "") -> bytes:
    """A 400 of FCM with this message and a violation of each of these fields."""
    violations = [{"field": field, "description": text} for field in fields]
    bad_request = {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations}
    code = {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": "INVALID_ARGUMENT"}
    details = [code, bad_request] if fields else [code]
    return json.dumps(
        {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": details}}
    ).encode()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (invalid_argument(NOT_A_TOKEN), AttemptOutcome.TOKEN_DEAD),
        (invalid_argument("Request contains an invalid argument.", "message.token"), AttemptOutcome.TOKEN_DEAD),
        (invalid_argument("Request contains an invalid argument.", "message.fid"), AttemptOutcome.TOKEN_DEAD),
        (invalid_argument("No.", "message", text="Invalid registration token"), AttemptOutcome.TOKEN_DEAD),
        (invalid_argument("Invalid value at 'message.token'"), AttemptOutcome.TOKEN_DEAD),
        (invalid_argument("Invalid value at 'message.fid' (TYPE_STRING)"), AttemptOutcome.TOKEN_DEAD),
        (invalid_argument(), AttemptOutcome.REJECTED),
        (invalid_argument("Message too big"), AttemptOutcome.REJECTED),
        (invalid_argument("Invalid data payload key: from"), AttemptOutcome.REJECTED),
        (invalid_argument("Request contains an invalid argument.", "message.android.ttl"), AttemptOutcome.REJECTED),
        (invalid_argument("Request contains an invalid argument.", "message.tokens"), AttemptOutcome.REJECTED),
        (invalid_argument(NOT_A_TOKEN).replace(b"INVALID_ARGUMENT", b"FAILED_PRECONDITION"), AttemptOutcome.REJECTED),
    ],
)
def test_a_400_is_about_the_push_token_only_if_it_names_it(body: bytes, outcome: AttemptOutcome) -> None:
    assert fcm_outcomes.decide(parse(400, "", body), failures=0).outcome == outcome


@pytest.mark.parametrize(("push_token", "least", "most"), [("quota-1", 60, 66.5), ("quota7-1", 7, 8)])
def test_429_waits_for_retry_after_or_by_default_for_a_minute(
    admin: Admin, fcm: FcmStandin, push_token: str, least: float, most: float
) -> None:
    attempt, delivery = push_to(admin, push_token)
    assert (attempt.outcome, attempt.http_status, attempt.fcm_error) == ("retry_later", 429, "QUOTA_EXCEEDED")
    assert least <= seconds_to_next(delivery) <= most
    assert (delivery.push_state, delivery.failure_count) == ("retrying", 1)


@pytest.mark.parametrize(
    ("push_token", "status", "least", "most"),
    [
        ("unavailable-1", 503, 10, 20),
        ("internal-1", 500, 10, 20),
        ("unavailable90-1", 503, 90, 99),
        ("unavailable999999999-1", 503, 3000, 3600),
    ],
)
def test_500_and_503_wait_for_the_larger_of_retry_after_and_the_backoff(
    admin: Admin, fcm: FcmStandin, push_token: str, status: int, least: float, most: float
) -> None:
    attempt, delivery = push_to(admin, push_token)
    assert (attempt.outcome, attempt.http_status) == ("retry_later", status)
    assert least <= seconds_to_next(delivery) <= most + 0.5
    assert push_token_is_live()


@pytest.mark.parametrize("word", ["unavailable999999999", "quota999999999"])
@pytest.mark.parametrize("lives", [600, 7200])
def test_a_too_long_retry_after_is_limited_to_an_hour_and_the_push_is_sent_again_before_the_expiry(
    admin: Admin, fcm: FcmStandin, word: str, lives: int
) -> None:
    admin.command("ping", to=admin.enrol("phone-1", push_token=f"{word}-1"), expires_in_seconds=lives)
    call_command("dispatch", once=True)
    delivery = Delivery.objects.get()
    assert delivery.push_state == "retrying"
    half = min(lives / 2, 3600)
    assert 0.85 * half <= seconds_to_next(delivery) <= 1.1 * half


def test_a_push_token_of_another_kind_is_rejected_and_stops_no_other_push(admin: Admin, fcm: FcmStandin) -> None:
    fleet(admin, "ok-", 3)
    admin.command("ping", to=admin.enrol("an-iphone", push_token="thirdparty-1"), expires_in_seconds=86_400)
    assert dispatched(fcm).circuit.state == circuit_breaker.CLOSED
    attempt = Attempt.objects.get(http_status=401)
    assert (attempt.outcome, attempt.fcm_error) == ("rejected", "THIRD_PARTY_AUTH_ERROR")
    assert Attempt.objects.filter(outcome="accepted").count() == 3
    assert Device.objects.reachable_by_push().count() == 4


def test_429_slows_the_whole_dispatcher(admin: Admin, fcm: FcmStandin) -> None:
    fleet(admin, "quota-", 3)
    assert dispatched(fcm).pace.factor == 0.5


@pytest.mark.parametrize(("failures", "state"), [(19, circuit_breaker.CLOSED), (20, circuit_breaker.OPEN)])
def test_twenty_failures_in_a_row_open_the_circuit(admin: Admin, fcm: FcmStandin, failures: int, state: str) -> None:
    fleet(admin, "unavailable-", failures)
    assert dispatched(fcm).circuit.state == state


def test_pushes_that_wait_for_a_slot_when_the_circuit_opens_are_returned_unsent(
    admin: Admin, fcm: FcmStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.push.dispatcher.SLOTS", 1)
    fleet(admin, "unavailable-", 25)
    assert dispatched(fcm).circuit.state == circuit_breaker.OPEN
    assert len(fcm.journal) == 20
    given_back = Attempt.objects.filter(outcome="blocked", http_status=None)
    assert {attempt.detail.partition(":")[0] for attempt in given_back} == {"not sent"}
    assert Delivery.objects.filter(attempts__in=given_back, failure_count=0, next_attempt_at__gt=Now()).count() == 5


def test_a_connection_that_is_cut_is_unknown_and_tried_again(admin: Admin, fcm: FcmStandin) -> None:
    attempt, delivery = push_to(admin, "reset-1")
    assert (attempt.outcome, attempt.http_status) == ("unknown", None)
    assert attempt.detail.startswith("connection")
    assert 10 <= seconds_to_next(delivery) <= 20.5


def test_a_200_without_a_message_id_is_unknown(admin: Admin, fcm: FcmStandin) -> None:
    attempt, delivery = push_to(admin, "garbage-1")
    assert (attempt.outcome, attempt.http_status, delivery.push_state) == ("unknown", 200, "retrying")


def test_no_answer_in_time_is_unknown_and_tried_again(
    admin: Admin, fcm: FcmStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.push.fcm.TIMEOUT_SECONDS", 0.2)
    attempt, delivery = push_to(admin, "hang-1")
    assert (attempt.outcome, attempt.http_status, attempt.detail) == ("unknown", None, "timeout")
    assert 10 <= seconds_to_next(delivery) <= 20.5


def test_a_failing_oauth_endpoint_blocks_the_attempt_and_nothing_is_sent(admin: Admin, fcm: FcmStandin) -> None:
    fcm.oauth_down = True
    attempt, delivery = push_to(admin, "ok-1")
    assert (attempt.outcome, attempt.http_status) == ("blocked", None)
    assert attempt.detail.startswith("oauth")
    assert (len(fcm.journal), delivery.failure_count) == (0, 0)


@pytest.mark.parametrize("said", ["<html>", "[]", '{"access_token": "a", "expires_in": []}'])
def test_an_endpoint_that_is_not_oauth_blocks_the_attempt_and_opens_the_circuit(
    admin: Admin, fcm: FcmStandin, said: str
) -> None:
    fcm.oauth_says = said
    fleet(admin, "ok-", 1)
    assert dispatched(fcm).circuit.state == circuit_breaker.OPEN
    assert Attempt.objects.get().outcome == "blocked"
    assert len(fcm.journal) == 0


def test_any_other_error_of_a_send_is_unknown_and_tried_again(admin: Admin, fcm: FcmStandin) -> None:
    fcm.oauth_says = '{"access_token": "no\\nheader"}'
    attempt, delivery = push_to(admin, "ok-1")
    assert (attempt.outcome, attempt.detail) == ("unknown", "unexpected: ValueError")
    assert (delivery.push_state, delivery.failure_count) == ("retrying", 1)


def test_a_failing_oauth_endpoint_opens_the_circuit_and_the_log_says_what_to_repair(
    admin: Admin, fcm: FcmStandin
) -> None:
    fcm.oauth_down = True
    fleet(admin, "ok-", 3)
    with capture_logs() as lines:
        assert dispatched(fcm).circuit.state == circuit_breaker.OPEN
    (alarm,) = [line for line in lines if line["event"] == "push.circuit"]
    assert "There is no access token" in alarm["reason"]


def test_an_access_token_is_refreshed_in_a_thread_ahead_of_its_expiry_and_no_push_waits_for_that(
    fcm: FcmStandin,
) -> None:
    fcm.expires_in_seconds = 120
    issued = fcm.access_tokens.issued

    async def sends(sender: Sender) -> None:
        assert (await sender.send(ping("ok-1"))).http_status == 200
        fcm.oauth_down = True
        for _ in range(5):
            assert (await sender.send(ping("ok-1"))).http_status == 200
        fcm.oauth_down = False
        deadline = time.monotonic() + 5
        while fcm.access_tokens.issued == issued + 1:
            assert time.monotonic() < deadline, "it is not refreshed"
            assert (await sender.send(ping("ok-1"))).http_status == 200

    with thread_hops() as hops:
        with_sender(fcm, sends)
    assert len([hop for hop in hops if "refresh" in hop]) >= 2


def test_the_largest_possible_command_is_accepted_by_fcm(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    admin.command("message", to=phone, params={"title": "t", "body": ""})
    (envelope,) = phone.heartbeat().json["commands"]
    room = 4096 - sum(len(key) + len(value) for key, value in envelope.items())
    too_large = admin.command("message", to=phone, params={"title": "t", "body": "x" * (room + 1)})
    assert too_large.code == "push_payload_too_large"
    admin.command("message", to=phone, params={"title": "t", "body": "x" * room}, supersede=True)

    call_command("dispatch", once=True)

    assert [send.status for send in fcm.journal.sends()] == [200]


def test_the_longest_possible_command_is_accepted_by_fcm(admin: Admin, fcm: FcmStandin) -> None:
    admin.command("ping", to=admin.enrol("phone-1", push_token="ok-1"), expires_in_seconds=2_419_200)
    call_command("dispatch", once=True)
    assert [send.status for send in fcm.journal.sends()] == [200]


def test_the_time_to_live_of_a_push_ends_with_its_command_after_any_wait(fcm: FcmStandin) -> None:
    async def sends(sender: Sender) -> list[Any]:
        await sender.send(ping("ok-1"))
        fcm.journal.clear()
        fcm.override, fcm.delay_ms = "unauthenticated", 500
        pushes = [ping("ok-1", seconds_left=left) for left in (0.9, 1.4, 2.8)]
        return await asyncio.gather(*(sender.send(push) for push in pushes), return_exceptions=True)

    gone, expired_meanwhile, refused = with_sender(fcm, sends)
    assert (type(gone), type(expired_meanwhile), refused.http_status) == (NotSent, NotSent, 401)
    ttls = [send.message["android"]["ttl"] for send in fcm.journal.sends()]
    assert sorted(ttls) == ["1s", "2s", "2s"]


def test_the_wait_for_a_connection_shortens_the_time_to_live(fcm: FcmStandin) -> None:
    fcm.delay_ms = 500

    async def sends() -> list[Any]:
        async with Sender(fcm.service_account(), fcm.base_url, connections=1) as sender:
            await sender.send(ping("ok-0"))
            first = asyncio.create_task(sender.send(ping("ok-1")))
            await asyncio.sleep(0)
            then = [ping("ok-2", seconds_left=1.4), ping("ok-3", leaves_within=0.4), ping("ok-4", seconds_left=10.3)]
            return await asyncio.gather(first, *map(sender.send, then), return_exceptions=True)

    first, expired, out_of_time, last = async_to_sync(sends)()
    assert (first.http_status, last.http_status) == (200, 200)
    assert str(expired) == "the command has expired, or expires within 1 s"
    assert str(out_of_time) == "the push waited for too long"
    assert [send.message["android"]["ttl"] for send in fcm.journal.sends()[2:]] == ["9s"]


def test_a_refused_access_token_does_not_extend_the_time_of_a_push(fcm: FcmStandin) -> None:
    async def sends(sender: Sender) -> None:
        await sender.send(ping("ok-1"))
        fcm.override, fcm.delay_ms = "unauthenticated", 400
        with pytest.raises(NotSent, match="the push waited for too long"):
            await sender.send(ping("ok-2", leaves_within=0.3))

    with_sender(fcm, sends)
    assert [send.status for send in fcm.journal.sends()] == [200, 401]


@pytest.mark.parametrize(("others", "share"), [(0, 30), (4, 6)])
def test_dispatchers_share_the_limit_of_pushes_a_second(
    admin: Admin, fcm: FcmStandin, settings: Settings, others: int, share: int
) -> None:
    settings.FCM_MAX_PER_SECOND = 30
    for number in range(others):
        DispatcherSeen.objects.create(name=f"elsewhere:{number}", circuit=circuit_breaker.CLOSED)
    fleet(admin, "ok-", 12)
    began_at = time.monotonic()

    call_command("dispatch", once=True)

    sends = fcm.journal.sends()
    assert len(sends) == 12
    assert share / 10 + 1 + share * (sends[-1].monotonic - began_at) >= 12


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (405, AttemptOutcome.REJECTED),
        (413, AttemptOutcome.REJECTED),
        (502, AttemptOutcome.RETRY_LATER),
    ],
)
def test_an_undocumented_error_of_fcm_has_an_outcome_too(status: int, outcome: AttemptOutcome) -> None:
    body = json.dumps({"error": {"code": status, "message": "No.", "status": "UNKNOWN"}}).encode()
    assert fcm_outcomes.decide(parse(status, "", body), failures=0).outcome == outcome


def test_a_retry_is_never_sent_after_the_expiry_of_its_command(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="unavailable90-1")
    admin.command("ping", to=phone, expires_in_seconds=60)
    call_command("dispatch", once=True)
    delivery = Delivery.objects.get()
    assert (delivery.push_state, delivery.next_attempt_at) == ("undeliverable", None)


def test_a_push_that_failed_is_sent_again_under_the_same_request_id(admin: Admin, fcm: FcmStandin) -> None:
    push_to(admin, "flaky1-1")
    Delivery.objects.update(next_attempt_at=Now())
    call_command("dispatch", once=True)
    assert len({send.request_id for send in fcm.journal.sends()}) == 1
    assert list(Attempt.objects.order_by("number").values_list("outcome", flat=True)) == ["retry_later", "accepted"]


@pytest.mark.parametrize("kind", ["token", "fid"])
@pytest.mark.parametrize("direct_boot", [False, True])
@pytest.mark.parametrize("priority", ["high", "normal"])
@pytest.mark.parametrize("ttl_seconds", [1, 90, MAX_TTL_SECONDS, MAX_TTL_SECONDS + 1])
def test_a_message_equals_the_one_of_googles_library(
    kind: str, direct_boot: bool, priority: str, ttl_seconds: int
) -> None:
    data = {"action": "message", "params": '{"title":"Café ✓"}'}
    android = messaging.AndroidConfig(
        priority=priority, ttl=min(ttl_seconds, MAX_TTL_SECONDS), direct_boot_ok=direct_boot or None
    )
    expected = messaging.Message(data=data, android=android, fcm_options=messaging.FCMOptions("message"))
    setattr(expected, kind, "ok-1")  # The constructor warns that `token` is deprecated.
    expires_at = time.monotonic() + ttl_seconds + 0.9
    body = json.loads(encode(FcmMessage(kind, "ok-1", data, priority, expires_at, direct_boot=direct_boot)))
    assert body == {"message": json.loads(str(expected))}


@pytest.mark.parametrize("failures", range(12))
def test_the_backoff_is_ten_seconds_and_a_random_part_that_doubles_up_to_a_quarter_of_an_hour(failures: int) -> None:
    waits = [fcm_outcomes.backoff(failures) for _ in range(200)]
    assert min(waits) >= 10
    assert max(waits) <= min(900, 10 + 10 * 2**failures)
    assert len(set(waits)) > 190, "the longest wait is spread as well"


@pytest.mark.parametrize("status", [429, 503])
def test_retries_after_a_too_long_retry_after_are_spread_within_the_hour(status: int) -> None:
    answer = parse(status, "Fri, 31 Dec 9999 23:59:59 GMT", b"")
    waits = [fcm_outcomes.decide(answer, failures=0).retry_in_seconds or 0 for _ in range(200)]
    assert 3200 <= min(waits) < max(waits) <= 3600


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_followed_and_retries_with_the_same_value_are_spread(status: int) -> None:
    told = FcmResponse(status, retry_after_seconds=300)
    waits = [fcm_outcomes.decide(told, failures=0).retry_in_seconds or 0 for _ in range(200)]
    assert 300 <= min(waits) < max(waits) <= 330
    assert len(set(waits)) > 190


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("", None),
        ("soon", None),
        ("²", None),
        ("-1", None),
        ("9" * 400, math.inf),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
def test_retry_after_may_be_seconds_or_a_date(header: str, seconds: float | None) -> None:
    assert parse(503, header, b"").retry_after_seconds == seconds


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":1}', b'{"error":{"details":[1,{"@type":2}]}}'])
def test_an_error_that_is_not_fcms_has_no_code_and_is_known_as_such(body: bytes) -> None:
    answer = parse(404, "", body)
    assert (answer.fcm_error, answer.from_fcm) == ("", False)


def failed(breaker: Circuit, fault: Fault, device: int, *, now: float = 0, delivery: int | None = None) -> bool:
    """Let a send to this device fail; return whether it has opened or closed the circuit."""
    return breaker.note(fault, fault.value, now, device_id=str(device), delivery_id=delivery or device)


def test_the_circuit_opens_after_twenty_failures_in_a_row_and_then_lets_one_probe_through_each_half_minute() -> None:
    breaker = Circuit()
    for device in range(19):
        assert not failed(breaker, Fault.PASSING, device)
    assert breaker.permits(0) is None
    assert failed(breaker, Fault.PASSING, 19)
    assert (breaker.state, breaker.cause, breaker.permits(29)) == (circuit_breaker.OPEN, Fault.PASSING, 0)
    assert breaker.permits(30) == 1
    breaker.claimed(30)
    assert (breaker.permits(31), breaker.permits(60)) == (0, 1)


@pytest.mark.parametrize("fault", [Fault.PASSING, Fault.CONFIGURATION])
def test_the_circuit_never_opens_for_one_or_two_devices(fault: Fault) -> None:
    breaker = Circuit()
    assert not any(failed(breaker, fault, number % 2, delivery=number) for number in range(100))


def test_the_circuit_opens_for_a_fault_of_our_own_at_several_devices_with_no_success_in_between() -> None:
    breaker = Circuit()
    for success_after in (1, 2):
        assert not any(failed(breaker, Fault.CONFIGURATION, device) for device in range(success_after))
        assert not failed(breaker, Fault.NONE, 9)
    assert [failed(breaker, Fault.CONFIGURATION, device) for device in (1, 1, 2, 3)] == [False, False, False, True]
    assert breaker.cause == Fault.CONFIGURATION


def test_a_temporary_error_does_not_count_as_a_fault_of_our_own() -> None:
    breaker = Circuit()
    assert not any(failed(breaker, Fault.CONFIGURATION, device) for device in (1, 2))
    assert not any(failed(breaker, Fault.PASSING, device) for device in range(3, 12))


def test_a_failure_of_oauth_opens_the_circuit_immediately() -> None:
    breaker = Circuit()
    assert failed(breaker, Fault.OAUTH, 1)
    assert (breaker.state, breaker.cause) == (circuit_breaker.OPEN, Fault.OAUTH)


def test_any_judgement_of_a_message_closes_the_circuit() -> None:
    breaker = Circuit()
    failed(breaker, Fault.OAUTH, 1)
    assert failed(breaker, Fault.NONE, 2, now=30)
    assert (breaker.state, breaker.reason, breaker.failures, breaker.permits(30)) == (
        circuit_breaker.CLOSED,
        "",
        0,
        None,
    )


@pytest.mark.parametrize("script", ["ok", "unregistered", "invalid", "malformed", "thirdparty"])
def test_fcms_own_answers_about_a_message_are_no_faults(fcm: FcmStandin, script: str) -> None:
    reply = fcm.scripted(f"{script}-1")
    assert fcm_outcomes.decide(parse(reply.status or 0, "", reply.body), failures=0).fault == Fault.NONE


def probed(fcm: FcmStandin, breaker: Circuit) -> list[str]:
    """Make all open pushes due, failed ones first, and allow a probe; return the push tokens that got a push."""
    fcm.journal.clear()
    Delivery.objects.filter(failure_count=0, next_attempt_at__isnull=False).update(next_attempt_at=Now())
    failed_ones = Delivery.objects.filter(failure_count__gt=0, next_attempt_at__isnull=False)
    failed_ones.update(next_attempt_at=Now() - timedelta(minutes=1))
    breaker.next_probe_at = 0.0
    dispatched(fcm, breaker)
    return list(dict.fromkeys(send.push_token for send in fcm.journal.sends()))


def test_each_probe_is_another_delivery_and_failed_ones_are_not_sent_first_after_it(
    admin: Admin, fcm: FcmStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.push.dispatcher.SLOTS", 1)
    breaker = Circuit()
    fleet(admin, "forbidden-", 3)
    dispatched(fcm, breaker)
    assert breaker.state == circuit_breaker.OPEN
    good = [admin.enrol(f"good-{number}", push_token=f"ok-{number}") for number in range(4)]
    admin.command("ping", to=good, expires_in_seconds=86_400)

    fcm.override = "unavailable"
    first, second = probed(fcm, breaker), probed(fcm, breaker)
    assert (len(first), len(second), breaker.state) == (1, 1, circuit_breaker.OPEN)
    fcm.override = None
    went = [*first, *second, *probed(fcm, breaker)]

    assert set(went[:4]) == {"ok-0", "ok-1", "ok-2", "ok-3"}
    assert set(went[4:]) == {"forbidden-0", "forbidden-1", "forbidden-2"}


def test_if_only_failed_deliveries_are_due_the_probes_take_them_in_turn(admin: Admin, fcm: FcmStandin) -> None:
    breaker = Circuit()
    fleet(admin, "forbidden-", 3)
    dispatched(fcm, breaker)
    probes: list[str] = []
    for _ in range(3):
        fcm.journal.clear()
        Delivery.objects.update(next_attempt_at=F("next_attempt_at") - timedelta(minutes=2))
        breaker.next_probe_at = 0.0
        dispatched(fcm, breaker)
        probes += {send.push_token for send in fcm.journal.sends()}
    assert sorted(probes) == ["forbidden-0", "forbidden-1", "forbidden-2"]


def test_a_429_slows_the_whole_dispatcher_and_its_rate_recovers() -> None:
    pace = Pace(per_second=100)
    assert pace.permits(now=0) == 10
    pace.slow_down(now=0)
    pace.spend(10)
    assert pace.permits(now=0.1) == 5
    for now in range(2, 12):
        pace.permits(now)
    assert pace.permits(now=12) == 10


def test_no_burst_follows_a_pause() -> None:
    pace = Pace(per_second=100)
    pace.permits(now=0)
    sent = 0
    for tick in range(1000, 1100):
        permitted = pace.permits(now=tick / 100)
        pace.spend(permitted)
        sent += permitted
    assert 100 <= sent <= 110
