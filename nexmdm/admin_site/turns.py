"""The place of a request among those that the admin site serves at the same time, and its database connection.

A request gives up both while a password is hashed, and when its answer begins. So other requests do not wait for a
slow hash or for a client that reads slowly.
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
"""The gate for pages: one page is created at a time, on one connection of the pool. A page takes 20 to 100 ms, mostly
in Python. With two pages at a time, the event loop and the heartbeats waited twice as long for the GIL. The gate counts
by address, so that one client cannot take all places.
"""

_current: ContextVar["SiteTurn | None"] = ContextVar("site_turn", default=None)


class SiteTurn:
    """The place and the connection of one request.

    Create it on the event loop; within its `with` block, given_up() uses this turn.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.ends_at = 0.0
        """The deadline of the request's work, in monotonic time; it includes the wait for a place."""
        self._loop = asyncio.get_running_loop()
        self._held = False

    def __enter__(self) -> Self:
        self._outer = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()
        _current.reset(self._outer)

    async def take(self, *, again: bool = False) -> None:
        """Wait for a place and a connection; set `again` after give_up(). Raises GateFull."""
        self.ends_at = time.monotonic() + database.WAIT_SECONDS
        await SITE.enter(self.address, again=again)
        try:
            await connection_turns.of_loop().acquire(self.ends_at)
            self._held = True
        finally:
            if not self._held:
                SITE.leave(self.address)

    def give_up(self) -> None:
        """Give up the place and the connection; do nothing if they are given up already."""
        if self._held:
            self._held = False
            connection_turns.of_loop().release()
            SITE.leave(self.address)

    def give_up_from_thread(self) -> None:
        """Call give_up() from the request's thread."""
        self._loop.call_soon_threadsafe(self.give_up)

    def take_from_thread(self) -> None:
        """Call take() with `again`, from the request's thread."""
        # Longer than take() itself waits: without a time-out, a thread would outlive an event loop that has stopped.
        asyncio.run_coroutine_threadsafe(self.take(again=True), self._loop).result(3 * SECONDS)


def ends_at() -> float:
    """Return the deadline of the current request's work, in monotonic time."""
    turn = _current.get()
    return time.monotonic() + database.WAIT_SECONDS if turn is None else turn.ends_at


@contextmanager
def given_up() -> Iterator[None]:
    """Give up the place and the connection within the block, which runs in a request's thread or in a command."""
    database.release_connections()
    turn = _current.get()
    if turn is None:
        yield
        return
    turn.give_up_from_thread()
    yield
    turn.take_from_thread()
