"""The secrets of running web workers can be changed without a failed request.

The change has three steps. In each step, all workers are replaced, one by one. In the first step, the workers also
accept the new secrets. In the second step, the new secrets become the current secrets, and the workers also accept the
old secrets. In the third step, the workers no longer accept the old secrets. So each worker knows the new secrets
before a client uses them.
"""

import asyncio
import secrets
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from loadtest.fleet import enrolling
from loadtest.fleet.credentials_file import Member
from loadtest.testbed import testbed
from loadtest.testbed.connections import ANSWER_SECONDS, Server, understood, with_body
from loadtest.trust.trials import workers
from loadtest.trust.trials.background_load import BackgroundLoad
from loadtest.trust.trials.finding import Finding
from loadtest.trust.trials.request_loop import RequestLoop
from loadtest.trust.trials.workers import Worker
from nexmdm.client.http_client import FleetClient

WORKERS: Final = 2
PHONES: Final = 200
PER_SECOND: Final = 200
LEAST_HEARTBEATS: Final = 2000
LEAST_ADMIN_CALLS: Final = 200
ADMIN_PAUSE_SECONDS: Final = 0.05
BREATH_SECONDS: Final = 3
"""The pause after a step. In this time, each phone sends heartbeats."""

ROTATED: Final = {
    "ADMIN_KEY": "ADMIN_KEY_PREVIOUS", "HMAC_SECRET": "HMAC_SECRET_PREVIOUS", "SECRET_KEY": "SECRET_KEY_FALLBACKS",
}  # fmt: skip
SETTINGS: Final = {"BCRYPT_ROUNDS": "10", "ADMIN_RATE_LIMIT": "100000/m", "ADMIN_READ_RATE_LIMIT": "100000/m"}

Secrets = Mapping[str, str]


def trial(folder: Path) -> Iterator[Finding]:
    """Change three secrets of two web workers under load."""
    with ExitStack() as stack:
        serving = stack.enter_context(testbed.served(folder / "data", **SETTINGS))
        with serving.admin() as admin:
            members, _ = enrolling.enrol(admin, PHONES, with_push_tokens=False, watch=lambda: None)
        listener = stack.enter_context(workers.listening())
        old = {name: serving.secrets[name] for name in ROTATED}
        new = {name: secrets.token_urlsafe(48) for name in ROTATED}
        rollout = Rollout(listener, serving.environment, folder)
        stack.callback(rollout.end)
        yield uvloop.run(_rotate(rollout, members, old, new))


class Rollout:
    """The web workers on one listening socket. Each change of settings replaces the workers, one by one."""

    def __init__(self, listener: socket.socket, environment: Mapping[str, str], folder: Path) -> None:
        self._listener = listener
        self._environment = environment
        self._folder = folder
        self._running: list[Worker] = []
        self._started = 0
        self.url = workers.url_of(listener)

    def settings(self, current: Secrets, others: Secrets | None = None) -> None:
        """Replace all workers. The new workers have the secrets `current`, and also accept the secrets `others`."""
        beside = {variable: others[name] if others else "" for name, variable in ROTATED.items()}
        for _ in range(WORKERS):
            self._started += 1
            output = self._folder / f"worker-{self._started}"
            self._running.append(Worker(self._listener, {**self._environment, **current, **beside}, output))
            if len(self._running) > WORKERS:
                self._running.pop(0).stop()

    def end(self) -> None:
        """Stop all workers."""
        while self._running:
            self._running.pop().stop()


class Admin(RequestLoop):
    """An admin that sends signed requests until `end` is called."""

    def __init__(self, url: str, credentials: Secrets) -> None:
        self._server = Server.of(url)
        super().__init__(self._server, 4)
        self.use(credentials)
        self.sent = 0

    def use(self, credentials: Secrets) -> None:
        """Sign with these credentials from now on."""
        url = f"http://{self._server.authority}"
        self._signing = FleetClient(url, key=credentials["ADMIN_KEY"], secret=credentials["HMAC_SECRET"])

    async def call(self) -> None:
        """Send a read and a write in turn, until `end` is called."""
        while self._goes_on:
            await self.once("GET", "/admin/summary", b"")
            await self.once("POST", "/admin/enrollment-tokens", b"{}")
            await asyncio.sleep(ADMIN_PAUSE_SECONDS)

    async def once(self, method: str, target: str, body: bytes) -> None:
        """Send one signed request, and count it if it fails. Raises TimeoutError if there is no answer."""
        head = self._server.head(method, target, self._signing.sign(method, target, body))
        self.sent += 1
        async with asyncio.timeout(ANSWER_SECONDS):
            error, _ = understood(*await self._pool.call(head + with_body(body)))
        if error:
            self.failures[error] += 1


@dataclass(frozen=True, slots=True)
class Borne:
    """The result of the requests under load.

    - `heartbeats`, `calls`: the numbers of heartbeats and of the admin's requests.
    - `left`: the number of requests that used another connection, because the server had closed the first connection.
    - `failures`: the failed requests, counted by error.
    """

    heartbeats: int
    calls: int
    left: int
    failures: Counter[str]


async def _rotate(rollout: Rollout, members: list[Member], old: Secrets, new: Secrets) -> Finding:
    await asyncio.to_thread(rollout.settings, old)
    pulse, admin = BackgroundLoad(rollout.url, members, per_second=PER_SECOND), Admin(rollout.url, old)
    beating = asyncio.create_task(pulse.beat(3600))
    calling = asyncio.create_task(admin.call())
    await asyncio.sleep(BREATH_SECONDS)
    await asyncio.to_thread(rollout.settings, old, new)
    await asyncio.to_thread(rollout.settings, new, old)
    admin.use(new)
    await asyncio.sleep(BREATH_SECONDS)
    await asyncio.to_thread(rollout.settings, new)
    await asyncio.sleep(BREATH_SECONDS)
    for one in (pulse, admin):
        one.end()
    await asyncio.gather(beating, calling)
    refused = await _refusals(rollout.url, old)
    for one in (pulse, admin):
        one.close()
    borne = Borne(pulse.sent, admin.sent, pulse.left + admin.left, pulse.failures + admin.failures)
    return found(borne, refused)


def found(borne: Borne, refused: str) -> Finding:
    """Return the finding. `refused` is the status of the answer to the old credentials at the end."""
    failed = borne.failures.total()
    message = ", ".join(f"{count} × {error}" for error, count in borne.failures.most_common(3))
    enough = borne.heartbeats >= LEAST_HEARTBEATS and borne.calls >= LEAST_ADMIN_CALLS
    return Finding(
        "admin key, HMAC secret and SECRET_KEY are rotated without a failed request",
        f"{WORKERS} workers replaced one by one, three times, under load; at the end the old secrets get {refused}",
        f"{borne.heartbeats:,} heartbeats, {borne.calls:,} admin calls: {failed} failed {message}".strip()
        + f"; {borne.left} requests used another connection because their own was closed before they were written",
        not failed and refused == "401" and enough,
    )


async def _refusals(url: str, old: Secrets) -> str:
    """Return the status of the answer to a request with the old credentials."""
    admin = Admin(url, old)
    await admin.once("GET", "/admin/summary", b"")
    admin.close()
    return next(iter(admin.failures), "200").partition(" ")[0]
