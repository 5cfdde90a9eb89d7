"""The child processes of `serve`: it starts them, restarts those that die, and stops them in order.

The order of a stop (Ctrl-C) is in nexmdm/management/commands/serve.py.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import structlog
from prometheus_client import multiprocess

from nexmdm.standalone import embedded_postgres, parent_watch

log = structlog.get_logger()

_STOP_SECONDS: Final = 25
_STEADY_SECONDS: Final = 10
"""A child that ran for this long did not fail at its start, so it is restarted after the shortest pause."""

_LONGEST_PAUSE_SECONDS: Final = 30.0
_POSTGRES_CHECK_SECONDS: Final = 5


class StopRequest:
    """Whether to stop: true from the first SIGINT or SIGTERM on, or, if requested, when the parent has ended."""

    def __init__(self, *, with_parent: bool) -> None:
        """Listen to the signals; a second one changes nothing."""
        self._signalled = False
        self._parent = os.getppid() if with_parent else None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def __bool__(self) -> bool:
        """Return whether to stop."""
        return self._signalled or (self._parent is not None and os.getppid() != self._parent)

    def _note(self, _: int, __: FrameType | None) -> None:
        self._signalled = True


class Child:
    """One process in its own session, so that the terminal's signals do not reach it."""

    def __init__(self, name: str, argv: Sequence[str], environment: dict[str, str], descriptors: Sequence[int]) -> None:
        """Describe the process; `descriptors` are the open files that it inherits."""
        self.name = name
        self._argv = argv
        self._environment = environment
        self._descriptors = descriptors
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._due = 0.0
        self._failures = 0

    def start(self, event: str = "process.started") -> None:
        """Start the process, and log it as this event."""
        self._process = subprocess.Popen(
            self._argv,
            env=self._environment,
            pass_fds=self._descriptors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._started = time.monotonic()
        log.info(event, name=self.name, pid=self._process.pid)

    def dead(self) -> int | None:
        """Return the process's id if the process has died since the last call, and plan its restart."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        pid, self._process = self._process.pid, None
        now = time.monotonic()
        self._failures = 0 if now - self._started > _STEADY_SECONDS else self._failures + 1
        pause = min(_LONGEST_PAUSE_SECONDS, 0.25 * 2**self._failures)
        self._due = now + pause
        log.error("process.died", name=self.name, pid=pid, exit_status=status, restart_in_seconds=pause)
        return pid

    def restart_if_due(self) -> None:
        """Start the process again if it has ended and its pause is over."""
        if self._process is None and time.monotonic() >= self._due:
            self.start("process.restarted")

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process, if it runs."""
        if self._process is not None:
            self._process.terminate()

    def await_end(self, deadline: float) -> None:
        """Wait until the process ends; after the deadline, kill it."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("process.killed", name=self.name, pid=self._process.pid)
            self._process.kill()
            self._process.wait()


class ProcessGroup:
    """The children that run together."""

    def __init__(self, children: Sequence[Child], metrics_dir: Path) -> None:
        """Start no child yet."""
        self._children = children
        self._metrics_dir = metrics_dir
        self.lost: list[str] = []

    def start(self) -> None:
        """Start every child."""
        for child in self._children:
            child.start()

    def poll(self) -> None:
        """Restart each process that has died, after a growing pause; `lost` names all that ever died."""
        for child in self._children:
            if (pid := child.dead()) is not None:
                self.lost.append(child.name)
                multiprocess.mark_process_dead(pid, str(self._metrics_dir))  # type: ignore[no-untyped-call]
            child.restart_if_due()

    def stop(self) -> None:
        """Send SIGTERM to each child, wait for all of them, and kill those that still run after 25 s."""
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children:
            child.ask_to_stop()
        for child in self._children:
            child.await_end(deadline)


class Postgres:
    """The embedded PostgreSQL as a part of serve."""

    def __init__(self, data_dir: Path) -> None:
        """Store the data folder."""
        self._data_dir = data_dir
        self._due = 0.0

    @contextmanager
    def running(self, environment: dict[str, str]) -> Iterator[int]:
        """Start PostgreSQL, and stop it at the end. If serve is killed, a watchdog stops it instead.

        Yields a descriptor that the children must inherit: the watchdog waits until the last process with it has ended.
        """
        argv = [sys.executable, "-m", "nexmdm.standalone.postgres_watchdog", str(self._data_dir)]
        watched, held = os.pipe()
        watchdog = subprocess.Popen(argv, stdin=watched, env=environment, start_new_session=True)
        os.close(watched)
        with watchdog, os.fdopen(held, "wb"):
            try:
                embedded_postgres.start(self._data_dir)
                yield held
            finally:
                embedded_postgres.stop(self._data_dir)

    def poll(self) -> None:
        """Check every few seconds that PostgreSQL runs, and start it again if it does not."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _POSTGRES_CHECK_SECONDS
        try:
            if embedded_postgres.start(self._data_dir):
                log.error("process.restarted", name="postgres")
        except embedded_postgres.EmbeddedError as error:
            log.error("process.died", name="postgres", reason=str(error))


@contextmanager
def parent_watch_pipe() -> Iterator[int]:
    """Open a pipe that closes when this process ends; yield the end that children watch."""
    watched, held = os.pipe()
    try:
        yield watched
    finally:
        os.close(watched)
        os.close(held)


def environment(path: Path, **extra: str) -> dict[str, str]:
    """Return our environment for a child that imports from `path`, with these variables added.

    The working folder does not change: paths in the environment may be relative to it.
    """
    imports = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": imports, **extra}


def with_parent_watch(variables: dict[str, str], descriptor: int) -> dict[str, str]:
    """Return the environment with the parent watch's descriptor in it."""
    return {**variables, parent_watch.VARIABLE: str(descriptor)}
