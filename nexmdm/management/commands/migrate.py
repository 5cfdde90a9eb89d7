"""manage.py migrate: Django's own, without time limits on its statements, and one at a time on a database."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

_LOCK: Final = 0x4E58_4D44


class Command(migrate.Command):
    """Bring the database's tables up to date."""

    def handle(self, *args: Any, **options: Any) -> None:
        """Migrate; a database out of reach is one line, with the reason that the pool would hide."""
        connection = connections[options["database"]]
        try:
            psycopg.connect(**connection.get_connection_params()).close()
        except psycopg.OperationalError as error:
            raise CommandError(f"The database cannot be reached: {error}") from error
        with _alone_and_unhurried(connection):
            super().handle(*args, **options)


@contextmanager
def _alone_and_unhurried(connection: BaseDatabaseWrapper) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute("SET lock_timeout = 0")
        cursor.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])
            cursor.execute("RESET statement_timeout")
            cursor.execute("RESET lock_timeout")
