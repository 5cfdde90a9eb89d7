"""A small HTTP/1.1 server for the fake FCM. It needs little processor time, because the tested server needs the rest.

httptools reads the requests. Each connection has one request at a time, as from the clients of FCM.
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
    """One request, and the way to answer it: by answer() once, by cut(), or not at all."""

    connection: "Connection"
    method: str = ""
    path: str = ""
    query: str = ""
    authorization: str = ""
    body: bytes = b""

    def answer(
        self, status: int = HTTPStatus.OK, body: bytes = b"", headers: tuple[tuple[str, str], ...] = _JSON
    ) -> None:
        """Send the answer."""
        self.connection.write(status, body, headers)

    def cut(self) -> None:
        """Cut the connection by RST."""
        self.connection.cut()


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, serve: Callable[[Request], None], connections: "set[Connection]") -> None:
        self._serve = serve
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._request = Request(self)
        self._url = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the connection, so that a close can cut it."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        """Delete the connection."""
        self._transport = None
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Read further data; if it is not HTTP, the connection ends."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # An error of our own code.
        except httptools.HttpParserError:
            self.cut()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._request, self._url, self._body = Request(self), b"", []

    def on_url(self, part: bytes) -> None:
        """Add a part to the request target."""
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store the only header that is needed."""
        if name.lower() == b"authorization":
            self._request.authorization = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        """Add a part to the body."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Answer the request."""
        request = self._request
        request.method = self._parser.get_method().decode()
        path, _, query = self._url.decode("latin-1").partition("?")
        request.path, request.query, request.body = path, query, b"".join(self._body)
        self._serve(request)

    def write(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...]) -> None:
        """Write an answer, if the client is still connected."""
        if self._transport is None:
            return
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"HTTP/1.1 {status} {_phrase(status)}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def cut(self) -> None:
        """Cut the connection by RST."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CUT_AT_ONCE)
            self._transport.abort()


@dataclass(slots=True)
class HttpServer:
    """A server on a listening socket; `serve` is called with each request."""

    serve: Callable[[Request], None]
    connections: set[Connection] = field(default_factory=set)
    _server: Any = None

    async def start(self, listener: socket.socket) -> None:
        """Begin to accept connections."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self.serve, self.connections), sock=listener, backlog=1024
        )

    def close(self) -> None:
        """Accept no more connections, and cut the open ones."""
        self._server.close()
        for connection in list(self.connections):
            connection.cut()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
