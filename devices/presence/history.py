"""The presence history of a device, computed from its spans and the service gaps."""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final, NamedTuple
from uuid import UUID

from devices.enrollment import UnknownDevice
from devices.presence import service_time
from devices.presence.schemas import PresenceHistory, PresenceItem, State
from nexmdm.common import database

MOST: Final = 10_000
"""The largest number of spans in one answer. Older spans are left out. A phone that goes offline every five minutes
needs more than a month for this number of spans.
"""

_DIGITS: Final = 6


class _Interval(NamedTuple):
    """A time from `begins` to `ends`. `ends` is None if the time has not ended."""

    begins: datetime
    ends: datetime | None


_PRESENCE: Final = """
    SELECT now(), last_seen_at, online_from, {online_until}, last_seen_at > {online_after},
        (SELECT min(online_from) FROM devices_presencespan span WHERE span.device_id = presence.device_id)
    FROM devices_presence presence WHERE device_id = %(device_id)s
"""
_SPANS: Final = """
    SELECT online_from, offline_at FROM devices_presencespan
    WHERE device_id = %(device_id)s AND offline_at > %(since)s ORDER BY offline_at DESC LIMIT %(most)s
"""


def read(device_id: UUID, since: datetime | None) -> PresenceHistory:
    """Return the presence history of a device since `since`, or since its first heartbeat. Raises UnknownDevice."""
    statement = _PRESENCE.format(
        online_until=service_time.online_until("last_seen_at"), online_after=service_time.online_after()
    )
    found = database.rows(statement, {"device_id": device_id})
    if not found:
        raise UnknownDevice
    now, seen_at, online_from, online_until, is_online, first = found[0]
    if seen_at is None or (since is not None and since > now):
        return PresenceHistory(items=[], uptime_ratio=None)
    begins = min(filter(None, (first, online_from, seen_at)))
    spans = _spans(device_id, since or begins)
    if len(spans) == MOST:
        begins = spans[0].begins
    # The last span may be missing: if the device was online before spans existed, or if retention has deleted it.
    if online_from is not None or not spans or spans[-1].ends < seen_at:
        spans.append(_Interval(online_from or seen_at, None if is_online else online_until))
    return _history(spans, service_time.gaps(since or begins), max(begins, since or begins), now)


def _spans(device_id: UUID, since: datetime) -> list[_Interval]:
    rows = database.rows(_SPANS, {"device_id": device_id, "since": since, "most": MOST})
    return [_Interval(*row) for row in reversed(rows)]


def _history(
    online: Sequence[_Interval], away: Sequence[tuple[datetime, datetime | None]], begins: datetime, now: datetime
) -> PresenceHistory:
    gaps = [_Interval(*gap) for gap in away]
    edges = {edge for interval in (*online, *gaps) for edge in interval if edge is not None}
    items: list[PresenceItem] = []
    for begin, end in pairwise([*sorted({begins, *(edge for edge in edges if begins < edge <= now)}), None]):
        assert begin is not None
        state: State = "unknown" if _contains(gaps, begin) else "online" if _contains(online, begin) else "offline"
        if items and items[-1].state == state:
            items[-1].to = end
        else:
            items.append(PresenceItem(state=state, from_=begin, to=end))
    return PresenceHistory(items=items, uptime_ratio=_ratio(items, now))


def _contains(intervals: Sequence[_Interval], moment: datetime) -> bool:
    # The intervals are in order, and do not overlap.
    place = bisect_right(intervals, moment, key=lambda interval: interval.begins)
    ends = intervals[place - 1].ends if place else moment
    return ends is None or moment < ends


def _ratio(items: Sequence[PresenceItem], now: datetime) -> float | None:
    lengths = {"online": timedelta(0), "offline": timedelta(0), "unknown": timedelta(0)}
    for item in items:
        lengths[item.state] += (item.to or now) - item.from_
    known = lengths["online"] + lengths["offline"]
    return round(lengths["online"] / known, _DIGITS) if known else None
