"""Two web workers and two dispatchers on one database: no command is sent twice, none is missed."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtest.fcm_standin import FcmStandin
from loadtest.serving import READY, Serving, wait_for
from nexmdm.fleet_client import FleetClient

DEVICES, COMMANDS = 20, 25


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


def enroll(admin: FleetClient) -> None:
    token = admin.post("/admin/enrollment-tokens", {"max_uses": DEVICES})["enrollment_token"]
    for number in range(DEVICES):
        body = {"hardware_id": f"phone-{number}", "push_token": f"ok-{number}"}
        answer = httpx.post(f"{admin.url}/v1/register", json=body, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.text
