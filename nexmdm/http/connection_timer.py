"""The timers of one connection, and how long each runs."""

import asyncio
from collections.abc import Callable
from typing import Final

from nexmdm.common.timers import OneCall

HEAD_SECONDS: Final = 10
"""How long the head of a request may take, counted from the opening of the connection or its first byte."""

TAKEN_SECONDS: Final = 30
"""How long an answer may wait for a client that takes nothing of it."""

LAST_SECONDS: Final = 5
"""The same, once the worker is stopping."""

LINGER_SECONDS: Final = 0.25
"""How long an idle connection stays open at least when the worker stops, and twice as long at most: a client may have
written a request by then that is still on its way, and to close on it would cut it. Each is closed at a moment of its
own, for uvloop reads nothing more of those that it closes in one round, which with many of them takes milliseconds."""


class ConnectionTimer(OneCall):
    """A call that comes due some seconds after the last start()."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        super().__init__(call)
        self._loop = loop

    @property
    def runs(self) -> bool:
        """Whether the call is to come."""
        return self._handle is not None

    def start(self, seconds: float) -> None:
        """Make the call in so many seconds from now."""
        self.stop()
        self._handle = self._loop.call_later(seconds, self._due)
