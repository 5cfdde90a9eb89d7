"""The agent under test: a command that the kit starts, kills and starts again."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_STOP_SECONDS: Final = 10
_LAST_LINES: Final = 10
_WITHOUT_PROXY: Final = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


class AgentProcess:
    """One agent. `variables` are those of docs/agent.md, without the paths, which are in `folder`."""

    def __init__(self, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        self._command = command
        self._actions = folder / "actions"
        self.output = folder / "output"
        state = folder / "state"
        state.mkdir(parents=True)
        self._environment = {
            **os.environ, **_WITHOUT_PROXY, **variables,
            "PHONE_STATE_DIR": str(state), "PHONE_ACTIONS_FILE": str(self._actions),
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Raises OSError if the command cannot be run."""
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """End it and its children by SIGKILL, as a flat battery does."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it by SIGTERM; after ten seconds, by SIGKILL."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def executed(self) -> list[str]:
        """Return the request ids of the actions that the agent carried out, in order, including repeats."""
        lines = self._actions.read_text().splitlines() if self._actions.exists() else []
        return [line.split()[0] for line in lines if line.strip()]

    def last_words(self) -> str:
        """Return the last lines of its output, and its exit status if it has ended by itself."""
        lines = self.output.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        if self._process is not None and (status := self._process.poll()) is not None:
            lines.append(f"(It ended with exit status {status}.)")
        return "\n".join(lines)


def target(value: str) -> str:
    """Return a push target as the agent gets it."""
    return json.dumps({"kind": "fid", "value": value})
