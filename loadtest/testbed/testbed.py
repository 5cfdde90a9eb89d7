"""The testbed of a run: a running server, or a new server with a fake FCM; and its fleet."""

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
"""A larger fleet is seeded into the database: registrations cost a bcrypt hash each."""

SHORTEST_INTERVAL_SECONDS: Final = 5
"""The shortest HEARTBEAT_INTERVAL_SECONDS of a server; phones that must be faster choose their own interval."""

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_UNSET: Final = (
    "DATABASE_URL", "DIRECT_DATABASE_URL", "SECRET_KEY", "SECRET_KEY_FALLBACKS", "ADMIN_KEY", "ADMIN_KEY_PREVIOUS",
    "HMAC_SECRET", "HMAC_SECRET_PREVIOUS", "COMMAND_SIGNING_KEY", "COMMAND_SIGNING_KEY_PREVIOUS", "METRICS_TOKEN",
    "TRUSTED_PROXIES",
)  # fmt: skip
"""Variables of the environment that the test's server does not get, so that no load reaches a database in use."""


BEHIND_A_POOLER: Final[ContextVar[bool]] = ContextVar("behind_a_pooler", default=False)
"""Whether our own servers have a PostgreSQL behind a PgBouncer that pools transactions, instead of the embedded one."""


class NotSeeded(Exception):
    """The fleet was not seeded: a large one needs the server's own database settings."""


@dataclass(frozen=True, slots=True)
class ServerUnderTest:
    """A server with its admin, and the interval that phones get. A server of our own also has its process and its fake
    FCM.
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
    """Start a server with this data folder, and what it needs in `folder`; both end with the block.

    `answer_ms` is the time that the fake FCM takes for each answer. `settings` are more environment variables.
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
    """Run a server with these settings, ready; it ends with the block.

    If the settings contain a DATABASE_URL, secrets are made for the server, because it then generates none.
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
    """Return the settings of a separate database, if the server has none and must not use the embedded one."""
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
    """Run the fake FCM; yield its process, and the settings by which a server finds it."""
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
    """Provide this number of phones that the server knows, write their credentials, and return their interval.

    `watch` is called for each phone that registers. Raises NotSeeded, and the errors of enrol().
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
    """Write this number of phones into a server's database, and their credentials into the file `path`.

    `environment` is the environment of that server; None means ours. Raises NotSeeded.
    """
    pushed = ["--push-tokens"] if with_push_tokens else []
    seeding = [sys.executable, "-m", "loadtest.fleet", "--devices", str(count), "--roster", str(path), *pushed]
    if subprocess.run(seeding, cwd=_ROOT, env=environment, check=False).returncode:
        raise NotSeeded(
            "The fleet was not written to the server's database; the error is above. "
            "With --url, run the load test with the same environment variables as the server."
        )
