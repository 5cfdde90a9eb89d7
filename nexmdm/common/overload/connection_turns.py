"""Turns: permissions to use a connection of the process's pool. Some turns are reserved for signed calls."""

import asyncio
import time
from typing import Final

from django.conf import settings

from nexmdm.common.overload.gates import GateFull
from nexmdm.common.overload.per_loop import PerLoop

RESERVED_CONNECTIONS: Final = 4
"""The number of connections that are kept for four kinds of work: flushes of heartbeats, flushes of reports, flushes of
small commands, and the check whether the process is ready. In a dispatcher, claims replace the flushes of heartbeats. A
process does each kind of work one at a time.
"""

SIGNED_TURNS: Final = 1
"""The number of turns that only signed calls may use."""

LEAST_WORK_SECONDS: Final = 1
"""Work begins only if at least this time (in seconds) is left before its deadline."""


def unsigned() -> int:
    """Return how many connections of the pool the work outside signed calls may use at the same time."""
    return max(1, _shared() - SIGNED_TURNS)


def _shared() -> int:
    return max(1, settings.DATABASE_POOL_SIZE - RESERVED_CONNECTIONS)


class Turns:
    """The turns of one event loop. A turn is the permission to use a connection of the pool.

    `ends_at` is the deadline of the work in monotonic time. The functions raise GateFull if no turn is free in time.
    """

    def __init__(self) -> None:
        self._shared = asyncio.Semaphore(_shared())
        self._unsigned = asyncio.Semaphore(unsigned())

    async def acquire(self, ends_at: float) -> None:
        """Wait for a turn for work that does not belong to a signed call. Raises GateFull."""
        turn_ends_at = ends_at - LEAST_WORK_SECONDS
        await _take(self._unsigned, turn_ends_at)
        try:
            await _take(self._shared, turn_ends_at)
        except BaseException:
            self._unsigned.release()
            raise

    def release(self) -> None:
        """Give back the turn from acquire()."""
        self._shared.release()
        self._unsigned.release()

    async def acquire_signed(self, ends_at: float, *, least: float = LEAST_WORK_SECONDS) -> None:
        """Wait for a turn for a signed call. At least `least` seconds must be left for the work. Raises GateFull."""
        await _take(self._shared, ends_at - least)

    def release_signed(self) -> None:
        """Give back the turn from acquire_signed()."""
        self._shared.release()


async def _take(turns: asyncio.Semaphore, until: float) -> None:
    if not turns.locked():
        await turns.acquire()
        return
    try:
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            await turns.acquire()
    except TimeoutError:
        raise GateFull from None


_turns: Final = PerLoop(Turns)


def of_loop() -> Turns:
    """Return the turns of the running loop. Code that uses a connection without run_in_db_thread() must take a turn."""
    return _turns.get()
