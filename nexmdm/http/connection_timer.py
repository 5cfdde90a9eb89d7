"""The timers of one connection, and their times."""

import asyncio
from collections.abc import Callable
from typing import Final

from nexmdm.common.timers import OneCall

HEAD_SECONDS: Final = 10
"""The longest time for the head of a request, in seconds. For the first request, the time begins when the connection is
opened. For later requests, it begins with the first byte of the head.
"""

TAKEN_SECONDS: Final = 30
"""The longest time in seconds that an answer waits while its client reads nothing."""

LAST_SECONDS: Final = 5
"""The longest time in seconds that an answer waits while its client reads nothing and the worker stops."""

LINGER_SECONDS: Final = 0.25
"""The shortest time that an idle connection stays open when the worker stops. The longest time is twice as long.

A request may be on its way when the worker stops, and would be lost if the connection were closed immediately. If all
connections were closed in one turn of the event loop, this turn would take milliseconds. Requests that arrive during
this turn would be lost, because uvloop does not read them any more. So each connection stays open for a random time.
"""


class ConnectionTimer(OneCall):
    """A call that is made some seconds after the last start()."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        super().__init__(call)
        self._loop = loop

    @property
    def runs(self) -> bool:
        """Whether the call is still to come."""
        return self._handle is not None

    def start(self, seconds: float) -> None:
        """Make the call after this number of seconds. An earlier start() has no effect any more."""
        self.stop()
        self._handle = self._loop.call_later(seconds, self._due)
