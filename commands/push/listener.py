"""The listener of one dispatcher: hears PostgreSQL's NOTIFY when a transaction has queued pushes."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg
from psycopg import sql

from commands import queue
from nexmdm.common import database

RECONNECT_SECONDS: Final = 1.0


async def listen(wake: Callable[[], None]) -> None:
    """Call `wake` at each notification and after each new connection, until cancelled."""
    while True:
        with suppress(psycopg.Error, OSError):
            await _listen_on_one_connection(wake)
        await asyncio.sleep(RECONNECT_SECONDS)


async def _listen_on_one_connection(wake: Callable[[], None]) -> None:
    parameters = database.connection_parameters()
    async with await psycopg.AsyncConnection.connect(**parameters, autocommit=True) as connection:
        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(queue.CHANNEL)))
        wake()
        async for _ in connection.notifies():
            wake()
