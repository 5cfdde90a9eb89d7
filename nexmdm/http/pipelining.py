"""Limits on pipelined requests, which a client sends before it has the answers to its earlier requests."""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl

from nexmdm.common.overload.shared_bytes import SharedBytes

PIPELINED: Final = 16
"""The most requests of a connection that are parsed and not yet answered. Others wait unparsed, and reading pauses."""

PORTION: Final = 16 * 1024
"""The most bytes that are parsed before the next check whether requests wait."""

PORTION_LINES: Final = 2 * (PIPELINED - 1) - 1
"""The largest number of lines that are parsed before that check. The head of a request has at least two lines (the
request line and an empty line), and the first of them may be parsed already. So these lines complete at most
PIPELINED - 1 requests, which leaves room for the request in progress."""

UNPARSED: Final = SharedBytes(64 * 1024 * 1024)
"""The most bytes that wait unparsed in all connections of a worker. uvloop reads up to 250 KiB before it pauses."""

PAUSE_SECONDS: Final = 0.002
"""The shortest time between the starts of two pipelined requests. If the event loop never waits, a thread gets the
interpreter only every 5 ms, and the thread of a signed call needs the interpreter a dozen times."""

_PORTION: Final = re.compile(rb"(?:[^\n]*+\n){%d}" % PORTION_LINES)


def portion_of(data: bytes, start: int) -> bytes:
    """Return the data that may be parsed next."""
    found = _PORTION.match(data, start, start + PORTION)
    return data[start : found.end() if found else start + PORTION]


class Flow(FlowControl):
    """uvicorn's flow control, which resumes reading only if the protocol agrees."""

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        """Resume, unless data that was read still waits to be parsed."""
        if self.read_paused and self._may_read():
            super().resume_reading()


class Turns:
    """Starts pipelined requests: one every PAUSE_SECONDS, from one connection after the other.

    So at most one pipelined request at a time delays other requests, however many connections send ahead.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._free_at = 0.0

    def wait(self, start: Callable[[], None]) -> None:
        """Call `start` after all functions that wait already."""
        self._waiting.append(start)
        if len(self._waiting) == 1:
            self._wait()

    def _next(self) -> None:
        self._free_at = asyncio.get_running_loop().time() + PAUSE_SECONDS
        start = self._waiting[0]
        try:
            start()
        finally:
            self._waiting.popleft()
            if self._waiting:
                self._wait()

    def _wait(self) -> None:
        asyncio.get_running_loop().call_at(self._free_at, self._next)
