"""The connections to FCM, which stay open between requests.

Each connection uses HTTP/1.1, with one request at a time (nexmdm/common/outgoing/http_connection.py). NexMDM does not
use aiohttp here, because aiohttp took half of the processor time of a push (docs/decisions/0013-connections-to-fcm.md).
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohappyeyeballs

from nexmdm.common.outgoing.http_connection import HttpConnection, HttpResponse, tls_context

KEPT_SECONDS: Final = 60
"""The time for which an idle connection is kept open, in seconds."""

LOOKUP_KEPT_SECONDS: Final = 10
"""The time for which the addresses of FCM's host are used, in seconds.

During this time, new connections do not ask the resolver again.
"""

NEXT_ADDRESS_SECONDS: Final = 0.25
"""If a connection is not open after this time (in seconds), the next address is tried too (RFC 8305, section 5)."""

MOST_BYTES: Final = 1_000_000
"""The longest response that is read, in bytes. FCM's responses are shorter than a kilobyte."""


class FcmConnections:
    """Up to `limit` connections to one origin, such as `https://fcm.googleapis.com`. Each request is a POST of JSON to
    `path`.
    """

    def __init__(self, origin: str, path: str, *, limit: int) -> None:
        url = urlsplit(origin)
        assert url.hostname is not None
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = tls_context() if url.scheme == "https" else None
        self._request_line = f"POST {quote(path, safe='/:')} HTTP/1.1\r\nHost: {url.netloc}\r\n"
        self._slots = asyncio.Semaphore(limit)
        self._idle: deque[HttpConnection] = deque()
        self._open: set[HttpConnection] = set()
        self._addresses: list[Any] = []
        self._looked_up_at = float("-inf")
        self._looking_up = asyncio.Lock()
        self._closing_idle: asyncio.TimerHandle | None = None

    async def post(self, make_body: Callable[[], bytes], authorization: str) -> HttpResponse:
        """Send one request and return its response. If all connections are in use, wait for a free connection.

        `make_body` is called when a connection is free, directly before the request is written. If `make_body` raises
        an error, nothing is sent, and the caller gets this error. Raises OSError for errors of the network, including
        NoResponse. Raises ValueError if `authorization` cannot be a header. If the call is cancelled, its connection is
        closed.
        """
        if not (authorization.isascii() and authorization.isprintable()):
            raise ValueError("the access token contains characters that are not allowed in an HTTP header")
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

    def _take_idle(self) -> HttpConnection | None:
        """Return the idle connection that was used last, or None.

        If few connections are needed, the same few connections are used. The rest stay idle, and are closed later.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        return None

    def _keep(self, connection: HttpConnection) -> None:
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

    async def _connect(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        connected = await aiohappyeyeballs.start_connection(
            await self._look_up(), happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1, loop=loop
        )
        server_hostname = self._host if self._tls else None
        try:
            _, connection = await loop.create_connection(
                lambda: HttpConnection(self._open, most_bytes=MOST_BYTES),
                sock=connected,
                ssl=self._tls,
                server_hostname=server_hostname,
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
