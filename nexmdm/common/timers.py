"""Timers on an event loop, each for one call."""

import asyncio
import time
from collections.abc import Callable
from contextvars import Context


class OneCall:
    """A call that a timer makes at a set time, unless it is stopped earlier."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._handle: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Cancel the call."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        self._call()


class Timer(OneCall):
    """Makes one call, at the earliest of the times that were set."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(call)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._at = 0.0

    def set(self, at: float) -> None:
        """Make the call at this time of time.monotonic(), or in the next turn of the loop if it has passed."""
        loop = asyncio.get_running_loop()
        if self._handle is not None and self._loop is loop and self._at <= at:
            return
        self.stop()
        self._loop, self._at = loop, at
        # Use a new context: the context of the request that sets the timer must not outlive the request.
        self._handle = loop.call_later(max(0.0, at - time.monotonic()), self._due, context=Context())
