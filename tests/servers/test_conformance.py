"""The conformance kit: the shipped agents keep every promise, and each sabotaged agent is found."""

import asyncio
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from nexmdm.conformance.catalogue import SCENARIOS
from tests.support.agents import PYTHON_AGENT, SABOTAGES, SIMULATED_PHONE, Results, Sabotage, Task, play
from tests.support.processes import ROOT, run


def conformance(*options: str) -> subprocess.Popen[str]:
    """Start `manage.py conformance`."""
    argv = [sys.executable, "manage.py", "conformance", *options]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@dataclass(frozen=True, slots=True)
class Runs:
    """The findings of all runs. The runs wait most of the time, so they run at the same time."""

    results: Results
    simulated: tuple[int, str]
    """Exit status and output of a whole run of the command against the simulated phone."""

    sabotaged: tuple[int, str]


@pytest.fixture(scope="module")
def runs() -> Runs:
    """All scenarios for the unchanged agents, and for each sabotaged agent the scenario that must find it."""
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as path, ExitStack() as stack:
        folder = Path(path)
        tasks = [Task(one.rule, one.scenario, one.command(folder)) for one in SABOTAGES]
        tasks += [Task("agent.py", name, PYTHON_AGENT) for name in SCENARIOS]
        tasks.append(Task("an agent that ends", "restart", ["sh", "-c", "echo no such module >&2; exit 3"]))
        unknown = next(one for one in SABOTAGES if one.scenario == "unknown-action")
        options = ("--only", unknown.scenario, "--only", "enroll", "--", *unknown.command(folder))
        simulated = stack.enter_context(conformance("--", *SIMULATED_PHONE))
        sabotaged = stack.enter_context(conformance(*options))
        results = asyncio.run(play(folder, tasks))
        ended = [(process.communicate()[0], process.returncode) for process in (simulated, sabotaged)]
    return Runs(results, *((status, output) for output, status in ended))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_python_agent_keeps_every_promise(runs: Runs, scenario: str) -> None:
    result = runs.results["agent.py", scenario]
    assert (result.missed, result.output) == ("", "")


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=[one.rule for one in SABOTAGES])
def test_an_agent_that_breaks_a_rule_is_found_by_its_scenario(runs: Runs, sabotage: Sabotage) -> None:
    assert runs.results[sabotage.rule, sabotage.scenario].missed != ""


@pytest.mark.parametrize(
    ("rule", "scenario", "advice"),
    [
        ("sends no push target", "both-channels", "Send PHONE_PUSH_TARGET as push_target"),
        ("takes no pushes", "server-away", "a push waits at PHONE_PUSH_URL, and the agent does not take it"),
        ("names no channel", "both-channels", 'its report must have "via": "push", not None'),
    ],
)
def test_a_miss_shows_what_the_agent_left_out(runs: Runs, rule: str, scenario: str, advice: str) -> None:
    assert runs.results[rule, scenario].missed.endswith(advice)


def test_the_simulated_phone_keeps_every_promise_and_the_command_ends_with_0(runs: Runs) -> None:
    status, output = runs.simulated
    assert (status, output.splitlines()[-1]) == (0, f"{len(SCENARIOS)} of {len(SCENARIOS)} promises kept."), output


def test_a_miss_quotes_the_rule_and_the_command_ends_with_1(runs: Runs) -> None:
    status, output = runs.sabotaged
    assert status == 1
    assert re.search("^enroll +kept$", output, re.MULTILINE)
    assert re.search("^unknown-action +MISSED$", output, re.MULTILINE)
    assert "Rule: If a phone does not know an action, the phone reports the command as failed." in output
    assert "Seen: the agent reported 'succeeded' instead of 'failed'." in output
    assert output.endswith("1 of 2 promises kept.\n")


def test_an_agent_that_ends_by_itself_is_shown_with_its_last_output(runs: Runs) -> None:
    result = runs.results["an agent that ends", "restart"]
    assert result.missed == "within 12 s, the agent did not register"
    assert result.output == "no such module\n(It ended with exit status 3.)"


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (
            (),
            (
                "No agent is named. Write the command that starts the agent: manage.py conformance -- python "
                "docs/agent/agent.py"
            ),
        ),
        (("--", "no-such-agent"), "'no-such-agent' is not a program."),
        (("--only", "no-such-scenario"), "invalid choice: 'no-such-scenario'"),
    ],
)
def test_a_wrong_command_is_refused_with_advice(command: tuple[str, ...], error: str) -> None:
    done = run("manage.py", "conformance", *command)
    assert done.returncode != 0
    assert error in done.stderr
    assert "Traceback" not in done.stderr


def test_the_list_names_each_scenario_with_its_rule() -> None:
    lines = run("manage.py", "conformance", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(SCENARIOS)
    assert all(line.endswith(".") for line in lines)
