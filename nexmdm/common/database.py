"""Functions for work on the database. Async code must use the database only through this module."""

import random
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from math import inf
from typing import Any, Final, ParamSpec, TypeVar, cast

from asgiref.sync import sync_to_async
from django.db import Error, InterfaceError, OperationalError, connection, connections
from psycopg.errors import ReadOnlySqlTransaction

from nexmdm.common.domain_error import DomainError
from nexmdm.common.overload import connection_turns
from nexmdm.common.overload.gates import Gate
from nexmdm.common.postgresql import deadline, outage
from nexmdm.common.postgresql.errors import (
    Meaning,
    NoConnection,
    Unreachable,
    is_of_server,
    is_read_only,
    meaning_of,
    safe_message,
)

P = ParamSpec("P")
R = TypeVar("R")

WAIT_SECONDS: Final = 8
"""The longest time for one piece of work: its wait in the queue and its wait for PostgreSQL."""

TURN_SECONDS: Final = WAIT_SECONDS - connection_turns.LEAST_WORK_SECONDS
"""The longest time that work may wait in the queue."""

BRIEF_SECONDS: Final = 1
"""The longest time for brief work after the main work of a request, such as the audit entry of a refusal."""

CHORE_SECONDS: Final = 60
"""The longest time for one round of the dispatcher's work, except pushes."""

PHONES_WAITING: Final = 5000
"""The largest number of waiting pieces of work for phones. A large fleet may send many requests within seconds."""

LOOKUPS_WAITING: Final = 400
"""The largest number of waiting look-ups. A look-up takes about 2 ms, so the last one waits less than a second."""

LOOKUPS: Final = Gate(
    "lookups", at_once=1, waiting=LOOKUPS_WAITING, waiting_per_key=LOOKUPS_WAITING // 4, seconds=TURN_SECONDS
)
"""The gate for look-ups that any client can cause without a valid credential. Its keys are addresses. One address may
have a quarter of the waiting look-ups, because many phones with one address may register together.
"""

REQUEST_SECONDS: Final = 9
"""The longest time for all database work of one request. Brief work may follow after this time."""

_request_ends_at: Final[ContextVar[float]] = ContextVar("request_ends_at", default=inf)

CLIENT: Final[ContextVar[str]] = ContextVar("client", default="")
"""The addresses.counting_key() of the client whose request is processed. It is the key at the gates of this module."""

DEADLOCK_TRIES: Final = 5


@cache
def phones() -> Gate:
    """Return the gate for database work of clients that present a device token, valid or not. The gate also has a limit
    for each client address.

    All these clients leave one connection for look-ups and the admin site. The clients of one address also leave one
    connection for the clients of other addresses.
    """
    at_once = max(1, connection_turns.unsigned() - 1)
    return Gate(
        "phones",
        at_once=at_once,
        at_once_per_key=max(1, at_once - 1),
        waiting=PHONES_WAITING,
        waiting_per_key=PHONES_WAITING // 2,
        seconds=TURN_SECONDS,
    )


def begin_request(client: str, began_at: float | None = None) -> None:
    """Begin a request of the address `client`. Its deadline is counted from `began_at` (monotonic time) or from now."""
    CLIENT.set(client)
    _request_ends_at.set((time.monotonic() if began_at is None else began_at) + REQUEST_SECONDS)


def begin_long_request() -> None:
    """Give each piece of database work of this context a separate deadline. Use this function for exports."""
    _request_ends_at.set(inf)


def continue_request() -> None:
    """Set a new deadline for the request, after it has waited for something outside the database."""
    _request_ends_at.set(time.monotonic() + REQUEST_SECONDS)


def _ends_at() -> float:
    return min(time.monotonic() + WAIT_SECONDS, _request_ends_at.get())


async def run_in_db_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a thread that can use the database. Then return the thread's connection to the pool.

    If the pool has no free connection, the function waits in a queue. All functions of this module that wait have a
    deadline. Raises GateFull if the deadline comes while the function waits in the queue, and OperationalError if the
    deadline comes later.
    """
    return await _run_in_turn(_ends_at(), work, *args, **kwargs)


async def run_briefly(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function for at most BRIEF_SECONDS. Use it for work whose result the answer does not need."""
    return await _run_in_turn(time.monotonic() + BRIEF_SECONDS, work, *args, **kwargs)


async def run_chore(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function for at most CHORE_SECONDS. Use it for work that no request waits for."""
    return await _run_in_turn(time.monotonic() + CHORE_SECONDS, work, *args, **kwargs)


async def run_for_phone(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function for a client that presents a device token. The token may be invalid. Raises GateFull.

    All such clients together leave connections free for signed calls.
    """
    ends_at = _ends_at()
    async with phones().turn(CLIENT.get()):
        return await _run_unsigned(ends_at, work, *args, **kwargs)


async def run_lookup(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a short function that any client can cause without a valid credential. Raises GateFull.

    All such clients together leave connections free for signed calls and for phones.
    """
    ends_at = _ends_at()
    async with LOOKUPS.turn(CLIENT.get()):
        return await _run_unsigned(ends_at, work, *args, **kwargs)


async def run_unsigned(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function that is not part of a signed call. The caller must limit such calls by a gate. Raises GateFull."""
    return await _run_unsigned(_ends_at(), work, *args, **kwargs)


async def run_in_db_thread_ungated(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a thread without a queue. Use it only for work that each process does one at a time."""
    return await run_in_db_thread_until(_ends_at(), work, *args, **kwargs)


async def _run_in_turn(ends_at: float, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    turns = connection_turns.of_loop()
    # Brief work waits for half of its time.
    least = min(connection_turns.LEAST_WORK_SECONDS, (ends_at - time.monotonic()) / 2)
    await turns.acquire_signed(ends_at, least=least)
    try:
        return await run_in_db_thread_until(ends_at, work, *args, **kwargs)
    finally:
        turns.release_signed()


async def _run_unsigned(ends_at: float, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    turns = connection_turns.of_loop()
    await turns.acquire(ends_at)
    try:
        return await run_in_db_thread_until(ends_at, work, *args, **kwargs)
    finally:
        turns.release()


async def run_in_db_thread_until(ends_at: float, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a thread, without waiting for a turn. The deadline is `ends_at` (monotonic time)."""
    return await sync_to_async(_work_and_release)(ends_at, work, *args, **kwargs)


def _work_and_release(ends_at: float, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    try:
        return work_until(ends_at, work, *args, **kwargs)
    finally:
        release_connections()


def work_until(ends_at: float, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in this thread, with the deadline `ends_at` (monotonic time). The connection stays open.

    Raises OperationalError or InterfaceError if the database is unavailable.
    """
    answered = deadline.times_answered()
    try:
        with deadline.until(ends_at):
            done = work(*args, **kwargs)
    except Error as error:
        if meaning_of(error) is not Meaning.UNAVAILABLE:
            raise
        note_unavailable(error)
        if isinstance(error, OperationalError | InterfaceError):
            raise
        raise OperationalError(str(error)) from error.__cause__
    if outage.is_present() and deadline.times_answered() > answered:
        outage.note_success()
    return done


def note_unavailable(error: Error) -> None:
    """Log that the database is unavailable. If its server accepts no writes or is silent, close all connections."""
    log_unavailable(error)
    if is_read_only(error):
        outage.hold_off()
    if is_of_server(error):
        if connection.connection is not None:
            connection.connection.close()
        connection.pool.drain()  # type: ignore[attr-defined]  # Django's PostgreSQL backend has one.


def log_unavailable(error: Error) -> None:
    """Log why the database is unavailable. Each reason is logged only once in an outage."""
    is_vague = isinstance(error.__cause__, NoConnection) and not isinstance(error.__cause__, Unreachable)
    outage.note_failure(safe_message(error), vague=is_vague)


def refuse_read_only() -> None:
    """Raise OperationalError if the server accepts no writes. The function runs one statement."""
    if row("SHOW transaction_read_only") != ("off",):
        raise OperationalError(
            "The database accepts no writes: transaction_read_only is on."
        ) from ReadOnlySqlTransaction()


def release_connections() -> None:
    """Return this thread's connections to the pool, except connections in an atomic block (in a test)."""
    for used in connections.all(initialized_only=True):
        if not used.in_atomic_block:
            used.close()


def is_connected() -> bool:
    """Return whether this thread has an open connection."""
    return connection.connection is not None and not connection.connection.closed


def is_pooled() -> bool:
    """Return whether each transaction must set the settings again. This is so with a pooler, which drops session
    settings.
    """
    connection.ensure_connection()
    return bool(connection.connection.first_statements)


def settings_of_session() -> Mapping[str, str]:
    """Return the settings that each session or transaction of this thread gets, from the database URL and NexMDM."""
    connection.ensure_connection()
    return cast("Mapping[str, str]", connection.connection.settings_of_session())


def set_for_session(name: str, value: str) -> None:
    """Set a parameter of PostgreSQL for this thread's connection, until reset_session()."""
    connection.ensure_connection()
    connection.connection.set_for_session(name, value)


def reset_session() -> None:
    """Undo set_for_session(), if this thread's connection is still open."""
    if is_connected():
        connection.connection.reset_session()


def rows(statement: str, parameters: Any = None) -> list[Any]:
    """Run a statement on this thread's connection and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


def execute(statement: str, parameters: Any = None) -> int:
    """Run a statement on this thread's connection and return how many rows it changed."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return int(cursor.rowcount)


def execute_batch(*statements: str, parameters: Any) -> list[list[Any]]:
    """Run statements in one message. If no transaction is open, the statements are one transaction. Return the rows of
    each statement.

    (PostgreSQL's documentation of the protocol, "Multiple Statements in a Simple Query".)
    """
    with connection.cursor() as cursor:
        cursor.execute(";".join(statements), parameters)
        found = [_found(cursor)]
        while cursor.nextset():
            found.append(_found(cursor))
    return found


def execute_last_batch(*statements: str, parameters: Any) -> None:
    """Run the last statements of a transaction, and send its COMMIT in the same message.

    If the transaction is inside an outer transaction (in a test), nothing is committed.
    """
    is_outermost = len(connection.atomic_blocks) == 1
    execute_batch(*statements, *(["COMMIT"] if is_outermost else []), parameters=parameters)


def _found(cursor: Any) -> list[Any]:
    return list(cursor.fetchall()) if cursor.description else []


def row(statement: str, parameters: Any = None) -> Any:
    """Run a statement that has exactly one row as its result, and return this row."""
    (only,) = rows(statement, parameters)
    return only


def advisory_lock(purpose: str, name: str) -> None:
    """Take the lock with this purpose and name until the transaction ends. Wait while another transaction has it."""
    rows("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{purpose}:{name}"])


def now() -> datetime:
    """Return the time of the database. All stored times are times of the database."""
    (moment,) = row("SELECT now()")
    return cast("datetime", moment)


class DeadlockRetriesExhausted(DomainError):
    detail = "Too many requests changed the same rows at the same time. Try again in a few seconds."


def retry_on_deadlock(work: Callable[[], R]) -> R:
    """Run `work`, a whole transaction. After a deadlock, run it again, up to DEADLOCK_TRIES times in total.

    Raises DeadlockRetriesExhausted if each try ends with a deadlock.
    """
    for attempt in range(DEADLOCK_TRIES):
        try:
            return work()
        except OperationalError as error:
            if meaning_of(error) is not Meaning.CONTENDED:
                raise
        time.sleep(random.uniform(0, 0.02 * 2**attempt))
    raise DeadlockRetriesExhausted
