"""A connection to PostgreSQL with a deadline for each wait. Its settings also apply through a pooler.

A pooler in transaction mode gives each transaction any free session. It refuses or drops the options with which a
session starts. If a client sets a parameter of its session, the parameter is lost, or applies to another client. So
each transaction sets the parameters again, in the message of its first statement.
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
"""The process's wait for an answer is PostgreSQL's limit for a statement plus this number of seconds."""

_REFUSED_OPTIONS: Final = re.compile("unsupported startup parameter( in options)?: |support command-line options")
"""The messages with which PgBouncer, Neon and RDS Proxy refuse options."""

_NEVER_IN_A_TRANSACTION: Final = re.compile(
    r"\s*(?:VACUUM|(?:CREATE|DROP) DATABASE|(?:CREATE|DROP|REINDEX)\b[^;]*\bCONCURRENTLY)\b", re.IGNORECASE
)
_SYNC_REP_WAIT: Final = "SyncRepWaitForLSN"
"""PostgreSQL's function that warns of a commit which did not wait for the synchronous standby.

Compare the name of the function, because the text of the warning may be translated.
"""


class Connection(psycopg.Connection[Any]):
    """A psycopg connection with a deadline."""

    first_statements: tuple[str, ...] = ()
    """The statements with which each transaction must begin. The tuple is empty if the session has all settings."""

    _begins = False

    _unreplicated: Sequence[str] = ()
    """The warnings of commits that may not be on the synchronous standby."""

    @classmethod
    def connect(cls, conninfo: str = "", **parameters: Any) -> Self:
        """Open a connection. Raises psycopg.OperationalError."""
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
        """Wait like psycopg, but at most until this thread's deadline. Raises NoAnswer, NotReplicated."""
        left = deadline.seconds_left()
        if left is None or (timeout is not None and timeout < left):
            answer = super().wait(gen, interval, timeout)
        else:
            longest = settings.STATEMENT_TIMEOUT_SECONDS + _SPARE_SECONDS
            try:
                answer = super().wait(gen, interval, min(left, longest))
            except _WaitTimeout:
                # Do not cancel the statement. If it is a commit that waits for its standby, PostgreSQL would end this
                # wait and report the commit as done.
                self.pgconn.finish()
                deadline.note_missed()
                raise NoAnswer(is_silent=left >= settings.STATEMENT_TIMEOUT_SECONDS) from None
        deadline.note_answered()
        if self._unreplicated:
            self.pgconn.finish()
            raise NotReplicated(self._unreplicated[0])
        return answer

    def begin_statements(self) -> tuple[str, ...]:
        """Return the statements that begin a transaction: BEGIN, then the statements that set this connection's
        parameters.
        """
        return (self._get_tx_start_command().decode(), *self.first_statements)

    @contextmanager
    def beginning_by_itself(self) -> Iterator[None]:
        """Stop psycopg from sending BEGIN before the statement in the block. The statement begins its transaction
        itself.
        """
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
        """Return the settings that each session or transaction gets. They come from the database URL and NexMDM."""
        return self._settings

    def _begin(self, options: str) -> None:
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
        # The session has the mark only if the server or pooler has accepted our options.
        with deadline.within(_BEGIN_SECONDS):
            marked = self.execute("SELECT current_setting(%s, true)", [session.MARK]).fetchone()
            if marked is None or marked[0] != self._settings[session.MARK]:
                self._set_per_transaction()
            if not self.autocommit:
                self.commit()

    def _set_per_transaction(self) -> None:
        # Set the date style for the session too: psycopg reads results after the transaction, with the date style that
        # the server reports then. (Poolers keep the date style and the encoding for each client.)
        if not (self.info.parameter_status("DateStyle") or "").startswith("ISO"):
            self.execute("SET datestyle = ISO")
        self.first_statements = tuple(session.statements(self._settings))


class Cursor(base.CursorMixin, psycopg.ClientCursor[Any]):
    """Django's cursor. It sends the statements that begin a transaction in the message of the first statement."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        """Execute the query. The results of statements that were sent before the query are skipped."""
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
        connection = self.connection
        if not isinstance(connection, Connection):
            return ()
        return connection.first_statements if connection.autocommit else connection.begin_statements()
