"""A bare ASGI server that only stores heartbeats in PostgreSQL, with a group commit.

Its rate is an upper limit for the rate of NexMDM. The server parses the body of a heartbeat. It finds the device by the
digest of the device token, and stores the status. It validates nothing, looks for no commands, writes no log, and
answers with a constant. `python -m loadtest.benchmarks.one_core` compares NexMDM with this server. `python -m
loadtest.benchmarks.bare_asgi N` serves on the listening socket with the file descriptor N.
"""

import asyncio
import hmac
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import orjson
import psycopg
import uvicorn

from loadtest.fleet.credentials_file import Member

DSN_VARIABLE: Final = "BARE_DATABASE_URL"
_KEY: Final = b"a key of the length of a real one"
_ANSWER: Final = b'{"commands":[]}'
_HEADERS: Final = [(b"content-type", b"application/json"), (b"content-length", str(len(_ANSWER)).encode())]
_BEARER: Final = len("Bearer ")

_TABLE: Final = """
    DROP TABLE IF EXISTS bare_presence;
    CREATE TABLE bare_presence (digest bytea PRIMARY KEY, last_seen_at timestamptz, last_status jsonb)
        WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05)
"""
_STORE: Final = """
    UPDATE bare_presence presence SET last_seen_at = now(), last_status = asked.status
    FROM jsonb_to_recordset(%s::jsonb) asked (digest text, status jsonb)
    WHERE presence.digest = decode(asked.digest, 'hex')
"""

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


def prepare(dsn: str, members: Iterable[Member]) -> None:
    """Create the table of this server, with a row for each phone. An existing table is replaced."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_TABLE)
        with connection.cursor() as cursor, cursor.copy("COPY bare_presence (digest) FROM STDIN") as copy:
            for member in members:
                copy.write_row((_digest(member.device_token.encode()),))
        connection.execute("VACUUM ANALYZE bare_presence")


def _digest(token: bytes) -> bytes:
    return hmac.digest(_KEY, token, "sha256")


class Batch:
    """The rows that wait for the next commit, and the thread that commits them."""

    def __init__(self) -> None:
        self._filling: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._connection = psycopg.connect(os.environ[DSN_VARIABLE], autocommit=True)

    async def store(self, row: dict[str, Any]) -> None:
        """Store `row`. Return when the row is committed."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._filling.append((row, done))
        if self._flusher is None:
            self._flusher = loop.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._filling:
            batch, self._filling = self._filling, []
            rows = orjson.dumps([row for row, _ in batch]).decode()
            await loop.run_in_executor(self._thread, self._connection.execute, _STORE, (rows,))
            for _, done in batch:
                done.set_result(None)
        self._flusher = None


_batches: list[Batch] = []


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer one heartbeat, as an ASGI application."""
    if not _batches:
        _batches.append(Batch())
    message = await receive()
    token = next(value for name, value in scope["headers"] if name == b"authorization")[_BEARER:]
    await _batches[0].store({"digest": _digest(token).hex(), "status": orjson.loads(message["body"])["status"]})
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _ANSWER})


def main() -> None:
    """Serve until SIGTERM."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(application, loop="uvloop", http="httptools", lifespan="off", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
