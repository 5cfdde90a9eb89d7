"""The database backend that the setting DATABASES names. Django requires the module name `base`."""

from typing import Any, Final

from django.conf import settings
from django_prometheus.db import connection_errors_total, connections_total
from django_prometheus.db.backends.postgresql import base
from psycopg import IsolationLevel
from psycopg_pool import PoolTimeout

from nexmdm.common.postgresql import deadline, outage
from nexmdm.common.postgresql.connection import Connection
from nexmdm.common.postgresql.errors import NO_ANSWER, NoConnection, Unreachable

_NO_CONNECTION: Final = (
    "No database connection became free in time. All connections are in use, or PostgreSQL does not answer."
)
_BRIEF_SECONDS: Final = 2 * settings.POOL_RECONNECT_SECONDS
"""The longest wait for a connection after a failed attempt to connect. The pool tries again within this time."""

_HELD_OFF: Final = "The database could not be reached a moment ago."
_TOO_LATE: Final = "The time limit of this work ended before a database connection became free."


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]  # Its package is not typed.
    """The backend of django-prometheus, with a limit for each wait. Its errors name the reason why there is no
    connection.
    """

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Take a connection from the pool, or create a connection if there is no pool.

        Raises Unreachable with the reason, or NoConnection if no connection is free in time.
        """
        self.isolation_level = IsolationLevel.READ_COMMITTED
        if self.pool is None:
            return Connection.connect(**conn_params)
        connections_total.labels(self.alias, self.vendor).inc()
        try:
            connection = self._take_from_pool()
        except NoConnection:
            connection_errors_total.labels(self.alias, self.vendor).inc()
            raise
        outage.note_connection()
        return connection

    def _take_from_pool(self) -> Any:
        if outage.is_held_off():
            raise NoConnection(_HELD_OFF)
        left = deadline.seconds_left()
        if left == 0:
            raise NoConnection(_TOO_LATE)
        seconds = _BRIEF_SECONDS if outage.why_no_connection() else settings.POOL_TIMEOUT_SECONDS
        seconds = seconds if left is None else min(seconds, left)
        missed = deadline.times_missed()
        try:
            self.pool.open()
            with deadline.within(seconds):
                return self.pool.getconn(seconds)
        except PoolTimeout as error:
            if deadline.times_missed() > missed:
                # A connection of the pool did not answer. Probably none of its connections works.
                self.pool.drain()
                reason: str | None = NO_ANSWER
            else:
                reason = outage.why_no_connection()
            if reason is None:
                raise NoConnection(_NO_CONNECTION) from error
            outage.hold_off()
            raise Unreachable(reason) from error

    # Set nothing here: the settings of each session or transaction contain the time zone.
    def _configure_timezone(self, connection: Any) -> bool:  # noqa: ARG002
        return False

    def create_cursor(self, name: str | None = None) -> Any:
        """Create a cursor. Through a pooler, a server-side cursor outside a transaction becomes an ordinary cursor."""
        if name and self.connection.autocommit and self.connection.first_statements:
            name = None
        return super().create_cursor(name)
