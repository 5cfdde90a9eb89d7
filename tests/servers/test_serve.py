"""`serve` runs everything, and leaves no process behind after any kind of end."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from pytest_django import Settings

from loadtest.testbed.serving import MANAGE, READY, WAIT_SECONDS, Serving, wait_for
from nexmdm.management.commands import serve as serve_command


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        yield Path(folder) / "data"


@pytest.fixture
def serve(folder: Path) -> Iterator[Serving]:
    serve = Serving(folder).until_it_says(READY)
    yield serve
    serve.interrupt()
    wait_for(lambda: not processes_of(folder))


def get(serve: Serving, path: str) -> int:
    with urllib.request.urlopen(serve.url + path, timeout=10) as answer:  # noqa: S310
        return int(answer.status)


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of all processes for this data folder, including PostgreSQL's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            traces = (process / "environ").read_bytes() + bytes((process / "cwd").readlink())
            if bytes(folder) in traces:
                found.append((process / "cmdline").read_bytes().decode())
    return found


def test_serve_is_ready_and_prints_the_first_steps(serve: Serving) -> None:
    assert get(serve, "/readyz") == 200
    assert f"Secrets      {serve.data_dir}/secrets.env" in serve.said
    assert "Firebase is not configured" in serve.said
    assert "manage.py simulate\n" in serve.said


def test_if_the_port_is_in_use_serve_prints_the_command_that_works(serve: Serving, tmp_path: Path) -> None:
    port = serve.url.rpartition(":")[2]
    environment = {**os.environ, "NEXMDM_DATA_DIR": str(tmp_path / "a folder"), "HOST": "127.0.0.1", "PORT": port}
    program = [sys.executable, MANAGE, "serve", "--end-with-parent"]
    refused = subprocess.run(
        program, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert refused.returncode == 1
    found = re.search(r"^To start the server there: (.*) PORT=(\d+) make run$", refused.stderr, re.MULTILINE)
    assert found is not None
    assert found[1] == f"NEXMDM_DATA_DIR='{tmp_path}/a folder' HOST=127.0.0.1"
    socket.create_server(("127.0.0.1", int(found[2]))).close()


def test_in_a_pipe_serve_logs_json_and_controls_no_terminal(serve: Serving) -> None:
    assert "\x1b" not in serve.said
    assert serve.child("dispatch")


def test_at_a_terminal_serve_logs_for_people_and_its_last_lines_stay() -> None:
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        shown, rest = serve_at_a_terminal(Path(folder) / "data")
    assert b"info" in shown
    assert b"web.started" in shown
    assert b'{"' not in shown
    assert b"\x1b[1;21r" in shown, "the log scrolls above the last three lines"
    assert b"\x1b[24;1H\x1b[2Kdevices: 0 online, 0 offline" in shown
    assert rest.index(b"\x1b[r") < rest.index(b"web.stopped"), "the terminal is given back before the last lines"


def serve_at_a_terminal(data_dir: Path) -> tuple[bytes, bytes]:
    """Start `serve` on a terminal of 24 lines. Return its output until the state, and from Ctrl-C to the end."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    environment = {**os.environ, "NEXMDM_DATA_DIR": str(data_dir), "HOST": "127.0.0.1", "PORT": "0"}
    del environment["LOG_FORMAT"]
    process = subprocess.Popen(
        [sys.executable, MANAGE, "serve"],
        env={**environment, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    with ThreadPoolExecutor(1) as threads, os.fdopen(leader, "rb", buffering=0) as terminal:
        shown = until(terminal, b"open deliveries: 0")
        process.send_signal(signal.SIGINT)
        reading = threads.submit(until, terminal, b"never said")
        assert process.wait(WAIT_SECONDS) == 0
        return shown, reading.result()


def until(terminal: Any, text: bytes) -> bytes:
    """Return the output of a terminal until this text, or until its end."""
    shown = b""
    with suppress(OSError):
        while text not in shown and (more := terminal.read(4096)):
            shown += more
    return shown


def test_serve_prints_in_one_line_that_it_runs_as_root_and_the_remedy(serve: Serving) -> None:
    lines = [line for line in serve.said.splitlines() if "run as root" in line]
    assert len(lines) == (1 if os.geteuid() == 0 else 0)
    assert all("chown -R ACCOUNT" in line and "su ACCOUNT -c 'make -C" in line for line in lines)


@pytest.mark.parametrize(("uid", "said"), [(0, True), (1000, False)])
def test_only_root_sees_how_to_run_it_as_another_account(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, uid: int, said: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    settings.DATA_DIR = Path("/srv/the data")
    facts = "\n".join(serve_command._facts("http://127.0.0.1:8000", "manage.py"))
    assert ("run as root" in facts) == said
    assert (f"chown -R ACCOUNT {settings.BASE_DIR} '/srv/the data' && su ACCOUNT -c" in facts) == said


def test_refusals_that_wait_for_their_line_are_logged_when_serve_stops(serve: Serving) -> None:
    with httpx.Client(base_url=serve.url) as client:
        codes = [client.get(f"/nothing-{number}").json()["code"] for number in range(7)]
    assert serve.interrupt() == 0
    lines = [json.loads(line) for line in serve.said.splitlines() if '"request.refused"' in line]
    assert codes == ["not_found"] * 7
    assert sum(line["count"] for line in lines) == 7


def test_ctrl_c_leaves_no_process_behind(serve: Serving) -> None:
    assert processes_of(serve.data_dir)
    assert serve.interrupt() == 0
    assert processes_of(serve.data_dir) == []


def test_signals_that_repeat_do_not_break_the_stop(serve: Serving) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.killpg(serve.process.pid, number)
    assert serve.process.wait(WAIT_SECONDS) == 0
    assert processes_of(serve.data_dir) == []


def test_no_process_survives_a_killed_serve(serve: Serving) -> None:
    serve.kill()
    wait_for(lambda: not processes_of(serve.data_dir))


def test_serve_starts_again_right_after_a_kill(serve: Serving) -> None:
    serve.kill()
    again = Serving(serve.data_dir).until_it_says(READY)
    assert get(again, "/readyz") == 200
    assert again.interrupt() == 0


def test_a_second_serve_on_the_same_folder_is_refused(serve: Serving) -> None:
    second = subprocess.run(
        [sys.executable, MANAGE, "serve"],
        env={**os.environ, "NEXMDM_DATA_DIR": str(serve.data_dir), "PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert "Another `manage.py serve` (or `make run`) uses the folder" in second.stderr
    assert get(serve, "/readyz") == 200


@pytest.mark.parametrize("name", ["web-1", "dispatch"])
def test_a_part_that_dies_is_started_again(serve: Serving, name: str) -> None:
    os.kill(serve.child(name), signal.SIGKILL)
    serve.until_it_says('"event":"process.restarted"')
    wait_for(lambda: get(serve, "/healthz") == 200)


def test_a_client_that_waits_for_a_command_is_answered_when_the_server_stops(serve: Serving) -> None:
    with serve.admin() as admin, ThreadPoolExecutor(1) as threads:
        token = admin.post("/admin/enrollment-tokens", {})["enrollment_token"]
        headers = {"Authorization": f"Bearer {token}"}
        phone = httpx.post(f"{admin.url}/v1/register", json={"hardware_id": token[:20]}, headers=headers).json()
        ping = {"action": "ping", "target": {"device_ids": [phone["device_id"]]}}
        request_id = admin.post("/admin/command", ping)["request_id"]
        admin.command(request_id)

        waiting = threads.submit(admin.get, f"/admin/commands/{request_id}", wait_seconds=30)
        assert not is_done(waiting, seconds=0.5)
        started = time.monotonic()
        assert serve.interrupt() == 0

        assert waiting.result()["state"] == "open"
        assert time.monotonic() - started < 10


def is_done(future: Future[Any], seconds: float) -> bool:
    """Return whether it is done within this time."""
    return bool(wait([future], timeout=seconds).done)
