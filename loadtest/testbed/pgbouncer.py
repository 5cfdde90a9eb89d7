"""A PgBouncer in front of a PostgreSQL, as hosting providers run it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict

from loadtest.testbed import other_account
from loadtest.testbed.loopback import LOOPBACK, free_port

PoolMode = Literal["transaction", "session", "statement"]

MISSING: Final = "PgBouncer is not installed: apt-get install pgbouncer"
_START_SECONDS: Final = 10


class PgbouncerFailed(RuntimeError):
    """PgBouncer is not installed or did not start. The message contains the reason."""


def program() -> str | None:
    """Return the path of PgBouncer, or None if it is not installed."""
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))


@contextmanager
def pooling(folder: Path, url: str, pool_mode: PoolMode, **settings: str) -> Iterator[str]:
    """Run a PgBouncer in front of the PostgreSQL of `url`, until the end of the block. Yield the URL of the PgBouncer.

    The PgBouncer serves all databases of this PostgreSQL. It refuses startup parameters that it does not track, for
    example `options`. This is the default of PgBouncer. `settings` are further settings of PgBouncer.
    """
    parts = conninfo_to_dict(url)
    port = free_port()
    found = program()
    if found is None:
        raise PgbouncerFailed(MISSING)
    other_account.prepare(folder, Path(found))
    _configure(folder, parts, {"listen_port": str(port), "pool_mode": pool_mode, **settings})
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [found, folder / "pgbouncer.ini"],
            stdout=log,
            stderr=subprocess.STDOUT,
            **other_account.subprocess_arguments(folder),
        )
    try:
        pooled = f"postgresql://{parts['user']}:{parts['password']}@{LOOPBACK}:{port}/{parts['dbname']}"
        _await_connections(process, pooled, folder / "log")
        yield pooled
    finally:
        # SIGTERM makes PgBouncer stop immediately.
        process.terminate()
        process.wait()


def _configure(folder: Path, parts: dict[str, Any], settings: dict[str, str]) -> None:
    server = " ".join(f"{name}={parts[name]}" for name in ("host", "port"))
    own = {
        "listen_addr": LOOPBACK,
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": str(folder / "users.txt"),
        "max_client_conn": "1000",
        "default_pool_size": "20",
        **settings,
    }
    lines = [f"{name} = {value}" for name, value in own.items()]
    text = "\n".join(["[databases]", f"* = {server}", "[pgbouncer]", *lines, ""])
    other_account.write(folder / "pgbouncer.ini", text)
    other_account.write(folder / "users.txt", f'"{parts["user"]}" "{parts["password"]}"\n')


def _await_connections(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise PgbouncerFailed(f"PgBouncer does not answer: {error}\n{log.read_text()}") from error
            time.sleep(0.02)
        else:
            return
