"""The admin of a load test, who issues commands at due times. A `Ledger` records the times of the commands."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import orjson

from loadtest.load.figures import Figures, Histogram
from loadtest.testbed.connections import Pool, Server, understood, with_body
from nexmdm.client.http_client import FleetClient

TARGET: Final = "/admin/command"
CONNECTIONS: Final = 16
_ACTIONS: Final[tuple[dict[str, Any], ...]] = (
    {"action": "ping"},
    {"action": "launch_app", "params": {"package": "com.example.kiosk"}},
)


@dataclass(slots=True)
class Life:
    """The life of one command: the times of its POST, of its push at FCM, and of its result. A time is None until its
    step has happened.

    Times are seconds on the monotonic clock.
    """

    posted_at: float | None = None
    pushed_at: float | None = None
    settled_at: float | None = None


@dataclass(slots=True)
class Ledger:
    """The commands of a run, by request id. The times of one command may be recorded in any order."""

    lives: dict[str, Life] = field(default_factory=dict)

    def posted(self, request_id: str, at: float) -> None:
        """Record that a command was accepted. `at` is the time at which its POST began."""
        self._life(request_id).posted_at = at

    def pushed(self, request_id: str, at: float) -> None:
        """Record that a push of the command reached FCM. Only the earliest push counts."""
        life = self._life(request_id)
        life.pushed_at = at if life.pushed_at is None else min(life.pushed_at, at)

    def settled(self, request_id: str, at: float) -> None:
        """Record that the server accepted a phone's result. Only the earliest result counts."""
        life = self._life(request_id)
        life.settled_at = at if life.settled_at is None else min(life.settled_at, at)

    @property
    def done(self) -> int:
        """The number of commands that have a result."""
        return sum(life.settled_at is not None for life in self._since(0))

    @property
    def open(self) -> int:
        """The number of commands that have no result yet."""
        return sum(life.settled_at is None for life in self._since(0))

    def unanswered(self) -> list[float]:
        """Return the time of the POST of each command that has no result."""
        return [life.posted_at for life in self._since(0) if life.settled_at is None and life.posted_at is not None]

    def dispatch(self, since: float) -> Histogram:
        """Return the times from POST to push, for the commands whose POST was not before `since`."""
        return _histogram((life.posted_at, life.pushed_at) for life in self._since(since))

    def round_trip(self, since: float) -> Histogram:
        """Return the times from POST to result, for the commands whose POST was not before `since`."""
        return _histogram((life.posted_at, life.settled_at) for life in self._since(since))

    def _since(self, since: float) -> Iterator[Life]:
        return (life for life in self.lives.values() if life.posted_at is not None and life.posted_at >= since)

    def _life(self, request_id: str) -> Life:
        return self.lives.setdefault(request_id, Life())


def _histogram(spans: Iterator[tuple[float | None, float | None]]) -> Histogram:
    histogram = Histogram()
    for begin, end in spans:
        if begin is not None and end is not None:
            histogram.add(end - begin)
    return histogram


class CommandLoad:
    """An admin who issues commands to random phones at a fixed rate, whatever the results of earlier commands are."""

    def __init__(
        self, admin: FleetClient, device_ids: Sequence[str], *, per_minute: float, figures: Figures, ledger: Ledger
    ) -> None:
        self._server = Server.of(admin.url)
        self._admin = admin
        self._device_ids = device_ids
        self._gap_seconds = 60 / per_minute
        self._figures = figures
        self._ledger = ledger
        self._pool = Pool(self._server, CONNECTIONS)
        self._starts_at = 0.0

    async def run(self, starts_at: float, ends_at: float) -> None:
        """Issue commands from `starts_at` to `ends_at` of the monotonic clock."""
        self._starts_at = starts_at
        due = starts_at + random.random() * self._gap_seconds
        while due < ends_at:
            await asyncio.sleep(due - time.monotonic())
            self._pool.sweep()
            self._post(due)
            due += random.uniform(0.5, 1.5) * self._gap_seconds

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _post(self, due: float) -> None:
        body = orjson.dumps({**random.choice(_ACTIONS), "target": {"device_ids": [random.choice(self._device_ids)]}})
        begun_at = time.monotonic()
        head = self._server.head("POST", TARGET, self._admin.sign("POST", TARGET, body))
        self._pool.send(head + with_body(body), partial(self._answered, due, begun_at))

    def _answered(self, due: float, begun_at: float, status: int, body: bytes) -> None:
        error, answer = understood(status, body)
        latency = time.monotonic() - due
        self._figures.ended("command", due - self._starts_at, latency, error and f"command: {error}")
        if answer:
            self._ledger.posted(answer["request_id"], begun_at)
