"""Our own server: `manage.py serve` as a process on a free port, with its own data folder."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from nexmdm.client.http_client import FleetClient

READY: Final = "Ctrl-C stops everything."
WAIT_SECONDS: Final = 60
MANAGE: Final = str(Path(__file__).resolve().parent.parent.parent / "manage.py")
SERVE: Final = (sys.executable, MANAGE, "serve")


def wait_for(condition: Callable[[], object]) -> None:
    """Return when the condition is true. Raises TimeoutError after a minute."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.05)


class Serving:
    """A `manage.py serve` on a free port of 127.0.0.1; `settings` are environment variables for it."""

    def __init__(self, data_dir: Path, program: Sequence[str] = SERVE, **settings: str) -> None:
        """Start the server, by another program if one is given. The output goes to a file next to the data folder."""
        self.data_dir = data_dir
        self._output = data_dir.parent / "output"
        self.environment = {
            **os.environ, "NEXMDM_DATA_DIR": str(data_dir), "HOST": "127.0.0.1", "PORT": "0", **settings
        }  # fmt: skip
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                program,
                cwd=Path(MANAGE).parent,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """The output of `serve` so far."""
        return self._output.read_text()

    @property
    def url(self) -> str:
        """The address of the server, once the output has shown the address."""
        return str(re.findall(r"ready: (\S+)", self.said)[-1])

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets that the server generated, or that were generated for the server."""
        lines = (self.data_dir / "secrets.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def database_url(self) -> str:
        """Return the address of the server's PostgreSQL: the embedded PostgreSQL, unless another address was given."""
        if given := self.environment.get("DATABASE_URL"):
            return given
        program = [sys.executable, MANAGE, "postgres", "url"]
        return subprocess.run(program, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def admin(self) -> FleetClient:
        """Return a client of an admin of this server. Close the client after use."""
        return FleetClient(self.url, key=self.secrets["ADMIN_KEY"], secret=self.secrets["HMAC_SECRET"])

    def until_it_says(self, text: str) -> "Serving":
        """Return when the server has printed this text. Raises RuntimeError with the output if the server ends
        before.
        """
        wait_for(lambda: text in self.said or self.process.poll() is not None)
        if text not in self.said:
            raise RuntimeError(f"serve ended and did not print {text!r}:\n{self.said}")
        return self

    def start(self, command: str, *, until_it_says: str) -> subprocess.Popen[bytes]:
        """Start another management command with the same environment; return when that command has printed this
        text.
        """
        path = self.data_dir.parent / f"output-{command}"
        with path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, MANAGE, command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(lambda: until_it_says in path.read_text())
        return process

    def manage(self, *command: str, **settings: str) -> None:
        """Run another management command to its end, with additions to the same environment. Raises
        CalledProcessError.
        """
        environment = {**self.environment, **settings}
        subprocess.run([sys.executable, MANAGE, *command], env=environment, check=True, capture_output=True)

    def interrupt(self) -> int:
        """Do what Ctrl-C does, signal the whole process group, and return the exit status."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(WAIT_SECONDS)

    def kill(self) -> None:
        """Kill only this process."""
        self.process.kill()
        self.process.wait()

    def child(self, name: str) -> int:
        """Return the process id of the server's part with this name."""
        return int(re.findall(rf'"name":"{name}","pid":(\d+)', self.said)[-1])
