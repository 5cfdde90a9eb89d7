"""Threads for hashes that are slow on purpose (bcrypt, PBKDF2), at a lower priority than everything else."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

NICENESS: Final = 5
"""Added to the process's own niceness: if the event loop needs the same processor, a hash gets a quarter of it."""

_NICEST: Final = 19


def threads(name: str, count: int) -> ThreadPoolExecutor:
    """Return a pool of threads for functions that release the GIL for most of their time."""
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_lower_priority)


def cores() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _lower_priority() -> None:
    """Lower the priority of this thread.

    Only Linux has a priority for each thread. There, setpriority() also accepts a thread's id.
    """
    if sys.platform != "linux":
        return
    niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + NICENESS
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(niceness, _NICEST))
