"""A log that writes at most one line a second for equal events, with the number of events."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from nexmdm.common.timers import Timer

E = TypeVar("E")

LINE_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Line(Generic[E]):
    first: E
    count: int
    due: float


class CollapsedLog(Generic[E]):
    """A log that writes equal events as one line. Events with the same key are equal. For use on the event loop.

    The first event with a key is written immediately. All equal events of the next second become one line at the end of
    this second. The line contains the first of these events and their number. The same rule applies to later seconds.

    `write` is a function that writes one line for an event and a number. If lines for `most` keys wait, has_room()
    returns False for further keys.
    """

    def __init__(self, write: Callable[[E, int], None], most: int) -> None:
        self._write = write
        self._most = most
        # The lines are in the order of their due times.
        self._lines: dict[Hashable, _Line[E]] = {}
        self._timer = Timer(self.write_due)

    def count(self, key: Hashable) -> bool:
        """Count one more event if a line for equal events waits. If no such line waits, return False and do nothing.

        If the result is True, the event will be logged, and the caller must not call add().
        """
        line = self._lines.get(key)
        if line is None or not line.count or line.due <= time.monotonic():
            return False
        line.count += 1
        return True

    def add(self, key: Hashable, event: E, count: int = 1) -> None:
        """Log an event that happened `count` times."""
        self.write_due()
        line = self._lines.get(key)
        if line is None:
            self._write(event, count)
            self._open(key, event, time.monotonic())
        else:
            if not line.count:
                line.first = event
            line.count += count

    def has_room(self, key: Hashable) -> bool:
        """Return whether the log can write a line for this key."""
        return key in self._lines or len(self._lines) < self._most

    def write_due(self) -> None:
        """Write all lines whose second is over."""
        now = time.monotonic()
        while self._lines:
            key, line = next(iter(self._lines.items()))
            if line.due > now:
                self._timer.set(line.due)
                return
            del self._lines[key]
            if line.count:
                self._write(line.first, line.count)
                self._open(key, line.first, now)

    def write_all(self) -> None:
        """Write all waiting lines now."""
        lines = list(self._lines.values())
        self.forget()
        for line in lines:
            if line.count:
                self._write(line.first, line.count)

    def forget(self) -> None:
        """Delete all waiting lines without writing them."""
        self._timer.stop()
        self._lines.clear()

    def _open(self, key: Hashable, event: E, now: float) -> None:
        self._lines[key] = _Line(event, 0, now + LINE_SECONDS)
        self._timer.set(next(iter(self._lines.values())).due)
