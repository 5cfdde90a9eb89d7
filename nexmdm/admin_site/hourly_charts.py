"""The charts of the last 24 hours on the home page: pushes per hour and results per hour."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from commands.models import Attempt
from nexmdm.common import database
from nexmdm.common.read_only_admin import page_time
from nexmdm.common.read_only_admin.columns import address_of

HOURS: Final = 24
HOUR: Final = timedelta(hours=1)

MOST: Final = 100_000
"""The largest number of rows that a chart counts. The newest rows are counted first.

If there are more rows, the page shows a text about this.
"""

_PUSHES: Final = """
    SELECT date_trunc('hour', finished_at, 'UTC'), is_good, count(*)
    FROM (
        SELECT finished_at, outcome = 'accepted' AS is_good FROM commands_attempt
        WHERE finished_at >= %(since)s ORDER BY finished_at DESC LIMIT %(most)s
    ) newest
    GROUP BY 1, 2
"""
_RESULTS: Final = """
    SELECT date_trunc('hour', settled_at, 'UTC'), is_good, count(*)
    FROM (
        SELECT settled_at, state = 'succeeded' AS is_good, state FROM commands_delivery
        WHERE settled_at >= %(since)s ORDER BY settled_at DESC LIMIT %(most)s
    ) newest
    WHERE state <> 'cancelled'
    GROUP BY 1, 2
"""

# In units of the SVG view box. The style sheet stretches the chart to the width of the page.
_STEP: Final = 20
_BAR: Final = 14
_HEIGHT: Final = 100
_LOWEST: Final = 2


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of a chart.

    `good` and `bad` are the counts. The bar has one part for each count. `x`, the heights and the `y` values are in
    units of the SVG view box. `address` is a link to the list of the rows, or an empty string.
    """

    label: str
    good: int
    bad: int
    x: int
    good_height: str
    bad_height: str
    good_y: str
    bad_y: str
    address: str


@dataclass(frozen=True, slots=True)
class HourlyChart:
    """A chart of the last 24 hours. In each bar, the part for success is below the part for failure.

    `good` and `bad` are the texts for the two parts. `summary` describes the chart in words.
    """

    name: str
    heading: str
    good: str
    bad: str
    hours: list[Hour]
    summary: str
    note: str = ""


def charts() -> list[HourlyChart]:
    """Return the chart of pushes and the chart of results. All counts are read now."""
    since = page_time.now().astimezone(UTC).replace(minute=0, second=0, microsecond=0) - (HOURS - 1) * HOUR
    return [
        _chart(
            "pushes-per-hour",
            "Pushes per hour, last 24 hours",
            ("accepted by FCM", "not accepted"),
            _PUSHES,
            since,
            _to_pushes,
        ),
        _chart(
            "results-per-hour",
            "Results per hour, last 24 hours",
            ("succeeded", "failed or expired"),
            _RESULTS,
            since,
            _nowhere,
        ),
    ]


def _chart(
    name: str, heading: str, words: tuple[str, str], query: str, since: datetime, to: Callable[[datetime], str]
) -> HourlyChart:
    counted = {(at, good): n for at, good, n in database.rows(query, {"since": since, "most": MOST})}
    starts = [since + number * HOUR for number in range(HOURS)]
    counts = [(at, counted.get((at, True), 0), counted.get((at, False), 0)) for at in starts]
    highest = max(good + bad for _, good, bad in counts)
    hours = [_hour(place, *one, highest or 1, to(one[0])) for place, one in enumerate(counts)]
    good, bad = sum(hour.good for hour in hours), sum(hour.bad for hour in hours)
    busiest = max(hours, key=lambda hour: hour.good + hour.bad)
    summary = f"{good:,} {words[0]}, {bad:,} {words[1]} since {since:%Y-%m-%d %H:%M}Z."
    summary += f" The highest number in one hour: {highest:,}, from {busiest.label}Z." if highest else ""
    note = (
        f"Only the newest {MOST:,} are counted: the counts of earlier hours are too low." if good + bad >= MOST else ""
    )
    return HourlyChart(name, heading, *words, hours, summary, note)


def _hour(place: int, at: datetime, good: int, bad: int, highest: int, address: str) -> Hour:
    good_height, bad_height = _height(good, highest), _height(bad, highest)
    good_y, bad_y = _HEIGHT - good_height, _HEIGHT - good_height - bad_height
    return Hour(
        label=f"{at:%H:%M}",
        good=good,
        bad=bad,
        x=place * _STEP + (_STEP - _BAR) // 2,
        good_height=f"{good_height:.1f}",
        bad_height=f"{bad_height:.1f}",
        good_y=f"{good_y:.1f}",
        bad_y=f"{bad_y:.1f}",
        address=address,
    )


def _height(count: int, highest: int) -> float:
    """Return the height of a part of a bar. A part with a count above 0 has at least _LOWEST."""
    return max(_LOWEST, (_HEIGHT - _LOWEST) * count / highest) if count else 0


def _to_pushes(at: datetime) -> str:
    return address_of(Attempt, "changelist", since=f"{at:%Y-%m-%dT%H:%M}", until=f"{at + HOUR:%Y-%m-%dT%H:%M}")


def _nowhere(_: datetime) -> str:
    return ""
