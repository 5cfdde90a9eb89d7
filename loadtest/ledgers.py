"""Three ledgers of one run, held against each other: the clients' account, the database, the journal of FCM."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
import psycopg

from loadtest.crowd import Account
from loadtest.roster import Member
from loadtest.targets import Target

OPEN: Final = ("pending", "received")
MAY_REPEAT: Final = frozenset({"unknown", "retry_later", "blocked"})
"""The outcomes after which a push goes again; only after `unknown` it may have reached FCM before."""

_COMMANDS: Final = "SELECT id::text, note FROM commands_command"
_DELIVERIES: Final = """
    SELECT id, command_id::text, device_id::text, state,
        open_until > now() AND (next_attempt_at IS NOT NULL OR state = 'received' OR push_state <> 'waiting')
    FROM commands_delivery
"""
_ATTEMPTS: Final = "SELECT delivery_id, outcome, message_id FROM commands_attempt ORDER BY delivery_id, number"
_RESULTS: Final = """
    SELECT delivery.command_id::text, delivery.device_id::text
    FROM commands_report report JOIN commands_delivery delivery ON delivery.id = report.delivery_id
    WHERE report.status IN ('succeeded', 'failed')
"""
_SEEN: Final = "SELECT device_id::text, last_seen_at FROM devices_presence WHERE last_seen_at IS NOT NULL"
_UNSETTLED: Final = """
    SELECT EXISTS (SELECT FROM commands_delivery WHERE state IN ('pending', 'received'))
        OR EXISTS (SELECT FROM commands_attempt WHERE outcome = 'in_flight')
"""


@dataclass(frozen=True, slots=True)
class Book:
    """What the database says."""

    commands: Sequence[tuple[str, str]]
    deliveries: Sequence[tuple[int, str, str, str, bool]]
    attempts: dict[int, list[tuple[str, str]]]
    results: frozenset[tuple[str, str]]
    seen: Mapping[str, datetime]


def read(database_url: str) -> Book:
    """Read the database's ledger in one snapshot."""
    with psycopg.connect(database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        attempts = defaultdict(list)
        for delivery_id, outcome, message_id in connection.execute(_ATTEMPTS):
            attempts[delivery_id].append((outcome, message_id))
        return Book(
            connection.execute(_COMMANDS).fetchall(),
            connection.execute(_DELIVERIES).fetchall(),
            attempts,
            frozenset(connection.execute(_RESULTS).fetchall()),
            dict(connection.execute(_SEEN).fetchall()),
        )


async def is_settled(database_url: str) -> bool:
    """Tell whether nothing is open and nothing in flight any more; False while the database is away."""
    try:
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            row = await (await connection.execute(_UNSETTLED)).fetchone()
    except psycopg.Error:
        return False
    return row == (False,)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return every send that reached FCM, in the order of arrival."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def compare(account: Account, book: Book, sends: Sequence[dict[str, Any]], members: Iterable[Member]) -> list[Target]:
    """Return what has to hold between the three, each with its figure."""
    device_ids = {member.push_token: member.device_id for member in members}
    return [
        *_of_commands(account, book),
        *_of_pushes(book, sends, device_ids),
        *_of_deliveries(book),
        _all("results that were taken are in the database", account.results, book.results),
        _heartbeats(account, book),
    ]


def _of_commands(account: Account, book: Book) -> list[Target]:
    audiences: defaultdict[str, set[str]] = defaultdict(set)
    for _, command_id, device_id, *_ in book.deliveries:
        audiences[command_id].add(device_id)
    whole = {one for one, devices in account.accepted.items() if audiences[one] == set(devices)}
    notes = Counter(note for _, note in book.commands)
    strange = sum(count - 1 if note in account.sent else count for note, count in notes.items())
    return [
        _all("accepted commands are in the database", set(account.accepted), {one for one, _ in book.commands}),
        _all("with a delivery for each of their devices", set(account.accepted), whole),
        _none("commands there twice, or sent by nobody", strange),
        _none("POSTs that never got an answer", account.unanswered),
    ]


def _of_pushes(book: Book, sends: Sequence[dict[str, Any]], device_ids: Mapping[str, str]) -> list[Target]:
    numbers = {(command_id, device_id): key for key, command_id, device_id, *_ in book.deliveries}
    # FCM has seen a message twice where it refused our access token: that is one attempt.
    arrived = [send for send in sends if send["answer"] != "unauthenticated"]
    keys = [numbers.get((send["request_id"], device_ids[send["push_token"]]), 0) for send in arrived]
    pushes = Counter(keys)
    taken = Counter(key for key, send in zip(keys, arrived, strict=True) if send["message_id"])
    recorded = sum(min(count, len(book.attempts.get(key, ()))) for key, count in pushes.items())
    message_ids = {send["message_id"] for send in sends if send["message_id"]}
    accepted = {message for rows in book.attempts.values() for outcome, message in rows if outcome == "accepted"}
    late = sum(send["at"] >= _expiry(send) for send in arrived)
    return [
        Target("pushes that arrived have an attempt each", "all", *_part(recorded, len(arrived))),
        _all("attempts called accepted are FCM's", accepted, message_ids),
        _none("pushes after the time of their command", late),
        _none("attempts still in flight", sum(("in_flight", "") in rows for rows in book.attempts.values())),
        *_repeats(book, taken),
    ]


def _repeats(book: Book, taken: Mapping[int, int]) -> list[Target]:
    """Judge what was pushed again: never after an attempt that FCM took, and twice taken only if one was unknown."""
    wrong = sum(not {outcome for outcome, _ in rows[:-1]} <= MAY_REPEAT for rows in book.attempts.values())
    unknown = {key: sum(outcome == "unknown" for outcome, _ in rows) for key, rows in book.attempts.items()}
    twice = {key: count - 1 for key, count in taken.items() if count > 1}
    unexplained = sum(max(0, count - unknown.get(key, 0)) for key, count in twice.items())
    figure = f"{unexplained} of {sum(twice.values())}"
    return [
        _none("attempts after one that FCM took", wrong),
        Target("messages FCM took twice, no attempt unknown", "none", figure, not unexplained),
    ]


def _of_deliveries(book: Book) -> list[Target]:
    settled = sum(state not in OPEN for *_, state, _ in book.deliveries)
    waiting = sum(state in OPEN and waits for *_, state, waits in book.deliveries)
    lost = len(book.deliveries) - settled - waiting
    figure = f"{settled:,} settled, {waiting:,} waiting, {lost:,} lost"
    return [Target("deliveries settled, or waiting for something", "all", figure, not lost)]


def _heartbeats(account: Account, book: Book) -> Target:
    never = datetime.min.replace(tzinfo=UTC)
    kept = sum(book.seen.get(one, never) >= _second(at) for one, at in account.heard.items())
    return Target("heartbeats that were answered are kept", "all", *_part(kept, len(account.heard)))


def _second(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(microsecond=0)


def _expiry(send: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(send["message"]["data"]["expires_at"]).timestamp()


def _all(name: str, expected: set[Any], there: Iterable[Any]) -> Target:
    return Target(name, "all", *_part(len(expected.intersection(there)), len(expected)))


def _part(part: int, whole: int) -> tuple[str, bool]:
    return f"{part:,} of {whole:,}", part == whole > 0


def _none(name: str, count: int) -> Target:
    return Target(name, "none", f"{count:,}", not count)
