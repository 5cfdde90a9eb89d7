"""The server of a run, and its fleet. The server runs already, or is started here together with a fake FCM."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from loadtest.fleet import credentials_file, enrolling
from loadtest.testbed import pgbouncer
from loadtest.testbed.postgres_servers import PostgresServers
from loadtest.testbed.serving import READY, Serving
from nexmdm.client.http_client import FleetClient
from nexmdm.config import named_admins, secrets_file

MOST_REGISTERED: Final = 1000
"""A larger fleet is seeded into the database, because each registration needs a bcrypt hash."""

SHORTEST_INTERVAL_SECONDS: Final = 5
"""The smallest allowed HEARTBEAT_INTERVAL_SECONDS of a server. Phones with a shorter interval must choose it
themselves."""

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_UNSET: Final = (
    "DATABASE_URL", "DIRECT_DATABASE_URL", "SECRET_KEY", "SECRET_KEY_FALLBACKS", "ADMIN_KEY", "ADMIN_KEY_PREVIOUS",
    "HMAC_SECRET", "HMAC_SECRET_PREVIOUS", "COMMAND_SIGNING_KEY", "COMMAND_SIGNING_KEY_PREVIOUS", "METRICS_TOKEN",
    "TRUSTED_PROXIES",
)  # fmt: skip
"""Environment variables that the server of a test does not get. So no load reaches a database that is in use."""


BEHIND_A_POOLER: Final[ContextVar[bool]] = ContextVar("behind_a_pooler", default=False)
"""Whether the servers of tests use a PostgreSQL behind a PgBouncer that pools transactions. If False, the servers use
the embedded PostgreSQL."""


class NotSeeded(Exception):
    """The fleet was not seeded. Seeding needs the settings of the server that uses the database."""


@dataclass(frozen=True, slots=True)
class ServerUnderTest:
    """A server for a run, with its admin.

    - `interval_seconds`: the heartbeat interval that phones get.
    - `described`: the description of the server for the report.
    - `serving`: the process of the server; None: the server was not started here.
    - `journal`: the file of the fake FCM; None: there is no fake FCM.
    - `standin`: the process id of the fake FCM; None: there is no fake FCM.
    """

    admin: FleetClient
    interval_seconds: int
    described: str
    serving: Serving | None = None
    journal: Path | None = None
    standin: int | None = None


@contextmanager
def started(
    folder: Path,
    data_dir: Path,
    *,
    interval_seconds: int,
    commands_per_minute: int,
    answer_ms: int = 0,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[ServerUnderTest]:
    """Run a server with this data folder, and a fake FCM. Both stop at the end of the block.

    The files of the fake FCM are in `folder`. `answer_ms` is the delay of each answer of the fake FCM. `settings` are
    additional environment variables.
    """
    interval = max(SHORTEST_INTERVAL_SECONDS, interval_seconds)
    limits = {
        "ADMIN_RATE_LIMIT": f"{max(120, 2 * commands_per_minute)}/m",
        "HEARTBEAT_INTERVAL_SECONDS": str(interval),
        **settings,
    }
    with (
        standin(folder, answer_ms) as (process, fcm),
        served(data_dir, **fcm, **limits) as serving,
        closing(serving.admin()) as admin,
    ):
        described = _described("PostgreSQL over TCP" if "DATABASE_URL" in settings else "embedded PostgreSQL")
        yield ServerUnderTest(admin, interval, described, serving, folder / "journal", process)


@contextmanager
def served(data_dir: Path, **settings: str) -> Iterator[Serving]:
    """Run a server with this data folder until the end of the block. Yield the server when it is ready.

    If the server gets a DATABASE_URL, it generates no secrets itself. In this case, this function generates the secrets
    and gives them to the server.
    """
    with _database(data_dir.parent, settings) as database:
        settings = database | settings
        given = secrets_file.load_or_create(data_dir / "secrets.env") if settings.get("DATABASE_URL") else {}
        unset = dict.fromkeys((*_UNSET, *named_admins.variables()), "")
        serving = Serving(data_dir, **unset | {"ALLOWED_HOSTS": "127.0.0.1"} | given | settings)
        try:
            yield serving.until_it_says(READY)
        finally:
            serving.interrupt()


@contextmanager
def _database(folder: Path, settings: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield the settings of a PostgreSQL with a PgBouncer in front of it.

    If the server has a database already, or needs no PgBouncer, yield no settings.
    """
    if "DATABASE_URL" in settings or not BEHIND_A_POOLER.get():
        yield {}
        return
    with PostgresServers(folder / "postgres") as servers:
        server = servers.primary("only")
        with pgbouncer.pooling(folder / "pooler", server.url, "transaction") as url:
            yield {"DATABASE_URL": url, "DIRECT_DATABASE_URL": server.url}


def _described(database: str) -> str:
    workers = int(os.environ.get("WEB_WORKERS", "1"))
    web = f"{workers} web workers" if workers > 1 else "a web worker"
    return f"started for this run on the same machine: {web}, a dispatcher, {database}"


@contextmanager
def standin(folder: Path, answer_ms: int = 0) -> Iterator[tuple[int, dict[str, str]]]:
    """Run a fake FCM until the end of the block. Yield its process id, and the settings with which a server uses it."""
    journal, account = folder / "journal", folder / "account.json"
    journal.touch()
    files = ["--journal", str(journal), "--credentials", str(account)]
    program = [sys.executable, "-m", "loadtest.fake_fcm.server", "--delay-ms", str(answer_ms), *files]
    with subprocess.Popen(program, cwd=_ROOT, start_new_session=True, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            yield process.pid, {"FCM_BASE_URL": url, "FIREBASE_SERVICE_ACCOUNT_JSON": account.read_text()}
        finally:
            process.terminate()


def enroll_fleet(testbed: ServerUnderTest, count: int, path: Path, watch: Callable[[], None]) -> int:
    """Register or seed `count` phones, and write their credentials to `path`. Return their heartbeat interval in
    seconds.

    `watch` is called after each registration. Raises NotSeeded, and the errors of `enrol`.
    """
    if count > MOST_REGISTERED:
        environment = testbed.serving.environment if testbed.serving else None
        seed(environment, count, path, with_push_tokens=testbed.journal is not None)
        return testbed.interval_seconds
    members, interval_seconds = enrolling.enrol(
        testbed.admin, count, with_push_tokens=testbed.journal is not None, watch=watch
    )
    credentials_file.write(path, members)
    return interval_seconds


def seed(environment: Mapping[str, str] | None, count: int, path: Path, *, with_push_tokens: bool) -> None:
    """Seed `count` phones into the database of a server, and write their credentials to `path`.

    `environment` contains the settings of this server. None means the environment of this process. Raises NotSeeded.
    """
    pushed = ["--push-tokens"] if with_push_tokens else []
    seeding = [sys.executable, "-m", "loadtest.fleet", "--devices", str(count), "--roster", str(path), *pushed]
    if subprocess.run(seeding, cwd=_ROOT, env=environment, check=False).returncode:
        raise NotSeeded(
            "The fleet was not written to the server's database; the error is above. "
            "With --url, run the load test with the same environment variables as the server."
        )
