"""The newest rows of the event feed, in memory. Clients that wait for events look here and not in the database.

One look reads the rows that became readable since the last look. All waiting clients of a process share one look. Each
client compares the rows with its own filter. It reads the database only if a row matches.
"""

from typing import Final, NamedTuple

from nexmdm.common import database
from nexmdm.events import feed
from nexmdm.events.feed import HORIZON, Wanted

READ_ROWS: Final = 1000
"""The largest number of rows that one look reads. If more rows became readable, all rows in memory are dropped."""

KEPT_ROWS: Final = 2000
"""The largest number of rows in memory. A client looks every 0.1 s, so it needs only the newest rows."""

KEPT_CHARACTERS: Final = 4_000_000
"""The largest number of characters of device ids in memory. One id takes 37 characters, together with the comma after
it.
"""

Key = tuple[int, int]
"""A place in the feed: before the row with this transaction id and row number. If there is no such row, the place is
before the next row of the feed.
"""

# The function is stable, so both places of the statement have the same horizon.
_LOOK: Final = f"""
    SELECT {HORIZON}::text, found.xid::text, found.id, found.type, found.devices
    FROM (SELECT) one LEFT JOIN (
        SELECT xid, id, type, COALESCE(device_ids::text, '') AS devices FROM nexmdm_event
        WHERE (xid, id) >= (%(xid)s::text::xid8, %(id)s) AND xid < {HORIZON}
        ORDER BY xid, id LIMIT %(limit)s
    ) found ON true
    ORDER BY found.xid, found.id
"""  # noqa: S608  (constants of this module; values are parameters)


class Row(NamedTuple):
    """One row of the feed. `devices` is the text of its device ids. It is empty if the row is about no device."""

    key: Key
    type: str
    devices: str


class Stretch(NamedTuple):
    """All readable rows from the place `start` to the place `end`, in order."""

    start: Key
    # The end must be the place after the newest row, and not the horizon. After a crash, PostgreSQL may use the latest
    # transaction ids again.
    end: Key
    rows: tuple[Row, ...]


class Filter:
    """Compares rows with a client's filter. It ignores tags, because rows do not contain tags."""

    def __init__(self, wanted: Wanted) -> None:
        self._takes_all_types = not wanted.types
        self._names = frozenset(wanted.types)
        self._beginnings = tuple(name[:-1] for name in wanted.types if name.endswith("*"))
        self._device = str(wanted.device_id) if wanted.device_id else ""

    def matches_any(self, stretch: Stretch, start: Key) -> bool:
        """Return whether a row of `stretch` after the place `start` may contain a wanted event."""
        for row in reversed(stretch.rows):
            if row.key < start:
                return False
            if self._matches(row):
                return True
        return False

    def _matches(self, row: Row) -> bool:
        takes_type = self._takes_all_types or row.type in self._names or row.type.startswith(self._beginnings)
        return takes_type and self._device in row.devices


class Recent:
    """The newest rows of the feed in this process."""

    def __init__(self) -> None:
        self.stretch = Stretch((0, 0), (0, 0), ())

    def look(self) -> Stretch:
        """Read the rows that became readable since the last look. Return all rows in memory."""
        earlier = self.stretch
        xid, row_id = earlier.end
        found = database.rows(_LOOK, {"xid": str(xid), "id": row_id, "limit": READ_ROWS + 1})
        horizon = int(found[0][0])
        new = [Row((int(of), number), *rest) for _, of, number, *rest in found if of is not None]
        # If the database was restored since the last look, the transaction ids may be lower.
        if len(new) > READ_ROWS or horizon < xid:
            end = _after(feed.newest_readable())
            self.stretch = Stretch(end, end, ())
        elif new:
            end = _after(new[-1].key)
            self.stretch = _trimmed(Stretch(earlier.start, end, (*earlier.rows, *new)))
        return self.stretch


def _after(key: Key) -> Key:
    return key[0], key[1] + 1


def _trimmed(stretch: Stretch) -> Stretch:
    rows, characters = stretch.rows, sum(len(row.devices) for row in stretch.rows)
    dropped = 0
    while len(rows) - dropped > KEPT_ROWS or characters > KEPT_CHARACTERS:
        characters -= len(rows[dropped].devices)
        dropped += 1
    if not dropped:
        return stretch
    return Stretch(_after(rows[dropped - 1].key), stretch.end, rows[dropped:])
