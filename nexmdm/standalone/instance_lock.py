"""The lock of a data folder. Only one `serve` can run on a data folder."""

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

RUNNING: Final = "running"
STOPPING: Final = "stopping"
ENDED: Final = ""

# A little more than serve needs to stop: up to 25 s for its children, then the time for PostgreSQL.
_WAIT_SECONDS: Final = 35
# A killed serve may still seem to run for this time.
_DYING_SECONDS: Final = 2


class InstanceLockedError(RuntimeError):
    """The data folder cannot be locked: another `serve` uses it, or this process may not write there."""


class InstanceLock:
    """The lock of a data folder. The lock ends when the context closes or this process ends.

    The lock file contains the state of `manage.py serve`: RUNNING, STOPPING or ENDED. `after_a_crash` is true if the
    last `serve` did not write ENDED.
    """

    def __init__(self, descriptor: int) -> None:
        """Read the last state from the lock file, and write RUNNING. `descriptor` is the lock file, which the caller
        has opened and locked.
        """
        self._descriptor = descriptor
        self.after_a_crash = os.pread(descriptor, 64, 0).decode() != ENDED
        self.note(RUNNING)

    def note(self, state: str) -> None:
        """Write the state of `serve` into the lock file. Another `serve` that waits for the lock reads this state."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, state.encode(), 0)

    def __enter__(self) -> Self:
        """Return this lock."""
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Write the state ENDED to the lock file, and release the lock."""
        self.note(ENDED)
        os.close(self._descriptor)


def acquire(data_dir: Path) -> InstanceLock | None:
    """Lock the data folder. Return None if another process has the lock.

    Raises InstanceLockedError if this process may not write to the folder.
    """
    try:
        data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        descriptor = os.open(data_dir / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise InstanceLockedError(
            f"{data_dir} cannot be used: {error.strerror}. Set NEXMDM_DATA_DIR to another folder."
        ) from error
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return InstanceLock(descriptor)
    os.close(descriptor)
    return None


def acquire_when_free(data_dir: Path, say: Callable[[str], object]) -> InstanceLock:
    """Lock the data folder. If another `serve` is stopping, wait for its end, for at most 35 s.

    `say` prints a message about the wait. Raises InstanceLockedError if another `serve` runs or does not end in time.
    """
    began, announced = time.monotonic(), False
    while (instance := acquire(data_dir)) is None:
        waited = time.monotonic() - began
        running = (data_dir / "serve.lock").read_text() == RUNNING
        if waited > (_DYING_SECONDS if running else _WAIT_SECONDS):
            raise InstanceLockedError(
                f"Another `manage.py serve` (or `make run`) uses the folder {data_dir}. Stop it, or set "
                "NEXMDM_DATA_DIR to another folder."
            )
        if not (announced or running):
            say(f"Waiting until the previous `manage.py serve` has left the folder {data_dir} …")
            announced = True
        time.sleep(0.1)
    return instance
