"""One HTTP/1.1 connection to another service, read by httptools.

docs/decisions/0013-connections-to-fcm.md has the reason and the figures: aiohttp took half of the processor time of a
push.
"""

import asyncio
import ssl
from typing import NamedTuple, cast

import httptools


class NoResponse(ConnectionError):
    """The connection ended before the response was complete, or what came is not an HTTP response."""


class HttpResponse(NamedTuple):
    """A complete response. Of its headers, only the text of Retry-After is kept; it is empty without this header."""

    status: int
    retry_after: str
    body: bytes


class HttpConnection(asyncio.Protocol):
    """One connection for one request at a time.

    `connections` are all open connections; `most_bytes` is the longest response that is read.
    """

    def __init__(self, connections: "set[HttpConnection]", *, most_bytes: int) -> None:
        self.idle_since = 0.0
        self._connections = connections
        self._most_bytes = most_bytes
        self._transport: asyncio.Transport
        self._response: asyncio.Future[HttpResponse] | None = None
        self._begin()

    @property
    def is_usable(self) -> bool:
        """Whether a further request may be written on this connection."""
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
        """Close the connection without waiting until all data are written."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection among those that are open."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Complete a response that ends with its connection (RFC 9112, section 6.3); any other response has failed."""
        self._connections.discard(self)
        if self._is_whole_at_the_end and error is None:
            self._finish()
        else:
            self._fail(error or NoResponse("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        """Read further data of the response."""
        self._received += len(data)
        if self._response is None:
            self._fail(NoResponse("there was more than one response to a request"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(NoResponse("the response was not HTTP"))
        else:
            if self._received > self._most_bytes:
                self._overflow()

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

    def _overflow(self) -> None:
        """End a response that is too long. A response that was already complete is kept."""
        self._fail(NoResponse("the response was too long"))

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


def tls_context() -> ssl.SSLContext:
    """Return the TLS settings of our requests: certificates and names are verified, and the protocol is HTTP/1.1."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
