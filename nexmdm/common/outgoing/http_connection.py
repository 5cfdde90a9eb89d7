"""An HTTP/1.1 connection to another service.

docs/decisions/0013-connections-to-fcm.md explains why NexMDM has its own client: aiohttp took half of the processor
time of a push.
"""

import asyncio
import ssl
from typing import NamedTuple, cast

import httptools


class NoResponse(ConnectionError):
    """The connection ended before a complete response came, or the received data are not one HTTP response."""


class HttpResponse(NamedTuple):
    """A complete response. `retry_after` is the text of the header Retry-After, or empty without this header."""

    status: int
    retry_after: str
    body: bytes


class HttpConnection(asyncio.Protocol):
    """A connection for one request at a time.

    This connection adds itself to `connections`, the set of all open connections. A response with more than
    `most_bytes` bytes is an error.
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
        """Whether a further request may be sent on this connection."""
        return not self._transport.is_closing()

    async def exchange(self, request: bytes) -> HttpResponse:
        """Send a request and return its response. Raises OSError. A cancelled call closes the connection."""
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
        """Close the connection immediately. Data that are not sent yet are lost."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Add this connection to the open connections."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Complete a response whose body ends with the connection (RFC 9112, section 6.3). Any other response fails."""
        self._connections.discard(self)
        if self._is_whole_at_the_end and error is None:
            self._finish()
        else:
            self._fail(error or NoResponse("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        """Read more data of the response."""
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
        """Close the connection if a second response follows. The next request must not get the second response."""
        if self._response is None or self._response.done():
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note the value of Retry-After, and whether the response has a length."""
        match name.lower():
            case b"retry-after":
                self._retry_after = value.decode("latin-1")
            case b"content-length" | b"transfer-encoding":
                self._has_length = True

    def on_headers_complete(self) -> None:
        """If the response has no length, note that the body ends with the connection."""
        self._is_whole_at_the_end = not self._has_length

    def on_body(self, part: bytes) -> None:
        """Store a part of the body."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Deliver the response. Responses with a status from 100 to 199 are ignored (RFC 9110, section 15.2)."""
        if self._parser.get_status_code() < 200:
            self._retry_after, self._has_length, self._is_whole_at_the_end = "", False, False
            return
        self._finish()
        if not self._parser.should_keep_alive():
            self._transport.close()

    def _overflow(self) -> None:
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
    """Return the TLS settings for requests of NexMDM: certificates and host names are verified. The protocol is
    HTTP/1.1.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
