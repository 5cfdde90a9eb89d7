"""Whether this process must stop; code that lets a client wait must check this."""

import signal
import threading
from functools import partial
from types import FrameType
from typing import Any, Final

_requested: Final = threading.Event()


def watch() -> None:
    """Record SIGTERM and SIGINT, then call their earlier handlers. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_note, signal.getsignal(number)))


def is_requested() -> bool:
    """Return whether this process must stop."""
    return _requested.is_set()


def _note(before: Any, number: int, frame: FrameType | None) -> None:
    _requested.set()
    if callable(before):
        before(number, frame)
