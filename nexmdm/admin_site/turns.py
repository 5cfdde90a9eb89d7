"""The turn of a request to the admin site: its place among the served requests, and its database connection.

Only a few requests are served at the same time. All other requests wait for a place. A request gives up its place and
its connection while a password is hashed, and when its answer begins. So a slow hash or a slow client does not block
other requests.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Self

from nexmdm.common import database
from nexmdm.common.overload import connection_turns
from nexmdm.common.overload.gates import Gate

SECONDS: Final = 5
SITE: Final = Gate("site", at_once=1, waiting=32, waiting_per_key=8, seconds=SECONDS)
"""The gate for pages. It lets one request create a page at a time.

A page takes 20 to 100 ms, mostly in Python. With two pages at the same time, heartbeats waited twice as long for the
GIL. The gate counts by address, so that one client cannot take all places.
"""

_current: ContextVar["SiteTurn | None"] = ContextVar("site_turn", default=None)


class SiteTurn:
    """The place and the connection of one request.

    Create a SiteTurn on the event loop. Inside its `with` block, given_up() uses this SiteTurn. `ends_at` is the
    deadline for the work of the request, a time of time.monotonic(). The wait for a place counts as work.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.ends_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._held = False

    def __enter__(self) -> Self:
        self._outer = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()
        _current.reset(self._outer)

    async def take(self, *, again: bool = False) -> None:
        """Wait for a place and a connection. Raises GateFull if the wait is too long.

        Set `again` if the request had a place before.
        """
        self.ends_at = time.monotonic() + database.WAIT_SECONDS
        await SITE.enter(self.address, again=again)
        try:
            await connection_turns.of_loop().acquire(self.ends_at)
            self._held = True
        finally:
            if not self._held:
                SITE.leave(self.address)

    def give_up(self) -> None:
        """Give up the request's place at the gate SITE and its turn to use a database connection. A second call does
        nothing.
        """
        if self._held:
            self._held = False
            connection_turns.of_loop().release()
            SITE.leave(self.address)

    def give_up_from_thread(self) -> None:
        """Do give_up() on the event loop. Call this function in the thread of the request."""
        self._loop.call_soon_threadsafe(self.give_up)

    def take_from_thread(self) -> None:
        """Wait for a place and a connection again, in the thread of the request. Raises GateFull."""
        # Longer than take() waits. Without a time limit, the thread would wait for ever if the event loop has stopped.
        asyncio.run_coroutine_threadsafe(self.take(again=True), self._loop).result(3 * SECONDS)


def ends_at() -> float:
    """Return the deadline for the work of the current request, a time of time.monotonic()."""
    turn = _current.get()
    return time.monotonic() + database.WAIT_SECONDS if turn is None else turn.ends_at


@contextmanager
def given_up() -> Iterator[None]:
    """Give up the place and the connection while this context is open.

    The context may be in the thread of a request, or in a management command.
    """
    database.release_connections()
    turn = _current.get()
    if turn is None:
        yield
        return
    turn.give_up_from_thread()
    yield
    turn.take_from_thread()
