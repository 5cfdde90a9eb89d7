"""Threads with a low priority, for hashes that are slow on purpose (bcrypt, PBKDF2)."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

NICENESS: Final = 5
"""A number that is added to the niceness of the process. If the event loop needs the processor of a hash, the hash gets
about a quarter of this processor.
"""

_NICEST: Final = 19


def threads(name: str, count: int) -> ThreadPoolExecutor:
    """Return a pool of `count` threads with a low priority. Functions that run in it must release the GIL most of the
    time.
    """
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_lower_priority)


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _lower_priority() -> None:
    if sys.platform != "linux":
        return
    # On Linux, each thread has a priority, and setpriority() also accepts the id of a thread.
    niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + NICENESS
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(niceness, _NICEST))
