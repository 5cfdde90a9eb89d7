"""Honest traffic: heartbeats of a fleet, requests of admins, registrations of new phones, and pushes."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from loadtest.fake_fcm.journal import JournalTail
from loadtest.fleet.credentials_file import Member
from loadtest.load.figures import Histogram
from loadtest.testbed.connections import ANSWER_SECONDS, Pool, Server, understood, with_body
from nexmdm.client.http_client import FleetClient

PUSH_SECONDS: Final = 10
"""The longest time until a push must reach FCM. If a push takes longer, it counts as failed."""

COMMAND: Final = "/admin/command"
_TICK_SECONDS: Final = 0.005
_COMMAND_SECONDS: Final = 60


class Traffic(Protocol):
    """Honest requests of one kind in an open loop. Latency counts from the due time."""

    failures: Counter[str]

    @property
    def sent(self) -> int:
        """The number of requests that were sent."""

    async def beat(self, seconds: float) -> Histogram:
        """Send requests for `seconds`, wait for all answers, and return the latencies of the successful requests."""

    def close(self) -> None:
        """Release open connections and files."""


class Steady:
    """Requests at an even rate. Each request uses a new connection, as the requests of new clients do."""

    def __init__(self, url: str, per_second: float, request: Callable[[int], bytes]) -> None:
        """`request` returns the bytes of a request by its number."""
        self._server = Server.of(url)
        self._per_second = per_second
        self._request = request
        self.sent = 0
        self.failures: Counter[str] = Counter()

    async def beat(self, seconds: float) -> Histogram:
        """Send requests for `seconds`, wait for all answers, and return the latencies of the successful requests."""
        latencies = Histogram()
        await at_even_pace(seconds, self._per_second, lambda due: self._once(due, latencies))
        return latencies

    def close(self) -> None:
        """Do nothing, because each connection was closed after its answer."""

    async def _once(self, due: float, latencies: Histogram) -> None:
        self.sent += 1
        error, _ = await answer(self._server, self._request(self.sent))
        if error:
            self.failures[error] += 1
        else:
            latencies.add(time.monotonic() - due)


async def at_even_pace(seconds: float, per_second: float, once: Callable[[float], Coroutine[Any, Any, None]]) -> None:
    """Call `once` at each due time within `seconds`, and return when all calls have ended.

    The argument of `once` is the due time, on the monotonic clock.
    """
    began, due = time.monotonic(), time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        while due < began + seconds:
            await asyncio.sleep(due - time.monotonic())
            tasks.create_task(once(due))
            due += 1 / per_second


async def answer(server: Server, request: bytes) -> tuple[str, dict[str, Any]]:
    """Send a request over a new connection. Return the error and the JSON of its answer.

    The error is empty if the status is 200.
    """
    pool = Pool(server, 1, strict=True)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return understood(*await pool.call(request))
    except TimeoutError:
        return "time-out", {}
    finally:
        pool.close()


def calls(admin: FleetClient, *targets: str, per_second: float = 2) -> Steady:
    """Return an admin whose requests create an enrollment token and read each of `targets`, in turn."""
    server, work = (
        Server.of(admin.url),
        [("POST", "/admin/enrollment-tokens"), *(("GET", target) for target in targets)],
    )

    def request(number: int) -> bytes:
        method, target = work[number % len(work)]
        body = b"{}" if method == "POST" else b""
        return server.head(method, target, admin.sign(method, target, body)) + with_body(body)

    return Steady(admin.url, per_second, request)


def probes(url: str, *, per_second: float = 5) -> Steady:
    """Return a client that requests /healthz."""
    head = Server.of(url).head("GET", "/healthz", {})
    return Steady(url, per_second, lambda _: head + with_body(b""))


def registrations(url: str, enrollment_token: str, *, per_second: float = 1) -> Steady:
    """Return new phones that register, each with a new hardware id."""
    head = Server.of(url).head("POST", "/v1/register", {"Authorization": f"Bearer {enrollment_token}"})
    return Steady(url, per_second, lambda number: head + with_body(b'{"hardware_id":"honest-%d"}' % number))


class Pushes:
    """Commands to good phones at an even rate. Latency counts from the due time to the arrival of the push at FCM.

    Each command also goes to the devices whose ids are in `also`. The caller may change `also` during a run.
    """

    def __init__(self, admin: FleetClient, members: Sequence[Member], journal: Path, *, per_second: float) -> None:
        self._admin = admin
        self._server = Server.of(admin.url)
        self._device_ids = [member.device_id for member in members]
        self._push_tokens = {member.push_token for member in members}
        self._per_second = per_second
        self._journal = JournalTail(journal)
        self._arrived: defaultdict[str, dict[str, float]] = defaultdict(dict)
        self.answers: Counter[str] = Counter()
        """The answers of FCM to the pushes to the devices in `also`."""

        self.also: Sequence[str] = ()
        self.sent = 0
        self.failures: Counter[str] = Counter()

    async def beat(self, seconds: float) -> Histogram:
        """Send commands for `seconds`, wait for their pushes, and return the latencies of the pushes to the good
        phones.
        """
        latencies = Histogram()
        watching = asyncio.create_task(self._watch())
        try:
            await at_even_pace(seconds, self._per_second, lambda due: self._once(due, latencies))
        finally:
            watching.cancel()
        return latencies

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    async def _watch(self) -> None:
        while True:
            for send in self._journal.sends():
                if send["push_token"] in self._push_tokens:
                    self._arrived[send["request_id"]].setdefault(send["push_token"], send["monotonic"])
                else:
                    self.answers[send["answer"]] += 1
            await asyncio.sleep(_TICK_SECONDS)

    async def _once(self, due: float, latencies: Histogram) -> None:
        error, command = await answer(self._server, self._command())
        self.sent += len(self._device_ids)
        if error:
            self.failures[error] += 1
            return
        arrived = self._arrived[command["request_id"]]
        while len(arrived) < len(self._push_tokens) and time.monotonic() < due + PUSH_SECONDS:  # noqa: ASYNC110
            await asyncio.sleep(_TICK_SECONDS)
        for at in arrived.values():
            latencies.add(at - due)
        if missing := len(self._push_tokens) - len(arrived):
            self.failures[f"no push within {PUSH_SECONDS} s"] += missing

    def _command(self) -> bytes:
        target = {"device_ids": [*self._device_ids, *self.also]}
        body = orjson.dumps({"action": "ping", "target": target, "expires_in_seconds": _COMMAND_SECONDS})
        return self._server.head("POST", COMMAND, self._admin.sign("POST", COMMAND, body)) + with_body(body)


Latencies = Mapping[str, float | None]
"""The p99 of each kind of traffic in one turn, in seconds. None: there was no answer."""


class Honest:
    """Honest traffic of several kinds, which is sent in parallel."""

    def __init__(self, traffic: Mapping[str, Traffic]) -> None:
        self._traffic = traffic

    async def turn(self, seconds: float) -> Latencies:
        """Send requests of all kinds for `seconds`, and return the p99 of each kind."""
        found = await asyncio.gather(*(one.beat(seconds) for one in self._traffic.values()))
        return {name: latencies.percentile(99) for name, latencies in zip(self._traffic, found, strict=True)}

    @property
    def sent(self) -> int:
        """The number of requests and pushes of all kinds."""
        return sum(one.sent for one in self._traffic.values())

    @property
    def failures(self) -> Counter[str]:
        """The number of failures, by kind of traffic and error."""
        failures: Counter[str] = Counter()
        for name, one in self._traffic.items():
            failures.update({f"{name}: {error}": count for error, count in one.failures.items()})
        return failures

    def close(self) -> None:
        """Release open connections and files."""
        for one in self._traffic.values():
            one.close()
