"""Batches of claimed pushes that wait to be sent."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from commands.push import outbox
from commands.push.outbox import Claimed
from nexmdm.common import database

FRESH_SECONDS: Final = 1.0
"""For this time (in seconds) after a check, pushes may be sent without a new check.

The check reads from the database which pushes may still be sent.
"""


class Batch:
    """The pushes of one claim that are not sent yet. The claim has already checked that these pushes may be sent.

    `claimed_at` is a time of time.monotonic(). `is_probe`: the push of this batch tests whether FCM works again.
    """

    def __init__(self, claimed: Sequence[Claimed], claimed_at: float, *, is_probe: bool = False) -> None:
        self.claimed_at = claimed_at
        self.is_probe = is_probe
        self._waiting = {one.delivery_id: one for one in claimed}
        self._asked_at = claimed_at
        self._asking = asyncio.Lock()

    @property
    def is_fresh(self) -> bool:
        """Whether the last check is recent enough to send a push without a new check."""
        return time.monotonic() - self._asked_at <= FRESH_SECONDS

    async def take(self, claimed: Claimed) -> bool:
        """Remove a push from the batch, and return whether the push may be sent. Raises the errors of the database.

        The result is False if the delivery was settled or has expired since the claim. The result is also False if the
        device was revoked or has another push token. If a check is necessary, one query checks all waiting pushes.
        """
        if not self.is_fresh:
            async with self._asking:
                await self._ask()
        return self._waiting.pop(claimed.delivery_id, None) is not None

    async def _ask(self) -> None:
        if self.is_fresh:
            return  # While this push waited for the lock, another push has run the query.
        asked_at = time.monotonic()
        wanted = await database.run_in_db_thread_ungated(outbox.wanted, list(self._waiting.values()))
        self._waiting = {number: one for number, one in self._waiting.items() if number in wanted}
        self._asked_at = asked_at
