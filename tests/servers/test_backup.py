"""Backup and restore: the commands of docs/operations/backup.md unchanged, and a phone on the restored database."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.testbed.serving import MANAGE, READY, Serving
from nexmdm.client.http_client import FleetClient, Refused
from nexmdm.standalone import embedded_postgres
from tests.support.processes import ROOT, address, web_worker

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="the page's commands are for a shell")


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


def heard_from(url: str, phone: dict[str, Any]) -> list[str]:
    """Send a heartbeat; return the commands in its answer."""
    answer = heartbeat(url, phone)
    assert answer.status_code == 200, answer.text
    return [command["request_id"] for command in answer.json()["commands"]]


def used(serving: Serving) -> tuple[dict[str, Any], str]:
    """Create two phones and an open command in the database; return one of the phones, and its command."""
    with serving.admin() as admin:
        token = admin.post("/admin/enrollment-tokens", {"max_uses": 2})["enrollment_token"]
        phone, _ = (registered(serving.url, token, f"phone-{number}") for number in range(2))
        assert heartbeat(serving.url, phone).status_code == 200
        ping = {"action": "ping", "target": {"device_ids": [phone["device_id"]]}}
        return phone, admin.post("/admin/command", ping)["request_id"]


def installation(serving: Serving) -> Path:
    """Return a folder that looks like an installation to the commands of the page."""
    folder = serving.data_dir.parent  # PostgreSQL's account must be able to enter it if root runs the tests
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "manage.py").symlink_to(MANAGE)
    return folder


def done(folder: Path, environment: dict[str, str], *headings: str) -> str:
    """Run the commands of the page under these headings; return the output."""
    done = subprocess.run(
        ["/usr/bin/env", "bash", "-eu", "-o", "pipefail", "-c", commands_of("backup.md", *headings)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def has_every_row(folder: Path) -> bool:
    counted = (folder / "after.txt").read_text().splitlines()
    return {"devices_device|2", "devices_presence|2", "commands_delivery|1", "nexmdm_auditentry|2"} <= set(counted)


@needs_bash
def test_a_restore_into_an_own_database_has_every_row_and_serves_its_phones(
    serving: Serving,
) -> None:
    phone, request_id = used(serving)
    source = serving.database_url()
    restored = source.replace("/nexmdm?", "/restored?")
    path = f"{embedded_postgres.binaries()}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **serving.secrets, "PATH": path, "DATABASE_URL": source, "RESTORED_URL": restored}

    headings = ("Back up", "Restore", "Use the restored database: your own PostgreSQL")
    folder = installation(serving)
    assert "Every row is back.\n" in done(folder, environment, *headings)
    assert has_every_row(folder)

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        web_worker(listener, {**serving.secrets, "DATABASE_URL": restored}),
    ):
        url = address(listener)
        assert heard_from(url, phone) == [request_id]
        with FleetClient(url, key=serving.secrets["ADMIN_KEY"], secret=serving.secrets["HMAC_SECRET"]) as admin:
            cursor = admin.get("/admin/events", limit=1)["next_cursor"]
            assert admin.get("/admin/events", after=cursor)["items"]
            environment["DATABASE_URL"] = restored
            assert done(folder, environment, "Begin a new epoch of the events") == "DELETE 1\n"
            with pytest.raises(Refused) as refused:
                admin.get("/admin/events", after=cursor)
            assert (refused.value.status, refused.value.code) == (410, "cursor_expired")
            assert admin.get("/admin/events")["items"]


@needs_bash
def test_a_restore_into_the_embedded_database_has_every_row_and_serves_its_phones(
    serving: Serving, tmp_path: Path
) -> None:
    phone, request_id = used(serving)
    environment = {**serving.environment, "PATH": f"{useless_clients(tmp_path)}{os.pathsep}{os.environ['PATH']}"}
    folder = installation(serving)
    assert "runs already" in done(folder, environment, "On the embedded database", "Back up")
    assert serving.interrupt() == 0

    headings = ("On the embedded database", "Restore", "Use the restored database: the embedded PostgreSQL")
    assert "Every row is back.\n" in done(folder, environment, *headings)
    assert has_every_row(folder)

    again = Serving(serving.data_dir).until_it_says(READY)
    try:
        assert heard_from(again.url, phone) == [request_id]
    finally:
        assert again.interrupt() == 0


def useless_clients(folder: Path) -> Path:
    """Make a folder of client programs that are too old for any server."""
    clients = folder / "clients"
    clients.mkdir()
    for name in ("pg_dump", "pg_restore", "psql"):
        (clients / name).write_text("#!/bin/sh\necho server version mismatch >&2\nexit 1\n")
        (clients / name).chmod(0o755)
    return clients
