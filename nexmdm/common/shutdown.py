"""Whether this process must stop. Code that lets a client wait must call is_requested()."""

import signal
import threading
from functools import partial
from types import FrameType
from typing import Any, Final

_requested: Final = threading.Event()


def watch() -> None:
    """Note SIGTERM and SIGINT, and then call their earlier handlers. Outside the main thread, this function does
    nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_note, signal.getsignal(number)))


def is_requested() -> bool:
    """Return whether SIGTERM or SIGINT has come since watch()."""
    return _requested.is_set()


def _note(before: Any, number: int, frame: FrameType | None) -> None:
    _requested.set()
    if callable(before):
        before(number, frame)
