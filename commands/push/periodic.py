"""The periodic tasks of a dispatcher, such as expiry and retention."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from asgiref.sync import ThreadSensitiveContext

from nexmdm.common import database
from nexmdm.common.postgresql.errors import Meaning, meaning_of, safe_message

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """Work that is repeated every `every_seconds`.

    `work` runs in a thread, and returns the amount of work that it did. If this amount is at least `batch`, the work is
    repeated after a tenth of `every_seconds`.
    """

    name: str
    every_seconds: float
    work: Callable[[], int | None]
    batch: int | None = None


async def repeat(task: PeriodicTask) -> None:
    """Repeat the work until the asyncio task is cancelled. Errors are logged, and do not end the repetition.

    An unavailable database is logged only once for each outage.
    """
    # A separate thread: if this task waits for a lock, neither pushing nor another task waits.
    async with ThreadSensitiveContext():
        while True:
            done = await _do(task)
            is_full = task.batch is not None and done >= task.batch
            await asyncio.sleep(task.every_seconds / 10 if is_full else task.every_seconds)


async def _do(task: PeriodicTask) -> int:
    try:
        return await database.run_chore(task.work) or 0
    except Exception as error:  # noqa: BLE001  (the loop's edge: the work is done again)
        if meaning_of(error) is not Meaning.UNAVAILABLE:
            detail = safe_message(error)[:200]
            log.warning("chore.failed", chore=task.name, error=type(error).__name__, detail=detail)
        return 0
