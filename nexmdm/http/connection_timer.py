"""The timers of one connection."""

import asyncio
from collections.abc import Callable
from typing import Final

HEAD_SECONDS: Final = 10
"""How long the head of a request may take, counted from the opening of the connection or its first byte."""


class ConnectionTimer:
    """A call that comes due unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._handle: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float) -> None:
        self.stop()
        self._handle = self._loop.call_later(seconds, self._due)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        self._call()
