"""Claimed pushes that wait for a send slot."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from commands.push import outbox
from commands.push.outbox import Claimed
from nexmdm.common import database

FRESH_SECONDS: Final = 1.0
"""How long a claimed push counts as due after a check, in seconds. After that, the database is asked again."""


class Batch:
    """The pushes of one claim that are not sent yet. `claimed_at` is by time.monotonic()."""

    def __init__(self, claimed: Sequence[Claimed], claimed_at: float, *, is_probe: bool = False) -> None:
        """Count all pushes as due at the time of the claim."""
        self.claimed_at = claimed_at
        self.is_probe = is_probe
        self._waiting = {one.delivery_id: one for one in claimed}
        self._asked_at = claimed_at
        self._asking = asyncio.Lock()

    @property
    def is_fresh(self) -> bool:
        """Return whether the last check is recent enough to send without another one."""
        return time.monotonic() - self._asked_at <= FRESH_SECONDS

    async def take(self, claimed: Claimed) -> bool:
        """Remove a push from the batch, and return whether to send it. Raises the errors of the database.

        The push must not be sent if its delivery was settled or has expired since the claim, or if its device was
        revoked or has another push token. One query checks all pushes that wait.
        """
        if not self.is_fresh:
            async with self._asking:
                await self._ask()
        return self._waiting.pop(claimed.delivery_id, None) is not None

    async def _ask(self) -> None:
        if self.is_fresh:
            return  # The query of another push has checked this one while it waited for the lock.
        asked_at = time.monotonic()
        wanted = await database.run_in_db_thread_ungated(outbox.wanted, list(self._waiting.values()))
        self._waiting = {number: one for number, one in self._waiting.items() if number in wanted}
        self._asked_at = asked_at
