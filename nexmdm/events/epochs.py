"""Epochs of the event feed: the transaction ids of its events belong to one database of one cluster.

If a dump is restored into another database, the transaction ids of the restored events mean nothing there: some may be
higher than any transaction id of that database. Then a new epoch begins. In it, the restored events come first, in the
order of their rows. Cursors of the old epoch have expired.
"""

import secrets
from typing import Final

from nexmdm.common import database

DATABASE: Final = """
    (SELECT system_identifier || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
    FROM pg_control_system())"""
"""SQL: the text that names this database in this cluster."""

FIRST_XID: Final = "3"
"""The lowest transaction id that PostgreSQL gives to a transaction (`FirstNormalTransactionId`)."""

_ADOPT: Final = "UPDATE nexmdm_event SET xid = %(first)s::text::xid8 WHERE xid <> %(first)s::text::xid8"
_BEGIN: Final = f"""
    INSERT INTO nexmdm_eventmark AS mark (id, epoch, database, pruned_xid, pruned_id)
    VALUES (1, %(epoch)s, {DATABASE}, '0', 0)
    ON CONFLICT (id) DO UPDATE
    SET epoch = excluded.epoch, database = excluded.database, pruned_xid = '0', pruned_id = 0
"""  # noqa: S608  (constants of this module)
_IS_CURRENT: Final = f"SELECT count(*) FROM nexmdm_eventmark WHERE database = {DATABASE}"  # noqa: S608


def begin() -> None:
    """Begin a new epoch, unless another transaction has just done so. Must run in a transaction."""
    database.advisory_lock("epoch of events", "")
    if database.row(_IS_CURRENT) == (0,):
        database.execute(_ADOPT, {"first": FIRST_XID})
        database.execute(_BEGIN, {"epoch": secrets.token_hex(8)})
