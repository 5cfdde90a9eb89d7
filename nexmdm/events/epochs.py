"""Epochs of the event feed. Events are ordered by transaction ids, which have a meaning only in one database.

A dump may be restored into another database. The transaction ids of the restored events may then be higher than all
transaction ids of this database. So a new epoch begins after a restore. In the new epoch, the restored events come
first, in their old order. Cursors of the old epoch have expired.
"""

import secrets
from typing import Final

from django.db import transaction

from nexmdm.common import database
from nexmdm.common.domain_error import DomainError

DATABASE: Final = """
    (SELECT system_identifier || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
    FROM pg_control_system())"""
"""SQL for a text that identifies this database and its PostgreSQL cluster."""

FIRST_XID: Final = "3"
"""The lowest transaction id that PostgreSQL gives to a transaction (`FirstNormalTransactionId`)."""

BATCH: Final = 50_000
"""The largest number of rows that one transaction moves into a new epoch. This takes about a second."""

_MOVE: Final = """
    UPDATE nexmdm_event event SET xid = %(first)s::text::xid8
    FROM (SELECT xid, id FROM nexmdm_event WHERE xid > %(first)s::text::xid8 ORDER BY xid, id LIMIT %(limit)s) old
    WHERE event.xid = old.xid AND event.id = old.id
"""
_BEGIN: Final = f"""
    INSERT INTO nexmdm_eventmark AS mark (id, epoch, database, pruned_xid, pruned_id)
    VALUES (1, %(epoch)s, {DATABASE}, '0', 0)
    ON CONFLICT (id) DO UPDATE
    SET epoch = excluded.epoch, database = excluded.database, pruned_xid = '0', pruned_id = 0
"""  # noqa: S608  (constants of this module)
_IS_CURRENT: Final = f"SELECT count(*) FROM nexmdm_eventmark WHERE database = {DATABASE}"  # noqa: S608


class EventsNotReady(DomainError):
    detail = "The events of a restored database are not ready yet. Try again in a minute."


def ensure() -> None:
    """Ensure that this database has an epoch. If its events come from another database, begin a new epoch.

    Each call moves up to BATCH restored events into the new epoch. Raises EventsNotReady if there may be more of them.
    """
    if not _is_current() and move() == BATCH:
        raise EventsNotReady


@transaction.atomic
def move() -> int:
    """Move up to BATCH restored events into a new epoch. When no restored events are left, begin the epoch. Return the
    number of moved events. The number is 0 if the epoch has begun already.
    """
    database.advisory_lock("epoch of events", "")
    if _is_current():
        return 0
    moved = database.execute(_MOVE, {"first": FIRST_XID, "limit": BATCH})
    if moved < BATCH:
        database.execute(_BEGIN, {"epoch": secrets.token_hex(8)})
    return moved


def _is_current() -> bool:
    return bool(database.row(_IS_CURRENT) == (1,))
