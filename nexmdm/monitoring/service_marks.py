"""The marks of a web worker: while it runs, it records so every few seconds (devices/presence/service_time.py)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog
from asgiref.sync import ThreadSensitiveContext

from devices.presence import service_time
from nexmdm.common.database import run_briefly, run_in_db_thread
from nexmdm.common.postgresql.errors import Meaning, meaning_of, safe_message

log = structlog.get_logger()

Run = Callable[[Callable[[], None]], Awaitable[None]]


@asynccontextmanager
async def written() -> AsyncIterator[None]:
    """Write marks inside this context, the first one before it begins."""
    # Briefly: a server starts, also if the database is away.
    async with ThreadSensitiveContext():
        await _write(run_briefly)
    task = asyncio.create_task(_repeat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _repeat() -> None:
    # A separate thread: a mark waits for no other work.
    async with ThreadSensitiveContext():
        while True:
            await asyncio.sleep(service_time.MARK_EVERY_SECONDS)
            await _write(run_in_db_thread)


async def _write(run: Run) -> None:
    try:
        await run(service_time.mark)
    except Exception as error:  # noqa: BLE001  (the loop's edge: the next mark follows in a few seconds)
        if meaning_of(error) is not Meaning.UNAVAILABLE:
            log.warning("service_mark.failed", error=type(error).__name__, detail=safe_message(error)[:200])
