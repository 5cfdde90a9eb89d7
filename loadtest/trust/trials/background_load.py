"""The heartbeats of a small fleet at an even rate, while a trial disturbs the server."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import orjson

from loadtest.fleet.credentials_file import Member
from loadtest.load.figures import Histogram
from loadtest.testbed.connections import Server, understood, with_body
from loadtest.trust.trials.request_loop import RequestLoop

_TICK_SECONDS: Final = 0.001
_CONNECTIONS: Final = 64


class BackgroundLoad(RequestLoop):
    """A client that sends heartbeats in an open loop: a slow server gets as many heartbeats as a fast server.

    Latency counts from the due time. The status of each heartbeat contains a growing number. `acknowledged` contains,
    by device id, the largest number that the server answered with 200.
    """

    def __init__(self, url: str, members: Sequence[Member], *, per_second: float) -> None:
        server = Server.of(url)
        super().__init__(server, _CONNECTIONS)
        self._head = server.head("POST", "/v1/heartbeat", {})
        self._members = members
        self._per_second = per_second
        self._number = 0
        self._under_way = 0
        self.acknowledged: dict[str, int] = {}
        self.latencies = Histogram()

    async def beat(self, seconds: float) -> Histogram:
        """Send heartbeats for `seconds`, or until `end` is called. Wait for all answers, and return the latencies."""
        self.latencies = Histogram()
        began = time.monotonic()
        first = self._number
        while self._goes_on and (now := time.monotonic()) < began + seconds:
            while (due := began + (self._number - first) / self._per_second) <= now:
                self._send(due)
            self._pool.sweep()
            await asyncio.sleep(_TICK_SECONDS)
        while self._under_way:
            self._pool.sweep()
            await asyncio.sleep(_TICK_SECONDS)
        return self.latencies

    @property
    def sent(self) -> int:
        """The number of heartbeats that were sent."""
        return self._number

    def _send(self, due: float) -> None:
        self._number += 1
        self._under_way += 1
        member = self._members[self._number % len(self._members)]
        bearer = f"Authorization: Bearer {member.device_token}\r\n".encode()
        body = orjson.dumps({"status": {"number": self._number}})
        ended = partial(self._ended, member.device_id, self._number, due)
        self._pool.send(self._head + bearer + with_body(body), ended)

    def _ended(self, device_id: str, number: int, due: float, status: int, body: bytes) -> None:
        self._under_way -= 1
        error, _ = understood(status, body)
        if error:
            self.failures[error] += 1
        else:
            self.latencies.add(time.monotonic() - due)
            self.acknowledged[device_id] = max(number, self.acknowledged.get(device_id, 0))
