"""The agents of docs/agent, and sabotaged agents, each of which breaks one rule of the page."""

import asyncio
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from nexmdm.conformance import kit
from nexmdm.conformance.catalogue import SCENARIOS
from nexmdm.conformance.kit import Kit, Result
from tests.support.processes import ROOT

FOLDER: Final = ROOT / "docs" / "agent"
_SOURCE: Final = FOLDER / "agent.py"
PYTHON_AGENT: Final = (sys.executable, str(_SOURCE))
SIMULATED_PHONE: Final = (sys.executable, "-m", "nexmdm.conformance.simulated_agent")


JOBS: Final = 16

Results = dict[tuple[str, str], Result]


@dataclass(frozen=True, slots=True)
class Task:
    """A scenario, and the agent against which it is played."""

    agent: str
    scenario: str
    command: Sequence[str]


async def play(folder: Path, tasks: list[Task]) -> Results:
    """Play scenarios against agents, all on one server."""
    turns = asyncio.Semaphore(JOBS)
    found: Results = {}

    async def play_one(running: Kit, task: Task) -> None:
        async with turns:
            found[task.agent, task.scenario] = await running.play(SCENARIOS[task.scenario], task.command)

    async with kit.running(folder) as running, asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(play_one(running, task))
    return found


def python_agent() -> ModuleType:
    """Return the Python agent as a module."""
    spec = importlib.util.spec_from_file_location("agent", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, slots=True)
class Sabotage:
    """A change of the Python agent that breaks a rule, and the scenario that must find it."""

    rule: str
    scenario: str
    old: str
    new: str

    def command(self, folder: Path) -> list[str]:
        """Write the sabotaged agent into a folder, and return its command."""
        text = _SOURCE.read_text()
        assert text.count(self.old) == 1, f"{self.old!r} is {text.count(self.old)} times in agent.py"
        path = folder / f"{self.rule.replace(' ', '-')}.py"
        path.write_text(text.replace(self.old, self.new))
        return [sys.executable, str(path)]


SABOTAGES: Final = (
    Sabotage(
        "sends no push target", "both-channels",
        'return {"push_target": target} | ({"push_token": target["value"]} if target["kind"] == "token" else {})',
        'return {} if target else {}',
    ),
    Sabotage(
        "takes no pushes", "server-away",
        "        threading.Thread(target=take_pushes, args=(self,), daemon=True).start()\n", "",
    ),
    Sabotage("names no channel", "both-channels", '"status": "running", "via": via}', '"status": "running"}'),
    Sabotage("checks no signature", "bad-signature", "if not self.trusts(envelope):", "if not envelope:"),
    Sabotage(
        "checks no expiry", "expired-command", 'if self.now() >= seconds(envelope["expires_at"]):', "if not envelope:"
    ),
    Sabotage(
        "uses its own clock", "clock-ahead", "return time.monotonic() + self.ahead",
        "return time.monotonic() + self.own_clock_ahead",
    ),
    Sabotage(
        "carries out repeats", "repeated-command", 'if known := self.state["reports"].get(request_id):',
        "if known := None:",
    ),
    Sabotage(
        "forgets request ids at a restart", "repeated-command",
        "super().__init__(json.loads(self.path.read_text()) if self.path.exists() else {\"reports\": {}})",
        "super().__init__(json.loads(self.path.read_text()) if self.path.exists() else {})\n"
        '        self["reports"] = {}',
    ),
    Sabotage("repeats no report", "repeated-report", 'known["unsent"] = True', "pass"),
    Sabotage(
        "forgets a report that got no answer", "lost-report",
        '                self.say("/v1/action-result", report)\n',
        '                record["unsent"] = False\n                self.say("/v1/action-result", report)\n',
    ),
    Sabotage(
        "reports an unknown action as succeeded", "unknown-action",
        'return {"status": "failed", "message": "unknown action"}',
        'return {"status": "succeeded", "message": "unknown action"}',
    ),
    Sabotage("ignores Retry-After", "rate-limited", "if retry_after:", "if retry_after > 999:"),
    Sabotage("sends reports to an overloaded server", "overloaded", '"" if error.code == 503 else path', "path"),
    Sabotage("has no jitter", "spread-retries", "return wait * random.uniform(0.5, 1)", "return wait"),
    Sabotage(
        "has a pace of its own", "heartbeat-pace",
        'self.wait(0 if answer["has_more"] and any(took) else answer["next_heartbeat_seconds"])', "self.wait(2)",
    ),
    Sabotage(
        "discards its state at a restart", "restart", "if self.path.exists() else", "if not self.path else"
    ),
    Sabotage(
        "registers again after 403", "revoked",
        "            self.refusals += 1\n", '            self.refusals += 1\n            del self.state["current"]\n'
        "            self.register()\n",
    ),
    Sabotage(
        "forgets the old command key during a rotation", "rotation",
        'return [pair for pair in (self.state.get("next"), self.state["current"]) if pair]',
        'return [self.state.get("next") or self.state["current"]]',
    ),
    Sabotage(
        "uses new credentials before it stores them", "rotation",
        'self.state["next"] = self.pair_in(answer)\n            self.state.save()\n',
        'self.state["next"] = self.pair_in(answer)\n            self.state.save = lambda: None\n',
    ),
    Sabotage(
        "takes any page for a refusal", "captive-portal",
        'raise NoAnswer(f"{error.code}, but no problem details")', 'raise Refused(403, "", None)',
    ),
    Sabotage(
        "follows redirects", "captive-portal",
        "urllib.request.build_opener(FollowNoRedirect)", "urllib.request.build_opener()",
    ),
    Sabotage(
        "repeats a refused registration", "refused-registration",
        "if refused.status in (401, 403, 409, 413, 422):", "if refused.status == 422:",
    ),
    Sabotage(
        "waits for the next heartbeat with more commands open", "many-commands",
        'self.wait(0 if answer["has_more"] and any(took) else answer["next_heartbeat_seconds"])',
        'self.wait(answer["next_heartbeat_seconds"])',
    ),
)  # fmt: skip
