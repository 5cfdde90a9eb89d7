"""Permissions (turns) to use a connection of the process's pool. Some of them are reserved for signed calls."""

import asyncio
import time
from typing import Final

from django.conf import settings

from nexmdm.common.overload.gates import GateFull
from nexmdm.common.overload.per_loop import PerLoop

RESERVED_CONNECTIONS: Final = 4
"""Reserved for four kinds of work, each of which a process does one at a time: flushes of heartbeats (in a dispatcher:
claims), flushes of reports, flushes of small commands, and the check whether the process is ready.
"""

SIGNED_TURNS: Final = 1
"""Turns that are reserved for other signed calls, whatever phones, the admin site and anonymous clients send."""

LEAST_WORK_SECONDS: Final = 1
"""The time that work must still have after its wait. With less time, the work would begin but not end in time."""


def unsigned() -> int:
    """Return how many turns there are for work that does not belong to a signed call."""
    return max(1, _shared() - SIGNED_TURNS)


def _shared() -> int:
    return max(1, settings.DATABASE_POOL_SIZE - RESERVED_CONNECTIONS)


class Turns:
    """The turns of one event loop. acquire() and release() are for work that does not belong to a signed call.

    `ends_at` is the deadline of the work, in monotonic time. Raises GateFull if there is no turn in time.
    """

    def __init__(self) -> None:
        self._shared = asyncio.Semaphore(_shared())
        self._unsigned = asyncio.Semaphore(unsigned())

    async def acquire(self, ends_at: float) -> None:
        """Wait for a turn."""
        turn_ends_at = ends_at - LEAST_WORK_SECONDS
        await _take(self._unsigned, turn_ends_at)
        try:
            await _take(self._shared, turn_ends_at)
        except BaseException:
            self._unsigned.release()
            raise

    def release(self) -> None:
        """Free the turn."""
        self._shared.release()
        self._unsigned.release()

    async def acquire_signed(self, ends_at: float, *, least: float = LEAST_WORK_SECONDS) -> None:
        """Wait for a signed call's turn, with at least `least` seconds left for the work."""
        await _take(self._shared, ends_at - least)

    def release_signed(self) -> None:
        """Free a signed call's turn."""
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
    """Return the running loop's turns, for code that uses a connection without run_in_db_thread()."""
    return _turns.get()
