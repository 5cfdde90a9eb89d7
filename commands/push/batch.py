"""What was claimed at once, while it waits for its turn to be sent."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from commands.push import outbox
from commands.push.outbox import Claimed
from nexmdm.common import database

FRESH_SECONDS: Final = 1.0
"""How long it may be taken for granted that a claimed push is still wanted; longer, and the database is asked again."""


class Batch:
    """Pushes of one claim, and whether each is still wanted. `claimed_at` is a time of time.monotonic()."""

    def __init__(self, claimed: Sequence[Claimed], claimed_at: float, *, is_probe: bool = False) -> None:
        """Take them for wanted, as of the claim."""
        self.claimed_at = claimed_at
        self.is_probe = is_probe
        self._waiting = {one.delivery_id: one for one in claimed}
        self._asked_at = claimed_at
        self._asking = asyncio.Lock()

    @property
    def is_fresh(self) -> bool:
        """Tell whether nobody needs to ask."""
        return time.monotonic() - self._asked_at <= FRESH_SECONDS

    async def take(self, claimed: Claimed) -> bool:
        """Take a push out; tell whether it may leave. One question serves all that wait. Raises what the database does.

        It may not if meanwhile it was settled or has expired, or its device was revoked or has another push token.
        """
        if not self.is_fresh:
            async with self._asking:
                await self._ask()
        return self._waiting.pop(claimed.delivery_id, None) is not None

    async def _ask(self) -> None:
        if self.is_fresh:
            return  # Another one has asked while this one waited to.
        asked_at = time.monotonic()
        wanted = await database.run_in_db_thread_ungated(outbox.wanted, list(self._waiting.values()))
        self._waiting = {number: one for number, one in self._waiting.items() if number in wanted}
        self._asked_at = asked_at
