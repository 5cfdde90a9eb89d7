"""The listener of one dispatcher: it receives PostgreSQL's NOTIFY when a transaction has queued pushes.

A connection may be dead without an error. A connection may also lead to a pooler that passes no notifications on.
Therefore the dispatcher regularly notifies itself through its pool. If such a notification does not arrive, the
listening connection is replaced.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

import psycopg
import structlog
from asgiref.sync import ThreadSensitiveContext
from django.conf import settings
from psycopg import sql

from commands import queue
from nexmdm.common import database
from nexmdm.common.postgresql import direct
from nexmdm.common.postgresql.errors import safe_message

log = structlog.get_logger()

CHECK_SECONDS: Final = 10
"""The time between two notifications of the dispatcher to itself, in seconds."""

HEARD_SECONDS: Final = 3
"""The time in which a notification of the dispatcher to itself must arrive, in seconds."""

RECONNECT_SECONDS: Final = 1.0
CONNECT_SECONDS: Final = 10
POLL_SECONDS: Final = 1.0
"""The longest time by which a lost notification can delay a push, in seconds."""

DEAF_POLL_SECONDS: Final = 0.1
"""The longest time by which a push can be delayed while no notifications arrive, in seconds."""


class Listener:
    """The listener, which calls `wake` after each notification and after each new connection."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._own_channel = f"{queue.CHANNEL}_{secrets.token_hex(8)}"
        self._heard = asyncio.Event()
        self._is_proven = False
        self._last_logged = ""

    @property
    def poll_seconds(self) -> float:
        """The time between two polls of the dispatcher, in seconds.

        The dispatcher sends notifications to itself as a test. While they arrive, it polls less often.
        """
        return POLL_SECONDS if self._is_proven else DEAF_POLL_SECONDS

    async def run(self) -> None:
        """Listen until the task is cancelled. A lost connection is replaced."""
        async with ThreadSensitiveContext():  # A separate thread, so that the notification does not wait for a claim.
            while True:
                reason = await self._listen()
                self._is_proven = False
                self._log_once("listen.lost", reason)
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> str:
        """Listen on one connection. When the connection cannot be used any more, return the reason."""
        try:
            if settings.DIRECT_DATABASE is None and await database.run_in_db_thread_ungated(database.is_pooled):
                return "A pooler in front of the database does not pass on notifications. Set DIRECT_DATABASE_URL."
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await psycopg.AsyncConnection.connect(
                    **direct.parameters(), autocommit=True, prepare_threshold=None
                )
        except TimeoutError:
            return "PostgreSQL did not answer in time."
        except Exception as error:  # noqa: BLE001  (after any error, the next attempt is in a second)
            return safe_message(error)
        hearing = asyncio.create_task(self._hear(connection), name="hear")
        try:
            return await self._check(hearing)
        finally:
            hearing.cancel()
            try:
                # The task must release the socket first. psycopg gives a running statement 10 s to be cancelled.
                await asyncio.wait([hearing])
            finally:
                await connection.close()

    async def _hear(self, connection: psycopg.AsyncConnection) -> None:
        for channel in (queue.CHANNEL, self._own_channel):
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        self._wake()
        self._heard.set()
        async for notification in connection.notifies():
            if notification.channel == self._own_channel:
                self._heard.set()
            else:
                self._wake()

    async def _check(self, hearing: "asyncio.Task[None]") -> str:
        """Send notifications to this dispatcher. When a notification does not arrive, return the reason."""
        if not await self._hears_itself(hearing):
            return _reason(hearing)
        while True:
            self._heard.clear()
            try:
                await database.run_in_db_thread_ungated(_notify, self._own_channel)
            except Exception:  # noqa: BLE001  (an unavailable database is logged already)
                await self._pause(hearing, RECONNECT_SECONDS)
                if hearing.done():
                    return _reason(hearing)
                continue
            if not await self._hears_itself(hearing):
                return _reason(hearing)
            if not self._is_proven:
                self._is_proven = True
                self._log_once("listen.started", "")
            await self._pause(hearing, CHECK_SECONDS)

    async def _hears_itself(self, hearing: "asyncio.Task[None]") -> bool:
        waiting = asyncio.create_task(self._heard.wait())
        await asyncio.wait([waiting, hearing], timeout=HEARD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return self._heard.is_set() and not hearing.done()

    async def _pause(self, hearing: "asyncio.Task[None]", seconds: float) -> None:
        await asyncio.wait([hearing], timeout=seconds)

    def _log_once(self, event: str, reason: str) -> None:
        """Log an event and its reason, unless the last log line had the same event and reason."""
        if (line := event + reason) != self._last_logged:
            self._last_logged = line
            if reason:
                log.warning(event, reason=reason, poll_seconds=self.poll_seconds)
            else:
                log.info(event)


def _notify(channel: str) -> None:
    database.rows("SELECT pg_notify(%s, '')", [channel])


def _reason(hearing: "asyncio.Task[None]") -> str:
    error = hearing.exception() if hearing.done() and not hearing.cancelled() else None
    if error is not None:
        return safe_message(error)
    return "The dispatcher sent a test notification through the database, but did not receive it."
