"""The comparison of the three ledgers notices each kind of loss: a chaos run that cannot fail would prove nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loadtest import ledgers, pushes, spans
from loadtest.crowd import Account
from loadtest.ledgers import Attempt, Book, Delivery
from loadtest.roster import Member
from loadtest.spans import Span

SEEN = datetime(2026, 11, 25, 12, tzinfo=UTC)
NOW = SEEN.timestamp()
MEMBERS = [Member("device-1", "nxd", "key", "ok-1"), Member("device-2", "nxd", "key", "ok-2")]


def accepted(message_id: str, *, at: float = NOW) -> Attempt:
    return Attempt("accepted", 200, message_id, at, at + 1)


def unknown(*, at: float = NOW) -> Attempt:
    return Attempt("unknown", None, "", at, at + 45)


def delivery(device_id: str, *attempts: Attempt, **fields: Any) -> Delivery:
    """A delivery issued now for ten minutes, pushed, and waiting for its phone."""
    row = Delivery(
        attempts,
        "command-1",
        device_id,
        state="pending",
        push_state="accepted",
        delivered_via=None,
        issued_at=NOW,
        expires_at=NOW + 600,
        open_until=NOW + 600,
        next_attempt_at=None,
        received_at=None,
        settled_at=None,
    )
    return replace(row, **fields)


def send(push_token: str, message_id: str, *, at: float = NOW + 0.5, answer: str = "ok") -> dict[str, Any]:
    return {
        "push_token": push_token,
        "request_id": "command-1",
        "message_id": message_id,
        "answer": answer,
        "status": {"ok": 200, "unavailable": 503, "hang": None, "unauthenticated": 401}[answer],
        "at": at,
    }


class World:
    """A command to two phones, a minute ago: one has answered, one was pushed to twice. Each test spoils one thing."""

    def __init__(self) -> None:
        self.away: list[Span] = []
        self.account = Account(
            sent={"chaos 1"},
            accepted={"command-1": frozenset({"device-1", "device-2"})},
            results={("command-1", "device-1")},
            heard={"device-1": SEEN.isoformat()},
            settled_after_seconds=20,
        )
        answered = {"state": "succeeded", "received_at": NOW + 2, "settled_at": NOW + 2}
        self.book = Book(
            read_at=NOW + 60,
            commands=[("command-1", "chaos 1")],
            deliveries=[
                delivery("device-1", accepted("m1"), **answered),
                delivery("device-2", unknown(), accepted("m3", at=NOW + 45)),
            ],
            results=frozenset({("command-1", "device-1")}),
            seen={"device-1": SEEN},
        )
        self.sends = [send("ok-1", "m1"), send("ok-2", "m2"), send("ok-2", "m3", at=NOW + 45.5)]

    def spoil(self, number: int, **fields: Any) -> None:
        """Change one delivery of the book."""
        deliveries = list(self.book.deliveries)
        deliveries[number] = replace(deliveries[number], **fields)
        self.book = replace(self.book, deliveries=deliveries)

    def missed(self) -> set[str]:
        judged = ledgers.compare(self.account, self.book)
        judged += pushes.compare(self.book, self.sends, MEMBERS, self.away)
        return {one.name for one in judged if not one.held}


def lose_the_command(world: World) -> None:
    world.book = replace(world.book, commands=[])


def lose_a_delivery(world: World) -> None:
    world.book = replace(world.book, deliveries=world.book.deliveries[:1])


def carry_out_a_post_twice(world: World) -> None:
    world.book = replace(world.book, commands=[*world.book.commands, ("command-2", "chaos 1")])


def never_answer_a_post(world: World) -> None:
    world.account.unanswered = 1


def refuse_an_envelope(world: World) -> None:
    world.account.refused = 1


def never_settle(world: World) -> None:
    world.account.settled_after_seconds = None


def lose_a_result(world: World) -> None:
    world.book = replace(world.book, results=frozenset())


def lose_a_heartbeat(world: World) -> None:
    world.book = replace(world.book, seen={"device-1": SEEN - timedelta(seconds=1)})


def wait_for_a_push_that_is_not_due(world: World) -> None:
    world.spoil(1, push_state="waiting")


def retry_a_push_at_no_time(world: World) -> None:
    world.spoil(1, push_state="retrying")


def retry_a_push_long_after_the_command_is_over(world: World) -> None:
    world.spoil(1, push_state="retrying", next_attempt_at=NOW + 7200)


def let_a_due_push_lie(world: World) -> None:
    world.spoil(1, push_state="retrying", next_attempt_at=NOW + 40)


def leave_a_delivery_open_after_its_time(world: World) -> None:
    world.spoil(1, open_until=NOW + 40)


def push_without_an_attempt(world: World) -> None:
    world.spoil(0, attempts=[])


def push_twice_in_one_attempt(world: World) -> None:
    world.spoil(1, attempts=[unknown()])


def begin_an_attempt_after_its_push(world: World) -> None:
    world.spoil(0, attempts=[accepted("m1", at=NOW + 1)])


def push_what_nobody_asked_for(world: World) -> None:
    world.sends.append(send("ok-1", "m4") | {"request_id": "command-9"})


def record_the_message_of_another_push(world: World) -> None:
    """Both ids are FCM's, but each stands with the other's delivery."""
    world.spoil(0, attempts=[accepted("m3")])
    world.spoil(1, attempts=[unknown(), accepted("m1", at=NOW + 45)])


def record_a_failure_of_what_fcm_took(world: World) -> None:
    world.spoil(0, attempts=[Attempt("retry_later", 503, "", NOW, NOW + 1)])


def record_an_acceptance_of_what_fcm_refused(world: World) -> None:
    world.sends[0] = send("ok-1", "", answer="unavailable")


def invent_an_acceptance(world: World) -> None:
    del world.sends[0]


def push_too_late(world: World) -> None:
    world.spoil(0, expires_at=NOW + 0.5)


def push_too_late_with_a_bad_access_token(world: World) -> None:
    world.sends.insert(0, send("ok-1", "", answer="unauthenticated"))
    world.spoil(0, expires_at=NOW + 0.5)


def leave_an_attempt_in_flight(world: World) -> None:
    world.spoil(1, attempts=[unknown(), Attempt("in_flight", None, "", NOW + 45, None)])


def push_after_an_acceptance(world: World) -> None:
    world.spoil(1, attempts=[accepted("m2"), accepted("m3", at=NOW + 45)])


def push_twice_though_nothing_was_unknown(world: World) -> None:
    world.spoil(1, attempts=[Attempt("retry_later", 503, "", NOW, NOW + 1), accepted("m3", at=NOW + 45)])


def never_push_as_the_heartbeat_came_in_the_end(world: World) -> None:
    del world.sends[0]
    world.spoil(0, attempts=[], received_at=NOW + 6, settled_at=NOW + 6)


def never_push_what_expired(world: World) -> None:
    del world.sends[0]
    world.spoil(0, attempts=[], state="expired", received_at=None, settled_at=NOW + 15)


def never_push_what_is_open(world: World) -> None:
    del world.sends[0]
    world.spoil(0, attempts=[], state="pending", received_at=None, settled_at=None)


def never_repeat_what_is_unknown(world: World) -> None:
    world.book = replace(world.book, read_at=NOW + 71)
    world.spoil(1, attempts=[unknown()])


def never_repeat_what_was_refused(world: World) -> None:
    """FCM's first 503 is tried again 20 s later at the latest."""
    world.book = replace(world.book, read_at=NOW + 27)
    world.spoil(1, attempts=[Attempt("retry_later", 503, "", NOW, NOW + 1)])


def never_repeat_what_was_given_back(world: World) -> None:
    world.book = replace(world.book, read_at=NOW + 37)
    world.spoil(1, attempts=[Attempt("blocked", None, "", NOW, NOW + 1)])


NOT_DUE = "deliveries settled, or open with a due time"
UNRECORDED = "messages at FCM have an attempt each, with its answer"
UNFOUNDED = "attempts with an answer have their message at FCM"
UNTRIED = "pushes that came due were tried"


def test_a_world_in_order_holds_every_promise() -> None:
    assert World().missed() == set()


@pytest.mark.parametrize(
    ("spoil", "promise"),
    [
        (lose_the_command, "accepted commands are in the database"),
        (lose_a_delivery, "with a delivery for each of their devices"),
        (carry_out_a_post_twice, "commands there twice, or sent by nobody"),
        (never_answer_a_post, "POSTs that never got an answer"),
        (refuse_an_envelope, "envelopes that a phone refused"),
        (never_settle, "everything was settled afterwards"),
        (lose_a_result, "results that were taken are in the database"),
        (lose_a_heartbeat, "heartbeats that were answered are kept"),
        (wait_for_a_push_that_is_not_due, NOT_DUE),
        (retry_a_push_at_no_time, NOT_DUE),
        (retry_a_push_long_after_the_command_is_over, NOT_DUE),
        (let_a_due_push_lie, NOT_DUE),
        (leave_a_delivery_open_after_its_time, NOT_DUE),
        (push_without_an_attempt, UNRECORDED),
        (push_twice_in_one_attempt, UNRECORDED),
        (begin_an_attempt_after_its_push, UNRECORDED),
        (push_what_nobody_asked_for, UNRECORDED),
        (record_the_message_of_another_push, UNRECORDED),
        (record_the_message_of_another_push, UNFOUNDED),
        (record_a_failure_of_what_fcm_took, UNRECORDED),
        (record_an_acceptance_of_what_fcm_refused, UNFOUNDED),
        (invent_an_acceptance, UNFOUNDED),
        (push_too_late, "messages after the time of their command"),
        (push_too_late_with_a_bad_access_token, "messages after the time of their command"),
        (leave_an_attempt_in_flight, "attempts still in flight"),
        (push_after_an_acceptance, "attempts after one that FCM took"),
        (push_twice_though_nothing_was_unknown, "messages FCM took twice, no attempt unknown"),
        (never_push_as_the_heartbeat_came_in_the_end, UNTRIED),
        (never_push_what_expired, UNTRIED),
        (never_push_what_is_open, UNTRIED),
        (never_repeat_what_is_unknown, UNTRIED),
        (never_repeat_what_was_refused, UNTRIED),
        (never_repeat_what_was_given_back, UNTRIED),
    ],
)
def test_each_loss_is_noticed_under_its_name(spoil: Callable[[World], None], promise: str) -> None:
    world = World()
    spoil(world)
    assert promise in world.missed()


def test_a_message_refused_for_its_access_token_is_one_attempt_with_the_next() -> None:
    world = World()
    world.sends.insert(0, send("ok-1", "", answer="unauthenticated"))
    assert world.missed() == set()


def test_what_waits_for_its_next_push_or_for_its_phone_is_not_lost() -> None:
    for fields in (
        {"push_state": "retrying", "next_attempt_at": NOW + 70},
        {"push_state": "retrying", "next_attempt_at": NOW + 50},
        {"push_state": "undeliverable"},
        {"state": "received", "received_at": NOW + 50, "open_until": NOW + 4200},
    ):
        world = World()
        world.spoil(1, **fields)
        assert NOT_DUE not in world.missed()


def test_a_push_is_not_missed_where_the_phone_was_quicker_or_nobody_could_push() -> None:
    world = World()
    del world.sends[0]
    world.spoil(0, attempts=[], received_at=NOW + 4, settled_at=NOW + 4)
    assert world.missed() == set()
    world.spoil(0, received_at=NOW + 12, settled_at=NOW + 12)
    assert world.missed() == {UNTRIED}
    world.away = [(NOW - 5, NOW + 6), (NOW + 4, NOW + 8)]
    assert world.missed() == set()


def test_a_push_that_failed_is_not_missed_before_it_is_due_again() -> None:
    for attempt, seconds in (
        (unknown(), 69),
        (Attempt("retry_later", 503, "", NOW, NOW + 1), 25),
        (Attempt("blocked", None, "", NOW, NOW + 1), 35),
    ):
        world = World()
        world.book = replace(world.book, read_at=NOW + seconds)
        world.spoil(1, attempts=[attempt])
        assert UNTRIED not in world.missed()


def test_spans_in_common_are_counted_once() -> None:
    some = spans.union([(0, 2), (1, 4), (8, 9)])
    assert some == [(0, 4), (8, 9)]
    assert spans.common(some, [(3, 8.5)]) == [(3, 4), (8, 8.5)]
    assert spans.length(some) == 5
