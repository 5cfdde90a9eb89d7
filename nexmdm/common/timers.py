"""Timers on an event loop. Each timer makes one call."""

import asyncio
import time
from collections.abc import Callable
from contextvars import Context


class OneCall:
    """The base of timers: a call at a set time. stop() cancels the call."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._handle: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Cancel the call, if it is still to come."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        self._call()


class Timer(OneCall):
    """A timer for one call. If several times are set, the call is made at the earliest time."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(call)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at = 0.0

    def set(self, at: float) -> None:
        """Make the call at the time `at` (monotonic time). If this time has passed, make the call in the next turn of
        the loop.
        """
        loop = asyncio.get_running_loop()
        if self._handle is not None and self._loop is loop and self._at <= at:
            return
        self.stop()
        self._loop, self._at = loop, at
        # Use a new context: the context of the request that sets the timer must not outlive the request.
        self._handle = loop.call_later(max(0.0, at - time.monotonic()), self._due, context=Context())
