"""The watch that ends a child process of `serve` if serve has ended, even after a crash of serve.

serve keeps the write end of a pipe, and the child inherits the read end. When serve ends, the read end is at its end of
file. NEXMDM_LIFELINE_FD is the descriptor of the read end.
"""

import os
import signal
import threading
import time
from typing import Final

VARIABLE: Final = "NEXMDM_LIFELINE_FD"
_SECONDS_TO_FINISH: Final = 30


def watch() -> None:
    """Start a thread that ends this process after the end of serve: SIGTERM immediately, SIGKILL 30 s later.

    Do nothing if NEXMDM_LIFELINE_FD is not set.
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
