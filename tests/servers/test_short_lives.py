"""Behaviour that only real processes show, on one server: expiry, clients that wait, an open circuit."""

import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from commands.push.circuit_breaker import SEVERAL_DEVICES
from loadtest.fake_fcm.server import FcmStandin
from loadtest.testbed.serving import READY, Serving, wait_for
from nexmdm.client.http_client import FleetClient

POOL = 2
WAITING = 20


@pytest.fixture(scope="module")
def standin() -> Iterator[FcmStandin]:
    with FcmStandin() as standin:
        yield standin


@pytest.fixture(scope="module")
def serving(standin: FcmStandin) -> Iterator[Serving]:
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        serving = Serving(
            Path(folder) / "data",
            DATABASE_POOL_SIZE=str(POOL),
            FCM_BASE_URL=standin.base_url,
            FIREBASE_SERVICE_ACCOUNT_JSON=json.dumps(standin.service_account()),
        )
        yield serving.until_it_says(READY)
        assert serving.interrupt() == 0


@pytest.fixture
def admin(serving: Serving) -> Iterator[FleetClient]:
    with serving.admin() as admin:
        yield admin


def call(admin: FleetClient, target: str, body: Any, token: str) -> Any:
    answer = httpx.post(f"{admin.url}{target}", json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def enrol(admin: FleetClient, **fields: str) -> Any:
    """Register a phone and return the answer."""
    token = admin.post("/admin/enrollment-tokens", {})["enrollment_token"]
    return call(admin, "/v1/register", {"hardware_id": token[:26], **fields}, token)


def ping(admin: FleetClient, phone: Any, **fields: Any) -> str:
    body = {"action": "ping", "target": {"device_ids": [phone["device_id"]]}, **fields}
    return str(admin.post("/admin/command", body)["request_id"])


def test_a_command_of_two_seconds_is_expired_within_five_and_its_late_result_is_stored(
    serving: Serving, admin: FleetClient
) -> None:
    phone = enrol(admin)
    request_id = ping(admin, phone, expires_in_seconds=2)
    issued = time.monotonic()
    with psycopg.connect(serving.database_url(), autocommit=True) as database:

        def state() -> Any:
            found = database.execute("SELECT state FROM commands_delivery WHERE command_id = %s", [request_id])
            return found.fetchone()

        wait_for(lambda: state() == ("expired",))
    assert time.monotonic() - issued < 5

    assert admin.command(request_id)["counts"]["expired"] == 1
    report = {"request_id": request_id, "status": "succeeded", "message": "sorry"}
    taken = call(admin, "/v1/action-result", report, phone["device_token"])
    assert (taken["state"], taken["late"]) == ("expired", True)
    delivery = admin.get(f"/admin/commands/{request_id}/deliveries/{phone['device_id']}")
    assert (delivery["state"], delivery["late_result"]["message"]) == ("expired", "sorry")


def test_clients_that_wait_for_a_command_use_no_database_connection(admin: FleetClient) -> None:
    phone = enrol(admin)
    request_id = ping(admin, phone)
    with ThreadPoolExecutor(WAITING) as threads:
        waiting = [threads.submit(admin.get, f"/admin/commands/{request_id}", wait_seconds=30) for _ in range(WAITING)]
        call(admin, "/v1/heartbeat", {}, phone["device_token"])
        assert not any(one.done() for one in waiting)
        call(admin, "/v1/action-result", {"request_id": request_id, "status": "succeeded"}, phone["device_token"])
        assert {one.result(timeout=10)["state"] for one in waiting} == {"completed"}


def test_readiness_shows_that_the_dispatcher_cannot_push(admin: FleetClient, standin: FcmStandin) -> None:
    def push() -> Any:
        return httpx.get(f"{admin.url}/readyz").json()["push"]

    assert push() == "ok"
    standin.override = "missing"
    request_ids = [ping(admin, enrol(admin, push_token=f"ok-{number}")) for number in range(SEVERAL_DEVICES)]
    wait_for(lambda: push() == "circuit_open")

    for request_id in request_ids:
        (delivery,) = admin.get(f"/admin/commands/{request_id}/deliveries")["items"]
        push_now = delivery["push"]
        assert (delivery["state"], push_now["state"], push_now["last_http_status"]) == ("pending", "retrying", 404)
