"""Measure how many events a second PostgreSQL appends and a client reads: `python -m loadtest.benchmarks.events`.

Sixteen connections append events as the server does, in transactions of 1, 10 or 100 events. Each commit waits for the
disk (fsync is on). Afterwards, a client reads all these events page by page through `GET /admin/events`. The client
must get each event once.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psycopg
from rich.console import Console
from rich.table import Table

from loadtest.load.figures import spread
from loadtest.testbed import testbed
from loadtest.testbed.testbed import ServerUnderTest
from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import Event, EventType

WRITERS: Final = 16
PER_TRANSACTION: Final = (1, 10, 100)
PAGE: Final = 1000
UNLIMITED: Final = {"ADMIN_READ_RATE_LIMIT": "1000000/s"}
RESULT: Final = {
    "state": "succeeded", "withdrawn_by": None, "late": False,
    "result": {"status": "succeeded", "message": "done", "output": {"battery_pct": 81}, "finished_at": None},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Round:
    """The results of one round.

    - `appended`: the events per second that were appended, by the number of events in a transaction.
    - `read`: the events per second that the client read.
    """

    appended: dict[int, float]
    read: float


def main() -> int:
    """Measure, and print a table. Return 0 if the client got each event once, else 1."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as name:
        folder = Path(name)
        started = testbed.started(
            folder, folder / "data", interval_seconds=120, commands_per_minute=0, settings=UNLIMITED
        )
        with started as place:
            rounds = [_measure(place, arguments.seconds, number) for number in range(1, arguments.rounds + 1)]
    if None in rounds:
        return 1
    _print([one for one in rounds if one is not None])
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.events", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="number of rounds (3)")
    add("--seconds", type=float, default=5, help="seconds for which events are appended, for each number of events (5)")
    return parser.parse_args()


def _measure(place: ServerUnderTest, seconds: float, number: int) -> Round | None:
    assert place.serving is not None
    url = place.serving.database_url()
    cursor = _start(place)
    counts = {size: _append(url, size, seconds) for size in PER_TRANSACTION}
    begun_at = time.monotonic()
    read = _read(place, cursor)
    took = time.monotonic() - begun_at
    expected = sum(counts.values())
    if len(read) != len(set(read)) or len(read) != expected:
        sys.stderr.write(f"{expected:,} events were appended, {len(read):,} read, {len(set(read)):,} different ones.\n")
        return None
    rates = {size: count / seconds for size, count in counts.items()}
    figures = ", ".join(f"{rate:,.0f}" for rate in rates.values())
    sys.stderr.write(f"round {number}: {figures} appended/s; {expected / took:,.0f} read/s\n")
    return Round(rates, expected / took)


def _start(place: ServerUnderTest) -> str:
    return str(place.admin.get("/admin/events", after="now")["next_cursor"])


def _append(database_url: str, per_transaction: int, seconds: float) -> int:
    """Append events over all connections for `seconds`. Return the number of committed events."""
    ends_at = time.monotonic() + seconds
    counts = [0] * WRITERS
    threads = [
        threading.Thread(target=_write, args=(database_url, per_transaction, ends_at, counts, place))
        for place in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def _write(database_url: str, per_transaction: int, ends_at: float, counts: list[int], place: int) -> None:
    parameters = events.parameters(
        [Event(EventType.DELIVERY_SETTLED, uuid4(), uuid4(), RESULT) for _ in range(per_transaction)]
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        while time.monotonic() < ends_at:
            connection.execute(events.APPEND, parameters)
            counts[place] += per_transaction


def _read(place: ServerUnderTest, cursor: str) -> list[str]:
    ids: list[str] = []
    while True:
        page: dict[str, Any] = place.admin.get("/admin/events", after=cursor, limit=PAGE, types="delivery.settled")
        ids += [event["id"] for event in page["items"]]
        cursor = page["next_cursor"]
        if page["caught_up"]:
            return ids


def _print(rounds: Sequence[Round]) -> None:
    table = Table(title=f"{WRITERS} connections, {len(rounds)} rounds: median (spread)")
    table.add_column("")
    table.add_column("events/s", justify="right")
    for size in PER_TRANSACTION:
        table.add_row(f"appended, {size} in a transaction", spread([one.appended[size] for one in rounds], ",.0f"))
    table.add_row(f"read, pages of {PAGE:,}", spread([one.read for one in rounds], ",.0f"))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
