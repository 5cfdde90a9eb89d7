"""Measure a storm: one command goes to a fleet whose phones all report within a minute.

Call: `python -m loadtest.benchmarks.storm`. All phones send heartbeats. Each phone gets the push of one `ping`, and
reports after a random part of `--spread`. A phone whose report is refused tries again after `Retry-After` and a random
time. A phone that gets no answer tries again after a random time that doubles with each try. One web worker, the
dispatcher, PostgreSQL, the fake FCM and the generator share the machine.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from loadtest.load import targets
from loadtest.load.figures import Histogram
from loadtest.load.runner import Load, Run, run_load
from loadtest.load.targets import milliseconds
from loadtest.load.view import shown
from loadtest.testbed import testbed
from loadtest.testbed.testbed import ServerUnderTest

INTERVAL_SECONDS: Final = 120
RAMP_SECONDS: Final = 20
QUIET_SECONDS: Final = 15
"""The time in which the phones send only heartbeats. The run has this time before the command and again after the
reports."""

FAN_OUT_SECONDS: Final = 60
"""The longest expected time from the command to the last push."""

HEARTBEAT_P99_SECONDS: Final = 0.150
RESULT_P99_SECONDS: Final = 2.0
CONNECTIONS: Final = 3000
"""The largest number of open connections. In reality, each phone has a connection for itself. But with more
connections, the generator would use too much of the two cores."""

SOURCES: Final = ["127.0.3.1", "127.0.3.2"]
"""The local addresses of the phones. One address is not enough, because a server accepts 2,000 connections from one
address."""

SETTINGS: Final = {"WEB_WORKERS": "1", "LOG_LEVEL": "INFO", "LOG_FORMAT": "json"}
_WINDOW_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Storm:
    """The result of one storm."""

    run: Run
    command: dict[str, Any]
    began_at: float
    """The second of the run in which the command was sent."""

    @property
    def errors(self) -> Counter[str]:
        """How often each error occurred. Failed tries of reports are left out."""
        errors = self.run.figures.errors(since=self.run.measured_since)
        return Counter({name: count for name, count in errors.items() if not name.startswith("result: ")})

    @property
    def refused(self) -> Counter[str]:
        """The number of failed tries of reports, by error."""
        errors = self.run.figures.errors(since=self.run.measured_since)
        return Counter({name: count for name, count in errors.items() if name.startswith("result: ")})

    def is_held(self) -> bool:
        """Return whether the storm met its limits.

        Every phone's result must be stored, and there may be no errors except failed tries of reports. The p99 of
        heartbeats and of results must be below their limits. The p99 of heartbeats in the last 10 s of the run must be
        below its limit too.
        """
        figures, since = self.run.figures, self.run.measured_since
        heartbeats, results = figures.latencies("heartbeat", since=since), figures.latencies("result", since=since)
        last = figures.latencies("heartbeat", since=self.run.load.seconds - _WINDOW_SECONDS)
        return (
            self.command["counts"]["succeeded"] == self.command["device_count"]
            and not self.errors
            and _is_below(heartbeats, HEARTBEAT_P99_SECONDS)
            and _is_below(results, RESULT_P99_SECONDS)
            and _is_below(last, HEARTBEAT_P99_SECONDS)
        )


def _is_below(latencies: Histogram, limit: float) -> bool:
    p99 = latencies.percentile(99)
    return p99 is not None and p99 < limit


def main() -> int:
    """Run the storms, and print their results. Return 0 if each storm met its limits, else 1."""
    arguments = _arguments()
    os.environ.update(SETTINGS)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        data = (arguments.keep or Path(folder)).resolve()
        data.mkdir(parents=True, exist_ok=True)
        with testbed.started(
            Path(folder), data / "data", interval_seconds=INTERVAL_SECONDS, commands_per_minute=0
        ) as place:
            testbed.enroll_fleet(place, arguments.devices, Path(folder) / "roster", lambda: None)
            held = [_play(console, place, Path(folder), arguments) for _ in range(arguments.rounds)]
    return 0 if all(held) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.storm", description=__doc__)
    add = parser.add_argument
    add("--devices", type=int, default=100_000, metavar="N", help="how many phones (100,000)")
    add(
        "--spread",
        type=float,
        default=60,
        metavar="SECONDS",
        help="the time within which each phone answers after its push (60)",
    )
    add("--rounds", type=int, default=1, metavar="N", help="number of storms (1)")
    add("--keep", type=Path, metavar="FOLDER", help="folder for the server's data, for further runs")
    return parser.parse_args()


def _play(console: Console, place: ServerUnderTest, folder: Path, arguments: argparse.Namespace) -> bool:
    load = Load(
        server=place.described,
        url=place.admin.url,
        devices=arguments.devices,
        interval_seconds=INTERVAL_SECONDS,
        ramp_seconds=RAMP_SECONDS,
        duration_seconds=2 * QUIET_SECONDS + FAN_OUT_SECONDS + arguments.spread,
        commands_per_minute=0,
        scale=1.0,
        roster=folder / "roster",
        journal=place.journal,
        answer_spread_seconds=arguments.spread,
        connections=CONNECTIONS,
        sources=SOURCES,
    )
    run = Run(load, place.serving)
    storm = asyncio.run(_run(console, place, run))
    _print(console, storm)
    return storm.is_held()


async def _run(console: Console, place: ServerUnderTest, run: Run) -> Storm:
    with shown(console, run) as watch:
        issuing = asyncio.create_task(_issue(place, run))
        await run_load(run, place.admin, watch)
        request_id, began_at = await issuing
    return Storm(run, place.admin.command(request_id), began_at)


async def _issue(place: ServerUnderTest, run: Run) -> tuple[str, float]:
    """Wait for QUIET_SECONDS, and send the command.

    Return the request id of the command, and the second of the run in which the command was sent.
    """
    while not run.starts_at or run.elapsed_seconds < RAMP_SECONDS + QUIET_SECONDS:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    began_at = time.monotonic() - run.starts_at
    body = {"action": "ping", "target": {"all": True}, "expires_in_seconds": 3600}
    issued = await asyncio.to_thread(place.admin.post, "/admin/command", body)
    return str(issued["request_id"]), began_at


def _print(console: Console, storm: Storm) -> None:
    run, counts = storm.run, storm.command["counts"]
    table = Table(title=f"One ping to {storm.command['device_count']:,} phones")
    for heading in ("second", "heartbeats/s", "p99", "results/s", "p50", "p99", "refused"):
        table.add_column(heading, justify="right")
    for since in range(int(run.measured_since), int(run.load.seconds), _WINDOW_SECONDS):
        span = {"since": since, "until": since + _WINDOW_SECONDS}
        heartbeats, results = run.figures.latencies("heartbeat", **span), run.figures.latencies("result", **span)
        refused = sum(n for name, n in run.figures.errors(**span).items() if name.startswith("result: "))
        table.add_row(
            f"{since - storm.began_at:+.0f}",
            f"{heartbeats.count / _WINDOW_SECONDS:,.0f}",
            milliseconds(heartbeats.percentile(99)),
            f"{results.count / _WINDOW_SECONDS:,.0f}",
            milliseconds(results.percentile(50)),
            milliseconds(results.percentile(99)),
            f"{refused:,}",
        )
    console.print(table)
    whole = {"since": run.measured_since}
    p99s = [milliseconds(run.figures.latencies(kind, **whole).percentile(99)) for kind in ("heartbeat", "result")]
    console.print(f"{counts} · p99 of heartbeats {p99s[0]}, of results {p99s[1]}", highlight=False)
    console.print(f"refused at first: {dict(storm.refused)} · errors: {dict(storm.errors)}", highlight=False)
    console.print(targets.lateness(run), "held" if storm.is_held() else "missed", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
