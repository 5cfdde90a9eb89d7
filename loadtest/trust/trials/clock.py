"""If the application's clock is an hour fast or slow, the server decides by the clock of the database."""

import importlib.util
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import jwt
import orjson

from loadtest.fake_fcm.journal import Send
from loadtest.fake_fcm.server import FcmStandin
from loadtest.testbed import testbed
from loadtest.testbed.serving import Serving, wait_for
from loadtest.trust.trials.finding import Finding
from nexmdm.client.http_client import FleetClient, Refused

HOUR: Final = 3600
MOST_OFF_SECONDS: Final = 60
PATIENCE_SECONDS: Final = 90
"""The longest delay of a push on a busy machine. An error because of the wrong clock would be much larger: about an
hour."""

RETRY_SECONDS: Final = (10, PATIENCE_SECONDS)
"""The shortest and the longest allowed pause before a failed push is sent again."""

LEASE_SECONDS: Final = (35, PATIENCE_SECONDS)
"""The shortest and the longest allowed pause between the first and the second push of a delivery, if the first
dispatcher is killed. The pause can be shorter than the lease of 45 s, because the lease begins before the first push.
"""

LIFE_SECONDS: Final = (600 - PATIENCE_SECONDS, 600)
SETTINGS: Final = {"BCRYPT_ROUNDS": "4"}


class NoLibrary(Exception):
    """libfaketime is not installed. Without libfaketime, no process can have a wrong clock."""


def trial(folder: Path) -> Iterator[Finding]:
    """Test two servers in parallel. The clock of one server is fast, and the clock of the second server is slow."""
    library = _library()
    with ThreadPoolExecutor() as threads:
        tried = [
            threads.submit(_tried, name, seconds, folder / name, library)
            for name, seconds in (("fast", HOUR), ("slow", -HOUR))
        ]
        for one in tried:
            yield from one.result()


def _library() -> str:
    """Return the path of libfaketime, from its package of PyPI or from the system."""
    spec = importlib.util.find_spec("libfaketime")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += Path("/usr/lib").glob("*/faketime")
    for folder in folders:
        for path in sorted(folder.rglob("libfaketime.so*")):
            return str(path)
    raise NoLibrary(NoLibrary.__doc__)


def _tried(name: str, seconds: int, folder: Path, library: str) -> list[Finding]:
    folder.mkdir()
    wrong = {
        "LD_PRELOAD": library,
        "FAKETIME": f"{seconds:+}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with FcmStandin() as standin:
        account = orjson.dumps(standin.service_account()).decode()
        push = {"FCM_BASE_URL": standin.base_url, "FIREBASE_SERVICE_ACCOUNT_JSON": account}
        with testbed.served(folder / "data", **wrong, **push, **SETTINGS) as serving:
            key, secret = serving.secrets["ADMIN_KEY"], serving.secrets["HMAC_SECRET"]
            admin = FleetClient(serving.url, key=key, secret=secret, clock=lambda: time.time() + seconds)
            with closing(admin), serving.admin() as punctual:
                return [
                    _found(name, admin, punctual),
                    _without_access(name, admin, standin),
                    _with_access(name, admin, serving, standin),
                ]


def _found(name: str, admin: FleetClient, punctual: FleetClient) -> Finding:
    off = max(abs(moment.timestamp() - expected) for moment, expected in _times(admin))
    expired = _expires(admin)
    signed = _status(admin), _status(punctual)
    held = off < MOST_OFF_SECONDS and expired == "expired, 401" and signed == (200, 401)
    return Finding(
        "a wrong clock of the application changes only the time window for signatures",
        f"an hour {name}: registration, heartbeat, command, result, rotation, expiries, audit",
        f"times off by {off:.1f} s; after 2 s: {expired}; signed by that clock {signed[0]}, by ours {signed[1]}",
        held,
    )


@dataclass(frozen=True, slots=True)
class _Phone:
    """A phone whose push token chooses the answer of the fake FCM."""

    url: str
    device_id: str
    device_token: str

    @classmethod
    def registered(cls, admin: FleetClient, push_token: str) -> "_Phone":
        token = admin.post("/admin/enrollment-tokens", {})["enrollment_token"]
        phone = _post(admin.url, "/v1/register", token, {"hardware_id": push_token, "push_token": push_token})
        return cls(admin.url, phone["device_id"], phone["device_token"])

    def succeed(self, admin: FleetClient, request_id: str, via: str) -> dict[str, Any]:
        """Report that a command succeeded, and return the delivery as an admin reads it."""
        report = {"request_id": request_id, "status": "succeeded", "via": via}
        _post(self.url, "/v1/action-result", self.device_token, report)
        found: dict[str, Any] = admin.get(f"/admin/commands/{request_id}/deliveries/{self.device_id}")
        return found


def _ping(admin: FleetClient, phone: _Phone) -> str:
    command = admin.post("/admin/command", {"action": "ping", "target": {"device_ids": [phone.device_id]}})
    return str(command["request_id"])


def _without_access(name: str, admin: FleetClient, standin: FcmStandin) -> Finding:
    """Send a command to a phone while the fake FCM refuses assertions with a wrong time, as Google does."""
    phone = _Phone.registered(admin, "ok-refused")
    request_id = _ping(admin, phone)
    wait_for(lambda: admin.command(request_id)["push"]["retrying"])
    wait_for(lambda: _ready(admin)["push"] == "circuit_open")
    (envelope,) = _post(admin.url, "/v1/heartbeat", phone.device_token, {})["commands"]
    delivery = phone.succeed(admin, envelope["request_id"], "heartbeat")
    issued, sent, state = standin.access_tokens.issued, len(standin.journal), delivery["state"]
    return Finding(
        "if Google refuses that clock, no push is sent, and phones get commands by heartbeat",
        f"an hour {name}: a command to a phone with a push token; OAuth checks the assertion's times",
        f"{issued} access tokens, {sent} pushes, /readyz says circuit_open; {state} by {delivery['delivered_via']}",
        (issued, sent, state, delivery["delivered_via"]) == (0, 0, "succeeded", "heartbeat"),
    )


def _with_access(name: str, admin: FleetClient, serving: Serving, standin: FcmStandin) -> Finding:
    """Send commands to phones while the dispatcher has an access token. FCM fails once, and a dispatcher is killed."""
    standin.oauth_says = _access(standin)
    _end_dispatcher(serving, signal.SIGTERM)  # A new dispatcher has a closed circuit.
    phones = [_Phone.registered(admin, push_token) for push_token in ("ok-taken", "flaky1-again", "hang-killed")]
    commands = [_ping(admin, phone) for phone in phones]
    for request_id in commands:
        _sends(standin, request_id, 1)
    wait_for(lambda: admin.command(commands[1])["push"]["retrying"])
    _end_dispatcher(serving, signal.SIGKILL)
    (taken,), retried, leased = (_sends(standin, one, times) for one, times in zip(commands, (1, 2, 2), strict=True))
    life = int(taken.message["android"]["ttl"].removesuffix("s"))
    retry, lease = _gap(retried), _gap(leased)
    deliveries = [phone.succeed(admin, one, "push") for phone, one in zip(phones, commands, strict=True)]
    done = sum((one["state"], one["delivered_via"]) == ("succeeded", "push") for one in deliveries)
    spans = ((life, LIFE_SECONDS), (retry, RETRY_SECONDS), (lease, LEASE_SECONDS))
    return Finding(
        "the times of pushes, leases, retries and time to live follow the database's clock",
        f"an hour {name}, with an access token: FCM accepts a push, fails once, and a dispatcher is killed",
        f"{life} s to live; again after {retry:.1f} s, and {lease:.1f} s; {done} of {len(phones)} succeeded by push",
        done == len(phones) and all(least <= seconds <= most for seconds, (least, most) in spans),
    )


def _access(standin: FcmStandin) -> str:
    """Return the answer of the OAuth endpoint to an assertion with a correct time."""
    account, now = standin.service_account(), int(time.time())
    claims = {"iss": account["client_email"], "aud": account["token_uri"], "iat": now, "exp": now + HOUR}
    assertion = jwt.encode(claims, account["private_key"], algorithm="RS256")
    token = standin.access_tokens.exchange(assertion, HOUR)
    return orjson.dumps({"access_token": token, "expires_in": HOUR, "token_type": "Bearer"}).decode()


def _end_dispatcher(serving: Serving, how: signal.Signals) -> None:
    """End the dispatcher with the signal `how`, and wait for the next dispatcher."""
    before = serving.child("dispatch")
    os.kill(before, how)
    wait_for(lambda: serving.child("dispatch") != before)


def _sends(standin: FcmStandin, request_id: str, times: int) -> list[Send]:
    """Wait until `times` pushes of a command have arrived, and return these pushes. Raises TimeoutError."""
    return standin.journal.wait_for(times, PATIENCE_SECONDS, matching=partial(_is_of, request_id))


def _is_of(request_id: str, send: Send) -> bool:
    return send.request_id == request_id


def _gap(sends: Sequence[Send]) -> float:
    return sends[1].monotonic - sends[0].monotonic


def _ready(admin: FleetClient) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{admin.url}/readyz", timeout=PATIENCE_SECONDS, trust_env=False).json()
    return found


def _times(admin: FleetClient) -> Iterator[tuple[datetime, float]]:
    """Send one request of each kind. Yield each time in the answers, together with the correct Unix time."""
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
    """Create a command and an enrollment token that expire after 2 s. Return their states after this time, as text."""
    made = admin.post("/admin/enrollment-tokens", {"expires_in_seconds": 2})
    command = admin.post("/admin/command", {"action": "ping", "target": {"all": True}, "expires_in_seconds": 2})
    path = f"/admin/commands/{command['request_id']}/deliveries"
    if admin.items(path, 1)[0][0]["state"] != "pending":
        return "expired immediately"
    wait_for(lambda: admin.items(path, 1)[0][0]["state"] != "pending")
    headers = {"Authorization": f"Bearer {made['enrollment_token']}"}
    answer = httpx.post(
        f"{admin.url}/v1/register", json={"hardware_id": "phone-2"}, headers=headers, timeout=PATIENCE_SECONDS
    )
    return f"{admin.items(path, 1)[0][0]['state']}, {answer.status_code}"


def _status(admin: FleetClient) -> int:
    try:
        admin.get("/admin/summary")
    except Refused as refused:
        return refused.status
    return 200


def _post(url: str, target: str, bearer: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {bearer}"}
    answer = httpx.post(f"{url}{target}", json=body, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found
