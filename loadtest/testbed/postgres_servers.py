"""PostgreSQL servers that tests start: a primary, its standbys, and their changes of role.

The servers accept TCP connections. Their programs are the programs of the embedded PostgreSQL. If the present user is
root, they run under another account. Each server is a child of this process.
"""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import psycopg

from loadtest.testbed import other_account
from loadtest.testbed.loopback import LOOPBACK, free_port
from nexmdm.standalone import embedded_postgres

NAME: Final = "nexmdm"
"""The name of the database, and of the role that owns it. This role has no other rights."""

SUPERUSER: Final = "postgres"
WAIT_SECONDS: Final = 60
_LOOK_SECONDS: Final = 0.02

_INITDB: Final = (
    "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
    "--auth=scram-sha-256", f"--username={SUPERUSER}", "--no-instructions", "--no-sync",
)  # fmt: skip
_SETTINGS: Final = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    "wal_level": "replica",
    # Enough for pg_rewind to find where an old primary's history differs.
    "wal_keep_size": "1GB",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "dynamic_shared_memory_type": "mmap",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
}

Mode = Literal["fast", "immediate", "kill"]
_SIGNALS: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}


class PostgresFailed(RuntimeError):
    """A program of PostgreSQL failed, or did not end in time. The message contains the end of its output."""


class PostgresServers:
    """A maker of PostgreSQL servers, whose files are in one folder. All servers stop at the end of the block."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """If `durable` is False, fsync is off, and a crash of the machine may damage the servers."""
        self._folder = folder
        self._durable = durable
        self._passwords = {NAME: secrets.token_hex(16), SUPERUSER: secrets.token_hex(16)}
        self._running = ExitStack()

    def __enter__(self) -> Self:
        """Create the folder. No server starts yet."""
        self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Stop all servers in the mode `immediate`."""
        self._running.close()

    def primary(self, name: str, **settings: str) -> "PostgresServer":
        """Create and start a server with an empty database."""
        server = self._new(name, settings)
        server.create()
        return server

    def standby_of(self, primary: "PostgresServer", name: str, **settings: str) -> "PostgresServer":
        """Create and start a standby by a base backup of `primary`. Return when the standby follows `primary`."""
        server = self._new(name, settings)
        server.follow_anew(primary)
        return server

    def _new(self, name: str, settings: Mapping[str, str]) -> "PostgresServer":
        own = {} if self._durable else {"fsync": "off"}
        server = PostgresServer(self._folder / name, self._passwords, {**_SETTINGS, **own, **settings})
        self._running.callback(server.stop, "immediate")
        return server


class PostgresServer:
    """One PostgreSQL server, which PostgresServers creates and finally stops."""

    def __init__(self, folder: Path, passwords: Mapping[str, str], settings: Mapping[str, str]) -> None:
        """Choose a free port. No process starts yet."""
        self.name = folder.name
        self.port = free_port()
        self._folder = folder
        self._data = folder / "data"
        self._passwords = passwords
        self._settings = {**settings, "port": str(self.port), "cluster_name": self.name}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of the database for the role that owns it."""
        return url_of(self)

    def url_through(self, port: int) -> str:
        """Return the address of the database through a proxy on `port` of 127.0.0.1."""
        return f"postgresql://{NAME}:{self.password}@{LOOPBACK}:{port}/{NAME}"

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        assert self._process is not None
        return self._process.pid

    @property
    def password(self) -> str:
        """The password of the role that owns the database."""
        return self._passwords[NAME]

    def create(self) -> None:
        """Create the cluster, start the server, and create the role and the database."""
        other_account.prepare(self._folder, embedded_postgres.binaries() / "postgres")
        given = self._folder / "password"
        other_account.write(given, self._passwords[SUPERUSER])
        self._run("initdb", f"--pgdata={self._data}", f"--pwfile={given}", *_INITDB)
        given.unlink()
        self.start()
        self.execute(f"CREATE ROLE {NAME} LOGIN PASSWORD '{self.password}'")
        self.execute(f"CREATE DATABASE {NAME} OWNER {NAME}")

    def start(self) -> None:
        """Start the server as a primary or as a standby. Return when it accepts connections."""
        self._write_settings()
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [embedded_postgres.binaries() / "postgres", "-D", self._data, "-c", f"config_file={self._config}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                **other_account.subprocess_arguments(self._folder),
            )
        self._until(self._is_ready, "take connections")

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server, and wait until all its processes have ended.

        The mode `kill` sends SIGKILL to the postmaster.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(_SIGNALS[mode])
        try:
            self._process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._until(self._is_gone, "end")

    def promote(self) -> None:
        """Make this standby the primary. Return when it accepts writes."""
        if self.execute("SELECT pg_promote(true, %s)", WAIT_SECONDS) != (True,):
            raise PostgresFailed(f"{self.name} was not promoted: {self._last_words()}")
        self._until(lambda: not self.is_standby(), "take writes")

    def is_standby(self) -> bool:
        """Return whether this server follows another server."""
        return bool(self.execute("SELECT pg_is_in_recovery()") == (True,))

    def configure(self, **settings: str) -> None:
        """Change settings. If the server runs, return when new sessions have the settings.

        Old sessions get the settings before their next statement. Do not change a setting that needs a restart. Raises
        PostgresFailed if PostgreSQL refuses a setting.
        """
        self._settings.update(settings)
        if self._process is None:
            return
        before = self.execute("SELECT pg_conf_load_time()")
        self._write_settings()
        os.kill(self.pid, signal.SIGHUP)
        self._until(lambda: self.execute("SELECT pg_conf_load_time()") != before, "reload its settings")
        if refused := self.execute("SELECT name, setting, error FROM pg_file_settings WHERE error IS NOT NULL"):
            raise PostgresFailed(f"{self.name} refuses a setting: {refused}")

    def follow_anew(self, primary: "PostgresServer") -> None:
        """Make this server a standby by a new base backup, whatever its state is.

        Return when the server streams from `primary`.
        """
        self.stop()
        other_account.prepare(self._folder, embedded_postgres.binaries() / "postgres")
        if self._data.exists():
            self._data.rename(self._folder / f"old-{secrets.token_hex(4)}")
        self._run_safely("pg_basebackup", f"--dbname={primary.superuser_url}", f"--pgdata={self._data}",
                         "--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream")  # fmt: skip
        self.start()
        self.until_it_streams_from(primary)

    def rejoin(self, primary: "PostgresServer") -> None:
        """Make this former primary a standby of the new primary by pg_rewind. Return when it streams from `primary`."""
        self.stop()
        # The new primary writes its new timeline into its control file only at its first checkpoint.
        primary.execute("CHECKPOINT")
        self._run_safely("pg_rewind", f"--target-pgdata={self._data}", f"--source-server={primary.superuser_url}",
                         "--write-recovery-conf", f"--config-file={self._config}")  # fmt: skip
        self.start()
        self.until_it_streams_from(primary)

    def until_it_streams_from(self, primary: "PostgresServer") -> None:
        """Wait until this server has stored all present data of `primary`, and streams from `primary`."""
        end = primary.execute("SELECT pg_current_wal_lsn()")
        statement = "SELECT FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming' "
        caught_up = statement + "AND flush_lsn >= %s::pg_lsn"
        self._until(lambda: primary.execute(caught_up, self.name, *end) is not None, f"follow {primary.name}")

    def execute(self, statement: str, *parameters: Any) -> Any:
        """Run a statement as superuser over a new connection.

        Return the first row of the result, or None if there is no row.
        """
        with psycopg.connect(self.superuser_url, autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchone() if cursor.description is not None else None

    @property
    def superuser_url(self) -> str:
        """The address for the superuser, which is also the address for replication."""
        return f"postgresql://{SUPERUSER}:{self._passwords[SUPERUSER]}@{LOOPBACK}:{self.port}/{SUPERUSER}"

    @property
    def _config(self) -> Path:
        """The file of the server's settings.

        It must not be in the cluster, because a base backup and pg_rewind copy the cluster.
        """
        return self._folder / "server.conf"

    def _write_settings(self) -> None:
        text = "".join(f"{name} = '{value}'\n" for name, value in self._settings.items())
        other_account.write(self._config, text)

    def _run_safely(self, program: str, *arguments: str) -> None:
        """Run a program that copies a cluster. If fsync is off, the program does not sync its files."""
        self._run(program, *arguments, *(["--no-sync"] if self._settings.get("fsync") == "off" else []))

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [embedded_postgres.binaries() / program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            **other_account.subprocess_arguments(self._folder),
        )
        if done.returncode:
            raise PostgresFailed(f"{program} failed for {self.name}: {done.stdout}{done.stderr}")

    def _is_ready(self) -> bool:
        """Return whether the last line of the pid file shows that the postmaster is ready.

        PostgreSQL's source describes this file under "Postmaster pid file format".
        """
        assert self._process is not None
        if self._process.poll() is not None:
            raise PostgresFailed(f"{self.name} stopped before it was ready: {self._last_words()}")
        with suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().split("\n")
            return lines[0] == str(self._process.pid) and lines[-2].strip() in {"ready", "standby"}
        return False

    def _is_gone(self) -> bool:
        return not any(_works_in(self._data, process) for process in Path("/proc").glob("[0-9]*"))

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise PostgresFailed(f"{self.name} did not {what} within {WAIT_SECONDS} s: {self._last_words()}")
            time.sleep(_LOOK_SECONDS)

    def _last_words(self) -> str:
        return "\n".join((self._folder / "log").read_text(errors="replace").splitlines()[-10:])


def url_of(*servers: PostgresServer) -> str:
    """Return one address for several servers. libpq tries the servers in this order."""
    addresses = ",".join(f"{LOOPBACK}:{server.port}" for server in servers)
    return f"postgresql://{NAME}:{servers[0].password}@{addresses}/{NAME}"


def _works_in(folder: Path, process: Path) -> bool:
    with suppress(OSError):
        return (process / "comm").read_text() == "postgres\n" and (process / "cwd").samefile(folder)
    return False
