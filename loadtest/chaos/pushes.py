"""The check of a run's pushes: messages at the fake FCM, attempts in the database, and due pushes without an attempt.

A message is a push in the journal of the fake FCM. An attempt is a row in the database.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Final

from loadtest.chaos import intervals
from loadtest.chaos.intervals import Interval
from loadtest.chaos.ledgers import (
    LEASE_SECONDS,
    TRANSACTION_SECONDS,
    Attempt,
    DatabaseSnapshot,
    Delivery,
    Key,
    none,
    part,
)
from loadtest.fleet.credentials_file import Member
from loadtest.load.targets import Target

MAY_REPEAT: Final = frozenset({"unknown", "retry_later", "blocked"})
"""The outcomes after which the server sends a push again. After `unknown`, FCM may have accepted the push. After
`retry_later` and `blocked`, FCM has not accepted it."""

UNHEARD: Final = frozenset({"unknown", "in_flight"})
"""The outcomes without a recorded answer of FCM. An attempt `in_flight` may still get an answer."""

PROMPT_SECONDS: Final = 5
"""The longest time that a due push may wait while a dispatcher can push."""

BLOCKED_SECONDS: Final = 30
"""The server's pause after an attempt with the outcome `blocked`."""
FIRST_RETRY_SECONDS: Final = 10
"""The server's shortest pause after a failed attempt."""
LONGEST_RETRY_SECONDS: Final = 900
"""The server's longest pause after repeated failures."""

ORPHANED: Final = "the dispatcher stored no answer of FCM"
"""The server's `detail` for an attempt whose dispatcher ended without recording an answer."""
NOT_SENT: Final = "not sent: "
"""The beginning of the server's `detail` for an attempt whose push was not sent."""

ROUNDING_SECONDS: Final = 0.001

Send = Mapping[str, Any]
"""A line of the journal."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """A delivery, and its messages at FCM in the order of arrival.

    Messages that FCM refused because of the access token are left out. After this refusal, the dispatcher sends the
    message again in the same attempt.
    """

    delivery: Delivery
    sends: Sequence[Send]

    def sends_of(self, number: int) -> Sequence[Send]:
        """Return the messages that arrived between the beginning of an attempt and the beginning of the next attempt.

        `number` counts the attempts from 0.
        """
        begins = [one.started_at for one in self.delivery.attempts]
        until = begins[number + 1] if number + 1 < len(begins) else inf
        return [send for send in self.sends if begins[number] <= send["at"] < until]

    def recorded(self) -> int:
        """Return the number of messages that have an attempt of their own: no attempt counts for two messages.

        The attempt must have begun before the message arrived. The attempt must have FCM's answer to this message, or
        no recorded answer.
        """
        return sum(_is_of(attempt, sends[0]) for attempt, sends in self._answered())

    def founded(self) -> int:
        """Return the number of attempts that match exactly one message. The attempt must have FCM's answer to this
        message. Attempts without an answer do not count.
        """
        pairs = self._answered()
        return sum(len(sends) == 1 and _is_answered(attempt) and _is_of(attempt, sends[0]) for attempt, sends in pairs)

    def taken_twice_unexplained(self) -> int:
        """Return how many messages FCM accepted beyond the allowed number.

        For one delivery, FCM may accept one message, plus one message for each attempt with the outcome `unknown`.
        """
        taken = sum(bool(send["message_id"]) for send in self.sends)
        unknown = sum(one.outcome == "unknown" for one in self.delivery.attempts)
        return max(0, taken - 1 - unknown)

    def _answered(self) -> list[tuple[Attempt, Sequence[Send]]]:
        attempts = enumerate(self.delivery.attempts)
        return [(attempt, sends) for number, attempt in attempts if (sends := self.sends_of(number))]


def compare(
    snapshot: DatabaseSnapshot, sends: Sequence[Send], members: Iterable[Member], away: Sequence[Interval]
) -> list[Target]:
    """Compare the database with the journal of the fake FCM.

    Return the result of one check (a Target) for each promise.

    `away` contains the intervals in which no dispatcher could push, in Unix time. Each phone must have a push token
    that the fake FCM accepts.
    """
    device_ids = {member.push_token: member.device_id for member in members}
    keyed = [((send["request_id"], device_ids[send["push_token"]]), send) for send in sends]
    pushed, strange = _by_delivery(snapshot, keyed)
    attempts = [attempt for one in snapshot.deliveries for attempt in one.attempts]
    arrived = sum(len(one.sends) for one in pushed) + strange
    expiries = {one.key: one.expires_at for one in snapshot.deliveries}
    late = [over for key, send in keyed if (over := send["at"] - expiries.get(key, inf)) >= 0]
    wrong = sum(first.outcome not in MAY_REPEAT for one in snapshot.deliveries for first, _ in pairwise(one.attempts))
    answered = sum(map(_is_answered, attempts))
    recorded, founded = sum(one.recorded() for one in pushed), sum(one.founded() for one in pushed)
    return [
        Target("messages at FCM each have an attempt, with FCM's answer", "all", *part(recorded, arrived)),
        Target("attempts with an answer have their message at FCM", "all", *part(founded, answered)),
        Target("messages after the expiry of their command", "none", _lateness(late), not late),
        none("attempts still in flight", sum(one.outcome == "in_flight" for one in attempts)),
        none("attempts after one that FCM accepted", wrong),
        none("attempts abandoned within their lease", sum(map(_is_given_up_early, attempts))),
        none("attempts begun before their pause was over", sum(map(_hasty, snapshot.deliveries))),
        none("attempts begun after their delivery was settled", sum(map(_belated, snapshot.deliveries))),
        none(
            "messages that FCM accepted twice, without an unknown attempt",
            sum(one.taken_twice_unexplained() for one in pushed),
        ),
        _tried(snapshot, away),
    ]


def _lateness(late: Sequence[float]) -> str:
    return f"{len(late):,}, by up to {max(late):.2f} s" if late else "0"


def _by_delivery(snapshot: DatabaseSnapshot, keyed: Iterable[tuple[Key, Send]]) -> tuple[list[Pushed], int]:
    """Return each delivery with its messages, and the number of messages that belong to no delivery."""
    found: defaultdict[Key, list[Send]] = defaultdict(list)
    for key, send in keyed:
        if send["answer"] != "unauthenticated":
            found[key].append(send)
    pushed = [Pushed(one, found.pop(one.key, [])) for one in snapshot.deliveries]
    return pushed, sum(map(len, found.values()))


def _is_answered(attempt: Attempt) -> bool:
    return attempt.outcome not in {*UNHEARD, "blocked"}


def _is_of(attempt: Attempt, send: Send) -> bool:
    """Return whether a message can belong to an attempt: the attempt has the answer to the message, or no recorded
    answer.
    """
    if attempt.outcome in UNHEARD:
        return True
    same = (attempt.http_status, attempt.message_id) == (send["status"], send["message_id"])
    return same and (attempt.outcome == "accepted") == bool(send["message_id"])


def _is_given_up_early(attempt: Attempt) -> bool:
    """Return whether an attempt was closed as abandoned before its lease ended."""
    ended_at = attempt.finished_at or attempt.started_at
    return attempt.detail == ORPHANED and ended_at < attempt.started_at + LEASE_SECONDS - ROUNDING_SECONDS


def _hasty(delivery: Delivery) -> int:
    """Return the number of attempts that began during the pause after the previous attempt."""
    return sum(second.started_at < _pause_over_at(first) for first, second in pairwise(delivery.attempts))


def _pause_over_at(attempt: Attempt) -> float:
    """Return the earliest allowed time of the next attempt.

    After an attempt whose push was not sent, there is no pause.
    """
    ended_at = (attempt.finished_at or inf) - ROUNDING_SECONDS
    if attempt.detail == ORPHANED:
        return max(ended_at, attempt.started_at + LEASE_SECONDS - ROUNDING_SECONDS)
    if attempt.outcome == "blocked":
        return ended_at + (0 if attempt.detail.startswith(NOT_SENT) else BLOCKED_SECONDS)
    return ended_at + FIRST_RETRY_SECONDS


def _belated(delivery: Delivery) -> int:
    """Return the number of attempts that began after the delivery was settled."""
    until = (delivery.settled_at or inf) + TRANSACTION_SECONDS
    return sum(one.started_at > until for one in delivery.attempts)


def _tried(snapshot: DatabaseSnapshot, away: Sequence[Interval]) -> Target:
    """Check that each due push was tried.

    A push need not be tried if the phone answered first, or if no dispatcher could push.
    """
    away = intervals.union(away)
    missed = sum(_overdue_seconds(one, snapshot.read_at, away) > PROMPT_SECONDS for one in snapshot.deliveries)
    tried = sum(bool(one.attempts) for one in snapshot.deliveries)
    untried, paused = len(snapshot.deliveries) - tried, intervals.length(away)
    figure = f"{tried:,} tried, {untried:,} not tried; {missed:,} missed, {paused:.0f} s without pushing not counted"
    return Target("pushes that came due were tried", "all", figure, tried > 0 and not missed)


def _overdue_seconds(delivery: Delivery, now: float, away: Sequence[Interval]) -> float:
    """Return for how many seconds the next push of a delivery was overdue. Times in which no dispatcher could push do
    not count.
    """
    over_at = min(at for at in (delivery.received_at, delivery.settled_at, now) if at is not None)
    due_at = _due_at(delivery)
    return over_at - due_at - intervals.length(intervals.common([(due_at, over_at)], away))


def _due_at(delivery: Delivery) -> float:
    """Return the time when the next push is due. If no push will follow, return infinity."""
    if not delivery.attempts:
        return delivery.issued_at
    last = delivery.attempts[-1]
    if last.outcome not in MAY_REPEAT:
        return inf
    failures = sum(one.outcome != "blocked" for one in delivery.attempts)
    backoff = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * (1 + 2 ** (failures - 1)))
    pause = BLOCKED_SECONDS if last.outcome == "blocked" else backoff
    return (last.finished_at or last.started_at) + pause
