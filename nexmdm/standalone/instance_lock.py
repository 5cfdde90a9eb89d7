"""The lock on a data folder: one `serve` at a time uses it."""

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

# A little more than the longest stop of a serve: 25 s for its children, then PostgreSQL.
_WAIT_SECONDS: Final = 35
# The time for which a killed serve may still seem to be alive.
_DYING_SECONDS: Final = 2


class InstanceLockedError(RuntimeError):
    """The data folder cannot be locked now: another serve has it, or it cannot be used."""


class InstanceLock:
    """The exclusive right to run NexMDM on one data folder, until it is released or this process ends."""

    def __init__(self, descriptor: int) -> None:
        """Take over the locked file."""
        self._descriptor = descriptor
        self.after_a_crash = os.pread(descriptor, 64, 0).decode() != ENDED
        self.note(RUNNING)

    def note(self, state: str) -> None:
        """Write the state of the start into the file, for other processes."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, state.encode(), 0)

    def __enter__(self) -> Self:
        """Keep the lock."""
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Release the lock."""
        self.note(ENDED)
        os.close(self._descriptor)


def acquire(data_dir: Path) -> InstanceLock | None:
    """Lock the folder, or return None if another process has the lock. Raises InstanceLockedError."""
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
    """Lock the folder; wait for a process that is stopping. Raises InstanceLockedError if one runs."""
    began, announced = time.monotonic(), False
    while (instance := acquire(data_dir)) is None:
        waited = time.monotonic() - began
        running = (data_dir / "serve.lock").read_text() == RUNNING
        if waited > (_DYING_SECONDS if running else _WAIT_SECONDS):
            raise InstanceLockedError(
                f"Another serve runs on {data_dir}. Stop the other serve, or set NEXMDM_DATA_DIR to another folder."
            )
        if not (announced or running):
            say(f"Waiting for the previous serve on {data_dir} to end …")
            announced = True
        time.sleep(0.1)
    return instance
