"""Epochs of the event feed: the transaction ids of its events belong to one database of one cluster.

If a dump is restored into another database, the transaction ids of the restored events mean nothing there: some may be
higher than any transaction id of that database. Then a new epoch begins. In it, the restored events come first, in the
order of their rows. Cursors of the old epoch have expired.
"""

import secrets
from typing import Final

from django.db import transaction

from nexmdm.common import database
from nexmdm.common.domain_error import DomainError

DATABASE: Final = """
    (SELECT system_identifier || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
    FROM pg_control_system())"""
"""SQL: the text that names this database in this cluster."""

FIRST_XID: Final = "3"
"""The lowest transaction id that PostgreSQL gives to a transaction (`FirstNormalTransactionId`)."""

BATCH: Final = 50_000
"""The most rows that one transaction moves into the new epoch: about a second of work."""

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
    """Ensure that the present epoch has begun. Raises EventsNotReady if many restored events must be moved first."""
    if not _is_current() and move() == BATCH:
        raise EventsNotReady


@transaction.atomic
def move() -> int:
    """Move up to BATCH restored events into a new epoch, and begin it with the last of them. Return their number."""
    database.advisory_lock("epoch of events", "")
    if _is_current():
        return 0
    moved = database.execute(_MOVE, {"first": FIRST_XID, "limit": BATCH})
    if moved < BATCH:
        database.execute(_BEGIN, {"epoch": secrets.token_hex(8)})
    return moved


def _is_current() -> bool:
    return bool(database.row(_IS_CURRENT) == (1,))
