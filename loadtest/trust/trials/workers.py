"""Web workers on a listening socket that stays open when a worker ends, as under a process manager."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loadtest.testbed.serving import MANAGE, wait_for

BACKLOG: Final = 2048
STOP_SECONDS: Final = 30


@contextmanager
def listening() -> Iterator[socket.socket]:
    """Open a listening socket on a free port of 127.0.0.1, until the end of the block."""
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        yield listener


def url_of(listener: socket.socket) -> str:
    """Return the address of the workers on this socket."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


class Worker:
    """A web worker on a listening socket that other workers may share. The worker is ready when the object exists."""

    def __init__(self, listener: socket.socket, environment: Mapping[str, str], output: Path) -> None:
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nexmdm.web"],
                cwd=Path(MANAGE).parent,
                env={**environment, "NEXMDM_LISTEN_FD": str(listener.fileno())},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for(lambda: "web.started" in output.read_text() or self._process.poll() is not None)
        if self._process.poll() is not None:
            raise RuntimeError(f"a web worker ended immediately:\n{output.read_text()}")

    def stop(self) -> None:
        """Stop the worker with SIGTERM, and wait for its end. The worker answers its requests in progress first."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(STOP_SECONDS)
