"""The command `python -m loadtest`: a simulated fleet sends requests over real HTTP.

The server is a running server (`--url`), or a new server that the load test starts.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console

from loadtest.fleet.enrolling import NotEnrolled
from loadtest.load import disturbances, targets, view
from loadtest.load.disturbances import Disturbance
from loadtest.load.report import document
from loadtest.load.runner import GeneratorEnded, Load, Run, run_load
from loadtest.testbed import machine, testbed
from loadtest.testbed.testbed import NotSeeded, ServerUnderTest
from nexmdm.client import arguments
from nexmdm.client.http_client import FleetClient, Refused, Unreachable

_INTERRUPTED: Final = 130


class Command(BaseCommand):
    """The command `python -m loadtest`. Its exit status is 0 if every target was met, else 1."""

    help = "Load a server with a simulated fleet, and check the targets. Without --url, start a server first."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        long, seconds, add = _some_seconds, arguments.seconds, parser.add_argument
        add("--devices", type=arguments.positive, default=100, metavar="N", help="how many phones; default 100")
        add("--interval", type=long, metavar="TIME", help="time between a phone's heartbeats; default: the server's")
        add("--duration", type=long, default=300, metavar="TIME", help="how long to measure, as 300 or 5m; default 5m")
        add("--ramp", type=seconds, default=10, metavar="TIME", help="start-up time before measuring; default 10")
        add(
            "--commands-per-minute",
            type=_none_or_more,
            default=60,
            metavar="N",
            help="number of commands a minute, each to a random phone; default 60",
        )
        add("--url", type=arguments.url, help="a running server that uses your settings' secrets; phones get no push")
        add("--keep", type=Path, metavar="FOLDER", help="folder for the data of the test's server, for further runs")
        add(
            "--errors",
            type=float,
            default=1,
            metavar="PERCENT",
            help="percentage of requests that may fail; default: less than 1; 0: none",
        )
        add("--p95", type=float, default=150, metavar="MS", help="limit for the heartbeats' p95; default 150")
        add("--p99", type=float, default=300, metavar="MS", help="limit for the heartbeats' p99; default 300")
        add(
            "--halfway",
            choices=disturbances.KINDS,
            help="a disturbance of the second half, which is compared with the first half",
        )
        add("--report", type=Path, metavar="FILE", help="write the figures as one HTML file")

    def handle(self, *_: object, **options: Any) -> None:
        """Run the load test, print the result, and write the report."""
        console = Console(file=cast("IO[str]", self.stdout))
        if options["halfway"] == "restart" and options["url"]:
            raise CommandError("--halfway restart can restart only a server that the load test started. Remove --url.")
        try:
            with _sigterm_like_ctrl_c():
                run = _run(console, options)
        except (Refused, Unreachable, NotEnrolled, NotSeeded, GeneratorEnded, RuntimeError) as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt as interrupt:
            raise CommandError("Interrupted: there is no verdict.", returncode=_INTERRUPTED) from interrupt
        if not _judge(console, run, options["report"]):
            sys.exit(1)


def _some_seconds(text: str) -> int:
    length = arguments.seconds(text)
    if not length:
        raise ArgumentTypeError("must be a second or more")
    return length


def _none_or_more(text: str) -> int:
    return 0 if text == "0" else arguments.positive(text)


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM stop the started processes, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(console: Console, options: dict[str, Any]) -> Run:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexmdm-")))
        place = stack.enter_context(_testbed(console, options, folder))
        with view.gathering(console, options["devices"]) as watch:
            interval = testbed.enroll_fleet(place, options["devices"], folder / "roster", watch)
        disturbance = Disturbance(options["halfway"]) if options["halfway"] else None
        run = Run(_load(options, place, folder / "roster", interval), place.serving, disturbance)
        with view.shown(console, run) as watch, _server_time(run, place):
            asyncio.run(run_load(run, place.admin, watch))
        return run


@contextmanager
def _testbed(console: Console, options: dict[str, Any], folder: Path) -> Iterator[ServerUnderTest]:
    if url := options["url"]:
        key, secret = settings.ADMIN_KEYS[0], settings.HMAC_SECRETS[0]
        with closing(FleetClient(url, key=key, secret=secret)) as admin:
            yield ServerUnderTest(admin, settings.HEARTBEAT_INTERVAL_SECONDS, url)
        return
    console.print("Starting a server and a fake FCM …", highlight=False)
    kept = (options["keep"] or folder).resolve()
    kept.mkdir(parents=True, exist_ok=True)
    interval = options["interval"] or settings.HEARTBEAT_INTERVAL_SECONDS
    commands = options["commands_per_minute"]
    with testbed.started(folder, kept / "data", interval_seconds=interval, commands_per_minute=commands) as own:
        yield own


def _load(options: dict[str, Any], place: ServerUnderTest, fleet: Path, server_interval: int) -> Load:
    interval = options["interval"] or server_interval
    return Load(
        server=place.described,
        url=place.admin.url,
        devices=options["devices"],
        interval_seconds=interval,
        ramp_seconds=options["ramp"],
        duration_seconds=options["duration"],
        commands_per_minute=options["commands_per_minute"],
        scale=interval / server_interval,
        roster=fleet,
        journal=place.journal,
        most_errors_percent=options["errors"],
        p95_ms=options["p95"],
        p99_ms=options["p99"],
    )


@contextmanager
def _server_time(run: Run, place: ServerUnderTest) -> Iterator[None]:
    """Measure the share of a core that each process of the test's own server uses."""
    if place.serving is None:
        yield
        return
    before, began_at = machine.cpu_seconds(place.serving.data_dir), time.monotonic()
    yield
    after, elapsed = machine.cpu_seconds(place.serving.data_dir), time.monotonic() - began_at
    run.server_cores = {part: (seconds - before.get(part, 0)) / elapsed for part, seconds in after.items()}


def _judge(console: Console, run: Run, path: Path | None) -> bool:
    """Print the result, write the report to `path` if it is given, and return whether all targets were met."""
    judged = targets.judged(run)
    view.print_verdict(console, run, judged)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document.page(run, judged), encoding="utf-8")
        console.print(f"Report: {path}", highlight=False)
    return all(target.held for target in judged)


def main() -> None:
    """Run the load test with the arguments of the command line."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
    try:
        Command().run_from_argv(["python -m", "loadtest", *sys.argv[1:]])
    except ImproperlyConfigured as error:
        sys.exit(str(error))
