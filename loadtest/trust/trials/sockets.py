"""Clients below HTTP: they send any bytes at any time, and observe the answer and the end of the connection."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

CHUNK: Final = b"x" * 65_536
_PATIENCE_SECONDS: Final = 30
_CUT_AT_ONCE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Received:
    """What a client received.

    - `status`: the status of the answer; 0: there was no answer.
    - `seconds`: the time until the answer or the end of the connection.
    """

    status: int
    seconds: float


def head(target: str, *headers: str, method: str = "POST") -> bytes:
    """Return the head of a request, without the empty line that ends a head."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *headers, ""]).encode()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection to the server of a URL. At the end of the block, cut the connection."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def say(url: str, *pieces: bytes) -> Received:
    """Send all pieces, even after an answer, and return what the client received."""
    return flood(url, iter(pieces))


def flood(url: str, pieces: Iterator[bytes]) -> Received:
    """Send pieces until there are no more, or until the server accepts no more. Return what the client received.

    As a hostile client does, this client continues to send after the answer.
    """
    began = time.monotonic()
    with _open(url) as connection:
        sending = threading.Thread(target=_send, args=[connection, pieces], daemon=True)
        sending.start()
        received = _hear(connection)
        seconds = time.monotonic() - began
        sending.join(_PATIENCE_SECONDS)
    return Received(received, seconds)


def _open(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=_PATIENCE_SECONDS)


def _send(connection: socket.socket, pieces: Iterator[bytes]) -> None:
    with suppress(OSError):
        for piece in pieces:
            connection.sendall(piece)


def _hear(connection: socket.socket) -> int:
    """Return the status of the answer, or 0 if the connection ends without an answer."""
    with suppress(ConnectionError):
        words = connection.recv(64).split()
        return int(words[1]) if len(words) > 1 else 0
    return 0


def cut_after(url: str, sent: bytes, *, politely: bool, read: int = 0) -> None:
    """Send bytes, read `read` bytes of the answer, and disconnect.

    The connection ends with a FIN if `politely` is true, and with a TCP reset (RST) if not.
    """
    with _open(url) as connection:
        if not politely:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CUT_AT_ONCE)
        connection.sendall(sent)
        if read:
            connection.recv(read)


def replay(url: str, request: bytes) -> int:
    """Send a request over a new connection. Return the status of its answer, or 0 if there was no answer."""
    with _open(url) as connection:
        connection.sendall(request)
        return _hear(connection)
