"""The command `manage.py migrate`: Django's command, with protection against long locks.

- Only one process migrates at a time. Other processes wait for it.
- A migration may need an exclusive lock. It then waits for older transactions, and all later transactions wait for the
  migration. So the command stops waiting after LOCK_SECONDS, and tries again after a pause.
- Earlier versions stored devices without the comparison keys `alias_key` and `hardware_key`. After the migrations, the
  command fills in these keys.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from django.contrib.postgres.operations import NotInTransactionMixin
from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import NotSupportedError, OperationalError, ProgrammingError
from django.db.migrations import Migration
from django.db.migrations.exceptions import MigrationSchemaMissing
from psycopg import IsolationLevel
from psycopg.errors import InsufficientPrivilege, LockNotAvailable

from devices.identity import comparison_keys
from nexmdm.common import database
from nexmdm.common.postgresql import direct
from nexmdm.common.postgresql.connection import Connection
from nexmdm.common.postgresql.errors import safe_message
from nexmdm.config import checks

LOCK_SECONDS: Final = 3
TURN_SECONDS: Final = 600
"""How long this command waits for another process that migrates, in seconds."""

FILL_BATCH: Final = 2000
TRIES: Final = 20
PAUSE_SECONDS: Final = 2
_LOOK_SECONDS: Final = 0.2
LOCK: Final = 0x4E58_4D44
"""The number of the advisory lock of the process that migrates. Its bytes are the text "NXMD"."""

_HOLDER: Final = """
    SELECT concat_ws(
        ', ', 'process ' || lock.pid, nullif(application_name, ''), 'from ' || host(client_addr), 'since ' || xact_start
    )
    FROM pg_locks lock LEFT JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32) + objid::bigint = %(lock)s
"""


class Command(migrate.Command):
    """Apply the migrations."""

    def handle(self, *args: Any, **options: Any) -> None:
        """Apply the migrations. If DIRECT_DATABASE_URL is set, use this address.

        Raises CommandError if the database cannot be reached or refuses the migration.
        """
        if reason := direct.why_unreachable():
            raise CommandError(reason)
        with _as_command_errors(), direct.directly(options["database"]), self._alone():
            _refuse_lost_search_path()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
                database.set_for_session(name, "0")
            try:
                for tries_left in reversed(range(TRIES)):
                    if self._migrated(tries_left, *args, **options):
                        break
                if not options["plan"]:
                    self._fill_keys(options["database"], options["verbosity"])
            finally:
                database.reset_session()

    def get_check_kwargs(self, options: Any) -> Any:
        """Return arguments that leave out the checks of stored devices.

        These checks read all devices, and each start of `serve` runs this command.
        """
        return {**super().get_check_kwargs(options), "databases": None}

    def migration_progress_callback(self, action: str, migration: Migration | None = None, fake: bool = False) -> None:
        """Print the progress. Before each migration, set how long the migration may wait for a lock.

        CREATE INDEX CONCURRENTLY may wait without limit, because no other transaction waits for this statement.
        """
        if migration is not None and action in ("apply_start", "unapply_start"):
            patient = any(isinstance(operation, NotInTransactionMixin) for operation in migration.operations)
            database.set_for_session("lock_timeout", "0" if patient else f"{LOCK_SECONDS}s")
        super().migration_progress_callback(action, migration, fake)

    def _migrated(self, tries_left: int, *args: Any, **options: Any) -> bool:
        """Apply the migrations that are not applied yet. Return False if a table was locked for too long.

        Raises CommandError if a table was locked for too long and no try is left.
        """
        try:
            super().handle(*args, **options)
        except OperationalError as error:
            if not isinstance(error.__cause__, LockNotAvailable):
                raise
            if not tries_left:
                message = (
                    "The migration stopped, because a transaction of another client uses a table. No migration is "
                    "half done. End this transaction"
                )
                raise CommandError(f"{message} (see pg_stat_activity), and run migrate again.") from error
            self.stdout.write(f"\n  A table is in use; trying again in {PAUSE_SECONDS} s …")
            time.sleep(PAUSE_SECONDS)
            return False
        return True

    def _fill_keys(self, using: str, verbosity: int) -> None:
        """Fill in missing comparison keys of devices.

        Keys may be missing although this run applied no migration. An earlier run may have been interrupted. Web
        workers of the previous version may also still store devices.
        """
        if not comparison_keys.exist(using):
            return
        filled = 0
        while batch := comparison_keys.fill(FILL_BATCH, using):
            filled += batch
        if filled and verbosity:
            self.stdout.write(f"Filled in the columns alias_key and hardware_key of {filled} devices.")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Ensure that no other process migrates while this context is open.

        A transaction on a separate connection takes an advisory lock. The lock ends with the connection. The
        transaction must have no snapshot, because CREATE INDEX CONCURRENTLY waits for all older snapshots. A statement
        has a snapshot while it waits. So no statement of the transaction may wait, not even for the advisory lock.
        """
        give_up_at = time.monotonic() + TURN_SECONDS
        with Connection.connect(**direct.parameters()) as connection:
            connection.isolation_level = IsolationLevel.READ_COMMITTED
            connection.execute("SELECT set_config('idle_in_transaction_session_timeout', '0', true)")
            while not _takes(connection):
                if time.monotonic() > give_up_at:
                    raise CommandError(f"Another migration has run for a long time: {_holder(connection)}.")
                time.sleep(_LOOK_SECONDS)
            yield


def _takes(connection: Connection) -> bool:
    # The statement has no parameters. With parameters, it would leave a snapshot until the next statement.
    found = connection.execute(f"SELECT pg_try_advisory_xact_lock({LOCK})").fetchone()
    return found is not None and bool(found[0])


def _holder(connection: Connection) -> str:
    found = connection.execute(_HOLDER, {"lock": LOCK}).fetchone()
    return str(found[0]) if found and found[0] else "a process that cannot be seen (see pg_locks, advisory)"


def _refuse_lost_search_path() -> None:
    """Raise CommandError if a connection pooler could lose the search_path of DATABASE_URL.

    CREATE INDEX CONCURRENTLY runs outside a transaction. There, a pooler may use a connection without the search_path.
    """
    if database.is_pooled() and "search_path" in database.settings_of_session():
        message = "DATABASE_URL names a search_path, which a pooler does not keep for all statements of a migration."
        raise CommandError(f"{message} Set DIRECT_DATABASE_URL to PostgreSQL's own address.")


@contextmanager
def _as_command_errors() -> Iterator[None]:
    """Raise CommandError for an error that the operator must repair in the database.

    Other errors are raised unchanged.
    """
    try:
        yield
    except NotSupportedError as error:
        raise CommandError(checks.too_old(error).msg) from error
    except (ProgrammingError, MigrationSchemaMissing) as error:
        refused = error.__context__ if isinstance(error, MigrationSchemaMissing) else error
        if refused is None or not isinstance(refused.__cause__, InsufficientPrivilege):
            raise
        hint = (
            "Migrate as the owner of the tables. Or run `GRANT USAGE, CREATE ON SCHEMA public TO …` for the user of "
            "DATABASE_URL."
        )
        raise CommandError(f"The database refuses the migration: {safe_message(refused)}. {hint}") from error
    except (OperationalError, psycopg.Error) as error:
        if (check := checks.statement_pooling(error)) is None:
            raise
        raise CommandError(f"{check.msg} {check.hint}") from error
