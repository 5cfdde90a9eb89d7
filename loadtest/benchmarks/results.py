"""Measure how many results a second one web worker stores on one core: `python -m loadtest.benchmarks.results`.

The web worker runs alone on core 0. PostgreSQL, the dispatcher and wrk share core 1. Each round has two measurements:
heartbeats, and results. In each round, one new command goes to all phones, without pushes. Each result has a message
and an output, and settles its delivery.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.benchmarks import wrk
from loadtest.benchmarks.wrk import Contestant
from loadtest.fleet import credentials_file
from loadtest.load.figures import spread
from loadtest.testbed import testbed
from loadtest.testbed.machine import MEASURED_CORE, pin
from loadtest.testbed.testbed import ServerUnderTest


def main() -> int:
    """Measure, and print a table. Return 0 if every answer was 200 and every result is stored, else 1."""
    arguments = _arguments()
    measured = wrk.run(lambda stack: _measured(stack, arguments))
    if measured is None:
        return 1
    _print(*measured)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.results", description=__doc__)
    add = parser.add_argument
    add("--devices", type=int, default=120_000, help="how many phones (120,000); each reports at most once in a round")
    add("--rounds", type=int, default=3, help="number of rounds (3)")
    add("--seconds", type=int, default=8, help="seconds of each measurement (8), after a warm-up of 3")
    add("--keep", type=Path, metavar="FOLDER", help="folder for the server's data, for further runs")
    return parser.parse_args()


def _measured(stack: ExitStack, arguments: argparse.Namespace) -> tuple[Contestant, Contestant]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexmdm-")))
    data_dir = (arguments.keep or folder).resolve() / "data"
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    place = stack.enter_context(testbed.started(folder, data_dir, interval_seconds=120, commands_per_minute=0))
    assert place.serving is not None
    pin(place.serving.child("web-1"), MEASURED_CORE)
    testbed.seed(place.serving.environment, arguments.devices, folder / "roster", with_push_tokens=False)
    tokens = folder / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text("".join(f"{member.device_token}\n" for member in credentials_file.read(folder / "roster")))
    heartbeats = Contestant("heartbeats", f"{place.admin.url}/v1/heartbeat", tokens)
    results = Contestant("results", f"{place.admin.url}/v1/action-result", tokens, wrk.REPORT)
    for number in range(1, arguments.rounds + 1):
        command = _issue(place)
        heartbeats.run(arguments.seconds)
        results.run(arguments.seconds, REQUEST_ID=command["request_id"])
        _check(place, command, results.rates[-1] * arguments.seconds)
        sys.stderr.write(f"round {number}: {heartbeats.rates[-1]:,.0f} and {results.rates[-1]:,.0f}/s\n")
    return heartbeats, results


def _issue(place: ServerUnderTest) -> dict[str, Any]:
    body = {"action": "ping", "target": {"all": True}, "expires_in_seconds": 86_400, "supersede": True}
    return dict(place.admin.post("/admin/command", body))


def _check(place: ServerUnderTest, command: dict[str, Any], least: float) -> None:
    """Raise wrk.Failed if fewer results are stored than `least`.

    `least` is the number of results that the server answered. Also raise wrk.Failed if all phones have reported. In
    this case, wrk has begun again with the first phone, and some phones have reported twice.
    """
    counts = place.admin.get(f"/admin/commands/{command['request_id']}")["counts"]
    stored, devices = counts["succeeded"], command["device_count"]
    if stored >= devices:
        raise wrk.Failed(f"results: all {devices} devices have reported, some of them twice: choose more --devices")
    if stored < least:
        raise wrk.Failed(f"results: the server answered {least:.0f}, but stored only {stored}: read the server's log")


def _print(heartbeats: Contestant, results: Contestant) -> None:
    table = Table(title=f"{wrk.CONNECTIONS} connections, {len(results.rates)} rounds: median (spread)")
    for heading in ("", "requests/s", "p50", "p99", "of the heartbeats"):
        table.add_column(heading, justify="right" if heading else "left")
    ratios = [mine / other for mine, other in zip(results.rates, heartbeats.rates, strict=True)]
    for one, ratio in ((heartbeats, ""), (results, f"{spread(ratios, '.2f')} ×")):
        times = (f"{spread(milliseconds, '.1f')} ms" for milliseconds in (one.p50_ms, one.p99_ms))
        table.add_row(one.name, spread(one.rates, ",.0f"), *times, ratio)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
