"""The comparison of the three ledgers notices each kind of loss: a chaos run that cannot fail would prove nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loadtest.chaos import intervals, ledgers, pushes
from loadtest.chaos.intervals import Interval
from loadtest.chaos.ledgers import Attempt, DatabaseSnapshot, Delivery, FinalReport
from loadtest.chaos.traffic import Account, Result
from loadtest.fleet.credentials_file import Member

SEEN = datetime(2026, 11, 25, 12, tzinfo=UTC)
NOW = SEEN.timestamp()
MEMBERS = [Member("device-1", "nxd", "key", "ok-1"), Member("device-2", "nxd", "key", "ok-2")]


def accepted(message_id: str, *, at: float = NOW) -> Attempt:
    return Attempt("accepted", 200, message_id, at, at + 1)


def unknown(*, at: float = NOW) -> Attempt:
    return Attempt("unknown", None, "", at, at + 45, pushes.ORPHANED)


def refused(*, at: float = NOW) -> Attempt:
    return Attempt("retry_later", 503, "", at, at + 1)


def unanswered() -> Attempt:
    return Attempt("unknown", None, "", NOW, NOW + 10, "timeout")


def blocked(detail: str) -> Attempt:
    return Attempt("blocked", None, "", NOW, NOW + 1, detail)


def delivery(device_id: str, *attempts: Attempt, **fields: Any) -> Delivery:
    """A delivery issued now for ten minutes, pushed, and without a report."""
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
    """A command to two phones, a minute ago: one has answered, one got two pushes. Each test adds one error."""

    def __init__(self) -> None:
        self.away: list[Interval] = []
        self.account = Account(
            sent={"chaos 1"},
            accepted={"command-1": frozenset({"device-1", "device-2"})},
            results=[Result("command-1", "device-1", "succeeded", "push", "succeeded", late=False, at=NOW + 20)],
            renamed={"device-1": "renamed 1"},
            heard={"device-1": SEEN.isoformat()},
            settled_after_seconds=20,
        )
        answered = {"state": "succeeded", "delivered_via": "push", "received_at": NOW + 2, "settled_at": NOW + 2}
        self.snapshot = DatabaseSnapshot(
            read_at=NOW + 60,
            commands=[("command-1", "chaos 1")],
            deliveries=[
                delivery("device-1", accepted("m1"), **answered),
                delivery("device-2", unknown(), accepted("m3", at=NOW + 45)),
            ],
            results={("command-1", "device-1"): FinalReport("succeeded", late=False)},
            seen={"device-1": SEEN},
            aliases={"device-1": "renamed 1"},
        )
        self.sends = [send("ok-1", "m1"), send("ok-2", "m2"), send("ok-2", "m3", at=NOW + 45.5)]

    def spoil(self, number: int, **fields: Any) -> None:
        """Change one delivery of the ledger."""
        deliveries = list(self.snapshot.deliveries)
        deliveries[number] = replace(deliveries[number], **fields)
        self.snapshot = replace(self.snapshot, deliveries=deliveries)

    def retell(self, **fields: Any) -> None:
        """Change the answer that the phone got to its result."""
        self.account.results = [replace(one, **fields) for one in self.account.results]

    def missed(self) -> set[str]:
        judged = ledgers.compare(self.account, self.snapshot)
        judged += pushes.compare(self.snapshot, self.sends, MEMBERS, self.away)
        return {one.name for one in judged if not one.held}


def lose_the_command(world: World) -> None:
    world.snapshot = replace(world.snapshot, commands=[])


def lose_a_delivery(world: World) -> None:
    world.snapshot = replace(world.snapshot, deliveries=world.snapshot.deliveries[:1])


def lose_an_alias(world: World) -> None:
    world.snapshot = replace(world.snapshot, aliases={})


def carry_out_a_post_twice(world: World) -> None:
    world.snapshot = replace(world.snapshot, commands=[*world.snapshot.commands, ("command-2", "chaos 1")])


def never_answer_a_post(world: World) -> None:
    world.account.unanswered = 1


def refuse_an_envelope(world: World) -> None:
    world.account.refused = 1


def never_settle(world: World) -> None:
    world.account.settled_after_seconds = None


def lose_a_result(world: World) -> None:
    world.snapshot = replace(world.snapshot, results={})


def lose_a_heartbeat(world: World) -> None:
    world.snapshot = replace(world.snapshot, seen={"device-1": SEEN - timedelta(seconds=1)})


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
    """Both ids are ids of FCM, but each is stored with the other delivery."""
    world.spoil(0, attempts=[accepted("m3")])
    world.spoil(1, attempts=[unknown(), accepted("m1", at=NOW + 45)])


def record_a_failure_of_what_fcm_took(world: World) -> None:
    world.spoil(0, attempts=[refused()])


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
    world.spoil(1, attempts=[refused(), accepted("m3", at=NOW + 45)])


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
    world.snapshot = replace(world.snapshot, read_at=NOW + 71)
    world.spoil(1, attempts=[unknown()])


def never_repeat_what_was_refused(world: World) -> None:
    """FCM's first 503 is tried again after 20 s at the latest."""
    world.snapshot = replace(world.snapshot, read_at=NOW + 27)
    world.spoil(1, attempts=[refused()])


def never_repeat_what_was_given_back(world: World) -> None:
    world.snapshot = replace(world.snapshot, read_at=NOW + 37)
    world.spoil(1, attempts=[blocked("oauth: RefreshError")])


def expire_what_was_answered(world: World) -> None:
    world.spoil(0, state="expired", settled_at=NOW + 600)


def leave_open_what_was_answered(world: World) -> None:
    world.spoil(0, state="pending", settled_at=None)


def store_another_result_than_was_answered(world: World) -> None:
    world.spoil(0, state="failed")


def answer_another_result_than_the_phone_gave(world: World) -> None:
    world.spoil(0, state="failed")
    world.retell(state="failed")


def answer_a_success_as_a_failure(world: World) -> None:
    world.retell(state="failed")


def call_a_result_late_that_was_not(world: World) -> None:
    world.retell(late=True)


def say_one_thing_first_and_then_another(world: World) -> None:
    world.account.results.append(replace(world.account.results[0], state="expired", late=True))


def settle_only_after_the_answer(world: World) -> None:
    world.spoil(0, settled_at=NOW + 21)


def store_another_channel_than_the_phone_gave(world: World) -> None:
    world.spoil(0, delivered_via="heartbeat")


def cancel_what_nobody_cancelled(world: World) -> None:
    world.spoil(1, state="cancelled", settled_at=NOW + 50)


def expire_before_its_time(world: World) -> None:
    world.spoil(1, state="expired", settled_at=NOW + 60)


def expire_before_its_time_by_moving_it(world: World) -> None:
    world.spoil(1, state="expired", settled_at=NOW + 60, open_until=NOW + 60)


def expire_in_the_hour_more(world: World) -> None:
    world.spoil(1, state="expired", settled_at=NOW + 55, expires_at=NOW + 50, open_until=NOW + 3650)


def settle_in_a_time_to_come(world: World) -> None:
    world.spoil(1, state="expired", settled_at=NOW + 600)


def succeed_without_a_report(world: World) -> None:
    world.spoil(1, state="succeeded", settled_at=NOW + 50)


def receive_without_a_report(world: World) -> None:
    world.spoil(1, state="received", received_at=NOW + 50)


def fail_what_was_reported_as_a_success(world: World) -> None:
    world.spoil(0, state="failed")


def succeed_after_its_time(world: World) -> None:
    world.spoil(0, open_until=NOW + 0.5)


def expire_what_was_reported_in_time(world: World) -> None:
    world.spoil(0, state="expired", open_until=NOW + 2, expires_at=NOW + 2)


def keep_open_what_was_reported(world: World) -> None:
    world.spoil(0, state="pending", settled_at=None)


def push_what_was_settled(world: World) -> None:
    world.spoil(1, state="expired", open_until=NOW + 2, settled_at=NOW + 2)


def retry_at_once_what_fcm_refused(world: World) -> None:
    world.spoil(1, attempts=[refused(), accepted("m3", at=NOW + 1.1)])


def retry_at_once_what_got_no_answer(world: World) -> None:
    world.spoil(1, attempts=[unanswered(), accepted("m3", at=NOW + 19.9)])


def retry_at_once_what_our_side_blocked(world: World) -> None:
    world.spoil(1, attempts=[blocked("oauth: RefreshError"), accepted("m3", at=NOW + 30.9)])


def retry_before_the_end_of_what_was_not_sent(world: World) -> None:
    world.spoil(1, attempts=[blocked("not sent: the push waited for too long"), accepted("m3", at=NOW + 0.9)])


def retry_within_the_lease(world: World) -> None:
    world.spoil(1, attempts=[replace(unknown(), finished_at=NOW + 0.8), accepted("m3", at=NOW + 0.8)])


def retry_beside_an_attempt_that_is_under_way(world: World) -> None:
    world.spoil(1, attempts=[unknown(), accepted("m3", at=NOW + 0.8)])


def retry_before_the_lost_attempt_is_closed(world: World) -> None:
    world.spoil(1, attempts=[replace(unknown(), finished_at=NOW + 55), accepted("m3", at=NOW + 45)])


def give_up_within_the_lease(world: World) -> None:
    world.spoil(1, attempts=[replace(unknown(), finished_at=NOW + 0.8), accepted("m3", at=NOW + 45)])


NOT_DUE = "deliveries settled, or open with a due time"
UNRECORDED = "messages at FCM each have an attempt, with FCM's answer"
UNFOUNDED = "attempts with an answer have their message at FCM"
UNTRIED = "pushes that came due were tried"
UNTRUE = "deliveries have the state that was answered"
UNCAUSED = "deliveries in a state without a cause"
HASTY = "attempts begun before their pause was over"


def test_correct_ledgers_keep_every_promise() -> None:
    assert World().missed() == set()


@pytest.mark.parametrize(
    ("spoil", "promise"),
    [
        (lose_the_command, "accepted commands are in the database"),
        (lose_a_delivery, "with a delivery for each of their devices"),
        (lose_an_alias, "accepted aliases are in the database"),
        (carry_out_a_post_twice, "commands that exist twice, or that no client sent"),
        (never_answer_a_post, "writes that never got an answer"),
        (refuse_an_envelope, "envelopes that a phone refused"),
        (never_settle, "everything was settled afterwards"),
        (lose_a_result, "results that were answered with 200 are in the database"),
        (lose_a_heartbeat, "heartbeats that were answered are stored"),
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
        (push_too_late, "messages after the expiry of their command"),
        (push_too_late_with_a_bad_access_token, "messages after the expiry of their command"),
        (leave_an_attempt_in_flight, "attempts still in flight"),
        (push_after_an_acceptance, "attempts after one that FCM accepted"),
        (push_twice_though_nothing_was_unknown, "messages that FCM accepted twice, without an unknown attempt"),
        (never_push_as_the_heartbeat_came_in_the_end, UNTRIED),
        (never_push_what_expired, UNTRIED),
        (never_push_what_is_open, UNTRIED),
        (never_repeat_what_is_unknown, UNTRIED),
        (never_repeat_what_was_refused, UNTRIED),
        (never_repeat_what_was_given_back, UNTRIED),
        (expire_what_was_answered, UNTRUE),
        (leave_open_what_was_answered, UNTRUE),
        (store_another_result_than_was_answered, UNTRUE),
        (answer_another_result_than_the_phone_gave, UNTRUE),
        (answer_a_success_as_a_failure, UNTRUE),
        (call_a_result_late_that_was_not, UNTRUE),
        (say_one_thing_first_and_then_another, UNTRUE),
        (settle_only_after_the_answer, UNTRUE),
        (store_another_channel_than_the_phone_gave, UNTRUE),
        (cancel_what_nobody_cancelled, UNCAUSED),
        (expire_before_its_time, UNCAUSED),
        (expire_before_its_time_by_moving_it, UNCAUSED),
        (expire_in_the_hour_more, UNCAUSED),
        (settle_in_a_time_to_come, UNCAUSED),
        (succeed_without_a_report, UNCAUSED),
        (receive_without_a_report, UNCAUSED),
        (fail_what_was_reported_as_a_success, UNCAUSED),
        (succeed_after_its_time, UNCAUSED),
        (expire_what_was_reported_in_time, UNCAUSED),
        (keep_open_what_was_reported, UNCAUSED),
        (push_what_was_settled, "attempts begun after their delivery was settled"),
        (retry_at_once_what_fcm_refused, HASTY),
        (retry_at_once_what_got_no_answer, HASTY),
        (retry_at_once_what_our_side_blocked, HASTY),
        (retry_before_the_end_of_what_was_not_sent, HASTY),
        (retry_within_the_lease, HASTY),
        (retry_before_the_lost_attempt_is_closed, HASTY),
        (retry_beside_an_attempt_that_is_under_way, HASTY),
        (give_up_within_the_lease, "attempts abandoned within their lease"),
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


def test_a_late_result_leaves_its_delivery_expired_and_gets_that_answer_each_time() -> None:
    world = World()
    told = replace(world.account.results[0], state="expired", late=True)
    world.account.results = [told, replace(told, at=NOW + 25)]
    world.snapshot = replace(world.snapshot, results={("command-1", "device-1"): FinalReport("succeeded", late=True)})
    world.spoil(0, state="expired", expires_at=NOW + 15, open_until=NOW + 15, settled_at=NOW + 15, received_at=None)
    assert world.missed() == set()


def test_a_push_is_sent_again_as_soon_as_its_pause_is_over() -> None:
    for attempt, message, seconds in (
        (refused(), send("ok-2", "", answer="unavailable"), 11),
        (unanswered(), send("ok-2", "", answer="hang"), 20),
        (blocked("oauth: RefreshError"), send("ok-2", "", answer="unauthenticated"), 31),
        (blocked("not sent: the dispatcher stopped while the push waited for its turn"), None, 1),
    ):
        world = World()
        world.spoil(1, attempts=[attempt, accepted("m3", at=NOW + seconds)])
        world.sends[1:] = [message] if message else []
        world.sends.append(send("ok-2", "m3", at=NOW + seconds + 0.5))
        assert world.missed() == set()


def test_a_delivery_that_waits_for_its_next_push_or_for_its_phone_is_not_lost() -> None:
    for fields in (
        {"push_state": "retrying", "next_attempt_at": NOW + 70},
        {"push_state": "retrying", "next_attempt_at": NOW + 50},
        {"push_state": "undeliverable"},
        {"state": "received", "received_at": NOW + 50, "open_until": NOW + 4200},
    ):
        world = World()
        world.spoil(1, **fields)
        assert NOT_DUE not in world.missed()


def test_a_push_is_not_missed_if_the_phone_was_faster_or_no_dispatcher_could_push() -> None:
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
        (refused(), 25),
        (blocked("oauth: RefreshError"), 35),
    ):
        world = World()
        world.snapshot = replace(world.snapshot, read_at=NOW + seconds)
        world.spoil(1, attempts=[attempt])
        assert UNTRIED not in world.missed()


def test_spans_in_common_are_counted_once() -> None:
    some = intervals.union([(0, 2), (1, 4), (8, 9)])
    assert some == [(0, 4), (8, 9)]
    assert intervals.common(some, [(3, 8.5)]) == [(3, 4), (8, 8.5)]
    assert intervals.length(some) == 5
