"""The timeline of a device: commands, pushes, reports, refusals and signed requests about the device, by time.

The events come from several sources, such as attempts and reports. Only the newest rows of each source are read. If a
source has more rows, the timeline ends with the oldest row that was read from this source. Therefore the timeline has
no gap. Only the newest commands are in the timeline, at most DELIVERIES. If an older command has a new event, only the
page of this command shows the event.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.utils.html import format_html
from django.utils.safestring import SafeString

from commands.admin.deliveries import BULKY, NOW, reason
from commands.models import Attempt, Delivery, DeliveryState, Report
from commands.queries import deliveries
from devices.models import LastRefusal
from nexmdm.audit.queries import naming_device
from nexmdm.common.read_only_admin.columns import BAD, NOTHING, QUIET, WARN, badge, link
from nexmdm.models import AuditEntry

DELIVERIES: Final = 20
EVENTS: Final = 100
"""The largest number of events in a timeline. At most this number of attempts, and at most this number of reports, are
read.
"""

SIGNED: Final = 30
"""The largest number of signed requests in a timeline."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a device. `what` is a text with links. `more` contains details."""

    at: datetime
    kind: str
    what: SafeString
    more: str = ""


@dataclass(frozen=True, slots=True)
class _Source:
    """The events of one source, newest first. No event after `since` is missing. If `since` is None, no event is
    missing.
    """

    events: list[Event]
    since: datetime | None = None


def newest_first(device: Any) -> list[Event]:
    """Return the timeline of a device, newest event first."""
    work = _deliveries(device)
    sources = [
        _Source(list(_commands(work[:DELIVERIES])), work[DELIVERIES - 1].command.issued_at if _more(work) else None),
        _attempts(work[:DELIVERIES]),
        _reports(work[:DELIVERIES]),
        _signed(device),
        _Source(list(_device_itself(device))),
    ]
    since = max((source.since for source in sources if source.since), default=None)
    events = [event for source in sources for event in source.events if since is None or event.at >= since]
    return sorted(events, key=lambda event: event.at, reverse=True)[:EVENTS]


def _deliveries(device: Any) -> list[Any]:
    rows = Delivery.objects.filter(device=device).order_by("-id").select_related("command").annotate(**NOW)
    return list(rows.defer(*(f"command__{name}" for name in BULKY))[: DELIVERIES + 1])


def _more(work: Sequence[Any]) -> bool:
    return len(work) > DELIVERIES


def _commands(work: Sequence[Any]) -> Iterator[Event]:
    known = deliveries.rows_of([delivery.pk for delivery in work])
    for delivery in work:
        command = delivery.command
        what = format_html(
            "{} issued by {}: {}", _of(delivery), command.issued_by, badge(delivery.state_now)
        )  # fmt: skip
        row = known.get(delivery.pk)
        why = reason(row) if row else NOTHING
        yield Event(command.issued_at, "command", what, "" if why == NOTHING else why)
        if delivery.state_now in (DeliveryState.EXPIRED, DeliveryState.CANCELLED):
            what = format_html("{} {}", _of(delivery), badge(delivery.state_now))
            yield Event(delivery.settled_now, "end", what)


def _of(delivery: Any) -> SafeString:
    return link(delivery, delivery.command.action)


def _attempts(work: Sequence[Any]) -> _Source:
    by_key = {delivery.pk: delivery for delivery in work}
    rows = list(Attempt.objects.filter(delivery__in=by_key).order_by("-id")[: EVENTS + 1])
    events = [_attempt(row, by_key[row.delivery_id]) for row in rows[:EVENTS]]
    return _Source(events, events[-1].at if len(rows) > EVENTS else None)


def _attempt(row: Attempt, delivery: Any) -> Event:
    answer = " ".join(str(part) for part in (row.http_status, row.fcm_error) if part)
    what = format_html("{} of {}: {} {}", link(row, f"push {row.number}"), _of(delivery), badge(row.outcome), answer)
    return Event(row.started_at, "push", what, row.detail)


def _reports(work: Sequence[Any]) -> _Source:
    by_key = {delivery.pk: delivery for delivery in work}
    rows = list(Report.objects.filter(delivery__in=by_key).order_by("-id").defer("output")[: EVENTS + 1])
    events = [_report(row, by_key[row.delivery_id]) for row in rows[:EVENTS]]
    return _Source(events, events[-1].at if len(rows) > EVENTS else None)


def _report(row: Report, delivery: Any) -> Event:
    late = " late" if row.late else ""
    times = f", {row.repeat_count + 1} times" if row.repeat_count else ""
    what = format_html(
        "{} on {}: {}{}{}", link(row, "phone reports"), _of(delivery), badge(row.status), late, times
    )  # fmt: skip
    return Event(row.reported_at, "report", what, row.message)


def _signed(device: Any) -> _Source:
    rows = list(AuditEntry.objects.filter(naming_device(device.pk)).order_by("-id")[: SIGNED + 1])
    events = [Event(row.at, "admin", _entry(row)) for row in rows[:SIGNED]]
    return _Source(events, events[-1].at if len(rows) > SIGNED else None)


def _entry(row: AuditEntry) -> SafeString:
    dry_run = badge("dry run", WARN) if row.dry_run else ""
    refused = badge(f"refused: {row.code or row.status}", BAD) if row.status >= 400 else ""
    return format_html("{} by {} {} {}", link(row, row.action or row.path), row.principal, dry_run, refused)


def _device_itself(device: Any) -> Iterator[Event]:
    refusal: LastRefusal | None = getattr(device, "last_refusal", None)
    if refusal is not None:
        what = format_html("last refusal: {}", badge(refusal.code, BAD))
        yield Event(refusal.at, "refusal", what, f"The phone called {refusal.route}.")
    enrolled = format_html("enrolled with {}", link(device.enrolled_with, device.enrolled_with))
    yield Event(device.enrolled_at, "device", enrolled, f"From {device.enrolled_from}." if device.enrolled_from else "")
    if device.retired_at is not None:
        yield Event(device.retired_at, "device", badge("retired", QUIET))
