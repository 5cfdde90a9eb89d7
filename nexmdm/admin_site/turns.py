"""A request's place among those that the admin site serves at the same time, and its turn at a database connection.

Both are given up while a password is hashed, and when the answer begins: a slow hash or a slow reader holds nothing
that others wait for.
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
"""Pages that are made at the same time: one, on one connection of the pool. A page takes 20 to 100 ms, most of it in
Python; with two, the event loop waited twice as long for the GIL, and so did heartbeats. By address, so that a client
that asks for many pages leaves places to others."""

_current: ContextVar["SiteTurn | None"] = ContextVar("site_turn", default=None)


class SiteTurn:
    """The turn of one request, to be made on its event loop; within a `with` block it is the one of given_up()."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.ends_at = 0.0
        """When its work is over, in monotonic time; what it waited for its turn counts."""
        self._loop = asyncio.get_running_loop()
        self._held = False

    def __enter__(self) -> Self:
        self._outer = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()
        _current.reset(self._outer)

    async def take(self, *, again: bool = False) -> None:
        """Wait for a place and a connection's turn; `again` after giving them up for a while. Raises GateFull."""
        self.ends_at = time.monotonic() + database.WAIT_SECONDS
        await SITE.enter(self.address, again=again)
        try:
            await connection_turns.of_loop().acquire(self.ends_at)
            self._held = True
        finally:
            if not self._held:
                SITE.leave(self.address)

    def give_up(self) -> None:
        """Let others have it; does nothing if it is given up already."""
        if self._held:
            self._held = False
            connection_turns.of_loop().release()
            SITE.leave(self.address)

    def give_up_from_thread(self) -> None:
        """Do as give_up(), from the request's thread."""
        self._loop.call_soon_threadsafe(self.give_up)

    def take_from_thread(self) -> None:
        """Do as take() again, from the request's thread."""
        # Longer than take() itself waits: without a time-out, a thread would outlive an event loop that has stopped.
        asyncio.run_coroutine_threadsafe(self.take(again=True), self._loop).result(3 * SECONDS)


def ends_at() -> float:
    """Return when the work of the current request is over, in monotonic time."""
    turn = _current.get()
    return time.monotonic() + database.WAIT_SECONDS if turn is None else turn.ends_at


@contextmanager
def given_up() -> Iterator[None]:
    """Hold neither connection nor turn within the block, which runs in a request's thread or in a command."""
    database.release_connections()
    turn = _current.get()
    if turn is None:
        yield
        return
    turn.give_up_from_thread()
    yield
    turn.take_from_thread()
