"""The watch that ends a child process of `serve` after `serve` has ended or crashed.

`serve` keeps the write end of a pipe, and the child inherits the read end. When `serve` ends, the write end closes, and
the child reads the end of file.  NEXMDM_LIFELINE_FD is the descriptor of the read end.
"""

import os
import signal
import threading
import time
from typing import Final

VARIABLE: Final = "NEXMDM_LIFELINE_FD"
_SECONDS_TO_FINISH: Final = 30


def watch() -> None:
    """Start a thread that ends this process when `serve` has ended.

    The thread sends SIGTERM immediately, and SIGKILL 30 s later. If NEXMDM_LIFELINE_FD is not set, do nothing.
    """
    descriptor = os.environ.pop(VARIABLE, "")
    if descriptor:
        threading.Thread(target=_end_with_parent, args=[int(descriptor)], name="parent-watch", daemon=True).start()


def _end_with_parent(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_FINISH)
    os.kill(os.getpid(), signal.SIGKILL)
