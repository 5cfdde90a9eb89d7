"""A small HTTP/1.1 server for the fake FCM.

httptools reads the requests, because it needs little processor time. The server under test needs the processor time of
this machine. A client may send its next request on a connection only after the answer to the last request. The clients
of FCM follow this rule.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, cast

import httptools

_CUT_AT_ONCE: Final = struct.pack("ii", 1, 0)
_JSON: Final = (("Content-Type", "application/json"),)


@dataclass(slots=True)
class Request:
    """One HTTP request of a client.

    Call `answer` once, or call `cut`. If neither is called, the client gets no answer.
    """

    connection: "Connection"
    method: str = ""
    path: str = ""
    query: str = ""
    authorization: str = ""
    body: bytes = b""

    def answer(
        self, status: int = HTTPStatus.OK, body: bytes = b"", headers: tuple[tuple[str, str], ...] = _JSON
    ) -> None:
        """Send the answer to the client."""
        self.connection.write(status, body, headers)

    def cut(self) -> None:
        """Cut the client's connection with a TCP reset (RST)."""
        self.connection.cut()


class Connection(asyncio.Protocol):
    """The connection of one client. httptools calls the methods `on_…` while it reads a request."""

    def __init__(self, serve: Callable[[Request], None], connections: "set[Connection]") -> None:
        self._serve = serve
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request = Request(self)
        self._url = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Add the connection to the set of open connections."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        """Remove the connection from the set of open connections."""
        self._transport = None
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Read received bytes. If the bytes are not HTTP, cut the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # The error is in a method of this class.
        except httptools.HttpParserError:
            self.cut()

    def on_message_begin(self) -> None:
        """Begin a new request."""
        self._request, self._url, self._body = Request(self), b"", []

    def on_url(self, part: bytes) -> None:
        """Append a part of the request target."""
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store the value of the `Authorization` header. Ignore every other header."""
        if name.lower() == b"authorization":
            self._request.authorization = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        """Append a part of the body."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Give the complete request to the function `serve`."""
        request = self._request
        request.method = self._parser.get_method().decode()
        path, _, query = self._url.decode("latin-1").partition("?")
        request.path, request.query, request.body = path, query, b"".join(self._body)
        self._serve(request)

    def write(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...]) -> None:
        """Write an answer. If the client has closed the connection, do nothing."""
        if self._transport is None:
            return
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"HTTP/1.1 {status} {_phrase(status)}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def cut(self) -> None:
        """Cut the connection with a TCP reset (RST). If the client has closed the connection, do nothing."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CUT_AT_ONCE)
            self._transport.abort()


@dataclass(slots=True)
class HttpServer:
    """An HTTP server that calls `serve` for each request."""

    serve: Callable[[Request], None]
    connections: set[Connection] = field(default_factory=set)
    _server: Any = None

    async def start(self, listener: socket.socket) -> None:
        """Begin to accept connections on `listener`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self.serve, self.connections), sock=listener, backlog=1024
        )

    def close(self) -> None:
        """Stop accepting connections, and cut all open connections."""
        self._server.close()
        for connection in list(self.connections):
            connection.cut()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
