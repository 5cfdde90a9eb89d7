"""The process of an agent under test."""

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
    """One agent, which the kit starts, kills and starts again.

    - `command`: the command that starts the agent.
    - `folder`: the folder for the output and the state of the agent.
    - `variables`: the environment variables of docs/agent.md, except the paths in `folder`.
    """

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
        """Start the agent. Raises OSError if the command cannot be run."""
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """Kill the agent and its children with SIGKILL. This simulates an empty battery."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the agent with SIGTERM, and after 10 s with SIGKILL."""
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
        """Return the request id of each action that the agent ran, in order. A repeated action is listed again."""
        lines = self._actions.read_text().splitlines() if self._actions.exists() else []
        return [line.split()[0] for line in lines if line.strip()]

    def last_words(self) -> str:
        """Return the last lines of output. If the agent has ended by itself, its exit status follows."""
        lines = self.output.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        if self._process is not None and (status := self._process.poll()) is not None:
            lines.append(f"(It ended with exit status {status}.)")
        return "\n".join(lines)


def target(value: str) -> str:
    """Return a push target as JSON, in the form of PHONE_PUSH_TARGET."""
    return json.dumps({"kind": "fid", "value": value})
