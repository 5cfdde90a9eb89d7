"""The deadline of a thread. Each wait for PostgreSQL in this thread ends at the deadline."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from math import inf


class _Work(threading.local):
    ends_at = inf
    """In monotonic time."""

    missed = 0
    answered = 0


_work = _Work()


@contextmanager
def until(ends_at: float) -> Iterator[None]:
    """End all waits of this thread at `ends_at` (monotonic time). An earlier deadline that is already set stays."""
    before = _work.ends_at
    _work.ends_at = min(before, ends_at)
    try:
        yield
    finally:
        _work.ends_at = before


def within(seconds: float) -> AbstractContextManager[None]:
    """End all waits of this thread within this number of seconds."""
    return until(time.monotonic() + seconds)


def seconds_left() -> float | None:
    """Return how many seconds this thread may still wait, or None if there is no deadline. The number is never
    negative.
    """
    return None if _work.ends_at == inf else max(0.0, _work.ends_at - time.monotonic())


def note_answered() -> None:
    """Count a wait of this thread that got an answer."""
    _work.answered += 1


def times_answered() -> int:
    """Return how many waits of this thread got an answer."""
    return _work.answered


def note_missed() -> None:
    """Count a wait of this thread that ended without an answer."""
    _work.missed += 1


def times_missed() -> int:
    """Return how many waits of this thread ended without an answer."""
    return _work.missed
