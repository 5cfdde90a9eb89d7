"""The sender of the reports of simulated phones."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic
from typing import Any, Final

from loadtest.testbed.connections import NO_ANSWER, Pool, understood

MOST_TRIES: Final = 5
FIRST_BACKOFF_SECONDS: Final = 10.0
"""The longest wait after a first try that got no answer. The longest wait doubles with each further try."""

_AGAIN: Final = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS, NO_ANSWER)
_JITTER: Final = 1.5

Note = Callable[[float, str], None]
"""A function to call after each try. Its arguments are the time at which the try began, and the error of the try. The
error is empty if the try succeeded."""


@dataclass(slots=True)
class Reporter:
    """A sender of the reports of many phones.

    If `spread_seconds` is 0, a phone reports immediately, and sends a report only once. If `spread_seconds` is larger,
    a phone waits for a random part of this time before its report. After a 429 or a 503, the phone repeats the report
    after `Retry-After` and a random time. After a missing answer, the phone repeats the report after a random wait that
    doubles with each try. A phone tries at most MOST_TRIES times.
    """

    pool: Pool
    chance: random.Random
    spread_seconds: float
    retried: Counter[str] = field(default_factory=Counter)
    """The number of repeated tries, by the error that caused them."""

    async def wait(self) -> None:
        """Wait for the random time that a phone needs to carry out a command."""
        if self.spread_seconds:
            await asyncio.sleep(self.chance.uniform(0, self.spread_seconds))

    async def send(self, request: bytes, note: Note) -> dict[str, Any]:
        """Send a report. Return the answer, or an empty dictionary if all tries failed."""
        tries = MOST_TRIES if self.spread_seconds else 1
        for number in range(1, tries + 1):
            began_at = monotonic()
            status, body, retry_after = await self.pool.ask(request)
            error, answer = understood(status, body)
            note(began_at, error)
            if not error or status not in _AGAIN or number == tries:
                return answer
            self.retried[error] += 1
            await asyncio.sleep(self._seconds_to_next(status, retry_after, number))
        return {}

    def _seconds_to_next(self, status: int, retry_after: float, number: int) -> float:
        if status == NO_ANSWER:
            return self.chance.uniform(0.5, 1) * FIRST_BACKOFF_SECONDS * 2.0 ** (number - 1)
        return max(1.0, retry_after) * self.chance.uniform(1, _JITTER)
