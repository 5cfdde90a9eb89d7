"""Two web workers and two dispatchers on one database: nothing is sent twice or missed, and limits are shared."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import repeat, takewhile
from pathlib import Path

import httpx
import psycopg
import pytest

from loadtest.fake_fcm.server import FcmStandin
from loadtest.testbed.serving import MANAGE, READY, Serving, wait_for
from nexmdm.client.http_client import FleetClient, Refused

DEVICES, COMMANDS = 20, 25
PUSHES_PER_SECOND = 200
"""So few that one dispatcher cannot send all before the other one, woken by each command, sends some."""

SENT = '"event":"command.sent"'
LIMIT, CLIENTS = 60, 8
ENOUGH_SECONDS = 15
"""Far longer than it takes to use the limit up."""


@pytest.fixture
def standin() -> Iterator[FcmStandin]:
    with FcmStandin(delay_ms=5) as standin:
        yield standin


@pytest.fixture
def serving(standin: FcmStandin) -> Iterator[Serving]:
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        serving = Serving(
            Path(folder) / "data",
            WEB_WORKERS="2",
            LOG_LEVEL="INFO",
            FCM_MAX_PER_SECOND=str(PUSHES_PER_SECOND),
            FCM_BASE_URL=standin.base_url,
            FIREBASE_SERVICE_ACCOUNT_JSON=json.dumps(standin.service_account()),
        )
        yield serving.until_it_says(READY)
        assert serving.interrupt() == 0


def test_each_command_is_pushed_to_each_phone_exactly_once(serving: Serving, standin: FcmStandin) -> None:
    second = serving.start("dispatch", until_it_says="dispatch.started")
    with serving.admin() as admin:
        enroll(admin)
        ping = {"action": "ping", "target": {"all": True}}
        issued = [admin.post("/admin/command", ping)["request_id"] for _ in range(COMMANDS)]
        standin.journal.wait_for(DEVICES * COMMANDS, timeout=30)
        wait_for(lambda: all(admin.command(request_id)["push"]["accepted"] == DEVICES for request_id in issued))
    second.terminate()
    assert second.wait(30) == 0

    pushed = Counter((send.request_id, send.push_token) for send in standin.journal.sends())
    assert len(pushed) == DEVICES * COMMANDS
    assert set(pushed.values()) == {1}
    by_dispatcher = serving.said.count(SENT), (serving.data_dir.parent / "output-dispatch").read_text().count(SENT)
    assert min(by_dispatcher) > 0
    assert sum(by_dispatcher) == DEVICES * COMMANDS


def enroll(admin: FleetClient) -> None:
    token = admin.post("/admin/enrollment-tokens", {"max_uses": DEVICES})["enrollment_token"]
    for number in range(DEVICES):
        body = {"hardware_id": f"phone-{number}", "push_token": f"ok-{number}"}
        answer = httpx.post(f"{admin.url}/v1/register", json=body, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.text


@pytest.fixture
def limited() -> Iterator[Serving]:
    """Two workers that share a limit for writes; the limit for reads shows when the minute ends."""
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        limits = {"ADMIN_RATE_LIMIT": f"{LIMIT}/m", "ADMIN_READ_RATE_LIMIT": "1/m"}
        serving = Serving(Path(folder) / "data", WEB_WORKERS="2", **limits)
        yield serving.until_it_says(READY)
        assert serving.interrupt() == 0


def test_parallel_clients_of_two_workers_share_one_limit_exactly(limited: Serving) -> None:
    with ExitStack() as stack:
        clients = [*connected_to("web-1", limited, stack), *connected_to("web-2", limited, stack)]
        wait_for(lambda: seconds_left(clients[0]) >= ENOUGH_SECONDS)
        left = seconds_left(clients[0])
        with ThreadPoolExecutor(CLIENTS) as threads:
            admitted = list(threads.map(write_until_refused, clients))
        assert seconds_left(clients[0]) <= left, "another minute began meanwhile"

    by_worker = sum(admitted[: CLIENTS // 2]), sum(admitted[CLIENTS // 2 :])
    assert min(by_worker) > 0
    with psycopg.connect(limited.database_url()) as connection:
        done = connection.execute("SELECT count(*) FROM devices_enrollmenttoken").fetchone()
    assert (sum(admitted), done) == (LIMIT, (LIMIT,))
    assert f"Verified {LIMIT} entries" in verify_audit(limited)


def connected_to(worker: str, serving: Serving, stack: ExitStack) -> list[FleetClient]:
    """Half of the clients, with connections kept by one worker; the other worker sleeps while they are opened."""
    (other,) = {"web-1", "web-2"} - {worker}
    os.kill(serving.child(other), signal.SIGSTOP)
    clients = [stack.enter_context(serving.admin()) for _ in range(CLIENTS // 2)]
    for client in clients:
        client.get("/healthz")
    os.kill(serving.child(other), signal.SIGCONT)
    return clients


def seconds_left(client: FleetClient) -> int:
    """The remaining seconds of the limits' minute, from a refused read; 0 if this was the first read in the minute."""
    try:
        client.get("/admin/summary")
    except Refused as refused:
        return refused.retry_after_seconds or 0
    return 0


def write_until_refused(client: FleetClient) -> int:
    """Create enrollment tokens until the limit refuses one; return the number of created tokens."""
    return len(list(takewhile(writes, repeat(client, LIMIT + 1))))


def writes(client: FleetClient) -> bool:
    """Create an enrollment token; return whether the limit allowed it."""
    try:
        client.post("/admin/enrollment-tokens", {})
    except Refused as refused:
        if refused.code != "rate_limited":
            raise
        return False
    return True


def verify_audit(serving: Serving) -> str:
    program = [sys.executable, MANAGE, "verify_audit"]
    return subprocess.run(program, env=serving.environment, capture_output=True, text=True, check=True).stdout
