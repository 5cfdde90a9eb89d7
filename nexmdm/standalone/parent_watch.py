"""The watch on the parent: a child process of `serve` ends soon after its parent, however the parent ended.

The parent keeps the write end of a pipe. The child inherits the read end; NEXMDM_LIFELINE_FD contains its number.
"""

import os
import signal
import threading
import time
from typing import Final

VARIABLE: Final = "NEXMDM_LIFELINE_FD"
_SECONDS_TO_FINISH: Final = 30


def watch() -> None:
    """Send this process SIGTERM when its parent has ended, and SIGKILL 30 s later.

    Do nothing if there is no such pipe.
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
