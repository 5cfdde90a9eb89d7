"""The README's quick start, pasted as it stands, against a server that was just started."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.serving import READY, Serving

README = Path(__file__).resolve().parent.parent / "README.md"
DEFAULT_URL = "http://127.0.0.1:8000"

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "openssl"))), reason="the quick start wants bash, curl and openssl"
)


@pytest.fixture
def serving() -> Iterator[Serving]:
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        serving = Serving(Path(folder) / ".nexmdm").until_it_says(READY)
        yield serving
        assert serving.interrupt() == 0


def blocks_under(heading: str) -> str:
    """Return the shell blocks of one section of the README."""
    section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))


@needs_tools
def test_the_quick_start_goes_from_an_enrollment_token_to_a_completed_ping(serving: Serving) -> None:
    script = blocks_under("Quick start with curl and openssl")
    assert DEFAULT_URL in script

    done = subprocess.run(
        ["/usr/bin/env", "bash", "-eu", "-o", "pipefail", "-c", script.replace(DEFAULT_URL, serving.url)],
        cwd=serving.data_dir.parent,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    offered, taken, command = done.stdout.splitlines()
    assert '"action":"ping"' in offered
    assert '"state":"succeeded"' in taken
    assert '"state":"completed"' in command
    assert done.stderr == ""
