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
"""How long work may wait for its turn and then for PostgreSQL: no request waits for the database longer than 10 s."""

TURN_SECONDS: Final = WAIT_SECONDS - connection_turns.LEAST_WORK_SECONDS
"""How long it may wait for its turn."""

BRIEF_SECONDS: Final = 1
"""How long work may take that follows other work of the same request, whatever came of that."""

CHORE_SECONDS: Final = 60
"""The longest time for one round of the dispatcher's work other than pushes."""

PHONES_WAITING: Final = 5000
"""As many as heartbeats may: a command to a large fleet is answered by all phones within seconds."""

LOOKUPS_WAITING: Final = 400
"""At a millisecond or two each, the last one waits for less than a second."""

LOOKUPS: Final = Gate(
    "lookups", at_once=1, waiting=LOOKUPS_WAITING, waiting_per_key=LOOKUPS_WAITING // 4, seconds=TURN_SECONDS
)
"""Look-ups that any client can cause, without a valid credential, by address. As many of one address may wait as phones
may register with one enrollment token in the same moment."""

REQUEST_SECONDS: Final = 9
"""How long all work of one request may take together; what is brief may follow."""

_request_ends_at: Final[ContextVar[float]] = ContextVar("request_ends_at", default=inf)

CLIENT: Final[ContextVar[str]] = ContextVar("client", default="")
"""The address for which a request's database work runs, as it is counted: the key of the gates here."""

DEADLOCK_TRIES: Final = 5


@cache
def phones() -> Gate:
    """Return the gate of database work for clients that call themselves phones, by address.

    It leaves one turn to look-ups and the admin site, and one of its own to other addresses, whatever one sends.
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
    """Count what the current context does for this address, and bound it from now or `began_at` (monotonic time)."""
    CLIENT.set(client)
    _request_ends_at.set((time.monotonic() if began_at is None else began_at) + REQUEST_SECONDS)


def begin_long_request() -> None:
    """Bound the pieces of work of the current context, each for itself: an export is read in many of them."""
    _request_ends_at.set(inf)


def continue_request() -> None:
    """Bound what follows from now: the request has waited for something else."""
    _request_ends_at.set(time.monotonic() + REQUEST_SECONDS)


def _ends_at() -> float:
    return min(time.monotonic() + WAIT_SECONDS, _request_ends_at.get())


async def run_in_db_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run one plain function on the database in a thread, and return its connection to the pool on the way out.

    At most as many of them run as the pool has spare connections; the others wait their turn. All that waits for
    the database has a deadline, here as below. Raises GateFull where it comes before the turn, OperationalError after.
    """
    return await _run_in_turn(_ends_at(), work, *args, **kwargs)


async def run_briefly(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function of which the answer does not depend, and that must not make it late."""
    return await _run_in_turn(time.monotonic() + BRIEF_SECONDS, work, *args, **kwargs)


async def run_chore(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function of which no request waits for the outcome: it may take longer."""
    return await _run_in_turn(time.monotonic() + CHORE_SECONDS, work, *args, **kwargs)


async def run_for_phone(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function for a client that calls itself a phone: mostly the work itself finds out whether it is one.

    However many of them there are, signed calls need not wait for them. Raises GateFull.
    """
    ends_at = _ends_at()
    async with phones().turn(CLIENT.get()):
        return await _run_unsigned(ends_at, work, *args, **kwargs)


async def run_lookup(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a short function that any client can cause, without a valid credential.

    However many of them there are, neither signed calls nor phones need wait for them. Raises GateFull.
    """
    ends_at = _ends_at()
    async with LOOKUPS.turn(CLIENT.get()):
        return await _run_unsigned(ends_at, work, *args, **kwargs)


async def run_unsigned(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function that is no signed call's, and that has a gate of its own in front of it. Raises GateFull."""
    return await _run_unsigned(_ends_at(), work, *args, **kwargs)


async def run_in_db_thread_ungated(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a thread, but without waiting for a turn: for what each process does one at a time."""
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
    """Run a function in a thread, without waiting for a turn, with this deadline (monotonic time)."""
    return await sync_to_async(_work_and_release)(ends_at, work, *args, **kwargs)


def _work_and_release(ends_at: float, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    try:
        return work_until(ends_at, work, *args, **kwargs)
    finally:
        release_connections()


def work_until(ends_at: float, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in this thread, with a deadline (monotonic time); it has to return its connection by itself.

    Where the database is unavailable, raises OperationalError or InterfaceError.
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
    """Take note that the database is unavailable; keep no connection to a server that cannot do any work.

    A demoted primary, or a provider's database with a full disk, answers on: the next connection finds another server.
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
    """Raise OperationalError if the connection's server takes no writes. Costs one statement."""
    if row("SHOW transaction_read_only") != ("off",):
        raise OperationalError(
            "The database takes no writes: transaction_read_only is on."
        ) from ReadOnlySqlTransaction()


def release_connections() -> None:
    """Return this thread's connections to the pool; one inside an atomic block (a test's) stays."""
    for used in connections.all(initialized_only=True):
        if not used.in_atomic_block:
            used.close()


def is_connected() -> bool:
    """Tell whether this thread has a connection that was not cut: an error on it was then about the work."""
    return connection.connection is not None and not connection.connection.closed


def is_pooled() -> bool:
    """Tell whether a pooler is in between that gives each transaction another session."""
    connection.ensure_connection()
    return bool(connection.connection.first_statements)


def settings_of_session() -> Mapping[str, str]:
    """Return what the URL and NexMDM set in each session, or transaction, of this thread's connection."""
    connection.ensure_connection()
    return cast("Mapping[str, str]", connection.connection.settings_of_session())


def set_for_session(name: str, value: str) -> None:
    """Set a parameter of PostgreSQL for what follows on this thread's connection, until reset_session()."""
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


def execute_last_batch(*statements: str, parameters: Any) -> None:
    """Run the statements that are the last ones of a transaction: its COMMIT travels with them.

    Where the transaction is part of another one (a test's), nothing is committed yet.
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
    """Take the lock on `name` for `purpose`, and keep it to the end of the transaction. Waits while another has it."""
    rows("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{purpose}:{name}"])


def now() -> datetime:
    """Return the database's time, the one by which everything here is judged."""
    (moment,) = row("SELECT now()")
    return cast("datetime", moment)


class DeadlockRetriesExhausted(DomainError):
    detail = "Too many requests changed the same rows at the same time. Try again shortly."


def retry_on_deadlock(work: Callable[[], R]) -> R:
    """Run a whole transaction; again, a few times, if PostgreSQL chose it as the victim of a deadlock.

    Raises DeadlockRetriesExhausted when it was chosen each time.
    """
    for attempt in range(DEADLOCK_TRIES):
        try:
            return work()
        except OperationalError as error:
            if meaning_of(error) is not Meaning.CONTENDED:
                raise
        time.sleep(random.uniform(0, 0.02 * 2**attempt))
    raise DeadlockRetriesExhausted
