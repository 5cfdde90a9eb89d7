"""The reports of simulated phones: with a delay in a storm, and repeated if the server asks for it."""

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
"""The longest wait after a first try without an answer, in seconds. Each further wait is twice as long."""

_AGAIN: Final = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS, NO_ANSWER)
_JITTER: Final = 1.5

Note = Callable[[float, str], None]
"""Called after each try, with its start and its error (empty: none)."""


@dataclass(slots=True)
class Reporter:
    """Sends the reports of many phones.

    With a spread, a phone reports after a random part of the spread, and repeats a failed report a few times: after
    `Retry-After` with jitter or, if there was no answer, after a random time that doubles. Without a spread, a phone
    reports immediately, and only once.
    """

    pool: Pool
    chance: random.Random
    spread_seconds: float
    retried: Counter[str] = field(default_factory=Counter)
    """The number of failed tries that were repeated, by error."""

    async def wait(self) -> None:
        """Wait as long as a phone takes to carry a command out."""
        if self.spread_seconds:
            await asyncio.sleep(self.chance.uniform(0, self.spread_seconds))

    async def send(self, request: bytes, note: Note) -> dict[str, Any]:
        """Send a report. Return the answer, or an empty answer if all tries have failed."""
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
