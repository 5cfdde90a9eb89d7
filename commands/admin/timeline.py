"""The timeline of a delivery, formatted for people. Each event has its time, and the time since the issue."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from commands.schemas import TimelineEvent


@dataclass(frozen=True, slots=True)
class Step:
    """An event of a timeline, as a page shows it. `at` is its time in UTC, to the millisecond. `after` is the time
    since the issue.
    """

    event: TimelineEvent
    at: str
    after: str


def steps(events: list[TimelineEvent]) -> Iterator[Step]:
    """Return the steps of a timeline. The first event must be the issue. The `after` of the first step is empty."""
    issued_at = events[0].at
    for event in events:
        at = f"{event.at:%Y-%m-%d %H:%M:%S}.{event.at.microsecond // 1000:03}Z"
        yield Step(event, at, "" if event is events[0] else f"+{_span(event.at - issued_at)}")


def _span(length: timedelta) -> str:
    seconds = length.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
