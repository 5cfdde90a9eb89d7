"""Attacks below HTTP: connections full of requests, and silent connections."""

import asyncio
import re
import select
import socket
import struct
import time
from contextlib import closing, suppress
from functools import partial
from math import inf
from typing import Final, cast

from loadtest.testbed.connections import Server
from loadtest.trust.trials.one_against_all.order import ROUND_TRIP_SECONDS, Order, Tally

PIPELINED: Final = 7400
"""The number of requests that a connection sends before it waits for answers."""

OPENED_PER_SECOND: Final = 4000
REOPENED_PER_SECOND: Final = 200
"""The rate at which silent connections are opened again after the server has closed them."""

SETTLED_SECONDS: Final = 1
"""The silent connections are settled if the server has closed none of them for this time."""

_TICK_SECONDS: Final = 0.005
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3})")
_LONGEST_CUT: Final = len("HTTP/1.1 404") - 1
_RESET: Final = struct.pack("ii", 1, 0)


class _Pipelining(asyncio.Protocol):
    """A connection that sends thousands of requests together, reads all answers, and sends the requests again."""

    def __init__(self, heads: bytes, tally: Tally) -> None:
        self._heads = heads
        self._tally = tally
        self._rest = b""
        self._answered = 0
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is not an instance of this type.
        self._write()

    def data_received(self, data: bytes) -> None:
        text = self._rest + data
        statuses = _STATUS.findall(text)
        self._rest = text[-_LONGEST_CUT:]
        self._tally.answers.update(status.decode() for status in statuses)
        self._answered += len(statuses)
        if self._answered >= PIPELINED:
            self._write()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def _write(self) -> None:
        assert self._transport is not None
        self._answered = 0
        self._tally.sent += PIPELINED
        self._transport.write(self._heads)


async def pipeline(order: Order, tally: Tally) -> None:
    """Keep `order.connections` connections full of requests, until cancelled."""
    server = Server.of(order.url)
    tally.under_way.set()
    heads = f"GET /x HTTP/1.1\r\nHost: {server.authority}\r\n\r\n".encode() * PIPELINED
    sources = (order.sources[number % len(order.sources)] for number in range(order.connections))
    await asyncio.gather(*(_fill(server, source, heads, tally) for source in sources))


async def _fill(server: Server, source: str, heads: bytes, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    while True:
        with suppress(OSError):
            transport, protocol = await loop.create_connection(
                partial(_Pipelining, heads, tally), server.host, server.port, local_addr=(source, 0)
            )
            try:
                await protocol.closed
            finally:
                transport.abort()
        await asyncio.sleep(ROUND_TRIP_SECONDS)


class _Crowd:
    """Silent connections as plain sockets.

    With asyncio, each connection would need a third of a millisecond of a core.
    """

    def __init__(self, server: Server, source: str, tally: Tally) -> None:
        self._address = (server.host, server.port)
        self._source = (source, 0)
        self._tally = tally
        self._ready = select.epoll()
        self._sockets: dict[int, socket.socket] = {}

    def __len__(self) -> int:
        return len(self._sockets)

    def open(self) -> None:
        """Begin to open one more connection."""
        one = socket.socket()
        one.setblocking(False)
        # With this option, close() cuts the connection, and the system does not keep its port for a minute.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        one.bind(self._source)
        one.connect_ex(self._address)
        self._sockets[one.fileno()] = one
        self._ready.register(one, select.EPOLLIN | select.EPOLLRDHUP)
        self._tally.sent += 1

    def look(self) -> None:
        """Read the received data, and remove the connections that the server has closed."""
        for descriptor, _ in self._ready.poll(0):
            said = b""
            with suppress(OSError):
                said = self._sockets[descriptor].recv(4096)
            self._tally.answers.update(status.decode() for status in _STATUS.findall(said))
            if not said:
                self._sockets.pop(descriptor).close()
        self._tally.held = max(self._tally.held, len(self))

    def close(self) -> None:
        self._ready.close()
        for one in self._sockets.values():
            one.close()


async def hold(order: Order, tally: Tally) -> None:
    """Keep `order.connections` silent connections open, until cancelled.

    If the server closes connections, up to REOPENED_PER_SECOND of them are replaced in a second.
    """
    with closing(_Crowd(Server.of(order.url), order.sources[0], tally)) as crowd:
        await _open(crowd, order, tally, OPENED_PER_SECOND, until=order.connections)
        await _settle(crowd)
        tally.under_way.set()
        await _open(crowd, order, tally, REOPENED_PER_SECOND)


async def _open(crowd: _Crowd, order: Order, tally: Tally, per_second: float, *, until: float = inf) -> None:
    """Open the missing connections, until `until` connections were opened in total."""
    began, before = time.monotonic(), tally.sent
    while tally.sent < until:
        due = (time.monotonic() - began) * per_second - (tally.sent - before)
        for _ in range(int(min(due, order.connections - len(crowd)))):
            crowd.open()
        crowd.look()
        await asyncio.sleep(_TICK_SECONDS)


async def _settle(crowd: _Crowd) -> None:
    """Wait until the server closes no more connections. The server needs some time to refuse thousands of them."""
    left, since = len(crowd), time.monotonic()
    while time.monotonic() < since + SETTLED_SECONDS:
        await asyncio.sleep(_TICK_SECONDS)
        crowd.look()
        if len(crowd) != left:
            left, since = len(crowd), time.monotonic()
