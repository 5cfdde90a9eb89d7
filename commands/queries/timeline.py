"""The timeline of a delivery: its issue, attempts, reports, and settlement."""

from datetime import datetime
from typing import Final

from commands.models import OPEN, Attempt, Delivery, DeliveryChannel, DeliveryState, Report
from commands.pending_reason import current_state, withdrawn_by
from commands.reports import KEPT
from commands.schemas import TimelineEvent

MOST_REPORTS: Final = KEPT + 2
"""The largest number of reports in a timeline. The newest reports are shown.

No delivery has more stored reports, unless an earlier version of NexMDM stored them.
"""

MOST_ATTEMPTS: Final = 1000
"""The largest number of attempts in a timeline. This is the number of attempts in ten days if each attempt fails.

The newest attempts are shown.
"""


def events(
    row: Delivery, attempts: list[Attempt], reports: list[Report], most_attempts: int, most_reports: int
) -> list[TimelineEvent]:
    """Return the events of a delivery, oldest first. `attempts` and `reports` must be sorted newest first.

    At most `most_attempts` attempts and `most_reports` reports are included. If older attempts or reports are left out,
    an event `left_out` takes their place.
    """
    found = [
        TimelineEvent(at=row.command.issued_at, event="issued"),
        *_newest("attempts", [_attempt_event(attempt) for attempt in attempts], most_attempts),
        *_newest("reports", [_report_event(report) for report in reports], most_reports),
        *_not_kept(row, reports),
        *_settlement(row),
    ]
    return sorted(found, key=lambda event: (event.event != "issued", event.at))


def _newest(kind: str, newest_first: list[TimelineEvent], most: int) -> list[TimelineEvent]:
    """Return the newest events, oldest first. If older events are left out, an event `left_out` comes first."""
    shown = newest_first[:most][::-1]
    if len(newest_first) <= most:
        return shown
    return [TimelineEvent(at=shown[0].at, event="left_out", detail=f"earlier {kind} are not shown"), *shown]


def _not_kept(row: Delivery, newest_first: list[Report]) -> list[TimelineEvent]:
    """Return the event that shows how many reports were not stored, or no event if all reports are stored."""
    if not row.reports_not_kept or not newest_first:
        return []
    last = newest_first[0]
    count = row.reports_not_kept
    detail = f"{count} further reports were counted but not stored"
    return [TimelineEvent(at=last.last_repeated_at or last.reported_at, event="left_out", count=count, detail=detail)]


def _settlement(row: Delivery) -> list[TimelineEvent]:
    settled = settled_at(row)
    if settled is None:
        return []
    return [TimelineEvent(at=settled, event="settled", state=current_state(row), detail=withdrawn_by(row))]


def settled_at(row: Delivery) -> datetime | None:
    """Return when a delivery was settled, or None if the delivery is open.

    For an overdue delivery, this time is `open_until`.
    """
    return row.open_until if row.state in OPEN and current_state(row) == DeliveryState.EXPIRED else row.settled_at


def _attempt_event(attempt: Attempt) -> TimelineEvent:
    return TimelineEvent(
        at=attempt.started_at,
        event="attempt",
        attempt=attempt.number,
        outcome=attempt.outcome,
        http_status=attempt.http_status,
        fcm_error=attempt.fcm_error or None,
        message_id=attempt.message_id or None,
        latency_ms=attempt.latency_ms,
        detail=attempt.detail or None,
    )


def _report_event(report: Report) -> TimelineEvent:
    return TimelineEvent(
        at=report.reported_at,
        event="report",
        status=report.status,
        message=report.message or None,
        via=DeliveryChannel(report.via) if report.via else None,
        count=report.repeat_count + 1,
        last_at=report.last_repeated_at,
        late=report.late,
        duplicate=report.duplicate,
    )
