"""Measure how long one command to a whole fleet takes to reach FCM: `python -m loadtest.benchmarks.fan_out`.

One dispatcher runs alone on core 0. The web worker, PostgreSQL and the fake FCM share core 1. The fake FCM answers each
push after 20 ms. A push is handed over when its request has reached the fake FCM. All times begin just before the POST
of the command.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from rich.console import Console
from rich.table import Table

from loadtest.fake_fcm.journal import JournalTail
from loadtest.load.figures import spread
from loadtest.testbed import machine, testbed
from loadtest.testbed.testbed import ServerUnderTest

ANSWER_MS: Final = 20
COMMAND: Final = {
    "action": "launch_app",
    "params": {"package": "com.example.kiosk"},
    "target": {"all": True},
    "expires_in_seconds": 3600,
}
SETTINGS: Final = {"FCM_MAX_PER_SECOND": "20000"}
LIMITS: Final = {10_000: (1.0, 2.0), 100_000: (3.0, 20.0)}
"""The limits by the size of the fleet, in seconds: first the limit for the answer to the POST, then the limit for the
last push."""

GIVE_UP_SECONDS: Final = 300
PARTS: Final = ("dispatcher", "PostgreSQL", "fake FCM")
_POLL_SECONDS: Final = 0.1
_PLAIN_WIDTH: Final = 130


@dataclass(frozen=True, slots=True)
class FanOut:
    """The times of one command to a fleet, in seconds after the beginning of its POST.

    - `posted`: the time of the answer to the POST.
    - `handed_over`: the time when the last push reached the fake FCM.
    - `recorded`: the time when the database contained FCM's answers to all pushes.
    """

    posted: float
    handed_over: float
    recorded: float
    costs: dict[str, float]
    """The processor time per push in µs, by part: dispatcher, PostgreSQL and fake FCM."""


def main() -> int:
    """Measure each fleet, and print a table. Return 0 if every median is within its limit, else 1."""
    arguments = _arguments()
    os.sched_setaffinity(0, {machine.OTHER_CORE})
    os.environ.update(WEB_WORKERS="1", LOG_LEVEL="INFO", LOG_FORMAT="json")
    measured = {}
    for devices in arguments.devices:
        for deliveries, rounds in _measure(devices, arguments.rounds, arguments.history).items():
            measured[devices, deliveries] = rounds
    return 0 if _print(measured) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.fan_out", description=__doc__)
    sizes, rounds = list(LIMITS), 3
    parser.add_argument("--devices", type=int, nargs="+", default=sizes, metavar="N", help="fleets (10000 100000)")
    history = "deliveries of an older month; each fleet is measured without and with them (0)"
    parser.add_argument("--history", type=int, default=0, metavar="N", help=history)
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help="number of rounds (3)")
    return parser.parse_args()


def _measure(devices: int, rounds: int, history: int) -> dict[int, list[FanOut]]:
    """Return the results of the rounds, by the number of older deliveries in the database.

    The numbers are 0 and, if `history` is not 0, `history`.
    """
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as name:
        folder = Path(name)
        with testbed.started(
            folder, folder / "data", interval_seconds=120, commands_per_minute=0, answer_ms=ANSWER_MS, settings=SETTINGS
        ) as place:
            assert place.serving is not None
            machine.pin(place.serving.child("dispatch"), machine.MEASURED_CORE)
            testbed.enroll_fleet(place, devices, folder / "roster", lambda: None)
            measured = {0: [_fan_out(place, devices, number + 1) for number in range(rounds)]}
            if history:
                _add_history(place, devices, history, folder / "roster")
                measured[history] = [_fan_out(place, devices, number + 1) for number in range(rounds)]
            return measured


def _add_history(place: ServerUnderTest, devices: int, deliveries: int, roster: Path) -> None:
    assert place.serving is not None
    seeding = [sys.executable, "-m", "loadtest.fleet", "--devices", str(devices), "--roster", str(roster)]
    seeding += ["--push-tokens", "--deliveries", str(deliveries)]
    subprocess.run(seeding, env={**place.serving.environment, "LOG_LEVEL": "WARNING"}, check=True)
    with psycopg.connect(place.serving.database_url(), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def _fan_out(place: ServerUnderTest, devices: int, number: int) -> FanOut:
    assert place.serving is not None
    assert place.journal is not None
    with closing(JournalTail(place.journal)) as journal:
        used, begun_at = _used(place), time.monotonic()
        request_id = place.admin.post("/admin/command", COMMAND)["request_id"]
        posted_at = time.monotonic()
        sends = _await_sends(journal, request_id, devices)
        _await_answers(place, request_id, devices)
        ended_at = time.monotonic()
    if (reached := len({send["push_token"] for send in sends})) != devices or len(sends) != devices:
        raise RuntimeError(f"{len(sends)} pushes for {reached} of {devices} devices")
    place.admin.post(f"/admin/commands/{request_id}/cancel")
    handed_over = max(send["monotonic"] for send in sends) - begun_at
    costs = {part: (seconds - used[part]) / devices * 1_000_000 for part, seconds in _used(place).items()}
    sys.stderr.write(f"{devices:,} devices, round {number}: {handed_over:.2f} s, {devices / handed_over:,.0f}/s\n")
    return FanOut(posted_at - begun_at, handed_over, ended_at - begun_at, costs)


def _used(place: ServerUnderTest) -> dict[str, float]:
    assert place.serving is not None
    assert place.standin is not None
    return {
        "dispatcher": machine.cpu_seconds_of(place.serving.child("dispatch")),
        "PostgreSQL": machine.cpu_seconds(place.serving.data_dir)["PostgreSQL"],
        "fake FCM": machine.cpu_seconds_of(place.standin),
    }


def _await_sends(journal: JournalTail, request_id: str, devices: int) -> list[dict[str, Any]]:
    """Wait until all pushes of a command have reached the fake FCM, and return them. Raises TimeoutError.

    This function reads only the journal. A request to the server would cost PostgreSQL as much work as hundreds of
    pushes.
    """
    deadline = time.monotonic() + GIVE_UP_SECONDS
    sends: list[dict[str, Any]] = []
    while len(sends) < devices:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(sends)} of {devices} pushes left within {GIVE_UP_SECONDS} s")
        time.sleep(_POLL_SECONDS)
        sends += [send for send in journal.sends() if send["request_id"] == request_id]
    return sends


def _await_answers(place: ServerUnderTest, request_id: str, devices: int) -> None:
    """Wait until the database contains FCM's answer to each push. Raises TimeoutError."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while place.admin.command(request_id)["push"]["accepted"] < devices:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {devices} pushes were accepted within {GIVE_UP_SECONDS} s")
        time.sleep(_POLL_SECONDS)


def _print(measured: dict[tuple[int, int], list[FanOut]]) -> bool:
    """Print the medians. Return whether all medians are within their limits."""
    table = Table(title=f"One command to a fleet, FCM answers after {ANSWER_MS} ms: median (spread)")
    for heading in (
        "devices",
        "history",
        "POST",
        "all handed over",
        "pushes/s",
        "all recorded",
        *(f"{part} µs" for part in PARTS),
        "",
    ):
        table.add_column(heading, justify="right")
    held = {case: _is_held(case[0], rounds) for case, rounds in measured.items()}
    for (devices, history), rounds in measured.items():
        table.add_row(
            f"{devices:,}",
            f"{history:,}",
            f"{spread([one.posted for one in rounds], '.2f')} s",
            f"{spread([one.handed_over for one in rounds], '.2f')} s",
            spread([devices / one.handed_over for one in rounds], ",.0f"),
            f"{spread([one.recorded for one in rounds], '.2f')} s",
            *(f"{median(one.costs[part] for one in rounds):.0f}" for part in PARTS),
            "held" if held[devices, history] else "missed",
        )
    Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH).print(table)
    return all(held.values())


def _is_held(devices: int, rounds: list[FanOut]) -> bool:
    post, handed_over = LIMITS.get(devices, (float("inf"), float("inf")))
    return median(one.posted for one in rounds) < post and median(one.handed_over for one in rounds) < handed_over


if __name__ == "__main__":
    sys.exit(main())
