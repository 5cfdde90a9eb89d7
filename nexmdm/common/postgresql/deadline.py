"""The deadline of the work that a thread does: none of its waits for PostgreSQL lasts longer."""

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
    """Have all waits in this thread end by then (monotonic time), or earlier where that was said already."""
    before = _work.ends_at
    _work.ends_at = min(before, ends_at)
    try:
        yield
    finally:
        _work.ends_at = before


def within(seconds: float) -> AbstractContextManager[None]:
    """Have all waits in this thread end within so many seconds."""
    return until(time.monotonic() + seconds)


def seconds_left() -> float | None:
    """Return how long this thread may still wait, at least 0; None: for ever."""
    return None if _work.ends_at == inf else max(0.0, _work.ends_at - time.monotonic())


def note_answered() -> None:
    """Count a wait of this thread that had an answer."""
    _work.answered += 1


def times_answered() -> int:
    """Return how many there were."""
    return _work.answered


def note_missed() -> None:
    """Count a wait of this thread that came to its end without an answer."""
    _work.missed += 1


def times_missed() -> int:
    """Return how many there were."""
    return _work.missed
