"""Rotation on trial: the admin key, the HMAC secret and SECRET_KEY change in running workers, and no request fails.

Workers that share the work know the new secret before any of them, or a client, uses it: first it is let in beside the
old one, then it takes its place, then the old one goes. At each step the workers are replaced one by one.
"""

import asyncio
import secrets
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import uvloop

from loadtest import enrolling, ground
from loadtest.connections import Pool, Server, understood, with_body
from loadtest.roster import Member
from loadtest.trials import workers
from loadtest.trials.finding import Finding
from loadtest.trials.pulse import Pulse
from loadtest.trials.workers import Worker
from nexmdm.fleet_client import FleetClient

WORKERS: Final = 2
PHONES: Final = 200
PER_SECOND: Final = 200
ADMIN_PAUSE_SECONDS: Final = 0.05
BREATH_SECONDS: Final = 3
"""How long a step is borne before the next: each phone sends a heartbeat meanwhile."""

ROTATED: Final = {
    "ADMIN_KEY": "ADMIN_KEY_PREVIOUS", "HMAC_SECRET": "HMAC_SECRET_PREVIOUS", "SECRET_KEY": "SECRET_KEY_FALLBACKS",
}  # fmt: skip
SETTINGS: Final = {"BCRYPT_ROUNDS": "10", "ADMIN_RATE_LIMIT": "100000/m", "ADMIN_READ_RATE_LIMIT": "100000/m"}

Secrets = Mapping[str, str]


def trial(folder: Path) -> Iterator[Finding]:
    """Rotate the three secrets of two workers under load."""
    with ExitStack() as stack:
        serving = stack.enter_context(ground.served(folder / "data", **SETTINGS))
        with serving.admin() as admin:
            members, _ = enrolling.enrol(admin, PHONES, with_push_tokens=False, watch=lambda: None)
        listener = stack.enter_context(workers.listening())
        old = {name: serving.secrets[name] for name in ROTATED}
        new = {name: secrets.token_urlsafe(48) for name in ROTATED}
        rollout = Rollout(listener, serving.environment, folder)
        stack.callback(rollout.end)
        yield uvloop.run(_rotate(rollout, members, old, new))


class Rollout:
    """The workers on one socket, and how they are replaced one by one."""

    def __init__(self, listener: socket.socket, environment: Mapping[str, str], folder: Path) -> None:
        self._listener = listener
        self._environment = environment
        self._folder = folder
        self._running: list[Worker] = []
        self._started = 0
        self.url = workers.url_of(listener)

    def settings(self, current: Secrets, others: Secrets | None = None) -> None:
        """Replace each worker by one with these secrets, the others let in beside them."""
        beside = {variable: others[name] if others else "" for name, variable in ROTATED.items()}
        for _ in range(WORKERS):
            self._started += 1
            output = self._folder / f"worker-{self._started}"
            self._running.append(Worker(self._listener, {**self._environment, **current, **beside}, output))
            if len(self._running) > WORKERS:
                self._running.pop(0).stop()

    def end(self) -> None:
        """Stop what runs."""
        while self._running:
            self._running.pop().stop()


class Admin:
    """One who calls again and again, with the credentials of the hour."""

    def __init__(self, url: str, credentials: Secrets) -> None:
        self._server = Server.of(url)
        self._pool = Pool(self._server, 4)
        self.use(credentials)
        self.sent = 0
        self.failures: Counter[str] = Counter()

    def use(self, credentials: Secrets) -> None:
        """Sign with these from now on."""
        url = f"http://{self._server.authority}"
        self._signing = FleetClient(url, key=credentials["ADMIN_KEY"], secret=credentials["HMAC_SECRET"])

    async def call(self) -> None:
        """Read and write in turns, until cancelled."""
        while True:
            await self.once("GET", "/admin/summary", b"")
            await self.once("POST", "/admin/enrollment-tokens", b"{}")
            self._pool.sweep()
            await asyncio.sleep(ADMIN_PAUSE_SECONDS)

    async def once(self, method: str, target: str, body: bytes) -> None:
        """Call, and count a failure."""
        head = self._server.head(method, target, self._signing.sign(method, target, body))
        self.sent += 1
        error, _ = understood(*await self._pool.call(head + with_body(body)))
        if error:
            self.failures[error] += 1

    def close(self) -> None:
        """Let go of the connections."""
        self._pool.close()


async def _rotate(rollout: Rollout, members: list[Member], old: Secrets, new: Secrets) -> Finding:
    await asyncio.to_thread(rollout.settings, old)
    pulse, admin = Pulse(rollout.url, members, per_second=PER_SECOND), Admin(rollout.url, old)
    beating = asyncio.create_task(pulse.beat(3600))
    calling = asyncio.create_task(admin.call())
    await asyncio.sleep(BREATH_SECONDS)
    await asyncio.to_thread(rollout.settings, old, new)
    await asyncio.to_thread(rollout.settings, new, old)
    admin.use(new)
    await asyncio.sleep(BREATH_SECONDS)
    await asyncio.to_thread(rollout.settings, new)
    await asyncio.sleep(BREATH_SECONDS)
    for task in (beating, calling):
        task.cancel()
    await asyncio.gather(beating, calling, return_exceptions=True)
    refused = await _refusals(rollout.url, old)
    for one in (pulse, admin):
        one.close()
    failures = pulse.failures + admin.failures
    said = ", ".join(f"{count} × {error}" for error, count in failures.most_common(3))
    figure = f"{pulse.sent:,} heartbeats, {admin.sent:,} admin calls: {failures.total()} failed {said}".strip()
    return Finding(
        "admin key, HMAC secret and SECRET_KEY are rotated without a failed request",
        f"{WORKERS} workers replaced one by one, three times, under load; at the end the old ones get {refused}",
        figure,
        not failures and refused == "401" and pulse.sent > 1000,
    )


async def _refusals(url: str, old: Secrets) -> str:
    """Return what a request signed with the old credentials is answered."""
    admin = Admin(url, old)
    await admin.once("GET", "/admin/summary", b"")
    admin.close()
    return next(iter(admin.failures), "200").partition(" ")[0]
