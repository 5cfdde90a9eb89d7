"""A TCP proxy on loopback that disturbs connections as a network does: it cuts, freezes or forgets them.

The proxy runs in a separate thread, so synchronous code can use it. When a method returns, the proxy has already
changed its behaviour.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self, TypeVar, cast

from loadtest.testbed.loopback import LOOPBACK

R = TypeVar("R")

_RESET: Final = struct.pack("ii", 1, 0)
"""A value of SO_LINGER. With this value, close() sends a TCP reset (RST), as socket(7) describes."""

_OPEN_SECONDS: Final = 1
"""If a connection to the target is being opened, a reset waits for it, but at most for this time."""


class TcpProxy:
    """A TCP proxy that accepts connections on `port` of 127.0.0.1, and forwards data to another port there.

    Use the proxy as a context manager. There is no limit on the data that the proxy keeps during a freeze.
    """

    def __init__(self, target: int) -> None:
        """Reserve a port.

        The proxy accepts no connections before the block begins. `target` is the port to forward to.
        """
        self._target = target
        self._frozen = False
        self._links: set[_Link] = set()
        self._socket = _bound(0)
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        """Begin to accept and forward connections."""
        self._thread.start()
        self._do(self._listen)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Reset all connections, and release the port."""
        self._do(self._cut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._socket.close()
        self._loop.close()

    @property
    def connections(self) -> int:
        """The number of open connections of clients. It includes connections that forward nothing since `forget`."""
        return self._do(self._count)

    def point_to(self, target: int) -> None:
        """Forward new connections to the port `target`. Open connections keep their port."""

        async def point() -> None:
            self._target = target

        self._do(point)

    def cut(self) -> None:
        """Reset all connections. Refuse new connections until `restore`."""
        self._do(self._cut)

    def freeze(self) -> None:
        """Accept connections and read their data, but forward nothing until `thaw`."""

        async def freeze() -> None:
            self._frozen = True

        self._do(freeze)

    def forget(self) -> None:
        """Forward nothing more of the present connections, not even their end. Neither side gets an error.

        New connections work. A router has this effect when it has lost its table of connections.
        """

        async def forget() -> None:
            for link in self._links:
                link.forgotten = True

        self._do(forget)

    def restore(self) -> None:
        """Forward the kept data and all new data. Accept new connections again."""
        self._do(self._restore)

    thaw = restore

    def _do(self, order: Callable[[], Awaitable[R]]) -> R:
        async def done() -> R:
            return await order()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result()

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(self._accept, sock=self._socket)

    def _accept(self) -> asyncio.Protocol:
        link = _Link(self._loop, self._target, self._is_frozen, self._links.discard)
        self._links.add(link)
        return link.client

    def _is_frozen(self) -> bool:
        return self._frozen

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._socket.close()
            self._socket = _bound(self.port)
        await asyncio.gather(*(link.reset() for link in list(self._links)))
        # The transports close their sockets in the loop's next round.
        await asyncio.sleep(0)

    async def _restore(self) -> None:
        self._frozen = False
        for link in list(self._links):
            link.forward()
        if self._server is None:
            await self._listen()

    async def _count(self) -> int:
        return sum(link.client.is_open() for link in self._links)


def _bound(port: int) -> socket.socket:
    """Return a socket that reserves a port and does not listen. So connections to this port are refused."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((LOOPBACK, port))
    return bound


class _Link:
    """A client's connection, and the connection to the target.

    The second connection opens when data may be forwarded.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: int,
        is_frozen: Callable[[], bool],
        ended: Callable[["_Link"], None],
    ) -> None:
        self._loop = loop
        self._target = target
        self._is_frozen = is_frozen
        self._ended = ended
        self._opening: asyncio.Task[None] | None = None
        self.client, self.server = _End(self), _End(self)
        self.forgotten = False

    def forward(self) -> None:
        """Forward the received data and the end of each connection, unless the proxy is frozen or the link is
        forgotten.
        """
        if self.forgotten or self._is_frozen():
            return
        if self._opening is None:
            self._opening = self._loop.create_task(self._open())
        if self.server.transport is None:
            return
        for one, other in ((self.client, self.server), (self.server, self.client)):
            one.pass_on_to(other)
        if self.client.has_ended and self.server.has_ended:
            self._ended(self)

    async def reset(self) -> None:
        """Reset both connections. If the connection to the target is being opened, wait for it first."""
        if self._opening is not None and not self._opening.done():
            await asyncio.wait([self._opening], timeout=_OPEN_SECONDS)
            self._opening.cancel()
        self._reset()

    def _reset(self) -> None:
        for one in (self.client, self.server):
            one.reset()
        self._ended(self)

    async def _open(self) -> None:
        try:
            await self._loop.create_connection(lambda: self.server, LOOPBACK, self._target)
        except OSError:
            self._reset()


class _End(asyncio.Protocol):
    def __init__(self, link: _Link) -> None:
        self._link = link
        self._kept: list[bytes] = []
        self.transport: asyncio.Transport | None = None
        self.has_ended = False
        self._was_reset = False

    def is_open(self) -> bool:
        return self.transport is not None and not self.has_ended

    def pass_on_to(self, other: "_End") -> None:
        assert other.transport is not None
        if not other.has_ended:
            other.transport.writelines(self._kept)
        self._kept.clear()
        if self._was_reset:
            other.reset()
        elif self.has_ended:
            other.transport.close()

    def reset(self) -> None:
        if self.transport is not None and not self.has_ended:
            connected = self.transport.get_extra_info("socket")
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._link.forward()

    def data_received(self, data: bytes) -> None:
        if not self._link.forgotten:
            self._kept.append(data)
        self._link.forward()

    def connection_lost(self, error: Exception | None) -> None:
        self.has_ended, self._was_reset = True, error is not None
        self._link.forward()
