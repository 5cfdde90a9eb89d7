"""The presence of a device in the last week: as a strip in SVG, in words, and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Final
from uuid import UUID

from devices.presence import history
from devices.presence.schemas import PresenceItem
from nexmdm.common.read_only_admin import page_time

DAYS: Final = 7
DAY: Final = timedelta(days=1)

MOST: Final = 500
"""The largest number of states on a page. The page shows the newest states."""

# Units of the view box. The style sheet stretches the strip to the width that the page has for it.
_DAY_WIDTH: Final = 100
_NARROWEST: Final = 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """A time with one state, and its place in the strip. If the state has not ended, `ends` is None.

    `x` and `width` are numbers in units of the SVG's view box.
    """

    state: str
    begins: datetime
    ends: datetime | None
    x: str
    width: str


@dataclass(frozen=True, slots=True)
class Midnight:
    """The beginning of a day in UTC, and its place in the strip. `x` is a number in units of the SVG's view box."""

    label: str
    x: str


@dataclass(frozen=True, slots=True)
class Strip:
    """The presence of a device as a strip of coloured parts. `summary` describes the presence in words."""

    parts: list[Part]
    midnights: list[Midnight]
    summary: str


def of_last_week(device_id: UUID) -> Strip:
    """Return the strip of a device for the last seven days."""
    now = page_time.now().astimezone(UTC)
    begins = now - DAYS * DAY
    shown = history.read(device_id, begins)
    items = shown.items[-MOST:]
    parts = [_part(item, begins, now) for item in items]
    midnight = begins.replace(hour=0, minute=0, second=0, microsecond=0) + DAY
    midnights = [Midnight(f"{at:%d %b}", _place(at, begins)) for at in (midnight + day * DAY for day in range(DAYS))]
    return Strip(parts, midnights, _summary(items, shown.uptime_ratio, is_cut=len(items) < len(shown.items)))


def _part(item: PresenceItem, begins: datetime, now: datetime) -> Part:
    length = (item.to or now) - item.from_
    width = max(_NARROWEST, _DAY_WIDTH * (length / DAY))
    return Part(item.state, item.from_, item.to, _place(item.from_, begins), f"{width:.2f}")


def _place(at: datetime, begins: datetime) -> str:
    return f"{_DAY_WIDTH * ((at - begins) / DAY):.2f}"


def _summary(items: Sequence[PresenceItem], uptime_ratio: float | None, *, is_cut: bool) -> str:
    if not items:
        return "No heartbeat so far."
    since = f"since {items[0].from_.astimezone(UTC):%Y-%m-%d %H:%M}Z"
    if is_cut:
        return f"The device went online and offline very often. Only the newest {MOST} states are shown, {since}."
    known = [item.state for item in items if item.state != "unknown"]
    times = sum(state == "offline" for state, _ in groupby(known))
    offline = {0: "never offline", 1: "offline once", 2: "offline twice"}.get(times, f"offline {times} times")
    ratio = "" if uptime_ratio is None else f"Online for {uptime_ratio:.1%} of the time "
    away = " For a part of this time, the server did not run." if any(item.state == "unknown" for item in items) else ""
    return f"{ratio}{since}; {offline}.{away}" if ratio else f"Unknown {since}.{away}"
