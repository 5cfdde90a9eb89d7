"""The meaning of errors from PostgreSQL, from the network or from a pooler."""

from enum import StrEnum
from typing import Final

import psycopg
from django.db import Error, InterfaceError, OperationalError


class Meaning(StrEnum):
    """How the caller must react to an error.

    - UNAVAILABLE: the database does not work; try again later.
    - CONTENDED: two transactions disturbed each other; try again immediately.
    - OURS: the error is a fault of NexMDM.
    """

    UNAVAILABLE = "unavailable"
    CONTENDED = "contended"
    OURS = "ours"


NO_ANSWER: Final = "PostgreSQL did not answer in time. The connection was closed."


class NoAnswer(psycopg.OperationalError):
    """PostgreSQL did not answer by the deadline. The connection was closed, and the statement was not cancelled.

    `is_silent` is true if the wait was at least as long as the `statement_timeout`. PostgreSQL then probably cannot be
    reached.
    """

    def __init__(self, *, is_silent: bool) -> None:
        super().__init__(NO_ANSWER)
        self.is_silent = is_silent


class NotReplicated(psycopg.OperationalError):
    """A commit may not be on the synchronous standby. The commit counts as failed."""


class NoConnection(psycopg.OperationalError):
    """There was no connection in time. For example, all connections of the pool are in use."""


class Unreachable(NoConnection):
    """No connection could be made. The text contains the reason."""


_ABOUT_DATA: Final = ("22", "23")
"""The classes of SQLSTATE whose messages may contain stored values: data exceptions and violated constraints."""

_CONTENDED: Final = ("40001", "40P01")
"""A serialization failure, and a deadlock."""

_READ_ONLY: Final = "25006"
_UNAVAILABLE: Final = ("25P03", "25P04", "55P03", _READ_ONLY)
"""Codes for these errors: an idle transaction, a long transaction, a lock that was not free, a server without writes.
"""

_ENDS_CONNECTION: Final = ("FATAL", "PANIC")

_UNAVAILABLE_CLASSES: Final = ("08", "53", "57", "58")
"""Failed connections; missing resources (disk, memory, connections); interventions (stop, start, time-out); system
errors.
"""


def meaning_of(error: BaseException) -> Meaning:
    """Return the meaning of an error of psycopg, or of an error of Django that psycopg caused.

    The codes of SQLSTATE are in PostgreSQL's documentation, "PostgreSQL Error Codes".
    """
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    code = cause.sqlstate if isinstance(cause, psycopg.Error) else None
    if code in _CONTENDED:
        return Meaning.CONTENDED
    if code is not None and (code in _UNAVAILABLE or code[:2] in _UNAVAILABLE_CLASSES):
        return Meaning.UNAVAILABLE
    if isinstance(cause, psycopg.Error) and cause.diag.severity_nonlocalized in _ENDS_CONNECTION:
        return Meaning.UNAVAILABLE
    is_operational = isinstance(error, OperationalError | psycopg.OperationalError)
    is_of_connection = code is None and isinstance(error, InterfaceError)
    return Meaning.UNAVAILABLE if is_operational or is_of_connection else Meaning.OURS


def is_of_server(error: Error) -> bool:
    """Return whether an error affects all connections: the server accepts no writes or does not answer."""
    cause = error.__cause__
    return (isinstance(cause, NoAnswer) and cause.is_silent) or is_read_only(error)


def is_read_only(error: Error) -> bool:
    """Return whether a statement failed because its server accepts no writes."""
    cause = error.__cause__
    return isinstance(cause, psycopg.Error) and cause.sqlstate == _READ_ONLY


def safe_message(error: BaseException) -> str:
    """Return the text of an error without secrets.

    If PostgreSQL refused data, the text contains the SQLSTATE and the table, column and constraint, but not the data.
    """
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    if not isinstance(error, Error | psycopg.Error) or not isinstance(cause, psycopg.Error):
        return str(error)
    if (cause.sqlstate or "")[:2] not in _ABOUT_DATA:
        return str(error).partition("\n")[0]
    rule = [cause.diag.table_name, cause.diag.column_name, cause.diag.constraint_name]
    return " ".join([f"SQLSTATE {cause.sqlstate}", *filter(None, rule)])
