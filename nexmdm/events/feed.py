"""The event feed: pages of events after a cursor, in an order that never changes.

One row of the table can have several devices, and stores one event for each device. Events are ordered by `xid`, then
by the row's number, then by device. `xid` is a transaction id. It is the id of the transaction that wrote the event, or
a later id if this transaction waited for a lock (migration 0012). So if event A was committed before event B was
written, A comes before B in the feed.

Transactions may commit in another order than they begin. So a reader sees only rows below the horizon. The horizon is
the lowest `xid` of all open write transactions of the cluster. After a reader has passed a place, no event can be
committed before this place.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson
from django.db import transaction

from nexmdm.common import database
from nexmdm.events import epochs
from nexmdm.events.cursor import Cursor, CursorExpired

_UNIX: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

SCANNED: Final = 10_000
"""The largest number of rows that are read for one page with a filter."""

SCANNED_FOR_TAGS: Final = 1000
"""The largest number of rows that are read for one page with tags in the filter.

This number is lower, because each device of a row is looked up, and a row has up to 1,000 devices.
"""


class Happening(NamedTuple):
    """One event of the feed.

    - `next_cursor` is the place after the event.
    - `id` is the same at each read of the event. A restored database may give a new row the number of an earlier row.
      So `id` also contains the event's time, which tells the two events apart.
    """

    next_cursor: Cursor
    id: str
    type: str
    at: datetime
    device_id: UUID | None
    request_id: UUID | None
    data: dict[str, Any]


class Wanted(NamedTuple):
    """A filter of events. `types` has types, and beginnings of types followed by `*`. Empty `types` means all types."""

    types: Sequence[str] = ()
    device_id: UUID | None = None
    tags: Sequence[str] = ()
    """If tags are given, only events about devices that now have one of these tags are wanted."""


class Page(NamedTuple):
    """Events in order, and the place after them. `caught_up` is true if no readable event comes after this place."""

    events: list[Happening]
    next_cursor: Cursor
    caught_up: bool


HORIZON: Final = "pg_snapshot_xmin(pg_current_snapshot())"
"""SQL for the horizon: no event with a lower transaction id can still be committed."""

_MARK: Final = f"""
    SELECT epoch, pruned_xid::text, pruned_id, {HORIZON}::text FROM nexmdm_eventmark WHERE database = {epochs.DATABASE}
"""  # noqa: S608  (constants of our modules)

# `reached` is the last row that was read: the next page begins after it, even if no event of this row was wanted.
_READ: Final = f"""
    WITH scanned AS MATERIALIZED (
        SELECT * FROM nexmdm_event
        WHERE (xid, id) >= (%(xid)s::text::xid8, %(id)s) AND xid < {HORIZON}
        ORDER BY xid, id LIMIT {{scanned}}
    ), found AS (
        SELECT scanned.xid, scanned.id, one.place - 1 AS place, type, at, one.device_id, request_id, data,
            COALESCE(one.place < cardinality(device_ids), false) AS has_next
        FROM scanned
        CROSS JOIN LATERAL unnest(COALESCE(device_ids, ARRAY[NULL]::uuid[])) WITH ORDINALITY AS one (device_id, place)
        WHERE (scanned.xid <> %(xid)s::text::xid8 OR scanned.id <> %(id)s OR one.place > %(place)s){{wanted}}
        ORDER BY scanned.xid, scanned.id, one.place LIMIT %(limit)s
    )
    SELECT xid::text, id, place, has_next, type, at, device_id, request_id, data::text FROM found
    UNION ALL
    (
        SELECT xid::text, id, NULL, NULL, NULL, NULL, NULL, NULL, NULL
        FROM scanned ORDER BY scanned.xid DESC, id DESC LIMIT 1
    )
"""  # noqa: S608  (constants of this module; values are parameters)
_TYPES: Final = " AND (type = ANY(%(types)s) OR type LIKE ANY(%(prefixes)s))"
_DEVICE: Final = " AND device_ids @> ARRAY[%(device_id)s] AND one.device_id = %(device_id)s"
_TAGS: Final = """ AND EXISTS (
    SELECT FROM devices_device device WHERE device.id = one.device_id AND device.tags && %(tags)s::varchar[]
)"""
_AFTERWARDS: Final = """
    SELECT
        (SELECT (pruned_xid, pruned_id) < (%(from_xid)s::text::xid8, %(from_id)s) FROM nexmdm_eventmark),
        EXISTS (SELECT FROM nexmdm_event WHERE (xid, id) >= (%(xid)s::text::xid8, %(id)s) ORDER BY xid, id LIMIT 1)
"""


@transaction.atomic
def read(after: Cursor | None, wanted: Wanted, limit: int) -> Page:
    """Return up to `limit` wanted events after a place. If `after` is None, begin with the oldest stored event.

    A page may have fewer events than `limit`, or no event, even if more wanted events follow. The `next_cursor` of the
    page is the place after all rows that were read. Raises CursorExpired, EventsNotReady.
    """
    start = place_of(after)
    conditions = (_TYPES if wanted.types else "", _DEVICE if wanted.device_id else "", _TAGS if wanted.tags else "")
    statement = _READ.format(scanned=_scanned(wanted, limit), wanted="".join(conditions))
    *found, reached = database.rows(statement, _parameters(start, wanted, limit)) or [()]
    events = [_happening(start.epoch, row) for row in found]
    next_cursor = start
    if len(events) == limit:
        next_cursor = events[-1].next_cursor
    elif reached:
        next_cursor = Cursor(start.epoch, int(reached[0]), reached[1] + 1, 0)
    places = {"from_xid": str(start.xid), "from_id": start.id, "xid": str(next_cursor.xid), "id": next_cursor.id}
    are_kept, is_more = database.row(_AFTERWARDS, places)
    if not are_kept:
        raise CursorExpired
    return Page(events, next_cursor, caught_up=not is_more)


def place_of(after: Cursor | None) -> Cursor:
    """Return `after` if events after it can be read. If `after` is None, return the place before the oldest event.

    Raises CursorExpired if events after the cursor were deleted, or if the cursor belongs to an earlier epoch. Raises
    EventsNotReady.
    """
    epoch, pruned, horizon = _mark()
    if after is None:
        return Cursor(epoch, pruned[0], pruned[1] + 1, 0)
    if after.epoch != epoch or (after.xid, after.id) <= pruned or after.xid > horizon:
        raise CursorExpired
    return after


def newest_place() -> Cursor:
    """Return the place after all events that a reader may see now. Raises EventsNotReady."""
    # Do not use the horizon: after a crash, PostgreSQL may use the latest transaction ids again.
    epoch, pruned, _ = _mark()
    xid, row_id = max(pruned, newest_readable())
    return Cursor(epoch, xid, row_id + 1, 0)


def newest_readable() -> tuple[int, int]:
    """Return the transaction id and row number of the newest event that a reader may see. Without events, return (0,
    0).
    """
    newest = database.rows(
        # Keep `event.` in front of xid: plain `xid` is the first column here, a text, and would put 999 after 1000.
        f"SELECT xid::text, id FROM nexmdm_event event WHERE xid < {HORIZON} ORDER BY event.xid DESC, id DESC LIMIT 1"  # noqa: S608
    )
    return (int(newest[0][0]), newest[0][1]) if newest else (0, 0)


def _mark() -> tuple[str, tuple[int, int], int]:
    found = database.rows(_MARK)
    if not found:
        epochs.ensure()
        found = database.rows(_MARK)
    epoch, pruned_xid, pruned_id, horizon = found[0]
    return epoch, (int(pruned_xid), pruned_id), int(horizon)


def _scanned(wanted: Wanted, limit: int) -> int:
    if wanted.tags:
        return SCANNED_FOR_TAGS
    return SCANNED if wanted.types or wanted.device_id else limit


def _parameters(start: Cursor, wanted: Wanted, limit: int) -> dict[str, Any]:
    whole = [name for name in wanted.types if not name.endswith("*")]
    return {
        "xid": str(start.xid),
        "id": start.id,
        "place": start.place,
        "limit": limit,
        "types": whole,
        "prefixes": list(_prefixes(wanted.types)),
        "device_id": wanted.device_id,
        "tags": list(wanted.tags),
    }


def _prefixes(types: Iterable[str]) -> Iterable[str]:
    for name in types:
        if name.endswith("*"):
            yield name[:-1].replace("_", r"\_") + "%"


def _happening(epoch: str, row: Any) -> Happening:
    xid, row_id, place, has_next, event_type, at, device_id, request_id, data = row
    here = Cursor(epoch, int(xid), row_id, place)
    return Happening(
        here._replace(place=place + 1) if has_next else here._replace(id=row_id + 1, place=0),
        f"{(at - _UNIX) // _MICROSECOND:x}-{row_id}-{place}",
        event_type,
        at,
        device_id,
        request_id,
        orjson.loads(data),
    )


_PRUNE: Final = """
    WITH old AS (
        SELECT xid, id FROM (
            SELECT xid, id,
                bool_and(at < now() - %(kept)s OR at > now() + interval '1 day') OVER (ORDER BY xid, id) AS is_old
            FROM (SELECT xid, id, at FROM nexmdm_event ORDER BY xid, id LIMIT %(limit)s) oldest
        ) judged WHERE is_old
    ), deleted AS (
        DELETE FROM nexmdm_event event USING old WHERE event.xid = old.xid AND event.id = old.id
    ), marked AS (
        UPDATE nexmdm_eventmark mark SET pruned_xid = last.xid, pruned_id = last.id
        FROM (SELECT xid, id FROM old ORDER BY xid DESC, id DESC LIMIT 1) last
        WHERE (mark.pruned_xid, mark.pruned_id) < (last.xid, last.id)
    )
    SELECT count(*) FROM old
"""


def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` rows with events that are older than `kept`, oldest first. Return the number of rows.

    An event whose time is more than a day in the future comes from a wrong clock, and counts as old.
    """
    epochs.ensure()
    (deleted,) = database.row(_PRUNE, {"kept": kept, "limit": limit})
    return int(deleted)
