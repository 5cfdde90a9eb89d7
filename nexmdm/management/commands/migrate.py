"""manage.py migrate: Django's own, one at a time on a database, and never at the cost of those who use it.

Afterwards it fills in the comparison keys of the devices that earlier versions wrote, batch by batch.

A migration that wants a table to itself queues behind whoever uses it, and everybody else queues behind the migration:
so it gives up soon, and tries again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from django.contrib.postgres.operations import NotInTransactionMixin
from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.migrations import Migration
from psycopg.errors import LockNotAvailable

from devices.identity import comparison_keys
from nexmdm.common import database

LOCK_SECONDS: Final = 3
FILL_BATCH: Final = 2000
TRIES: Final = 20
PAUSE_SECONDS: Final = 2
_TURN_SECONDS: Final = 0.2
_LOCK: Final = 0x4E58_4D44


class Command(migrate.Command):
    """Bring the database's tables up to date."""

    def handle(self, *args: Any, **options: Any) -> None:
        """Migrate; a database out of reach is one line, with the reason that the pool would hide."""
        self._connection = connections[options["database"]]
        if reason := database.why_unreachable(self._connection.get_connection_params()):
            raise CommandError(reason)
        with _alone(self._connection):
            for tries_left in reversed(range(TRIES)):
                if self._migrated(tries_left, *args, **options):
                    break
            if not options["plan"]:
                self._fill_keys(options["database"], options["verbosity"])

    def get_check_kwargs(self, options: Any) -> Any:
        """Leave the rows unchecked: `manage.py check` reads all devices, and each `serve` migrates."""
        return {**super().get_check_kwargs(options), "databases": None}

    def migration_progress_callback(self, action: str, migration: Migration | None = None, fake: bool = False) -> None:
        """Say how far it is; before each migration set how long it may wait for a lock.

        CREATE INDEX CONCURRENTLY and its like wait as long as it takes: nobody queues behind them.
        """
        if migration is not None and action in ("apply_start", "unapply_start"):
            patient = any(isinstance(operation, NotInTransactionMixin) for operation in migration.operations)
            seconds = 0 if patient else LOCK_SECONDS
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT set_config('lock_timeout', %s, false)", [f"{seconds}s"])
        super().migration_progress_callback(action, migration, fake)

    def _migrated(self, tries_left: int, *args: Any, **options: Any) -> bool:
        """Do it, from wherever an earlier try has come to; False where a table was busy for too long."""
        try:
            super().handle(*args, **options)
        except OperationalError as error:
            if not isinstance(error.__cause__, LockNotAvailable):
                raise
            if not tries_left:
                message = "A table was in use all the time. Nothing is half done: end the long transaction that uses it"
                raise CommandError(f"{message} (see pg_stat_activity), and migrate again.") from error
            self.stdout.write(f"\n  A table is in use; trying again in {PAUSE_SECONDS} s …")
            time.sleep(PAUSE_SECONDS)
            return False
        return True

    def _fill_keys(self, using: str, verbosity: int) -> None:
        """Fill in what is missing; an earlier run may have been interrupted, or the version before still running."""
        if not comparison_keys.exist(using):
            return
        filled = 0
        while batch := comparison_keys.fill(FILL_BATCH, using):
            filled += batch
        if filled and verbosity:
            self.stdout.write(f"Filled in the comparison keys of {filled} devices.")


@contextmanager
def _alone(connection: BaseDatabaseWrapper) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute("SET lock_timeout = 0")
        # Not pg_advisory_lock: who waits inside a statement has a snapshot, and CREATE INDEX CONCURRENTLY waits for it.
        while not _takes(cursor, _LOCK):
            time.sleep(_TURN_SECONDS)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])
            cursor.execute("RESET statement_timeout")
            cursor.execute("RESET lock_timeout")


def _takes(cursor: CursorWrapper, lock: int) -> bool:
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [lock])
    return bool(cursor.fetchone()[0])
