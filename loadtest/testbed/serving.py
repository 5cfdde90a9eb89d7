"""A server that a test starts: `manage.py serve` as a process, on a free port and with a separate data folder."""

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
    """Wait until `condition` is true. Raises TimeoutError after 60 s."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.05)


class Serving:
    """A process of `manage.py serve` on a free port of 127.0.0.1."""

    def __init__(self, data_dir: Path, program: Sequence[str] = SERVE, **settings: str) -> None:
        """Start the server. `settings` are additional environment variables.

        `program` replaces the usual command. The output goes to a file next to the data folder.
        """
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
        """The output of the server so far."""
        return self._output.read_text()

    @property
    def url(self) -> str:
        """The address of the server. The server must have printed it."""
        return str(re.findall(r"ready: (\S+)", self.said)[-1])

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets in the data folder of the server, by the name of their setting."""
        lines = (self.data_dir / "secrets.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def database_url(self) -> str:
        """Return the address of the server's PostgreSQL: DATABASE_URL if it is set, or the embedded PostgreSQL."""
        if given := self.environment.get("DATABASE_URL"):
            return given
        program = [sys.executable, MANAGE, "postgres", "url"]
        return subprocess.run(program, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def admin(self) -> FleetClient:
        """Return a client of an admin of this server. The caller must close the client."""
        return FleetClient(self.url, key=self.secrets["ADMIN_KEY"], secret=self.secrets["HMAC_SECRET"])

    def until_it_says(self, text: str) -> "Serving":
        """Wait until the server has printed `text`, and return this object.

        Raises RuntimeError, with the output of the server, if the server ends first.
        """
        wait_for(lambda: text in self.said or self.process.poll() is not None)
        if text not in self.said:
            raise RuntimeError(f"serve ended and did not print {text!r}:\n{self.said}")
        return self

    def start(self, command: str, *, until_it_says: str) -> subprocess.Popen[bytes]:
        """Start another command of manage.py with the environment of the server.

        Return when it has printed `until_it_says`.
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
        """Run another command of manage.py with the environment of the server and `settings`. Return when it has ended.

        Raises CalledProcessError if the command fails.
        """
        environment = {**self.environment, **settings}
        subprocess.run([sys.executable, MANAGE, *command], env=environment, check=True, capture_output=True)

    def interrupt(self) -> int:
        """Send SIGINT to all processes of the server, as Ctrl-C does. Return the exit status."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(WAIT_SECONDS)

    def kill(self) -> None:
        """Kill only the process of `serve`. Its parts are not killed."""
        self.process.kill()
        self.process.wait()

    def child(self, name: str) -> int:
        """Return the process id of the part with this name, such as `web-1`."""
        return int(re.findall(rf'"name":"{name}","pid":(\d+)', self.said)[-1])
