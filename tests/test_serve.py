"""serve runs everything and leaves nothing behind, however it ends."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from django.conf import settings

_SECONDS = 60
_READY = "Ctrl-C stops everything."


class Serve:
    """A `manage.py serve` on a free port."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._output = data_dir.parent / "output"
        environment = {**os.environ, "NEXMDM_DATA_DIR": str(data_dir), "HOST": "127.0.0.1", "PORT": "0"}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, settings.BASE_DIR / "manage.py", "serve"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def until_it_says(self, text: str) -> "Serve":
        wait_for(lambda: text in self.said or self.process.poll() is not None)
        assert text in self.said
        return self

    def get(self, path: str) -> int:
        address = re.findall(r"ready: (\S+)", self.said)[-1]
        with urllib.request.urlopen(address + path, timeout=10) as answer:  # noqa: S310
            return int(answer.status)

    def interrupt(self) -> int:
        """Do what Ctrl-C does: signal the whole process group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def child(self, name: str) -> int:
        return int(re.findall(rf'"name":"{name}","pid":(\d+)', self.said)[-1])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        yield Path(folder) / "data"


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    serve = Serve(folder).until_it_says(_READY)
    yield serve
    serve.interrupt()
    wait_for(lambda: not processes_of(folder))


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of all that works for this data folder, PostgreSQL's processes included."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            traces = (process / "environ").read_bytes() + bytes((process / "cwd").readlink())
            if bytes(folder) in traces:
                found.append((process / "cmdline").read_bytes().decode())
    return found


def test_it_is_ready_and_says_what_to_do_first(serve: Serve) -> None:
    assert serve.get("/readyz") == 200
    assert f"Secrets      {serve.data_dir}/secrets.env" in serve.said
    assert "Firebase is not configured" in serve.said
    assert "manage.py fleet enroll-token" in serve.said


def test_ctrl_c_leaves_no_process_behind(serve: Serve) -> None:
    assert processes_of(serve.data_dir)
    assert serve.interrupt() == 0
    assert processes_of(serve.data_dir) == []


def test_signals_that_repeat_do_not_break_the_stop(serve: Serve) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.killpg(serve.process.pid, number)
    assert serve.process.wait(_SECONDS) == 0
    assert processes_of(serve.data_dir) == []


def test_nothing_outlives_a_killed_serve(serve: Serve) -> None:
    serve.kill()
    wait_for(lambda: not processes_of(serve.data_dir))


def test_it_starts_again_right_after_a_kill(serve: Serve) -> None:
    serve.kill()
    again = Serve(serve.data_dir).until_it_says(_READY)
    assert again.get("/readyz") == 200
    assert again.interrupt() == 0


def test_a_second_one_on_the_same_folder_is_refused(serve: Serve) -> None:
    second = subprocess.run(
        [sys.executable, settings.BASE_DIR / "manage.py", "serve"],
        env={**os.environ, "NEXMDM_DATA_DIR": str(serve.data_dir), "PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert "Another serve runs on" in second.stderr
    assert serve.get("/readyz") == 200


@pytest.mark.parametrize("name", ["web-1", "dispatch"])
def test_a_part_that_dies_is_started_again(serve: Serve, name: str) -> None:
    os.kill(serve.child(name), signal.SIGKILL)
    serve.until_it_says('"event":"process.restarted"')
    wait_for(lambda: serve.get("/healthz") == 200)
