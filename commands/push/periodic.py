"""Periodic tasks of a dispatcher's process: what is repeated next to the pushing, such as expiry and retention."""

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
    """Work that is repeated; ten times as often while there is a full `batch` of it.

    `work` runs in a thread and returns how much it did.
    """

    name: str
    every_seconds: float
    work: Callable[[], int | None]
    batch: int | None = None


async def repeat(task: PeriodicTask) -> None:
    """Do the work again and again, until cancelled. An error is logged; that the database is away, once an outage."""
    # A thread of its own: neither the pushing nor another task waits for one that waits for a lock.
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
