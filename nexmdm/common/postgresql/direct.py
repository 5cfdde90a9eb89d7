"""Connections to PostgreSQL without a pooler. DIRECT_DATABASE_URL is PostgreSQL's URL if DATABASE_URL is a pooler's
URL.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from django.conf import settings
from django.db import connections

from nexmdm.common.postgresql.connection import Connection

_LIBPQ: Final = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
_DJANGOS_OPTIONS: Final = ("pool", "cursor_factory")


def parameters() -> dict[str, Any]:
    """Return psycopg's arguments for a connection outside the pool, for example for LISTEN."""
    return _parameters(settings.DIRECT_DATABASE or settings.DATABASES["default"])


def why_unreachable() -> str | None:
    """Return why one of the database URLs cannot be reached, in one line; None if all can be reached.

    The URLs are DATABASE_URL and DIRECT_DATABASE_URL. Use this function because the errors of the pool do not contain
    the reason.
    """
    for name, database in (("DIRECT_DATABASE_URL", settings.DIRECT_DATABASE), ("", settings.DATABASES["default"])):
        if database is None:
            continue
        try:
            Connection.connect(**_parameters(database), autocommit=True).close()
        except psycopg.OperationalError as error:
            by = f" by {name}" if name else ""
            return f"The database cannot be reached{by}: {' '.join(str(error).split())}"
    return None


@contextmanager
def directly(using: str) -> Iterator[None]:
    """Within the block, let Django use PostgreSQL without a pooler. Without DIRECT_DATABASE_URL, nothing changes."""
    connection: Any = connections[using]
    pooled = connection.settings_dict
    if settings.DIRECT_DATABASE is None:
        yield
        return
    _close(connection)
    connection.settings_dict = pooled | settings.DIRECT_DATABASE
    try:
        yield
    finally:
        _close(connection)
        connection.settings_dict = pooled


def _close(connection: Any) -> None:
    connection.close()
    connection.close_pool()


def _parameters(database: Mapping[str, Any]) -> dict[str, Any]:
    given = {libpq: database[name] for name, libpq in _LIBPQ.items() if database.get(name)}
    return given | {name: value for name, value in database["OPTIONS"].items() if name not in _DJANGOS_OPTIONS}
