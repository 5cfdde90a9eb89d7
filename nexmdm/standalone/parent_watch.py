"""A child process ends when its parent does, however the parent ended.

The parent keeps the write end of a pipe and passes the read end, its number in NEXMDM_LIFELINE_FD.
"""

import os
import signal
import threading
import time
from typing import Final

VARIABLE: Final = "NEXMDM_LIFELINE_FD"
_SECONDS_TO_FINISH: Final = 30


def watch() -> None:
    """Send this process SIGTERM once its parent is gone, and SIGKILL 30 s later; without a parent, do nothing."""
    descriptor = os.environ.pop(VARIABLE, "")
    if descriptor:
        threading.Thread(target=_end_with_parent, args=[int(descriptor)], name="parent-watch", daemon=True).start()


def _end_with_parent(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_FINISH)
    os.kill(os.getpid(), signal.SIGKILL)
