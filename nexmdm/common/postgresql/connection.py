"""One connection to PostgreSQL: each of its waits has a deadline, and its settings also apply through a pooler.

A pooler in transaction mode gives each transaction any free session. It refuses options at the start, or drops them. A
setting of a session is lost, or goes to another client. So each transaction gets its settings again, in the same
message as its first statement.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self, cast

import psycopg
from django.conf import settings
from django.db.backends.postgresql import base
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.errors import Diagnostic, _WaitTimeout

from nexmdm.common.postgresql import deadline, outage, session
from nexmdm.common.postgresql.errors import NoAnswer, NotReplicated

_BEGIN_SECONDS: Final = 5
"""The longest time for the first query on a new connection."""

_SPARE_SECONDS: Final = 1
"""The time that an answer may take beyond PostgreSQL's own limit for a statement."""

_REFUSED_OPTIONS: Final = re.compile("unsupported startup parameter( in options)?: |support command-line options")
"""The messages with which PgBouncer, Neon and RDS Proxy refuse options."""

_NEVER_IN_A_TRANSACTION: Final = re.compile(
    r"\s*(?:VACUUM|(?:CREATE|DROP) DATABASE|(?:CREATE|DROP|REINDEX)\b[^;]*\bCONCURRENTLY)\b", re.IGNORECASE
)
_SYNC_REP_WAIT: Final = "SyncRepWaitForLSN"
"""PostgreSQL's function that warns of a commit whose wait for the standby was ended. (Its text may be translated.)"""


class Connection(psycopg.Connection[Any]):
    """A psycopg connection with a deadline."""

    first_statements: tuple[str, ...] = ()
    """The statements with which each transaction begins; empty if the session has its settings."""

    _begins = False

    _unreplicated: Sequence[str] = ()
    """Warnings of commits that may not be on the standby."""

    @classmethod
    def connect(cls, conninfo: str = "", **parameters: Any) -> Self:
        """Connect. Raises psycopg.OperationalError."""
        try:
            connection = cls._open(conninfo, parameters)
        except psycopg.OperationalError as error:
            outage.note_no_connection(str(error))
            raise
        connection.prepare_threshold = None
        connection._begin(parameters.get("options", ""))  # noqa: SLF001  (a classmethod's own)
        return connection

    @classmethod
    def _open(cls, conninfo: str, parameters: dict[str, Any]) -> Self:
        try:
            return super().connect(conninfo, **parameters)
        except psycopg.OperationalError as error:
            if not _REFUSED_OPTIONS.search(str(error)):
                raise
        _, others = session.parse(parameters["options"])
        return super().connect(conninfo, **parameters | {"options": others})

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        """Wait as psycopg does, but no longer than this thread's deadline. Raises NoAnswer, NotReplicated."""
        left = deadline.seconds_left()
        if left is None or (timeout is not None and timeout < left):
            answer = super().wait(gen, interval, timeout)
        else:
            longest = settings.STATEMENT_TIMEOUT_SECONDS + _SPARE_SECONDS
            try:
                answer = super().wait(gen, interval, min(left, longest))
            except _WaitTimeout:
                # Do not cancel the statement: PostgreSQL would end the wait of a commit for its standby, and report the
                # commit as done.
                self.pgconn.finish()
                deadline.note_missed()
                raise NoAnswer(is_silent=left >= settings.STATEMENT_TIMEOUT_SECONDS) from None
        deadline.note_answered()
        if self._unreplicated:
            self.pgconn.finish()
            raise NotReplicated(self._unreplicated[0])
        return answer

    def begin_statements(self) -> tuple[str, ...]:
        """Return BEGIN and the settings: the statements that begin a transaction of more than one message."""
        return (self._get_tx_start_command().decode(), *self.first_statements)

    @contextmanager
    def beginning_by_itself(self) -> Iterator[None]:
        """Let the statement in the block begin its transaction: psycopg would send a separate message with BEGIN."""
        self._begins = True
        try:
            yield
        finally:
            self._begins = False

    def _start_query(self) -> PQGen[None]:
        if not self._begins:
            yield from super()._start_query()

    def set_for_session(self, name: str, value: str) -> None:
        """Set a parameter for all later transactions of this connection."""
        if self.first_statements:
            self._changed[name] = value
            self.first_statements = tuple(session.statements(self._settings | self._changed))
        else:
            self.execute(f"SET {name} = '{value}'")

    def reset_session(self) -> None:
        """Undo set_for_session()."""
        if self.first_statements:
            self._changed.clear()
            self.first_statements = tuple(session.statements(self._settings))
        else:
            self.execute("RESET ALL")

    def settings_of_session(self) -> Mapping[str, str]:
        """Return the settings of the URL and of NexMDM for each session or transaction."""
        return self._settings

    def _begin(self, options: str) -> None:
        """Find out whether the session accepted our options."""
        unreplicated: list[str] = []
        self._unreplicated = unreplicated

        def note_unreplicated_commit(notice: Diagnostic) -> None:
            if notice.source_function == _SYNC_REP_WAIT:
                unreplicated.append(notice.message_primary or "")

        self.add_notice_handler(note_unreplicated_commit)
        self._settings, _ = session.parse(options)
        self._changed: dict[str, str] = {}
        if session.MARK not in self._settings:
            return
        with deadline.within(_BEGIN_SECONDS):
            marked = self.execute("SELECT current_setting(%s, true)", [session.MARK]).fetchone()
            if marked is None or marked[0] != self._settings[session.MARK]:
                self._set_per_transaction()
            if not self.autocommit:
                self.commit()

    def _set_per_transaction(self) -> None:
        """Give each transaction our settings.

        Set the date style once more for the session: psycopg reads results after the transaction, with the date style
        that the server reports then. (Poolers keep the date style for each client, like the client's encoding.)
        """
        if not (self.info.parameter_status("DateStyle") or "").startswith("ISO"):
            self.execute("SET datestyle = ISO")
        self.first_statements = tuple(session.statements(self._settings))


class Cursor(base.CursorMixin, psycopg.ClientCursor[Any]):
    """Django's cursor, which begins each transaction in the message of its first statement."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """Execute the query. The first result is that of the query."""
        connection = self.connection
        begins = self._beginning() if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE else ()
        if not begins:
            return super().execute(query, params, **options)
        text = self.mogrify(query, params)
        if connection.autocommit and _NEVER_IN_A_TRANSACTION.match(text):
            return super().execute(query, params, **options)
        with cast("Connection", connection).beginning_by_itself():
            super().execute(";".join((*begins, text)), None, **options)
        for _ in begins:
            self.nextset()
        return self

    def _beginning(self) -> tuple[str, ...]:
        """Return the statements that must precede the first query of a transaction, in the same message."""
        connection = self.connection
        if not isinstance(connection, Connection):
            return ()
        return connection.first_statements if connection.autocommit else connection.begin_statements()
