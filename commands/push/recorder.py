"""The recorder of one dispatcher: it writes FCM's answers in batches. While PostgreSQL is away, the recorder waits."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from asgiref.sync import ThreadSensitiveContext

from commands.push import attempts
from commands.push.outbox import Sent
from nexmdm.common import database
from nexmdm.common.overload.gates import GateFull
from nexmdm.common.postgresql.errors import Meaning, meaning_of

log = structlog.get_logger()

BATCH: Final = 500
TRIES_AT_THE_END: Final = 15
"""The number of tries to record a batch after close()."""

RETRY_SECONDS: Final = 1.0


class Recorder:
    """The answers that wait to be recorded. `recorded` is called after each batch."""

    def __init__(self, recorded: Callable[[], None]) -> None:
        self.waiting: list[Sent] = []
        self._recorded = recorded
        self._changed = asyncio.Event()
        self._closing = False

    def add(self, sent: Sent) -> None:
        """Add an answer, which run() will record soon."""
        self.waiting.append(sent)
        self._changed.set()

    def close(self) -> None:
        """Let run() return when all answers are recorded. After this call, no answer may be added."""
        self._closing = True
        self._changed.set()

    async def run(self) -> None:
        """Record the added answers. After close(), record the remaining answers and return."""
        async with ThreadSensitiveContext():  # A separate thread, so that a record does not wait for a claim.
            while self.waiting or not self._closing:
                await self._changed.wait()
                self._changed.clear()
                while self.waiting:
                    await self._record(self.waiting[:BATCH])

    async def _record(self, batch: list[Sent]) -> None:
        """Record a batch. While PostgreSQL is away, try again every second.

        After close(), there are at most TRIES_AT_THE_END tries. If the last try fails, the batch is dropped, and its
        pushes are sent again after their lease.
        """
        tries_left = TRIES_AT_THE_END
        while tries_left:
            try:
                await database.run_in_db_thread(attempts.record_attempts, batch)
                break
            except Exception as error:
                if meaning_of(error) is Meaning.OURS and not isinstance(error, GateFull):
                    log.exception("dispatch.unrecordable", error=type(error).__name__, answers=len(batch))
                    break
                tries_left -= self._closing
                await asyncio.sleep(RETRY_SECONDS)
        else:
            log.error("dispatch.answers_dropped", answers=len(batch))
        del self.waiting[: len(batch)]
        self._recorded()
