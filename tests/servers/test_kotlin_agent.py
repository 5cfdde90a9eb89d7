"""The Kotlin agent of docs/agent compiles, and keeps the promises of the kit. The test needs a Kotlin compiler and a
JVM.
"""

import asyncio
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

from tests.support.agents import FOLDER, Task, play
from tests.support.processes import ROOT

JSON_JAR: Final = Path("/usr/share/java/json-android.jar")
"""Android's org.json, for a JVM: Debian's libandroid-json-org-java."""

PLAYED: Final = ("enroll", "restart", "bad-signature", "repeated-command", "rotation", "rate-limited", "clock-ahead")


@pytest.mark.skipif(shutil.which("kotlinc") is None or not JSON_JAR.exists(), reason="no kotlinc, or no org.json")
def test_the_kotlin_agent_compiles_and_keeps_the_promises_about_keys_and_repeats(tmp_path: Path) -> None:
    jar = tmp_path / "agent.jar"
    sources = [str(FOLDER / name) for name in ("Agent.kt", "KitAdapter.kt")]
    compiler = ["kotlinc", *sources, "-classpath", str(JSON_JAR), "-include-runtime", "-d", str(jar)]
    compiled = subprocess.run(compiler, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert (compiled.returncode, ".kt:" in compiled.stderr) == (0, False), compiled.stderr
    java = ["java", "-XX:TieredStopAtLevel=1", "-Xmx64m", "-cp", f"{jar}:{JSON_JAR}", "nexmdm.KitAdapterKt"]
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        found = asyncio.run(play(Path(folder), [Task("Agent.kt", name, java) for name in PLAYED]))
    assert {name: result.missed for (_, name), result in found.items() if result.missed} == {}
