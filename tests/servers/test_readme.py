"""The commands of the README and of docs/operations/http-api.md, and the recipes of `/docs`, against a new server."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from loadtest.testbed.serving import READY, WAIT_SECONDS, Serving

ROOT: Final = Path(__file__).resolve().parent.parent.parent
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
HTTP_API: Final = (ROOT / "docs" / "operations" / "http-api.md").read_text(encoding="utf-8")
DEFAULT_URL: Final = "http://127.0.0.1:8000"
PYTHON: Final = ".venv/bin/python"

INSTALLED: Final = (f"BIN={Path(sys.executable).parent}", "--old-file=.venv/runtime.stamp")
"""Keeps make from installing anything: the tests run in an environment with all packages."""

TOOLS: Final = ("bash", "curl", "make", "openssl")

pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"the README requires {', '.join(TOOLS)}")


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    """The server that the README's first block starts."""
    clone, change, run = blocks(README, "sh")[0].splitlines()
    assert (clone.split()[:2], change) == (["git", "clone"], "cd nexmdm")
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        program = (*shlex.split(run), *INSTALLED)
        serving = Serving(Path(folder) / ".nexmdm", program, MAKEFLAGS="").until_it_says(READY)
        yield serving
        serving.interrupt()
        assert '"event":"web.stopped"' in serving.said


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def under(heading: str, page: str = README) -> str:
    """Return the shell blocks of one section of the README, or of another page."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    return "\n".join(blocks(section, "sh"))


def recipes(serving: Serving, language: str) -> list[str]:
    """Return the code of the served documentation, with this server's address in it."""
    description = httpx.get(f"{serving.url}/openapi.json").json()["info"]["description"]
    return [block.replace(DEFAULT_URL, serving.url) for block in blocks(description, language)]


def ran(serving: Serving, *program: str) -> str:
    """Run a program next to the data folder and return its output; it must succeed, and print no error."""
    folder = serving.data_dir.parent
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def in_bash(serving: Serving, script: str) -> str:
    return ran(serving, "/usr/bin/env", "bash", "-eu", "-o", "pipefail", "-c", script)


@contextmanager
def started(serving: Serving, command: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a command of the README in the repository, with the environment of the server."""
    port = serving.url.rpartition(":")[2]
    words = command.replace(PYTHON, shlex.quote(sys.executable))
    with subprocess.Popen(
        ["/usr/bin/env", "bash", "-c", f"exec {words}"],
        cwd=ROOT,
        env=serving.environment | {"PORT": port},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def done(serving: Serving, command: str) -> str:
    """Run a command of the README to its end and return its output."""
    with started(serving, command) as process:
        out, err = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 0, (command, out, err)
        return out


def test_a_new_user_pings_a_simulated_phone_in_three_commands(serving: Serving) -> None:
    *_, run, simulate, ping = filter(None, under("Run it").splitlines())
    assert run == "make run"
    with started(serving, simulate) as phone:
        assert phone.stdout is not None
        assert "Registered as" in phone.stdout.readline()
        assert "succeeded" in done(serving, ping)
        for command in under("The client").splitlines():
            assert done(serving, command)
        phone.send_signal(signal.SIGINT)
        out, _ = phone.communicate(timeout=WAIT_SECONDS)
        assert phone.returncode == 0
    assert [line.partition("  ")[2] for line in out.splitlines()] == [
        "ping {}: done",
        'message {"title":"Hello","body":"Back at ten."}: done',
        "Stopped.",
    ]


def test_the_quick_start_goes_from_an_enrollment_token_to_a_completed_ping(serving: Serving) -> None:
    script = under("Quick start with curl and openssl", HTTP_API)
    assert DEFAULT_URL in script
    offered, taken, command = in_bash(serving, script.replace(DEFAULT_URL, serving.url)).splitlines()
    assert '"action":"ping"' in offered
    assert '"state":"succeeded"' in taken
    assert '"state":"completed"' in command


def test_the_signing_recipe_for_a_shell_works(serving: Serving) -> None:
    (recipe,) = recipes(serving, "sh")
    devices, token = in_bash(serving, recipe).splitlines()
    assert devices.startswith('{"items":[')
    assert '"enrollment_token":"nxe_' in token


def test_the_recipes_in_python_work(serving: Serving) -> None:
    signing, verifying = recipes(serving, "python")
    devices, token = ran(serving, sys.executable, "-c", signing).splitlines()
    assert devices.startswith("{'items': [")
    assert "'enrollment_token': 'nxe_" in token
    assert ran(serving, sys.executable, "-c", verifying) == ""
