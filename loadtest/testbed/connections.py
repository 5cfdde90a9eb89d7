"""A minimal HTTP/1.1 client: it sends prepared bytes over a limited number of kept connections.

A usual client library needs 150 to 250 µs for a request, which is most of a generator's time. This client needs about a
fifth of this time. It accepts each request immediately. If all connections are busy, the request waits in a queue, and
the wait counts as latency.
"""

import asyncio
import select
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from itertools import cycle
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httptools
import orjson

ANSWER_SECONDS: Final = 10
"""The longest time of a request, including its time in the queue."""

NO_ANSWER: Final = 0
"""The status that stands for a missing answer. With this status, the body is the reason why there is no answer."""

Done = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server."""

    host: str
    port: int
    tls: bool
    authority: str

    @classmethod
    def of(cls, url: str) -> "Server":
        """Return the server of a URL. The path of the URL is ignored."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls, parts.netloc)

    def head(self, method: str, target: str, headers: Mapping[str, str]) -> bytes:
        """Return the head of a request without its Content-Length. `with_body` returns the rest of the request."""
        fields = {"Host": self.authority, "Content-Type": "application/json", **headers}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, ""]).encode()


def with_body(body: bytes) -> bytes:
    """Return the rest of a request: the header Content-Length, the blank line that ends the head, and the body."""
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def understood(status: int, body: bytes) -> tuple[str, dict[str, Any]]:
    """Return the error and the JSON of an answer.

    The error is empty if the status is 200. The JSON is empty if there is an error.
    """
    if status == NO_ANSWER:
        return body.decode(), {}
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return f"{status}, not JSON", {}
    if status != HTTPStatus.OK:
        return f"{status} {answer.get('code', '')}".strip(), {}
    return "", answer


@dataclass(slots=True)
class _Exchange:
    """One request, and its callback.

    `again` is true if the request was sent before over a connection that the server closed.
    """

    request: bytes
    done: Done
    begun_at: float
    again: bool = False
    retry_after: float = 0.0
    """The seconds in the header Retry-After of the answer."""


class _Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time."""

    def __init__(self, pool: "Pool", *, resends: bool) -> None:
        self._pool = pool
        self._resends = resends
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._heard = False
        self._used = False
        self.exchange: _Exchange | None = None

    def begin(self, exchange: _Exchange) -> None:
        """Send a request. The connection must be free."""
        self.exchange = exchange
        self._heard = False
        assert self._transport is not None
        self._transport.write(exchange.request)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def is_ended(self) -> bool:
        """Return whether the server has closed this connection.

        The result can be true before connection_lost() is called.
        """
        assert self._transport is not None
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is not an instance of this type.
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.finish(NO_ANSWER, b"the answer is not HTTP")
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after" and value.isdigit() and self.exchange:
            self.exchange.retry_after = float(value)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Deliver the answer. If the server keeps the connection open, the connection is free again."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._used = True
        done = self.exchange.done if self.exchange else _nobody
        self.exchange = None
        if self._parser.should_keep_alive():
            self._pool.freed(self)
        else:
            self.abort()
        done(self._parser.get_status_code(), body)

    def finish(self, status: int, body: bytes) -> None:
        """End the current exchange, if there is one, with this status and body."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.done(status, body)

    def connection_lost(self, _: Exception | None) -> None:
        """Send the exchange again if the server may have closed the connection while it was idle.

        If not, let the exchange fail.
        """
        exchange = self.exchange
        if exchange is not None and self._resends and self._used and not self._heard and not exchange.again:
            self.exchange, exchange.again = None, True
            self._pool.queue_first(exchange)
        self.finish(NO_ANSWER, b"connection lost")
        self._pool.lost(self)


def _nobody(status: int, body: bytes) -> None:
    """Ignore an answer without a request."""


class Pool:
    """At most `limit` connections to one server, which are opened when they are needed.

    If a used connection is lost before its answer begins, the request is sent once more. A strict pool sends no request
    twice. Before a strict pool uses a connection, it checks whether the server has closed this connection. `left`
    counts the requests that used another connection because of this check.

    `sources` are the local addresses of the connections, which are used in turn. The server must be on loopback if
    `sources` is not empty.
    """

    def __init__(self, server: Server, limit: int, *, strict: bool = False, sources: Sequence[str] = ()) -> None:
        self._server = server
        self._sources = cycle([(source, 0) for source in sources] or [None])
        self._limit = limit
        self._strict = strict
        self.left = 0
        self._tls = ssl.create_default_context() if server.tls else None
        self._connections: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._queue: deque[_Exchange] = deque()
        self._opening: set[asyncio.Task[None]] = set()

    def send(self, request: bytes, done: Done) -> None:
        """Send a request as soon as a connection is free.

        `done` is called once, with the status and the body of the answer.
        """
        self._send(_Exchange(request, done, time.monotonic()))

    async def call(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, and return the status and the body of its answer."""
        status, body, _ = await self.ask(request)
        return status, body

    async def ask(self, request: bytes) -> tuple[int, bytes, float]:
        """Send a request. Return the status, the body, and the seconds in the header Retry-After of its answer.

        Without this header, the seconds are 0.
        """
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

        def done(status: int, body: bytes) -> None:
            if not answer.done():
                answer.set_result((status, body))

        exchange = _Exchange(request, done, time.monotonic())
        self._send(exchange)
        return *await answer, exchange.retry_after

    def _send(self, exchange: _Exchange) -> None:
        while self._idle:
            connection = self._idle.pop()
            if self._may_write(connection):
                connection.begin(exchange)
                return
        self._queue.append(exchange)
        self._open_what_is_wanted()

    def sweep(self) -> None:
        """End requests that have taken longer than ANSWER_SECONDS.

        The caller must call this method about every second.
        """
        oldest = time.monotonic() - ANSWER_SECONDS
        while self._queue and self._queue[0].begun_at < oldest:
            self._queue.popleft().done(NO_ANSWER, b"time-out")
        for connection in list(self._connections):
            if connection.exchange is not None and connection.exchange.begun_at < oldest:
                connection.finish(NO_ANSWER, b"time-out")
                connection.abort()

    def close(self) -> None:
        """Cut all connections. Requests in progress fail."""
        for task in self._opening:
            task.cancel()
        for connection in list(self._connections):
            connection.abort()

    def opened(self, connection: _Connection) -> None:
        """Add a new connection, and let it send the next request."""
        self._connections.add(connection)
        self.freed(connection)

    def freed(self, connection: _Connection) -> None:
        """Let a free connection send the next request in the queue."""
        if not self._queue:
            self._idle.append(connection)
        elif self._may_write(connection):
            connection.begin(self._queue.popleft())

    def lost(self, connection: _Connection) -> None:
        """Remove a connection."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._open_what_is_wanted()

    def queue_first(self, exchange: _Exchange) -> None:
        """Put an exchange at the front of the queue."""
        self._queue.appendleft(exchange)

    def _may_write(self, connection: _Connection) -> bool:
        if not self._strict or not connection.is_ended():
            return True
        self.left += 1
        connection.abort()
        return False

    def _open_what_is_wanted(self) -> None:
        room = self._limit - len(self._connections) - len(self._opening)
        for _ in range(min(room, len(self._queue) - len(self._opening))):
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._tried)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        host, port = self._server.host, self._server.port
        protocol = partial(_Connection, self, resends=not self._strict)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await loop.create_connection(protocol, host, port, ssl=self._tls, local_addr=next(self._sources))
        except (OSError, TimeoutError) as error:
            if self._queue:
                self._queue.popleft().done(NO_ANSWER, f"cannot connect: {type(error).__name__}".encode())

    def _tried(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            task.result()
            self._open_what_is_wanted()
