"""The one way from async code to the database."""

import asyncio
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from typing import Any, Final, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import Error, InternalError, OperationalError, connection, connections
from psycopg.errors import DeadlockDetected, ReadOnlySqlTransaction, SerializationFailure

from nexmdm.common.domain_error import DomainError
from nexmdm.common.overload.gates import Gate

P = ParamSpec("P")
R = TypeVar("R")

RESERVED_CONNECTIONS: Final = 2
"""Kept back from run_in_db_thread(), for what a process does one at a time: the heartbeats' flush or a dispatcher's
claims; and the look-up of its readiness."""

SIGNED_TURNS: Final = 2
"""Turns at a connection that are left to signed calls, whatever phones, the admin site and anonymous clients send."""

WAIT_SECONDS: Final = 10
"""How long a request may wait for the database."""

PHONES_WAITING: Final = 5000
"""As many as heartbeats may: a command to a large fleet is answered by all phones within seconds."""

LOOKUPS_WAITING: Final = 400
"""At a millisecond or two each, the last one waits for less than a second."""

LOOKUPS: Final = Gate(
    "lookups", at_once=1, waiting=LOOKUPS_WAITING, waiting_per_key=LOOKUPS_WAITING // 4, seconds=WAIT_SECONDS
)
"""Look-ups that any client can cause, without a valid credential, by address. As many of one address may wait as phones
may register with one enrollment token in the same moment."""

CLIENT: Final[ContextVar[str]] = ContextVar("client", default="")
"""The address for which a request's database work runs, as it is counted: the key of the gates here."""

DEADLOCK_TRIES: Final = 5

_ABOUT_DATA: Final = ("22", "23")
"""The classes of SQLSTATE of which PostgreSQL's messages may show values: data exceptions and broken constraints."""


def _shared_turns() -> int:
    return max(1, settings.DATABASE_POOL_SIZE - RESERVED_CONNECTIONS)


def _unsigned_turns() -> int:
    return max(1, _shared_turns() - SIGNED_TURNS)


@cache
def phones() -> Gate:
    """Return the gate of database work for clients that call themselves phones, by address.

    It leaves one turn to look-ups and the admin site, and one of its own to other addresses, whatever one sends.
    """
    at_once = max(1, _unsigned_turns() - 1)
    return Gate(
        "phones",
        at_once=at_once,
        at_once_per_key=max(1, at_once - 1),
        waiting=PHONES_WAITING,
        waiting_per_key=PHONES_WAITING // 2,
        seconds=WAIT_SECONDS,
    )


class _Turns:
    """The turns of one event loop at the pool's connections. acquire() and release() are for what is no signed call."""

    def __init__(self) -> None:
        self.shared = asyncio.Semaphore(_shared_turns())
        self._unsigned = asyncio.Semaphore(_unsigned_turns())

    async def acquire(self) -> None:
        await self._unsigned.acquire()
        try:
            await self.shared.acquire()
        except BaseException:
            self._unsigned.release()
            raise

    def release(self) -> None:
        self.shared.release()
        self._unsigned.release()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


def connection_turns() -> _Turns:
    """Return the running loop's turns at a connection: to be held by whatever uses one without run_in_db_thread()."""
    loop = asyncio.get_running_loop()
    found = _turns.get(loop)
    if found is None:
        found = _turns[loop] = _Turns()
    return found


async def run_in_db_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run one plain function on the database in a thread, and return its connection to the pool on the way out.

    No more of them run at once than the pool has connections to spare; the others wait their turn.
    """
    async with connection_turns().shared:
        return await run_in_db_thread_ungated(work, *args, **kwargs)


async def run_for_phone(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function for a client that calls itself a phone: mostly the work itself finds out whether it is one.

    However many of them there are, signed calls need not wait for them. Raises GateFull.
    """
    async with phones().turn(CLIENT.get()):
        return await run_unsigned(work, *args, **kwargs)


async def run_lookup(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a short function that any client can cause, without a valid credential.

    However many of them there are, neither signed calls nor phones need wait for them. Raises GateFull.
    """
    async with LOOKUPS.turn(CLIENT.get()):
        return await run_unsigned(work, *args, **kwargs)


async def run_unsigned(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function that is no signed call's, and that has a gate of its own in front of it."""
    turns = connection_turns()
    await turns.acquire()
    try:
        return await run_in_db_thread_ungated(work, *args, **kwargs)
    finally:
        turns.release()


async def run_in_db_thread_ungated(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a thread, but without waiting for a turn: for what each process does one at a time."""
    return await sync_to_async(releasing_connection)(work, *args, **kwargs)


async def run_in_db_thread_keeping_connection(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function ungated, and keep its connection: it must call release_connections() later."""
    return await sync_to_async(work)(*args, **kwargs)


def releasing_connection(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function, and return this thread's connections to the pool on the way out."""
    try:
        return giving_read_only_up(work, *args, **kwargs)
    finally:
        release_connections()


def giving_read_only_up(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function; raises OperationalError, and closes the connection, if its server takes no writes.

    A demoted primary, or a provider's database with a full disk, answers on: the next connection finds another server.
    """
    try:
        return work(*args, **kwargs)
    except InternalError as error:
        if not is_read_only(error):
            raise
        raise _read_only() from error


def is_read_only(error: Exception) -> bool:
    """Tell whether a statement failed because its server takes no writes (SQLSTATE 25006)."""
    return isinstance(error.__cause__, ReadOnlySqlTransaction)


def refuse_read_only() -> None:
    """Raise OperationalError, and close the connection, if its server takes no writes. Costs one statement."""
    if row("SHOW transaction_read_only") != ("off",):
        raise _read_only()


def _read_only() -> OperationalError:
    if connection.connection is not None:
        connection.connection.close()
    return OperationalError("The database takes no writes: transaction_read_only is on.")


def release_connections() -> None:
    """Return this thread's connections to the pool; one inside an atomic block (a test's) stays."""
    for used in connections.all(initialized_only=True):
        if not used.in_atomic_block:
            used.close()


def is_connected() -> bool:
    """Tell whether this thread has a connection that was not cut: an error on it was then about the work."""
    return connection.connection is not None and not connection.connection.closed


def rows(statement: str, parameters: Any = None) -> list[Any]:
    """Run a statement on the current connection and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


def execute(statement: str, parameters: Any = None) -> int:
    """Run a statement on the current connection and return how many rows it changed."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return int(cursor.rowcount)


def execute_batch(*statements: str, parameters: Any) -> list[list[Any]]:
    """Run statements by one round trip, as one transaction unless one is open; return the rows of each.

    PostgreSQL takes a simple query of several statements as a whole, and commits all of it or nothing ("Multiple
    Statements in a Simple Query" in the protocol's documentation).
    """
    with connection.cursor() as cursor:
        cursor.execute(";".join(statements), parameters)
        found = [_found(cursor)]
        while cursor.nextset():
            found.append(_found(cursor))
    return found


def _found(cursor: Any) -> list[Any]:
    return list(cursor.fetchall()) if cursor.description else []


def row(statement: str, parameters: Any = None) -> Any:
    """Run a statement that yields one row, and return it."""
    (only,) = rows(statement, parameters)
    return only


def advisory_lock(purpose: str, name: str) -> None:
    """Wait, to the end of the transaction, for whoever does the same to the same name."""
    rows("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{purpose}:{name}"])


def now() -> datetime:
    """Return the database's time, the one by which everything here is judged."""
    (moment,) = row("SELECT now()")
    return cast("datetime", moment)


def safe_message(error: BaseException) -> str:
    """Say what an error is about. Of what PostgreSQL refuses for its data, that is the rule and not the row: no secret.

    (PostgreSQL's own text goes on to say "Failing row contains …".)
    """
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    if not isinstance(error, Error | psycopg.Error) or not isinstance(cause, psycopg.Error):
        return str(error)
    if (cause.sqlstate or "")[:2] not in _ABOUT_DATA:
        return str(error).partition("\n")[0]
    rule = [cause.diag.table_name, cause.diag.column_name, cause.diag.constraint_name]
    return " ".join([f"SQLSTATE {cause.sqlstate}", *filter(None, rule)])


class DeadlockRetriesExhausted(DomainError):
    detail = "Too much happened to the same rows at once. Try again shortly."


def retry_on_deadlock(work: Callable[[], R]) -> R:
    """Run a whole transaction; again, a few times, if PostgreSQL chose it as the victim of a deadlock.

    Raises DeadlockRetriesExhausted when it was chosen each time.
    """
    for attempt in range(DEADLOCK_TRIES):
        try:
            return work()
        except OperationalError as error:
            if not isinstance(error.__cause__, DeadlockDetected | SerializationFailure):
                raise
        time.sleep(random.uniform(0, 0.02 * 2**attempt))
    raise DeadlockRetriesExhausted


def why_unreachable(given: dict[str, Any] | None = None) -> str | None:
    """Say in one line why no connection can be made with these parameters (ours, by default); None if one can.

    The pool would hide the reason.
    """
    try:
        psycopg.connect(**given or connection_parameters()).close()
    except psycopg.OperationalError as error:
        return f"The database cannot be reached: {' '.join(str(error).split())}"
    return None


def connection_parameters() -> dict[str, Any]:
    """Return what psycopg.connect() wants for a connection of one's own, outside the pool (LISTEN)."""
    database = settings.DATABASES["default"]
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    given = {key: database[name] for key, name in names.items() if database.get(name)}
    return given | {key: value for key, value in database["OPTIONS"].items() if key != "pool"}
