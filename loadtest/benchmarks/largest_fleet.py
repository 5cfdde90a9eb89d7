"""Find the largest fleet that one web worker serves on this machine: `python -m loadtest.benchmarks.largest_fleet`.

A fleet passes if every request is answered and the p99 of the heartbeats is below 150 ms. The search doubles the fleet
until a fleet fails. Next, the search repeatedly tests the middle between the largest fleet that passed and the smallest
fleet that failed. The server, PostgreSQL, the fake FCM and the generator share the machine.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from loadtest.load import targets
from loadtest.load.runner import Load, Run, run_load
from loadtest.load.targets import milliseconds
from loadtest.load.view import shown
from loadtest.testbed import testbed
from loadtest.testbed.testbed import ServerUnderTest

INTERVAL_SECONDS: Final = 120
P99_LIMIT_SECONDS: Final = 0.150
COMMANDS_PER_MINUTE: Final = 60
SETTINGS: Final = {"WEB_WORKERS": "1", "LOG_LEVEL": "INFO"}


def main() -> int:
    """Search, and print the result for each fleet. Return 0, or 1 if no fleet passed."""
    arguments = _arguments()
    os.environ.update(SETTINGS)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        data = (arguments.keep or Path(folder)).resolve()
        data.mkdir(parents=True, exist_ok=True)
        with testbed.started(
            Path(folder), data / "data", interval_seconds=INTERVAL_SECONDS, commands_per_minute=COMMANDS_PER_MINUTE
        ) as place:
            largest = _search(console, place, Path(folder), arguments)
    console.print(f"The largest fleet that passed: {largest:,} devices at {INTERVAL_SECONDS} s.", highlight=False)
    return 0 if largest else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.largest_fleet", description=__doc__)
    add = parser.add_argument
    add("--first", type=int, default=200_000, metavar="N", help="size of the first fleet (200,000)")
    add("--step", type=int, default=50_000, metavar="N", help="precision of the result, in phones (50,000)")
    add("--seconds", type=int, default=30, help="seconds of each run (30), after a ramp of half that time")
    add("--keep", type=Path, metavar="FOLDER", help="folder for the server's data, for further runs")
    return parser.parse_args()


def _search(console: Console, place: ServerUnderTest, folder: Path, arguments: argparse.Namespace) -> int:
    """Return the size of the largest fleet that passed, or 0 if no fleet passed."""
    held, missed, devices = 0, 0, arguments.first
    while not missed or missed - held > arguments.step:
        if _is_held(console, place, folder, devices, arguments.seconds):
            held = devices
        else:
            missed = devices
        devices = (held + missed) // 2 if missed else 2 * held
    return held


def _is_held(console: Console, place: ServerUnderTest, folder: Path, devices: int, seconds: int) -> bool:
    testbed.enroll_fleet(place, devices, folder / "roster", lambda: None)
    run = Run(_load(place, folder, devices, seconds), place.serving)
    with shown(console, run) as watch:
        asyncio.run(run_load(run, place.admin, watch))
    p99 = run.figures.latencies("heartbeat", since=run.measured_since).percentile(99)
    errors = run.figures.errors(since=run.measured_since).total()
    rate = run.figures.answered(run.measured_since, run.load.seconds) / run.load.duration_seconds
    held = p99 is not None and p99 < P99_LIMIT_SECONDS and not errors
    word = "held" if held else "missed"
    words = f"{devices:>9,} devices: {rate:,.0f} heartbeats/s, p99 {milliseconds(p99)}, {errors:,} errors: {word}"
    console.print(words, targets.lateness(run), highlight=False)
    return held


def _load(place: ServerUnderTest, folder: Path, devices: int, seconds: int) -> Load:
    return Load(
        server=place.described,
        url=place.admin.url,
        devices=devices,
        interval_seconds=INTERVAL_SECONDS,
        ramp_seconds=seconds / 2,
        duration_seconds=seconds,
        commands_per_minute=COMMANDS_PER_MINUTE,
        scale=1,
        roster=folder / "roster",
        journal=place.journal,
    )


if __name__ == "__main__":
    sys.exit(main())
