"""Django's database backend (named in DATABASES as ENGINE, where Django looks for this module)."""

from typing import Any, Final

from django.conf import settings
from django_prometheus.db.backends.postgresql import base
from psycopg import IsolationLevel
from psycopg_pool import PoolTimeout

from nexmdm.common.postgresql import deadline, outage
from nexmdm.common.postgresql.connection import Connection
from nexmdm.common.postgresql.errors import NO_ANSWER, NoAnswer, NoConnection, Unreachable

_NO_CONNECTION: Final = "No connection came free in time: all of the pool are in use, or PostgreSQL does not answer."
_BRIEF_SECONDS: Final = 2 * settings.POOL_RECONNECT_SECONDS
"""How long a connection is waited for after one could not be made: long enough for the pool to try again."""

_LEAST_SECONDS: Final = 0.01


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]  # Its package is not typed.
    """The backend of django-prometheus; it says why there is no connection, and none is waited for too long."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Take a connection from the pool, or make one. Raises Unreachable with the reason, NoConnection, NoAnswer."""
        if self.pool is None:
            self.isolation_level = IsolationLevel.READ_COMMITTED
            return Connection.connect(**conn_params)
        left = deadline.seconds_left()
        if left == 0:
            raise NoAnswer(NO_ANSWER)
        seconds = _BRIEF_SECONDS if outage.why_no_connection() else settings.POOL_TIMEOUT_SECONDS
        # The pool's own, which Django does not let us name for each call; a neighbour's does no harm.
        self.pool.timeout = seconds if left is None else max(_LEAST_SECONDS, min(seconds, left))
        try:
            with deadline.within(seconds):
                return super().get_new_connection(conn_params)
        except PoolTimeout as error:
            reason = outage.why_no_connection()
            if reason is None:
                raise NoConnection(_NO_CONNECTION) from error
            if NO_ANSWER in reason:
                # Those that are left in the pool are likely to be as dead.
                self.pool.drain()
            raise Unreachable(reason) from error
