"""manage.py loadtest: a simulated fleet over real HTTP, against a running server or one of its own."""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from loadtest import enrolling, machine, report, roster, targets, view
from loadtest.conductor import GeneratorEnded, Load, Run, conduct
from loadtest.fleet import Refusal
from loadtest.serving import READY, Serving
from nexmdm import fleet_values
from nexmdm.fleet_client import FleetClient, Refused, Unreachable

MOST_REGISTERED: Final = 1000
"""A larger fleet is seeded into the database: registrations cost a bcrypt hash each."""

_SHORTEST_INTERVAL_SECONDS: Final = 5
"""What a server takes as HEARTBEAT_INTERVAL_SECONDS; a shorter one is the phones' own."""

_UNSET: Final = dict.fromkeys(
    (
        "DATABASE_URL", "SECRET_KEY", "SECRET_KEY_FALLBACKS", "ADMIN_KEY", "ADMIN_KEY_PREVIOUS", "HMAC_SECRET",
        "HMAC_SECRET_PREVIOUS", "COMMAND_SIGNING_KEY", "COMMAND_SIGNING_KEY_PREVIOUS", "METRICS_TOKEN",
        "TRUSTED_PROXIES",
    ),
    "",
)  # fmt: skip
"""What a server of our own must not take from the environment: no load for a database that is somebody's."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a run takes place: the server's admin and its heartbeat interval; the rest where the server is our own."""

    admin: FleetClient
    interval_seconds: int
    serving: Serving | None = None
    journal: Path | None = None

    @property
    def described(self) -> str:
        """Return the server in words."""
        if self.serving is None:
            return self.admin.url
        workers = settings.WEB_WORKERS
        return f"started for this run on the same machine: {workers} web worker(s), dispatcher, embedded PostgreSQL"


class Command(BaseCommand):
    """Exit status: 0 if every target was held, else 1."""

    help = "Put a server under the load of a simulated fleet, and judge it. Without --url it starts one of its own."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        seconds = fleet_values.seconds
        add = parser.add_argument
        add("--devices", type=fleet_values.positive, default=100, metavar="N", help="phones; default 100")
        add("--interval", type=seconds, metavar="TIME", help="between a phone's heartbeats; default: the server's")
        add("--duration", type=seconds, default=300, metavar="TIME", help="what is measured, as 300 or 5m; default 5m")
        add("--ramp", type=seconds, default=10, metavar="TIME", help="before it, phones join; default 10")
        add("--commands-per-minute", type=int, default=60, metavar="N", help="to random phones; default 60, 0: none")
        add(
            "--url",
            type=fleet_values.url,
            help="a running server, which has these settings' secrets; phones get no push",
        )
        add(
            "--keep", type=Path, metavar="FOLDER", help="keep the data of the server it starts here, and use them again"
        )
        add("--report", type=Path, metavar="FILE", help="write the figures as one HTML file")

    def handle(self, *_: object, **options: Any) -> None:
        """Run, judge, report."""
        console = Console(file=cast("IO[str]", self.stdout))
        try:
            run = self._run(console, options)
        except (Refused, Refusal, Unreachable, GeneratorEnded, RuntimeError) as error:
            raise CommandError(str(error) or str(error.__doc__)) from error
        judged = targets.judged(run)
        view.print_verdict(console, run, judged)
        if options["report"]:
            options["report"].write_text(report.page(run, judged), encoding="utf-8")
            console.print(f"Report: {options['report']}", highlight=False)
        if not all(target.held for target in judged):
            sys.exit(1)

    def _run(self, console: Console, options: dict[str, Any]) -> Run:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexmdm-")))
            ground = stack.enter_context(_ground(console, options, folder))
            fleet = folder / "roster"
            _gather(console, ground, options["devices"], fleet)
            run = Run(_load(options, ground, fleet))
            watch = stack.enter_context(view.shown(console, run))
            with _server_time(run, ground):
                asyncio.run(conduct(run, ground.admin, watch))
            return run


@contextmanager
def _server_time(run: Run, ground: Ground) -> Iterator[None]:
    """Note how much of a core a server of our own takes."""
    if ground.serving is None:
        yield
        return
    before, began_at = machine.cpu_seconds(ground.serving.data_dir), time.monotonic()
    yield
    seconds = machine.cpu_seconds(ground.serving.data_dir) - before
    run.server_cores = seconds / (time.monotonic() - began_at)


def _load(options: dict[str, Any], ground: Ground, fleet: Path) -> Load:
    interval = options["interval"] or ground.interval_seconds
    return Load(
        server=ground.described,
        url=ground.admin.url,
        devices=options["devices"],
        interval_seconds=interval,
        ramp_seconds=options["ramp"],
        duration_seconds=options["duration"],
        commands_per_minute=options["commands_per_minute"],
        scale=interval / ground.interval_seconds,
        roster=fleet,
        journal=ground.journal,
    )


@contextmanager
def _ground(console: Console, options: dict[str, Any], folder: Path) -> Iterator[Ground]:
    if options["url"]:
        key, secret = settings.ADMIN_KEYS[0], settings.HMAC_SECRETS[0]
        with closing(FleetClient(options["url"], key=key, secret=secret)) as admin:
            yield Ground(admin, settings.HEARTBEAT_INTERVAL_SECONDS)
        return
    kept = options["keep"] or folder
    kept.mkdir(parents=True, exist_ok=True)
    interval = max(_SHORTEST_INTERVAL_SECONDS, options["interval"] or settings.HEARTBEAT_INTERVAL_SECONDS)
    console.print("Starting a server and a stand-in for FCM …", highlight=False)
    with _standin(folder) as fcm, _serving(kept.resolve() / "data", fcm, interval, options) as serving:
        secrets = serving.secrets
        with closing(FleetClient(serving.url, key=secrets["ADMIN_KEY"], secret=secrets["HMAC_SECRET"])) as admin:
            yield Ground(admin, interval, serving, folder / "journal")


@contextmanager
def _standin(folder: Path) -> Iterator[dict[str, str]]:
    """Run the stand-in for FCM; gives the settings by which a server finds it."""
    journal, account = folder / "journal", folder / "account.json"
    journal.touch()
    program = [sys.executable, "-m", "loadtest.fcm_standin", "--journal", str(journal), "--credentials", str(account)]
    with subprocess.Popen(
        program,
        cwd=settings.BASE_DIR,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as standin:
        assert standin.stdout is not None
        try:
            url = standin.stdout.readline().strip()
            yield {"FCM_BASE_URL": url, "FIREBASE_SERVICE_ACCOUNT_JSON": json.dumps(json.loads(account.read_text()))}
        finally:
            standin.terminate()


@contextmanager
def _serving(data_dir: Path, fcm: dict[str, str], interval: int, options: dict[str, Any]) -> Iterator[Serving]:
    limit = max(120, 2 * options["commands_per_minute"])
    own = {"ALLOWED_HOSTS": "127.0.0.1", "ADMIN_RATE_LIMIT": f"{limit}/m", "HEARTBEAT_INTERVAL_SECONDS": str(interval)}
    serving = Serving(data_dir, **_UNSET, **fcm, **own)
    try:
        yield serving.until_it_says(READY)
    finally:
        serving.interrupt()


def _gather(console: Console, ground: Ground, count: int, fleet: Path) -> None:
    """Have so many phones that the server knows, and write who they are."""
    if count > MOST_REGISTERED:
        console.print(f"Seeding {count:,} devices …", highlight=False)
        _seed(ground, count, fleet)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Registering", total=count)
        pushed = ground.journal is not None
        members = enrolling.enrol(ground.admin, count, with_push_tokens=pushed, watch=lambda: bar.advance(task))
    roster.write(fleet, members)


def _seed(ground: Ground, count: int, fleet: Path) -> None:
    pushed = ["--push-tokens"] if ground.journal else []
    seeding = [sys.executable, "-m", "loadtest.seeding", "--devices", str(count), "--roster", str(fleet), *pushed]
    environment = ground.serving.environment if ground.serving else None
    if subprocess.run(seeding, cwd=settings.BASE_DIR, env=environment, check=False).returncode:
        raise CommandError(
            "A large fleet is seeded into the server's database: run this with the server's own settings."
        )
