"""Measure the cost of each write of a phone or an admin: `python -m loadtest.benchmarks.write_costs`.

One web worker runs alone on core 0. PostgreSQL and the client share core 1. Each round repeats every kind of write
(write_kinds.py) several times, each time with an unused phone. One connection sends one request after another. The
kernel counts the processor time of the web worker and of PostgreSQL. pg_waldump counts the WAL and the index entries.
Push is not configured, so the dispatcher sends nothing. The benchmark fan_out.py measures the cost of pushes.
"""

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import psycopg
from rich.console import Console
from rich.table import Table

from loadtest.benchmarks import wrk
from loadtest.benchmarks.write_kinds import KINDS, STAFF, TO_ALL, Failed, Fleet, Kind
from loadtest.fleet import credentials_file
from loadtest.load.figures import spread
from loadtest.testbed import testbed
from loadtest.testbed.machine import MEASURED_CORE, OTHER_CORE, pin
from loadtest.testbed.serving import Serving
from nexmdm.standalone import embedded_postgres

UNLIMITED: Final = dict.fromkeys(("ADMIN_RATE_LIMIT", "AUTH_FAILURE_RATE_LIMIT", "LOGIN_RATE_LIMIT"), "1000000/s")
WARM_UP: Final = 10
"""The number of writes of each kind before the measurement."""

INDEX_ENTRIES: Final = frozenset(
    f"{method}/{record}"
    for method, records in {
        "Btree": ("INSERT_LEAF", "INSERT_POST", "SPLIT_L", "SPLIT_R"),
        "Gin": ("INSERT", "UPDATE_META_PAGE"),
        "Gist": ("PAGE_UPDATE",),
        "Hash": ("INSERT",),
    }.items()
    for record in records
)
"""The types of WAL records that each mean one index entry. Indexes of unlogged tables write no WAL records."""

_STATISTICS: Final = re.compile(r"^(\w+/\w+)\s+(\d+) \(.*?\)\s+(\d+) \(", re.MULTILINE)
"""A line of pg_waldump: the type of the records, their number, and their bytes without page images."""

_BACKENDS: Final = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
_FLUSH: Final = "SELECT pg_logical_emit_message(true, 'write_costs', '')"
_PROCESSOR_CLOCK: Final = 2
"""The number of a process's scheduler clock, which is CPUCLOCK_SCHED in Linux's posix-timers."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The average cost of one write of one kind in one round."""

    worker_us: float
    postgres_us: float
    wal_bytes: float
    index_entries: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The processor times in nanoseconds, and the position in the WAL, at one moment.

    - `backends`: the processor time of each backend of PostgreSQL, by process id.
    """

    worker: int
    backends: dict[int, int]
    position: str


@dataclass(frozen=True, slots=True)
class Meter:
    """A reader of processor times and of the position in the WAL.

    - `worker`: the process id of the web worker.
    - `wal`: the folder of the WAL.
    """

    worker: int
    database: psycopg.Connection[Any]
    wal: Path

    def read(self) -> Reading:
        """Return the present processor times and the present position in the WAL."""
        backends = {pid: _processor_ns(pid) for (pid,) in self.database.execute(_BACKENDS)}
        # A later commit that waits for the disk also flushes the earlier commits that did not wait.
        self.database.execute(_FLUSH)
        (position,) = _row(self.database, "SELECT pg_current_wal_flush_lsn()")
        return Reading(_processor_ns(self.worker), backends, str(position))

    def records(self, since: Reading, until: Reading) -> dict[str, tuple[int, int]]:
        """Return the number and the bytes of the WAL records between two readings, by the type of the record."""
        program = [str(embedded_postgres.binaries() / "pg_waldump"), "--stats=record", f"--path={self.wal}"]
        done = subprocess.run(
            [*program, f"--start={since.position}", f"--end={until.position}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"pg_waldump: {done.stderr}")
        return {name: (int(count), int(size)) for name, count, size in _STATISTICS.findall(done.stdout)}


def main() -> int:
    """Measure each kind of write, and print a table. Return 0 if every request got the expected status, else 1."""
    arguments = _arguments()
    os.sched_setaffinity(0, {OTHER_CORE})
    os.environ.update(wrk.SETTINGS)
    try:
        with tempfile.TemporaryDirectory(prefix="nexmdm-") as name, _prepared(Path(name), arguments) as (fleet, meter):
            costs = _measure_in_rounds(fleet, meter, arguments)
    except Failed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    _print(costs, arguments)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.write_costs", description=__doc__)
    add = parser.add_argument
    add("--devices", type=int, default=10_000, help="how many phones (10,000)")
    add("--rounds", type=int, default=5, help="number of rounds (5)")
    add("--times", type=int, default=20, help="about how many writes of each kind a round has (20)")
    return parser.parse_args()


def _measure_in_rounds(fleet: Fleet, meter: Meter, arguments: argparse.Namespace) -> dict[str, list[Cost]]:
    """Return the costs of each kind of write, by the kind's name. The command to all devices comes last."""
    costs: dict[str, list[Cost]] = {kind.name: [] for kind in (*KINDS, TO_ALL)}
    for kind in KINDS:
        _measure(fleet, meter, kind, WARM_UP)
    # Before this statement, PostgreSQL uses plans for empty tables.
    fleet.database.execute("ANALYZE")
    for number in range(1, arguments.rounds + 1):
        for kind in KINDS:
            costs[kind.name].append(_measure(fleet, meter, kind, arguments.times))
        sys.stderr.write(f"round {number}\n")
    for _ in range(arguments.rounds):
        costs[TO_ALL.name].append(_measure(fleet, meter, TO_ALL, 1))
    return costs


@contextmanager
def _prepared(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[Fleet, Meter]]:
    """Start a server with a fleet. Yield the fleet, and a meter of the server."""
    with testbed.served(folder / "data", **UNLIMITED) as serving, closing(serving.admin()) as admin:
        worker, password = serving.child("web-1"), secrets.token_hex(16)
        pin(worker, MEASURED_CORE)
        testbed.seed(serving.environment, arguments.devices, folder / "roster", with_push_tokens=True)
        _create_staff(serving, password)
        with psycopg.connect(serving.database_url(), autocommit=True) as database:
            database.execute("ANALYZE")
            (data,) = _row(database, "SHOW data_directory")
            members = iter(credentials_file.read(folder / "roster"))
            fleet = Fleet(members, admin, database, password)
            with closing(fleet.connection):
                yield fleet, Meter(worker, database, Path(data) / "pg_wal")


def _create_staff(serving: Serving, password: str) -> None:
    given = ("--noinput", f"--username={STAFF}", "--email=root@example.com")
    serving.manage("createsuperuser", *given, DJANGO_SUPERUSER_PASSWORD=password)


def _measure(fleet: Fleet, meter: Meter, kind: Kind, times: int) -> Cost:
    requests = kind.prepare(fleet, max(1, round(times / kind.share)))
    before = meter.read()
    for request in requests:
        fleet.do(request)
    after, count = meter.read(), len(requests)
    records = meter.records(before, after)
    backends = sum(used - before.backends.get(pid, 0) for pid, used in after.backends.items())
    return Cost(
        (after.worker - before.worker) / 1000 / count,
        backends / 1000 / count,
        sum(size for _, size in records.values()) / count,
        sum(entries for name, (entries, _) in records.items() if name in INDEX_ENTRIES) / count,
    )


def _row(database: psycopg.Connection[Any], statement: str) -> Any:
    return database.execute(statement).fetchone()


def _processor_ns(process: int) -> int:
    """Return the processor time of a process in nanoseconds, or 0 if the process has ended.

    Threads of the process that have ended count too.
    """
    try:
        return time.clock_gettime_ns((~process << 3) | _PROCESSOR_CLOCK)
    except OSError:
        return 0


def _print(costs: dict[str, list[Cost]], arguments: argparse.Namespace) -> None:
    title = f"What each write costs: {arguments.devices:,} devices, {arguments.rounds} rounds, medians"
    table = Table(title=title)
    for heading in ("", "web worker", "× heartbeat", "PostgreSQL", "× heartbeat", "WAL", "index entries"):
        table.add_column(heading, justify="right" if heading else "left")
    compared = costs[KINDS[0].name]
    for name, rounds in costs.items():
        table.add_row(
            name,
            f"{median(one.worker_us for one in rounds):,.0f} µs",
            _ratio([one.worker_us for one in rounds], [one.worker_us for one in compared]),
            f"{median(one.postgres_us for one in rounds):,.0f} µs",
            _ratio([one.postgres_us for one in rounds], [one.postgres_us for one in compared]),
            f"{mean(one.wal_bytes for one in rounds):,.0f} B",
            f"{mean(one.index_entries for one in rounds):,.1f}",
        )
    Console().print(table)


def _ratio(mine: Sequence[float], theirs: Sequence[float]) -> str:
    return spread([one / other for one, other in zip(mine, theirs, strict=True)], ".1f")


if __name__ == "__main__":
    sys.exit(main())
