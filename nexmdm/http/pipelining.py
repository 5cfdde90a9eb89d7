"""Limits on pipelined requests. A client sends such requests before it has the answers to its earlier requests."""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl

from nexmdm.common.overload.shared_bytes import SharedBytes

PIPELINED: Final = 16
"""The largest number of requests of a connection that are parsed and not answered. Further requests wait unparsed, and
reading pauses.
"""

PORTION: Final = 16 * 1024
"""The largest number of bytes that are parsed before the next check whether requests wait."""

PORTION_LINES: Final = 2 * (PIPELINED - 1) - 1
"""The largest number of lines that are parsed before the next check whether requests wait.

The head of a request has at least two lines. The first line of the first head may be parsed already. So these lines
complete at most PIPELINED - 1 requests. Together with the request in progress, these are at most PIPELINED requests.
"""

UNPARSED: Final = SharedBytes(64 * 1024 * 1024)
"""The memory for unparsed data of all connections of a worker. uvloop reads up to 250 KiB before it pauses."""

PAUSE_SECONDS: Final = 0.002
"""The shortest time between the starts of two pipelined requests.

During this pause, other threads get Python's interpreter. Without a pause, other threads get the interpreter only every
5 ms. The thread of a signed call needs the interpreter about twelve times.
"""

_PORTION: Final = re.compile(rb"(?:[^\n]*+\n){%d}" % PORTION_LINES)


def portion_of(data: bytes, start: int) -> bytes:
    """Return the next part of `data` that may be parsed. The part begins at `start`."""
    found = _PORTION.match(data, start, start + PORTION)
    return data[start : found.end() if found else start + PORTION]


class Flow(FlowControl):
    """uvicorn's flow control. It resumes reading only if `may_read` returns True."""

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        """Resume reading, unless `may_read` returns False."""
        if self.read_paused and self._may_read():
            super().resume_reading()


class Turns:
    """Starts pipelined requests: one request every PAUSE_SECONDS, from one connection after the other.

    Between two of these starts, requests that are not pipelined can start. This is so even if many connections have
    pipelined requests.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._free_at = 0.0

    def wait(self, start: Callable[[], None]) -> None:
        """Call `start` after all functions that were given to wait() before."""
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
