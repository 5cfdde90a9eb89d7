"""The application's clock on trial: an hour fast, an hour slow. Every time that decides anything is the database's."""

import importlib.util
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx

from loadtest import ground
from loadtest.serving import wait_for
from loadtest.trials.finding import Finding
from nexmdm.fleet_client import FleetClient, Refused

HOUR: Final = 3600
MOST_OFF_SECONDS: Final = 60
SETTINGS: Final = {"BCRYPT_ROUNDS": "4"}


class NoLibrary(Exception):
    """There is no libfaketime here, without which no process can be given a wrong clock."""


def trial(folder: Path) -> Iterator[Finding]:
    """Go through the loop with a server whose clock is wrong, once in each direction."""
    library = _library()
    for name, seconds in (("fast", HOUR), ("slow", -HOUR)):
        place = folder / name
        place.mkdir()
        yield _tried(name, seconds, place, library)


def _library() -> str:
    """Return the path of libfaketime: PyPI's package, or the system's."""
    spec = importlib.util.find_spec("libfaketime")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += Path("/usr/lib").glob("*/faketime")
    for folder in folders:
        for path in sorted(folder.rglob("libfaketime.so*")):
            return str(path)
    raise NoLibrary(NoLibrary.__doc__)


def _tried(name: str, seconds: int, folder: Path, library: str) -> Finding:
    wrong = {
        "LD_PRELOAD": library,
        "FAKETIME": f"{seconds:+}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with ground.served(folder / "data", **wrong, **SETTINGS) as serving:
        key, secret = serving.secrets["ADMIN_KEY"], serving.secrets["HMAC_SECRET"]
        admin = FleetClient(serving.url, key=key, secret=secret, clock=lambda: time.time() + seconds)
        with closing(admin), serving.admin() as punctual:
            return _found(name, admin, punctual)


def _found(name: str, admin: FleetClient, punctual: FleetClient) -> Finding:
    off = max(abs(moment.timestamp() - expected) for moment, expected in _times(admin))
    expired = _expires(admin)
    signed = _status(admin), _status(punctual)
    held = off < MOST_OFF_SECONDS and expired == "expired, 401" and signed == (200, 401)
    return Finding(
        "a wrong clock of the application changes nothing but the signing window",
        f"an hour {name}: registration, heartbeat, command, result, rotation, expiries, audit",
        f"times off by {off:.1f} s; after 2 s: {expired}; signed by that clock {signed[0]}, by ours {signed[1]}",
        held,
    )


def _times(admin: FleetClient) -> Iterator[tuple[datetime, float]]:
    """Go through the loop; yield each time that is told on the way, and what it should be."""
    now = time.time()
    made = admin.post("/admin/enrollment-tokens", {})
    phone = _post(admin.url, "/v1/register", made["enrollment_token"], {"hardware_id": "phone-1"})
    device_id, token = phone["device_id"], phone["device_token"]
    command = admin.post("/admin/command", {"action": "ping", "target": {"device_ids": [device_id]}})
    heartbeat = _post(admin.url, "/v1/heartbeat", token, {})
    (envelope,) = heartbeat["commands"]
    token = _post(admin.url, "/v1/token/rotate", token, {})["device_token"]
    report = {"request_id": command["request_id"], "status": "succeeded"}
    _post(admin.url, "/v1/action-result", token, report)
    device = admin.get(f"/admin/devices/{device_id}")
    delivery = admin.get(f"/admin/commands/{command['request_id']}/deliveries/{device_id}")
    (audited, *_), _ = admin.items("/admin/audit", 1)
    assert (device["presence"], delivery["state"]) == ("online", "succeeded")
    told = [
        (made["created_at"], 0), (made["expires_at"], 86_400), (phone["server_time"], 0), (command["issued_at"], 0),
        (command["expires_at"], 600), (heartbeat["server_time"], 0), (envelope["issued_at"], 0), (audited["at"], 0),
        (envelope["expires_at"], 600), (device["last_seen_at"], 0), (device["enrolled_at"], 0),
        (delivery["settled_at"], 0), *((event["at"], 0) for event in delivery["timeline"]),
    ]  # fmt: skip
    return ((datetime.fromisoformat(text), now + later) for text, later in told)


def _expires(admin: FleetClient) -> str:
    """Return what became, after two seconds, of a command and of an enrollment token that live so long."""
    made = admin.post("/admin/enrollment-tokens", {"expires_in_seconds": 2})
    command = admin.post("/admin/command", {"action": "ping", "target": {"all": True}, "expires_in_seconds": 2})
    path = f"/admin/commands/{command['request_id']}/deliveries"
    if admin.items(path, 1)[0][0]["state"] != "pending":
        return "expired at once"
    wait_for(lambda: admin.items(path, 1)[0][0]["state"] != "pending")
    headers = {"Authorization": f"Bearer {made['enrollment_token']}"}
    answer = httpx.post(f"{admin.url}/v1/register", json={"hardware_id": "phone-2"}, headers=headers)
    return f"{admin.items(path, 1)[0][0]['state']}, {answer.status_code}"


def _status(admin: FleetClient) -> int:
    try:
        admin.get("/admin/summary")
    except Refused as refused:
        return refused.status
    return 200


def _post(url: str, target: str, bearer: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{url}{target}", json=body, headers={"Authorization": f"Bearer {bearer}"}, trust_env=False)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found
