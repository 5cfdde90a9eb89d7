"""Break a server of our own under load, and see that nothing is lost: `python -m loadtest.chaos kills|database|fcm`.

A fleet of simulated phones and an admin go on through it, and three ledgers are compared at the end: what the clients
were told, what the database has, what reached FCM (the stand-in's journal).
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

from rich.console import Console

from loadtest.chaos import ledgers, pushes
from loadtest.chaos.faults import DatabaseStops, Fault, Kills, SecondDispatcher
from loadtest.chaos.outages import FcmOutages, Outage
from loadtest.chaos.traffic import COMMANDS_PER_SECOND, Traffic
from loadtest.fleet import credentials_file
from loadtest.load import view
from loadtest.load.targets import Target
from loadtest.testbed import testbed
from loadtest.testbed.testbed import ServerUnderTest

DEVICES: Final = 2000
INTERVAL_SECONDS: Final = 60
ANSWER_MS: Final = 20
SETTINGS: Final = {"WEB_WORKERS": "2", "LOG_LEVEL": "INFO", "LOG_FORMAT": "json"}
OUTAGES: Final = (
    Outage("503 to everything", {"override": "unavailable"}, 180),
    Outage("no answers", {"override": "hang"}, 40),
    Outage("connections reset", {"override": "reset"}, 40),
    Outage("OAuth down", {"oauth_down": True, "revoke_access_tokens": True}, 40),
)


def main() -> int:
    """Break it in the way that was asked for, print each promise with its figure; 0 if all were held."""
    arguments = _arguments()
    os.environ.update(SETTINGS)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder, _started(Path(folder), arguments.devices) as place:
        judged = _break(console, place, Path(folder), arguments)
    view.print_targets(console, judged)
    return 0 if all(one.held for one in judged) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description=__doc__)
    parser.add_argument("fault", choices=("kills", "database", "fcm"))
    parser.add_argument(
        "--seconds", type=float, help="how long processes are killed (300), or how long an outage of FCM lasts at most"
    )
    parser.add_argument("--times", type=int, default=5, help="how often PostgreSQL is stopped (5)")
    parser.add_argument("--devices", type=int, default=DEVICES, help="how many phones, more than 1,000 (2,000)")
    return parser.parse_args()


@contextmanager
def _started(folder: Path, devices: int) -> Iterator[ServerUnderTest]:
    with testbed.started(
        folder,
        folder / "data",
        interval_seconds=INTERVAL_SECONDS,
        commands_per_minute=COMMANDS_PER_SECOND * 120,
        answer_ms=ANSWER_MS,
    ) as place:
        testbed.enroll_fleet(place, devices, folder / "roster", lambda: None)
        yield place


def _break(console: Console, place: ServerUnderTest, folder: Path, arguments: argparse.Namespace) -> list[Target]:
    assert place.serving is not None
    assert place.journal is not None
    members = credentials_file.read(folder / "roster")
    database_url = place.serving.database_url()
    traffic = Traffic(place.admin, members, place.journal, interval_seconds=INTERVAL_SECONDS)
    with ExitStack() as stack:
        fault = _fault(console, place, stack, arguments)
        trial = _trial(fault, traffic, database_url)
        early = asyncio.run(traffic.run(trial, partial(ledgers.is_settled, database_url)))
        snapshot, sends = ledgers.read(database_url), ledgers.read_journal(place.journal)
        away = fault.away()
    account = traffic.account
    return [
        *fault.judged(account.exchanges, snapshot, sends),
        ledgers.waiting("deliveries at the end of the trouble", early),
        *ledgers.compare(account, snapshot),
        *pushes.compare(snapshot, sends, members, away),
    ]


async def _trial(fault: Fault, traffic: Traffic, database_url: str) -> ledgers.DatabaseSnapshot:
    """Make the trouble; return what the database says before anything had time to settle."""
    await fault.run(traffic)
    return await asyncio.to_thread(ledgers.read, database_url)


def _fault(console: Console, place: ServerUnderTest, stack: ExitStack, arguments: argparse.Namespace) -> Fault:
    serving, begun_at = place.serving, time.monotonic()
    assert serving is not None

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - begun_at:6.1f} s  {text}", highlight=False)

    second = SecondDispatcher(serving)
    stack.callback(second.stop)
    if arguments.fault == "kills":
        return Kills(serving, second, arguments.seconds or 300, say)
    if arguments.fault == "database":
        return DatabaseStops(serving, serving.database_url(), arguments.times, say)
    outages = [replace(one, seconds=min(one.seconds, arguments.seconds or inf)) for one in OUTAGES]
    return FcmOutages(serving.environment["FCM_BASE_URL"], serving.database_url(), outages, INTERVAL_SECONDS, say)


if __name__ == "__main__":
    sys.exit(main())
