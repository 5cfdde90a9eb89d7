"""The marks that a web worker writes every few seconds while it runs.

devices/presence/service_time.py finds the service gaps from these marks.
"""

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
    """Write a mark every few seconds while this context is open. The marks show when a web worker ran. The first mark
    is written before the context begins.
    """
    # Briefly, because a server must also start if the database is not available.
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
    # In a separate thread, because a mark must not wait for other work.
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
