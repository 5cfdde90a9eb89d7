"""Parts of NexMDM as separate processes, started as in production."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nexmdm.http import server

ROOT: Final = Path(__file__).resolve().parent.parent.parent
STOP_SECONDS: Final = 30


def run(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program of ours to its end, with these variables added to the environment."""
    return subprocess.run(
        [sys.executable, *argv],
        env={**os.environ, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


WEB: Final = (sys.executable, "-m", "nexmdm.web")


@contextmanager
def web_worker(listener: socket.socket, variables: Mapping[str, str], program: Sequence[str] = WEB) -> Iterator[None]:
    """Run a web worker on a listening socket. Clients that connect before the worker is ready wait."""
    descriptor = listener.fileno()
    process = subprocess.Popen(
        program,
        env={**os.environ, **variables, server.VARIABLE: str(descriptor)},
        cwd=ROOT,
        pass_fds=[descriptor],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        # uvicorn releases everything first, then ends by the signal itself.
        assert process.wait(STOP_SECONDS) == -signal.SIGTERM


def address(listener: socket.socket) -> str:
    """Return the URL of a socket that listens."""
    host, port = listener.getsockname()
    return f"http://{host}:{port}"
