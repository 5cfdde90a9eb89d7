"""The comparison of two records (ledgers) of a run: what the clients recorded, and the content of the database.

A run has two further ledgers: pushes.py checks the journal of the fake FCM, and feed.py checks the event feed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
import psycopg

from loadtest.chaos.traffic import PATIENCE_SECONDS, Account, Result
from loadtest.load.targets import Target

OPEN: Final = ("pending", "received")
FINAL: Final = ("succeeded", "failed")
LEASE_SECONDS: Final = 45
"""The length of the lease after a claim, as in the server."""

OVERDUE_SECONDS: Final = 15
"""The longest time that a due delivery may wait. It includes the restart of a killed dispatcher."""

TRANSACTION_SECONDS: Final = 1
"""The largest allowed error of a stored time. A transaction stores the time at which it began, even if it waited for a
lock after this time."""

Key = tuple[str, str]
"""The request id and the device id of a delivery."""

_COMMANDS: Final = "SELECT id::text, note FROM commands_command"
_DELIVERIES: Final = """
    SELECT delivery.id, delivery.command_id::text, delivery.device_id::text, delivery.state, delivery.push_state,
        delivery.delivered_via, extract(epoch FROM command.issued_at)::float8,
        extract(epoch FROM command.expires_at)::float8, extract(epoch FROM delivery.open_until)::float8,
        extract(epoch FROM delivery.next_attempt_at)::float8, extract(epoch FROM delivery.received_at)::float8,
        extract(epoch FROM delivery.settled_at)::float8
    FROM commands_delivery delivery JOIN commands_command command ON command.id = delivery.command_id
"""
_ATTEMPTS: Final = """
    SELECT delivery_id, outcome, http_status, message_id, extract(epoch FROM started_at)::float8,
        extract(epoch FROM finished_at)::float8, detail
    FROM commands_attempt ORDER BY delivery_id, number
"""
_RESULTS: Final = """
    SELECT delivery.command_id::text, delivery.device_id::text, report.status, report.late
    FROM commands_report report JOIN commands_delivery delivery ON delivery.id = report.delivery_id
    WHERE report.status IN ('succeeded', 'failed') AND NOT report.duplicate
"""
_SEEN: Final = "SELECT device_id::text, last_seen_at FROM devices_presence WHERE last_seen_at IS NOT NULL"
_ALIASES: Final = "SELECT id::text, alias FROM devices_device WHERE alias IS NOT NULL"
_NOW: Final = "SELECT extract(epoch FROM now())::float8"
_UNSETTLED: Final = """
    SELECT EXISTS (SELECT FROM commands_delivery WHERE state IN ('pending', 'received'))
        OR EXISTS (SELECT FROM commands_attempt WHERE outcome = 'in_flight')
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt in the database. Times are Unix time."""

    outcome: str
    http_status: int | None
    message_id: str
    started_at: float
    finished_at: float | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery in the database, with its attempts in their order. Times are Unix time."""

    attempts: Sequence[Attempt]
    command_id: str
    device_id: str
    state: str
    push_state: str
    delivered_via: str | None
    issued_at: float
    expires_at: float
    open_until: float
    next_attempt_at: float | None
    received_at: float | None
    settled_at: float | None

    @property
    def key(self) -> Key:
        """The request id and the device id of the delivery."""
        return self.command_id, self.device_id


@dataclass(frozen=True, slots=True)
class FinalReport:
    """A phone's first final report on a delivery."""

    status: str
    late: bool


@dataclass(frozen=True, slots=True)
class DatabaseSnapshot:
    """The content of the database in one snapshot.

    - `read_at`: the time of the snapshot, in Unix time.
    - `commands`: the request id and the note of each command.
    - `results`: the first final reports, by request id and device id.
    - `seen`: the time of the last heartbeat of each device, by device id.
    - `aliases`: the aliases of the devices, by device id.
    """

    read_at: float
    commands: Sequence[tuple[str, str]]
    deliveries: Sequence[Delivery]
    results: Mapping[Key, FinalReport]
    seen: Mapping[str, datetime]
    aliases: Mapping[str, str] = field(default_factory=dict)


def read(database_url: str) -> DatabaseSnapshot:
    """Read the content of the database in one snapshot."""
    with psycopg.connect(database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        attempts = defaultdict(list)
        for delivery_id, *columns in connection.execute(_ATTEMPTS):
            attempts[delivery_id].append(Attempt(*columns))
        ((read_at,),) = connection.execute(_NOW)
        return DatabaseSnapshot(
            read_at,
            connection.execute(_COMMANDS).fetchall(),
            [Delivery(attempts[key], *columns) for key, *columns in connection.execute(_DELIVERIES)],
            {(command, device): FinalReport(*columns) for command, device, *columns in connection.execute(_RESULTS)},
            dict(connection.execute(_SEEN).fetchall()),
            dict(connection.execute(_ALIASES).fetchall()),
        )


async def is_settled(database_url: str) -> bool:
    """Return whether no delivery is open and no attempt is `in_flight`.

    If the database cannot be reached, return False.
    """
    try:
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            row = await (await connection.execute(_UNSETTLED)).fetchone()
    except psycopg.Error:
        return False
    return row == (False,)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return every push that reached the fake FCM, in the order of arrival."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def compare(account: Account, snapshot: DatabaseSnapshot) -> list[Target]:
    """Compare the account of the clients with the database.

    Return the result of one check (a Target) for each promise.
    """
    results = {(one.request_id, one.device_id) for one in account.results}
    return [
        *_of_commands(account, snapshot),
        _all("accepted aliases are in the database", set(account.renamed.items()), snapshot.aliases.items()),
        _all("results that were answered with 200 are in the database", results, snapshot.results),
        _answered(account, snapshot),
        none(
            "deliveries in a state without a cause",
            sum(not _is_caused(one, snapshot) for one in snapshot.deliveries),
        ),
        _heartbeats(account, snapshot),
        none("envelopes that a phone refused", account.refused),
        _calm(account),
        waiting("deliveries settled, or open with a due time", snapshot),
    ]


def waiting(name: str, snapshot: DatabaseSnapshot) -> Target:
    """Check that each open delivery has a due time, for its next push or for its expiry. At this time, the server acts
    without a request.
    """
    settled = sum(one.state not in OPEN for one in snapshot.deliveries)
    waits = sum(one.state in OPEN and _waits(one, snapshot.read_at) for one in snapshot.deliveries)
    lost = len(snapshot.deliveries) - settled - waits
    figure = f"{settled:,} settled, {waits:,} open, {lost:,} lost"
    return Target(name, "all", figure, bool(snapshot.deliveries) and not lost)


def _waits(delivery: Delivery, now: float) -> bool:
    """Return whether an open delivery has a due time for its next push or for its expiry.

    A due time that is more than OVERDUE_SECONDS ago does not count.
    """
    to_be_pushed = delivery.state == "pending" and delivery.push_state in ("waiting", "retrying")
    due_at = delivery.next_attempt_at if to_be_pushed else delivery.open_until
    if due_at is None or due_at > delivery.open_until + LEASE_SECONDS:
        return False
    return min(due_at, delivery.open_until) > now - OVERDUE_SECONDS


def _answered(account: Account, snapshot: DatabaseSnapshot) -> Target:
    """Check that each delivery still has the state that was in the server's answer to the phone's report."""
    rows = {one.key: one for one in snapshot.deliveries}
    kept = sum(_stands(one, rows.get((one.request_id, one.device_id))) for one in account.results)
    return Target("deliveries have the state that was answered", "all", *part(kept, len(account.results)))


def _stands(result: Result, row: Delivery | None) -> bool:
    """Return whether a delivery still has the state that the server answered, and whether this state fits the phone's
    report.
    """
    if row is None or row.settled_at is None or row.settled_at > result.at:
        return False
    state = "expired" if result.late else result.said
    return (row.state, row.delivered_via) == (state, result.via) and result.state == state


def _is_caused(row: Delivery, snapshot: DatabaseSnapshot) -> bool:
    """Return whether the state of a delivery follows from the phone's reports, or from a lack of reports.

    In a chaos run, no client cancels a delivery.
    """
    word = snapshot.results.get(row.key)
    if row.settled_at is None:
        return row.state == "pending" and word is None
    if row.settled_at > snapshot.read_at + TRANSACTION_SECONDS:
        return False
    if row.state == "expired":
        return row.settled_at >= max(row.open_until, row.expires_at) and (word is None or word.late)
    in_time = row.settled_at <= row.open_until + TRANSACTION_SECONDS
    return row.state in FINAL and word == FinalReport(row.state, late=False) and in_time


def _of_commands(account: Account, snapshot: DatabaseSnapshot) -> list[Target]:
    audiences: defaultdict[str, set[str]] = defaultdict(set)
    for one in snapshot.deliveries:
        audiences[one.command_id].add(one.device_id)
    whole = {one for one, devices in account.accepted.items() if audiences[one] == set(devices)}
    notes = Counter(note for _, note in snapshot.commands)
    strange = sum(count - 1 if note in account.sent else count for note, count in notes.items())
    return [
        _all("accepted commands are in the database", set(account.accepted), {one for one, _ in snapshot.commands}),
        _all("with a delivery for each of their devices", set(account.accepted), whole),
        none("commands that exist twice, or that no client sent", strange),
        none("writes that never got an answer", account.unanswered),
    ]


def _calm(account: Account) -> Target:
    waited = account.settled_after_seconds
    figure = "never" if waited is None else f"{waited:.0f} s"
    return Target("everything was settled afterwards", f"< {PATIENCE_SECONDS} s", figure, waited is not None)


def _heartbeats(account: Account, snapshot: DatabaseSnapshot) -> Target:
    never = datetime.min.replace(tzinfo=UTC)
    kept = sum(snapshot.seen.get(one, never) >= _second(at) for one, at in account.heard.items())
    return Target("heartbeats that were answered are stored", "all", *part(kept, len(account.heard)))


def _second(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(microsecond=0)


def _all(name: str, expected: set[Any], there: Iterable[Any]) -> Target:
    return Target(name, "all", *part(len(expected.intersection(there)), len(expected)))


def part(part: int, whole: int) -> tuple[str, bool]:
    """Return the text "`part` of `whole`", and whether both numbers are equal.

    If `whole` is 0, the second value is False.
    """
    return f"{part:,} of {whole:,}", part == whole > 0


def none(name: str, count: int) -> Target:
    """Return a target that is met only if `count` is 0."""
    return Target(name, "none", f"{count:,}", not count)
