"""uvicorn's server, but for how it takes connections: all that wait, and not one in each turn of the event loop.

libuv (since 1.46) accepts one connection in a turn. A worker whose turns are long because it is busy would leave new
connections in the kernel's queue until their clients give up, while it serves those that it has.
"""

import asyncio
import socket
from functools import partial
from typing import Any, Final

import uvicorn

AT_ONCE: Final = 16
"""How many connections one turn takes: so a worker leaves some to the others that share the socket."""


class AcceptingServer(uvicorn.Server):
    """A server on one socket that listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections, with uvicorn's server and beside it."""
        assert sockets is not None
        self._listener = sockets[0]
        self._make: Any = self.config.http_protocol_class
        self._looks = False
        self._opening: set[asyncio.Task[Any]] = set()
        self.config.http_protocol_class = self._make_and_look  # type: ignore[assignment]
        await super().startup(sockets)

    def _make_and_look(self, **given: Any) -> asyncio.Protocol:
        """Make the protocol of a connection that uvicorn's server has taken; then look whether more are waiting."""
        if not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_soon(self._take_waiting, given)
        protocol: asyncio.Protocol = self._make(**given)
        return protocol

    def _take_waiting(self, given: dict[str, Any]) -> None:
        self._looks = False
        for _ in range(AT_ONCE):
            if self.should_exit or not self._take_one(given):
                return
        self._looks = True
        asyncio.get_running_loop().call_soon(self._take_waiting, given)

    def _take_one(self, given: dict[str, Any]) -> bool:
        """Take a connection that waits; tell whether there was one."""
        try:
            connection, _ = self._listener.accept()
        except OSError:  # None waits, or there is no descriptor left: uvicorn's server knows what to do.
            return False
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(partial(self._make, **given), connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True
