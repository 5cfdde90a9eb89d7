"""The kept connections to FCM: HTTP/1.1, one request at a time on each, read by httptools.

docs/decisions/0013-connections-to-fcm.md has the reason and the figures: aiohttp took half of the processor time of a
push.
"""

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast
from urllib.parse import quote, urlsplit

import aiohappyeyeballs
import httptools

KEPT_SECONDS: Final = 60
"""How long an idle connection is kept."""

LOOKUP_KEPT_SECONDS: Final = 10
"""How long the addresses of FCM's host are used, in seconds: so 500 new connections ask the resolver once."""

NEXT_ADDRESS_SECONDS: Final = 0.25
"""How long one address of the host may take to connect before the next address is tried too, in seconds (RFC 8305,
section 5).
"""

MOST_BYTES: Final = 1_000_000
"""The longest response that is read, in bytes. FCM's own responses are shorter than a kilobyte."""


class NoResponse(ConnectionError):
    """The connection ended before the response was complete, or what came is not an HTTP response."""


class HttpResponse(NamedTuple):
    """A complete response. Of the headers it contains only the text of Retry-After, which is empty if there is none."""

    status: int
    retry_after: str
    body: bytes


class FcmConnections:
    """Up to `limit` connections to one origin, such as `https://fcm.googleapis.com`, for POSTs of JSON to one path."""

    def __init__(self, origin: str, path: str, *, limit: int) -> None:
        url = urlsplit(origin)
        assert url.hostname is not None
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = _tls() if url.scheme == "https" else None
        self._request_line = f"POST {quote(path, safe='/:')} HTTP/1.1\r\nHost: {url.netloc}\r\n"
        self._slots = asyncio.Semaphore(limit)
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self._addresses: list[Any] = []
        self._looked_up_at = float("-inf")
        self._looking_up = asyncio.Lock()
        self._closing_idle: asyncio.TimerHandle | None = None

    async def post(self, make_body: Callable[[], bytes], authorization: str) -> HttpResponse:
        """Send one request and return its response; wait for a free connection if all are in use.

        `make_body` is called when there is a connection, directly before the request is written. If it raises, nothing
        is sent, and the caller gets its error. Raises OSError for errors of the network, including NoResponse, and
        ValueError for an `authorization` that cannot be a header. A cancelled request closes its connection.
        """
        if not (authorization.isascii() and authorization.isprintable()):
            raise ValueError("the authorization has characters that no HTTP header can have")
        async with self._slots:
            connection = self._take_idle() or await self._connect()
            try:
                body = make_body()
            except BaseException:
                self._keep(connection)
                raise
            response = await connection.exchange(self._head(authorization, len(body)) + body)
            self._keep(connection)
            return response

    def close(self) -> None:
        """Close all connections. Requests in progress fail."""
        if self._closing_idle is not None:
            self._closing_idle.cancel()
        for connection in list(self._open):
            connection.abort()

    def _head(self, authorization: str, length: int) -> bytes:
        fields = f"Authorization: {authorization}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        return (self._request_line + fields).encode("ascii")

    def _take_idle(self) -> "_Connection | None":
        """Return the connection that was used last, so that connections that are no longer needed time out."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        return None

    def _keep(self, connection: "_Connection") -> None:
        if not connection.is_usable:
            return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._closing_idle is None:
            self._closing_idle = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        self._closing_idle = None
        now = time.monotonic()
        while self._idle and (self._idle[0].idle_since <= now - KEPT_SECONDS or not self._idle[0].is_usable):
            self._idle.popleft().abort()
        if self._idle:
            wait = self._idle[0].idle_since + KEPT_SECONDS - now
            self._closing_idle = asyncio.get_running_loop().call_later(wait, self._close_idle)

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        connected = await aiohappyeyeballs.start_connection(
            await self._look_up(), happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1, loop=loop
        )
        server_hostname = self._host if self._tls else None
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self._open), sock=connected, ssl=self._tls, server_hostname=server_hostname
            )
        except BaseException:
            connected.close()
            raise
        return connection

    async def _look_up(self) -> list[Any]:
        async with self._looking_up:
            if time.monotonic() - self._looked_up_at > LOOKUP_KEPT_SECONDS:
                loop = asyncio.get_running_loop()
                self._addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                self._looked_up_at = time.monotonic()
            return self._addresses


class _Connection(asyncio.Protocol):
    """One connection; `connections` are all that are open."""

    def __init__(self, connections: "set[_Connection]") -> None:
        self.idle_since = 0.0
        self._connections = connections
        self._transport: asyncio.Transport
        self._response: asyncio.Future[HttpResponse] | None = None
        self._begin()

    @property
    def is_usable(self) -> bool:
        """Whether a further request may be written on it."""
        return not self._transport.is_closing()

    async def exchange(self, request: bytes) -> HttpResponse:
        """Write a request and return its response. Raises OSError. A cancelled exchange closes the connection."""
        if not self.is_usable:
            raise NoResponse("the connection was closed")
        self._begin()
        self._response = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._response
        except BaseException:
            self.abort()
            raise
        finally:
            self._response = None

    def abort(self) -> None:
        """Close the connection without waiting for what is still to be written."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection among those that are open."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """End the response if it ends with the connection (RFC 9112, section 6.3); otherwise it has failed."""
        self._connections.discard(self)
        if self._is_whole_at_the_end and error is None:
            self._finish()
        else:
            self._fail(error or NoResponse("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        """Read further data of the response."""
        self._received += len(data)
        if self._response is None or self._received > MOST_BYTES:
            self._fail(NoResponse("there was more than one response to a request"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(NoResponse("the response was not HTTP"))

    def on_message_begin(self) -> None:
        """Close the connection if a second response follows: the next request must not get it."""
        if self._response is None or self._response.done():
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note the headers that matter."""
        match name.lower():
            case b"retry-after":
                self._retry_after = value.decode("latin-1")
            case b"content-length" | b"transfer-encoding":
                self._has_length = True

    def on_headers_complete(self) -> None:
        """Note whether the body has no length, and so ends with the connection."""
        self._is_whole_at_the_end = not self._has_length

    def on_body(self, part: bytes) -> None:
        """Store a part of the body."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Deliver the response. Responses before the final one (100 to 199) are ignored (RFC 9110, section 15.2)."""
        if self._parser.get_status_code() < 200:
            self._retry_after, self._has_length, self._is_whole_at_the_end = "", False, False
            return
        self._finish()
        if not self._parser.should_keep_alive():
            self._transport.close()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._retry_after = ""
        self._body: list[bytes] = []
        self._received = 0
        self._has_length = False
        self._is_whole_at_the_end = False

    def _finish(self) -> None:
        self._is_whole_at_the_end = False
        if self._response is not None and not self._response.done():
            status = self._parser.get_status_code()
            self._response.set_result(HttpResponse(status, self._retry_after, b"".join(self._body)))

    def _fail(self, error: Exception) -> None:
        if self._response is not None and not self._response.done():
            self._response.set_exception(error)
        self._transport.abort()


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
