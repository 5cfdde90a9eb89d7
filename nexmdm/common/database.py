"""The one way from async code to the database."""

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
"""The time that work may wait in the queue and then for PostgreSQL. No request waits for the database longer than 10 s.
"""

TURN_SECONDS: Final = WAIT_SECONDS - connection_turns.LEAST_WORK_SECONDS
"""The time that work may wait in the queue."""

BRIEF_SECONDS: Final = 1
"""The time for brief work that follows the main work of a request, such as the audit entry of a refusal."""

CHORE_SECONDS: Final = 60
"""The longest time for one round of the dispatcher's work other than pushes."""

PHONES_WAITING: Final = 5000
"""The most pieces of phones' work that wait: as many as heartbeats, because a large fleet may report within seconds."""

LOOKUPS_WAITING: Final = 400
"""The most look-ups that wait. Each takes a millisecond or two, so the last one waits for less than a second."""

LOOKUPS: Final = Gate(
    "lookups", at_once=1, waiting=LOOKUPS_WAITING, waiting_per_key=LOOKUPS_WAITING // 4, seconds=TURN_SECONDS
)
"""The gate for look-ups that any client can cause without a valid credential, by address. One address may have as many
waiting look-ups as phones may register with one enrollment token at the same time."""

REQUEST_SECONDS: Final = 9
"""The time for all work of one request together; brief work may follow."""

_request_ends_at: Final[ContextVar[float]] = ContextVar("request_ends_at", default=inf)

CLIENT: Final[ContextVar[str]] = ContextVar("client", default="")
"""The address for which a request's database work runs, in its counted form: the key of the gates here."""

DEADLOCK_TRIES: Final = 5


@cache
def phones() -> Gate:
    """Return the gate for database work of clients that present a device token, valid or not. Its keys are addresses.

    All these clients together leave one connection to look-ups and the admin site. The clients of one address leave a
    further connection to the clients of other addresses, however much they send.
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
    """Count this context's work for an address, with a deadline counted from now or `began_at` (monotonic time)."""
    CLIENT.set(client)
    _request_ends_at.set((time.monotonic() if began_at is None else began_at) + REQUEST_SECONDS)


def begin_long_request() -> None:
    """Give each piece of work of the current context its own deadline: an export is read in many pieces."""
    _request_ends_at.set(inf)


def continue_request() -> None:
    """Begin the deadline again, because the request has waited for something other than the database."""
    _request_ends_at.set(time.monotonic() + REQUEST_SECONDS)


def _ends_at() -> float:
    return min(time.monotonic() + WAIT_SECONDS, _request_ends_at.get())


async def run_in_db_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run one plain function on the database in a thread, and return its connection to the pool at the end.

    As many functions run as the pool has spare connections; the others wait in a queue. All waits for the database have
    a deadline, also in the functions below. Raises GateFull if the deadline comes while the function waits in the
    queue, and OperationalError if it comes later.
    """
    return await _run_in_turn(_ends_at(), work, *args, **kwargs)


async def run_briefly(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function whose result the answer does not need, and which must not delay the answer."""
    return await _run_in_turn(time.monotonic() + BRIEF_SECONDS, work, *args, **kwargs)


async def run_chore(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function whose outcome no request waits for: it may take longer."""
    return await _run_in_turn(time.monotonic() + CHORE_SECONDS, work, *args, **kwargs)


async def run_for_phone(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function for a client that presents a device token; often only the work itself can check the token.

    However many such clients there are, connections remain for signed calls. Raises GateFull.
    """
    ends_at = _ends_at()
    async with phones().turn(CLIENT.get()):
        return await _run_unsigned(ends_at, work, *args, **kwargs)


async def run_lookup(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a short function that any client can cause, without a valid credential.

    However many such clients there are, connections remain for signed calls and for phones. Raises GateFull.
    """
    ends_at = _ends_at()
    async with LOOKUPS.turn(CLIENT.get()):
        return await _run_unsigned(ends_at, work, *args, **kwargs)


async def run_unsigned(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function that is not part of a signed call, and has its own gate in front of it. Raises GateFull."""
    return await _run_unsigned(_ends_at(), work, *args, **kwargs)


async def run_in_db_thread_ungated(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a thread without waiting in the queue, for work that each process does one at a time."""
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
    """Run a function in a thread without waiting in the queue, with this deadline (monotonic time)."""
    return await sync_to_async(_work_and_release)(ends_at, work, *args, **kwargs)


def _work_and_release(ends_at: float, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    try:
        return work_until(ends_at, work, *args, **kwargs)
    finally:
        release_connections()


def work_until(ends_at: float, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in this thread, with a deadline (monotonic time). The function must return its connection itself.

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
    """Record that the database is unavailable, and close all connections to a server that cannot do any work.

    A demoted primary, or a provider's database with a full disk, still answers: a new connection may find another
    server.
    """
    log_unavailable(error)
    if is_read_only(error):
        outage.hold_off()
    if is_of_server(error):
        if connection.connection is not None:
            connection.connection.close()
        connection.pool.drain()  # type: ignore[attr-defined]  # Django's PostgreSQL backend has one.


def log_unavailable(error: Error) -> None:
    """Log why the database is unavailable. Each reason is logged once per outage, however often this is called."""
    is_vague = isinstance(error.__cause__, NoConnection) and not isinstance(error.__cause__, Unreachable)
    outage.note_failure(safe_message(error), vague=is_vague)


def refuse_read_only() -> None:
    """Raise OperationalError if the connection's server accepts no writes. Costs one statement."""
    if row("SHOW transaction_read_only") != ("off",):
        raise OperationalError(
            "The database accepts no writes: transaction_read_only is on."
        ) from ReadOnlySqlTransaction()


def release_connections() -> None:
    """Return this thread's connections to the pool; a connection inside an atomic block (of a test) stays."""
    for used in connections.all(initialized_only=True):
        if not used.in_atomic_block:
            used.close()


def is_connected() -> bool:
    """Return whether this thread's connection still works. If it works, the work itself caused its error."""
    return connection.connection is not None and not connection.connection.closed


def is_pooled() -> bool:
    """Return whether a pooler gives each transaction another session."""
    connection.ensure_connection()
    return bool(connection.connection.first_statements)


def settings_of_session() -> Mapping[str, str]:
    """Return the settings of the URL and of NexMDM for each session, or transaction, of this thread's connection."""
    connection.ensure_connection()
    return cast("Mapping[str, str]", connection.connection.settings_of_session())


def set_for_session(name: str, value: str) -> None:
    """Set a parameter of PostgreSQL for later statements on this thread's connection, until reset_session()."""
    connection.ensure_connection()
    connection.connection.set_for_session(name, value)


def reset_session() -> None:
    """Undo set_for_session(), if the connection is still the same."""
    if is_connected():
        connection.connection.reset_session()


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
    """Run statements in one round trip, as one transaction unless one is open; return the rows of each.

    PostgreSQL runs a simple query of several statements as a whole, and commits all of it or nothing ("Multiple
    Statements in a Simple Query" in the protocol's documentation).
    """
    with connection.cursor() as cursor:
        cursor.execute(";".join(statements), parameters)
        found = [_found(cursor)]
        while cursor.nextset():
            found.append(_found(cursor))
    return found


def execute_last_batch(*statements: str, parameters: Any) -> None:
    """Run the last statements of a transaction; its COMMIT is sent with them in one message.

    If the transaction is inside another one (of a test), nothing is committed yet.
    """
    is_outermost = len(connection.atomic_blocks) == 1
    execute_batch(*statements, *(["COMMIT"] if is_outermost else []), parameters=parameters)


def _found(cursor: Any) -> list[Any]:
    return list(cursor.fetchall()) if cursor.description else []


def row(statement: str, parameters: Any = None) -> Any:
    """Run a statement that yields one row, and return it."""
    (only,) = rows(statement, parameters)
    return only


def advisory_lock(purpose: str, name: str) -> None:
    """Take the lock on `name` for `purpose`, and keep it until the transaction ends. Waits while the lock is taken."""
    rows("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{purpose}:{name}"])


def now() -> datetime:
    """Return the database's time. All times in the database are compared with this time."""
    (moment,) = row("SELECT now()")
    return cast("datetime", moment)


class DeadlockRetriesExhausted(DomainError):
    detail = "Too many requests changed the same rows at the same time. Try again in a few seconds."


def retry_on_deadlock(work: Callable[[], R]) -> R:
    """Run a whole transaction. If PostgreSQL ends it because of a deadlock, run it again, a few times.

    Raises DeadlockRetriesExhausted if every try ended so.
    """
    for attempt in range(DEADLOCK_TRIES):
        try:
            return work()
        except OperationalError as error:
            if meaning_of(error) is not Meaning.CONTENDED:
                raise
        time.sleep(random.uniform(0, 0.02 * 2**attempt))
    raise DeadlockRetriesExhausted
