"""Cause a fault in a server under load, and check that nothing is lost: `python -m loadtest.chaos FAULT`.

The program starts its own server. Simulated phones and an admin send requests before, during and after the fault. At
the end, the program compares four records of the run: the answers to the clients, the database, the journal of the fake
FCM, and the event feed.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

from rich.console import Console

from loadtest.chaos import databases, feed, ledgers, pushes, receivers
from loadtest.chaos.databases import Database
from loadtest.chaos.failover import failing_over
from loadtest.chaos.faults import DatabaseStops, Fault, Kills, SameProcesses, SecondDispatcher
from loadtest.chaos.feed import FeedReader
from loadtest.chaos.frozen import freezing
from loadtest.chaos.ledgers import DatabaseSnapshot
from loadtest.chaos.outages import FcmOutages, Outage
from loadtest.chaos.readonly import demoting
from loadtest.chaos.traffic import (
    COMMANDS_PER_SECOND,
    NORMAL_CONNECTIONS,
    UNLIMITED_CONNECTIONS,
    Traffic,
)
from loadtest.chaos.web_away import WebAway
from loadtest.fleet import credentials_file
from loadtest.load import view
from loadtest.load.targets import Target
from loadtest.testbed import pgbouncer, testbed
from loadtest.testbed.serving import Serving
from loadtest.testbed.testbed import ServerUnderTest

DEVICES: Final = 2000
INTERVAL_SECONDS: Final = 60
ANSWER_MS: Final = 20
SILENT_COMMANDS_PER_SECOND: Final = 5
"""The rate of commands for faults during which requests get no answer or fail for many seconds. With 20 commands a
second, two web workers on two cores would need half a minute to catch up afterwards."""

READ_SECONDS: Final = 30
"""After a run, the client of the feed reads the last events for at most this time."""

SETTINGS: Final = {"WEB_WORKERS": "2", "LOG_LEVEL": "INFO", "LOG_FORMAT": "json"} | receivers.SETTINGS
OUTAGES: Final = (
    Outage("503 to everything", {"override": "unavailable"}, 180),
    Outage("no answers", {"override": "hang"}, 40),
    Outage("connections reset", {"override": "reset"}, 40),
    Outage("OAuth down", {"oauth_down": True, "revoke_access_tokens": True}, 40),
)


def main() -> int:
    """Cause the fault that the command line names, and print all targets. Return 0 if all targets were met, else 1."""
    arguments = _arguments()
    os.environ.update(SETTINGS)
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="nexmdm-") as name,
        _database(Path(name), arguments) as database,
        _started(Path(name), arguments.devices, database) as place,
    ):
        judged = _break(console, place, database, Path(name), arguments)
    view.print_targets(console, judged)
    return 0 if all(one.held for one in judged) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description=__doc__)
    parser.add_argument("fault", choices=("kills", "database", "fcm", "web", "failover", "frozen", "readonly"))
    parser.add_argument(
        "--seconds",
        type=float,
        help="seconds for which processes are killed (300) or the web workers are away (600), or of the longest outage"
        " of FCM, or of the longest freeze",
    )
    parser.add_argument(
        "--times", type=int, default=5, help="how often PostgreSQL is stopped, fails over, freezes or is demoted (5)"
    )
    parser.add_argument("--devices", type=int, default=DEVICES, help="how many phones, more than 1,000 (2,000)")
    parser.add_argument(
        "--commands-per-second",
        type=float,
        help="default 20; but 5 for `frozen`, `readonly` and `web`, because all waiting requests arrive together at the"
        " end",
    )
    parser.add_argument(
        "--pooler",
        action="store_true",
        help="for `kills`: with a PostgreSQL behind PgBouncer, which pools transactions",
    )
    arguments = parser.parse_args()
    if arguments.pooler and arguments.fault != "kills":
        parser.error("--pooler is for kills only.")
    if arguments.pooler and pgbouncer.program() is None:
        parser.error(pgbouncer.MISSING)
    if arguments.commands_per_second is None:
        silent = arguments.fault in ("frozen", "readonly", "web")
        arguments.commands_per_second = SILENT_COMMANDS_PER_SECOND if silent else COMMANDS_PER_SECOND
    return arguments


def _database(folder: Path, arguments: argparse.Namespace) -> AbstractContextManager[Database | None]:
    """Return the database for the fault. None means the embedded PostgreSQL."""
    if arguments.pooler:
        return databases.pooled(folder)
    if arguments.fault == "failover":
        return failing_over(folder, arguments.times)
    if arguments.fault == "frozen":
        return freezing(folder, arguments.times, arguments.seconds or inf)
    if arguments.fault == "readonly":
        return demoting(folder, arguments.times)
    return nullcontext()


@contextmanager
def _started(folder: Path, devices: int, database: Database | None) -> Iterator[ServerUnderTest]:
    with testbed.started(
        folder,
        folder / "data",
        interval_seconds=INTERVAL_SECONDS,
        commands_per_minute=COMMANDS_PER_SECOND * 120,
        answer_ms=ANSWER_MS,
        settings=database.settings if database else {},
    ) as place:
        testbed.enroll_fleet(place, devices, folder / "roster", lambda: None)
        yield place


def _break(
    console: Console,
    place: ServerUnderTest,
    database: Database | None,
    folder: Path,
    arguments: argparse.Namespace,
) -> list[Target]:
    assert place.serving is not None
    assert place.journal is not None
    members = credentials_file.read(folder / "roster")
    database_url = database.url if database else place.serving.database_url()
    traffic = Traffic(
        place.admin,
        members,
        place.journal,
        interval_seconds=INTERVAL_SECONDS,
        commands_per_second=arguments.commands_per_second,
        connections=UNLIMITED_CONNECTIONS if database and database.fault else NORMAL_CONNECTIONS,
    )
    with ExitStack() as stack:
        fault = _fault(console, place.serving, database, stack, arguments)
        trial = _trial(fault, traffic, database_url)
        early, of_events = asyncio.run(_run(traffic, trial, place, database_url))
        snapshot, sends = ledgers.read(database_url), ledgers.read_journal(place.journal)
        of_fault, away = fault.judged(traffic.account.exchanges, snapshot, sends), fault.away()
    account = traffic.account
    return [
        *of_fault,
        ledgers.waiting("deliveries at the end of the fault", early),
        *ledgers.compare(account, snapshot),
        *pushes.compare(snapshot, sends, members, away),
        *of_events,
    ]


async def _run(
    traffic: Traffic, trial: Awaitable[DatabaseSnapshot], place: ServerUnderTest, database_url: str
) -> tuple[DatabaseSnapshot, list[Target]]:
    """Run the phones, the admin, a client of the feed, and receivers of webhooks through a fault.

    Return the content of the database at the end of the fault, and the targets of feed and webhooks.
    """
    reader = FeedReader(place.admin)
    begun = len((await asyncio.to_thread(feed.read, database_url)).ids)
    async with receivers.listening(place.admin) as listening:
        following = asyncio.create_task(reader.follow())
        early = await traffic.run(trial, partial(ledgers.is_settled, database_url))
        following.cancel()
        await asyncio.wait([following])
        events = await asyncio.to_thread(feed.read, database_url)
        await reader.read_until(events.ids[-1], READ_SECONDS)
        await receivers.until_they_have(events.ids[-1], listening)
    return early, [*feed.compare(events, reader.ids), *receivers.compare(listening, events.ids[begun:])]


async def _trial(fault: Fault, traffic: Traffic, database_url: str) -> DatabaseSnapshot:
    """Cause the fault. Return the content of the database at the end of the fault."""
    await fault.run(traffic)
    return await asyncio.to_thread(ledgers.read, database_url)


def _fault(
    console: Console, serving: Serving, database: Database | None, stack: ExitStack, arguments: argparse.Namespace
) -> Fault:
    begun_at = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - begun_at:6.1f} s  {text}", highlight=False)

    second = SecondDispatcher(serving)
    stack.callback(second.stop)
    if database is not None and database.fault is not None:
        return database.fault(SameProcesses(serving, second), say)
    if arguments.fault == "kills":
        return Kills(serving, second, arguments.seconds or 300, say)
    if arguments.fault == "web":
        return WebAway(serving, serving.database_url(), arguments.seconds or 600, say)
    if arguments.fault == "database":
        return DatabaseStops(serving, serving.database_url(), arguments.times, say)
    outages = [replace(one, seconds=min(one.seconds, arguments.seconds or inf)) for one in OUTAGES]
    return FcmOutages(serving.environment["FCM_BASE_URL"], serving.database_url(), outages, INTERVAL_SECONDS, say)


if __name__ == "__main__":
    sys.exit(main())
