"""Requests to the receivers of webhooks. For each webhook, at most one connection is kept for further requests.

For a new connection, the host is resolved once, and each of its addresses is checked. The connection goes to one of
these addresses. A later answer of the resolver has no effect. TLS verifies the certificate against the host name.
"""

import asyncio
import socket
import threading
import time
from typing import Any, Final, NamedTuple
from uuid import UUID

import aiohappyeyeballs

from nexmdm.common.outgoing.http_connection import HttpConnection, NoResponse, tls_context
from nexmdm.webhooks import destinations
from nexmdm.webhooks.destinations import Destination

TIMEOUT_SECONDS: Final = 10
"""The longest time in seconds from the look-up of the receiver's address to the headers of its response."""

MOST_BYTES: Final = 65_536
"""The largest number of bytes of a response that are read. The rest of a longer response is ignored: only the status
matters.
"""

KEPT_SECONDS: Final = 30
"""The time in seconds after which an idle connection is closed."""

USED_SECONDS: Final = 60
"""The time in seconds for which a connection is used. After this time, the host is resolved again for a new connection.
"""

NEXT_ADDRESS_SECONDS: Final = 0.25
"""If a connection is not open after this time (in seconds), the next address is tried too (RFC 8305, section 5)."""


class Outcome(NamedTuple):
    """The outcome of a request. `http_status` is the status of the response, or None without a response.

    `error` is the reason why there was no response. `latency_ms` is the time that the request took.
    """

    http_status: int | None
    error: str
    latency_ms: int


class _Connection(HttpConnection):
    """A connection to a receiver. The status of a response counts even if the response is too long or not complete."""

    def __init__(self, connections: "set[HttpConnection]", authority: str) -> None:
        super().__init__(connections, most_bytes=MOST_BYTES)
        self.authority = authority
        self.opened_at = time.monotonic()
        self.status: int | None = None

    @property
    def has_answered(self) -> bool:
        """Whether any part of a response to the present request has arrived."""
        return self._received > 0

    def on_headers_complete(self) -> None:
        """Note the status of the response."""
        super().on_headers_complete()
        if (status := self._parser.get_status_code()) >= 200:
            self.status = status

    def _begin(self) -> None:
        super()._begin()
        self.status = None

    def _overflow(self) -> None:
        if self.status is not None:
            self._finish()
        super()._overflow()


class Receivers:
    """Sends requests to the receivers of webhooks. Use it on one event loop."""

    def __init__(self) -> None:
        self._tls = tls_context()
        self._open: set[HttpConnection] = set()
        self._idle: dict[UUID, _Connection] = {}

    async def post(self, webhook_id: UUID, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        """Send one request and return its outcome. Errors of the network are outcomes, and are not raised.

        A kept connection of the webhook is used if the receiver has not closed it. Redirects are not followed. If this
        call is cancelled, the connection of the request is closed.
        """
        started = time.monotonic()
        used: list[_Connection] = []
        error, status = "", None
        try:
            destination = destinations.parse(url)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status = await self._exchange(webhook_id, destination, _request(destination, headers, body), used)
        except destinations.Refused as refused:
            error = f"the URL {refused}"
        except TimeoutError:
            status = used[-1].status if used else None
            error = "" if status else f"no response within {TIMEOUT_SECONDS} s"
        except OSError as failure:
            error = _reason(failure)
        return Outcome(status, error[:200], round((time.monotonic() - started) * 1000))

    def close_idle(self) -> None:
        """Close the connections that were not used for KEPT_SECONDS."""
        before = time.monotonic() - KEPT_SECONDS
        for webhook_id, connection in list(self._idle.items()):
            if connection.idle_since < before or not connection.is_usable:
                del self._idle[webhook_id]
                connection.abort()

    def close(self) -> None:
        """Close all connections. Requests in progress fail."""
        for connection in list(self._open):
            connection.abort()

    async def _exchange(
        self, webhook_id: UUID, destination: Destination, request: bytes, used: list[_Connection]
    ) -> int:
        """Send a request and return the status. Each connection that is tried is added to `used`."""
        kept = self._take_idle(webhook_id, destination)
        while True:
            connection = kept or await self._connect(destination)
            used.append(connection)
            try:
                response = await connection.exchange(request)
            except (NoResponse, ConnectionError):
                if kept is None or kept.has_answered:
                    raise
                kept = None  # The receiver had closed the connection before the request came.
                continue
            if connection.is_usable:
                connection.idle_since = time.monotonic()
                self._idle[webhook_id] = connection
            return response.status

    def _take_idle(self, webhook_id: UUID, destination: Destination) -> _Connection | None:
        connection = self._idle.pop(webhook_id, None)
        if connection is None:
            return None
        is_young = time.monotonic() - connection.opened_at < USED_SECONDS
        if connection.is_usable and is_young and connection.authority == _origin(destination):
            return connection
        connection.abort()
        return None

    async def _connect(self, destination: Destination) -> _Connection:
        loop = asyncio.get_running_loop()
        found = await _look_up(destination.host, destination.port)
        addresses = {destinations.parse_address(one[4][0]) for one in found}
        destinations.check_addresses(addresses, is_https=destination.is_https)
        connected = await aiohappyeyeballs.start_connection(
            found, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1, loop=loop
        )
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self._open, _origin(destination)),
                sock=connected,
                ssl=self._tls if destination.is_https else None,
                server_hostname=destination.host.removesuffix(".") if destination.is_https else None,
            )
        except BaseException:
            connected.close()
            raise
        return connection


async def _look_up(host: str, port: int) -> list[Any]:
    # Use a new thread: a look-up may take longer than the request may take. The event loop has only few threads for
    # look-ups, and FCM's host needs them too.
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def settle(addresses: list[Any], error: OSError | None) -> None:
        if not found.done():
            found.set_result(addresses) if error is None else found.set_exception(error)

    def work() -> None:
        addresses: list[Any] = []
        failure: OSError | None = None
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=work, name="look up a webhook's host", daemon=True).start()
    return await found


def _origin(destination: Destination) -> str:
    return f"{destination.is_https} {destination.authority}"


def _request(destination: Destination, headers: dict[str, str], body: bytes) -> bytes:
    fields = {"Host": destination.authority, **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {destination.target} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body


def _reason(failure: OSError) -> str:
    if isinstance(failure, socket.gaierror):
        return f"the host was not found: {failure.strerror or failure}"
    return f"no response: {failure.strerror or failure or type(failure).__name__}"
