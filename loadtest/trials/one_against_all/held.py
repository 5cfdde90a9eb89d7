"""Attacks below HTTP: connections full of requests, and connections that say nothing."""

import asyncio
import re
import socket
import struct
import time
from contextlib import suppress
from functools import partial
from math import inf
from typing import Final, cast

from loadtest.connections import Server
from loadtest.trials.one_against_all.order import ROUND_TRIP_SECONDS, Order, Tally

PIPELINED: Final = 7400
"""How many requests a connection carries at a time."""

OPENED_PER_SECOND: Final = 4000
REOPENED_PER_SECOND: Final = 200
"""How quickly idle connections are opened, and then those replaced that the server closed."""

SETTLING_SECONDS: Final = 1
"""How long the server has to accept or refuse the last of them, before the connections are only held."""

_TICK_SECONDS: Final = 0.005
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3})")
_LONGEST_CUT: Final = len("HTTP/1.1 404") - 1
_RESET: Final = struct.pack("ii", 1, 0)


class _Pipelining(asyncio.Protocol):
    """A connection with thousands of requests at a time, of which it takes the answers; then as many again."""

    def __init__(self, heads: bytes, tally: Tally) -> None:
        self._heads = heads
        self._tally = tally
        self._rest = b""
        self._answered = 0
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by birth.
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
    """Keep so many connections full of requests, until cancelled."""
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


class _Silent(asyncio.Protocol):
    """A connection that says nothing."""

    def __init__(self, held: set[asyncio.Transport], tally: Tally) -> None:
        self._held = held
        self._tally = tally
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._held.add(self._transport)

    def data_received(self, data: bytes) -> None:
        self._tally.answers.update(status.decode() for status in _STATUS.findall(data))

    def connection_lost(self, _: Exception | None) -> None:
        assert self._transport is not None
        self._held.discard(self._transport)


async def hold(order: Order, tally: Tally) -> None:
    """Open so many connections, hold them, and replace some of those that the server closes, until cancelled."""
    held: set[asyncio.Transport] = set()
    async with asyncio.TaskGroup() as tasks:
        try:
            await _open_at_a_rate(tasks, order, tally, held, OPENED_PER_SECOND, until=order.connections)
            await _open_at_a_rate(tasks, order, tally, held, REOPENED_PER_SECOND)
        finally:
            for transport in held:
                _reset(transport)


async def _open_at_a_rate(
    tasks: asyncio.TaskGroup,
    order: Order,
    tally: Tally,
    held: set[asyncio.Transport],
    per_second: float,
    *,
    until: float = inf,
) -> None:
    """Open what is missing, until so many were opened in all; a little later the attack is under way."""
    server, began, opened = Server.of(order.url), time.monotonic(), tally.sent
    while tally.sent < until:
        due = (time.monotonic() - began) * per_second - (tally.sent - opened)
        for _ in range(int(min(due, order.connections - len(held)))):
            tally.sent += 1
            tasks.create_task(_open(server, order.sources[0], held, tally))
        tally.held = max(tally.held, len(held))
        await asyncio.sleep(_TICK_SECONDS)
    asyncio.get_running_loop().call_later(SETTLING_SECONDS, tally.under_way.set)


async def _open(server: Server, source: str, held: set[asyncio.Transport], tally: Tally) -> None:
    silent = partial(_Silent, held, tally)
    try:
        await asyncio.get_running_loop().create_connection(silent, server.host, server.port, local_addr=(source, 0))
    except OSError as error:
        tally.answers[f"not opened: {type(error).__name__}"] += 1


def _reset(transport: asyncio.Transport) -> None:
    """Cut a connection so that its port is free for the next turn, and not kept for a minute."""
    with suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
