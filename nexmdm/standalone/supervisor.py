"""The child processes of `serve`, and the embedded PostgreSQL.

nexmdm/management/commands/serve.py decides the order of start and stop.
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
"""The run time of a child, in seconds, after which its start counts as successful.

If the child dies later, it is restarted after the shortest pause.
"""

_LONGEST_PAUSE_SECONDS: Final = 30.0
_POSTGRES_CHECK_SECONDS: Final = 5


class StopRequest:
    """Whether `serve` must stop. It is true after the first SIGINT or SIGTERM.

    With `with_parent`, it is also true after the parent process has ended.
    """

    def __init__(self, *, with_parent: bool) -> None:
        """Install the handlers of SIGINT and SIGTERM. Later signals have no further effect."""
        self._signalled = False
        self._parent = os.getppid() if with_parent else None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def __bool__(self) -> bool:
        """Return whether `serve` must stop."""
        return self._signalled or (self._parent is not None and os.getppid() != self._parent)

    def _note(self, _: int, __: FrameType | None) -> None:
        self._signalled = True


class Child:
    """One child process. It has its own session, so it does not get the signals of the terminal, such as Ctrl-C."""

    def __init__(self, name: str, argv: Sequence[str], environment: dict[str, str], descriptors: Sequence[int]) -> None:
        """Describe a process without starting it. `descriptors` are the open files that the process inherits."""
        self.name = name
        self._argv = argv
        self._environment = environment
        self._descriptors = descriptors
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._due = 0.0
        self._failures = 0

    def start(self, event: str = "process.started") -> None:
        """Start the process. `event` is the name of the log event."""
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
        """Return the id of the process if it has died since the last call. Return None in all other cases.

        The call also plans the restart. The pause before the restart grows with each failed start, up to 30 s.
        """
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
        """Restart the process if it has died and its pause is over."""
        if self._process is None and time.monotonic() >= self._due:
            self.start("process.restarted")

    def ask_to_stop(self) -> None:
        """Send SIGTERM if the process runs."""
        if self._process is not None:
            self._process.terminate()

    def await_end(self, deadline: float) -> None:
        """Wait until the process has ended. Kill it at `deadline`, a time of time.monotonic()."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("process.killed", name=self.name, pid=self._process.pid)
            self._process.kill()
            self._process.wait()


class ProcessGroup:
    """All children of `serve`. `lost` contains the name of a child for each time that the child died."""

    def __init__(self, children: Sequence[Child], metrics_dir: Path) -> None:
        """Store the children without starting them. `metrics_dir` is the folder with their metrics."""
        self._children = children
        self._metrics_dir = metrics_dir
        self.lost: list[str] = []

    def start(self) -> None:
        """Start all children."""
        for child in self._children:
            child.start()

    def poll(self) -> None:
        """Record each child that has died, and restart it after its pause."""
        for child in self._children:
            if (pid := child.dead()) is not None:
                self.lost.append(child.name)
                multiprocess.mark_process_dead(pid, str(self._metrics_dir))  # type: ignore[no-untyped-call]
            child.restart_if_due()

    def stop(self) -> None:
        """Send SIGTERM to all children, and wait for their end. After 25 s, kill the children that still run."""
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children:
            child.ask_to_stop()
        for child in self._children:
            child.await_end(deadline)


class Postgres:
    """The embedded PostgreSQL of `serve`."""

    def __init__(self, data_dir: Path) -> None:
        """Store the data folder."""
        self._data_dir = data_dir
        self._due = 0.0

    @contextmanager
    def running(self, environment: dict[str, str]) -> Iterator[int]:
        """Run PostgreSQL while this context is open. If `serve` is killed, a watchdog process stops PostgreSQL.

        The context yields a file descriptor that all children must inherit. The watchdog waits until every process with
        this descriptor has ended.
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
        """Check every 5 s whether PostgreSQL runs. If PostgreSQL does not run, start it again."""
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
    """Open a pipe whose write end closes when this process ends. Yield the read end for the children."""
    watched, held = os.pipe()
    try:
        yield watched
    finally:
        os.close(watched)
        os.close(held)


def environment(path: Path, **extra: str) -> dict[str, str]:
    """Return the environment of this process with the variables `extra`.

    `path` is added to PYTHONPATH, so that a child can import NexMDM from any working folder.
    """
    imports = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": imports, **extra}


def with_parent_watch(variables: dict[str, str], descriptor: int) -> dict[str, str]:
    """Return `variables` with NEXMDM_LIFELINE_FD. `descriptor` is the read end of the pipe from parent_watch_pipe()."""
    return {**variables, parent_watch.VARIABLE: str(descriptor)}
