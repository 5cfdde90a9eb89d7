"""Back-up and restore: the commands of docs/operations/backup.md as they stand, and a phone on what they restored."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.serving import READY, Serving
from nexmdm import embedded
from tests.parts import ROOT, address, web_worker


@pytest.fixture
def serving() -> Iterator[Serving]:
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        serving = Serving(Path(folder) / "data").until_it_says(READY)
        yield serving
        assert serving.interrupt() == 0


def commands_of(page: str, *headings: str) -> str:
    """Return the shell blocks under these headings of a page."""
    sections = re.split(r"^## ", (ROOT / "docs" / "operations" / page).read_text(), flags=re.MULTILINE)
    wanted = [section for section in sections if section.splitlines()[0] in headings]
    assert len(wanted) == len(headings)
    return "\n".join(re.findall(r"```sh\n(.*?)```", "".join(wanted), re.DOTALL))


def registered(url: str, token: str, hardware_id: str) -> dict[str, Any]:
    answer = httpx.post(
        f"{url}/v1/register", json={"hardware_id": hardware_id}, headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def heartbeat(url: str, phone: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {phone['device_token']}"}
    return httpx.post(f"{url}/v1/heartbeat", json={"status": {"battery_pct": 83}}, headers=headers, timeout=30)


@pytest.mark.skipif(shutil.which("bash") is None, reason="the page's commands are for a shell")
def test_what_is_restored_has_every_row_and_serves_its_phones(serving: Serving, tmp_path: Path) -> None:
    with serving.admin() as admin:
        token = admin.post("/admin/enrollment-tokens", {"max_uses": 2})["enrollment_token"]
        phone, _ = (registered(serving.url, token, f"phone-{number}") for number in range(2))
        assert heartbeat(serving.url, phone).status_code == 200
        ping = {"action": "ping", "target": {"device_ids": [phone["device_id"]]}}
        request_id = admin.post("/admin/command", ping)["request_id"]
    source = serving.database_url()
    restored = source.replace("/nexmdm?", "/restored?")

    done = subprocess.run(
        ["/usr/bin/env", "bash", "-eu", "-o", "pipefail", "-c", commands_of("backup.md", "Back up", "Restore")],
        env={
            **os.environ,
            "PATH": f"{embedded.binaries()}{os.pathsep}{os.environ['PATH']}",
            "DATABASE_URL": source,
            "RESTORED_URL": restored,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "Every row is back.\n"), done.stderr
    counted = (tmp_path / "after.txt").read_text().splitlines()
    assert {"devices_device|2", "devices_presence|2", "commands_delivery|1", "nexmdm_auditentry|2"} <= set(counted)

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        web_worker(listener, {**serving.secrets, "DATABASE_URL": restored}),
    ):
        answer = heartbeat(address(listener), phone)
        assert answer.status_code == 200
        assert [command["request_id"] for command in answer.json()["commands"]] == [request_id]
