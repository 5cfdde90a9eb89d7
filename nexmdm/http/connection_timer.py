"""The timers of one connection, and the duration of each."""

import asyncio
from collections.abc import Callable
from typing import Final

from nexmdm.common.timers import OneCall

HEAD_SECONDS: Final = 10
"""The time for the head of a request, counted from the opening of the connection or from its first byte."""

TAKEN_SECONDS: Final = 30
"""The time that an answer may wait while its client reads nothing."""

LAST_SECONDS: Final = 5
"""The same time while the worker is stopping."""

LINGER_SECONDS: Final = 0.25
"""The shortest time that an idle connection stays open when the worker stops; the longest is twice that. A request may
be on its way at that moment, and would be lost if the connection were closed immediately. Connections are closed at
different moments: uvloop reads nothing more from the connections that it closes in one turn of the loop, and such a
turn takes milliseconds if there are many of them."""


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
        """Make the call after this number of seconds."""
        self.stop()
        self._handle = self._loop.call_later(seconds, self._due)
