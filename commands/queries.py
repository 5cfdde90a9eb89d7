"""What became of a command: read from the rows, derived, never stored. Whatever is past its time counts as expired."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import Exists, F, OuterRef, Prefetch, Q, QuerySet
from django.db.models.functions import Now

from commands import standing
from commands.models import (
    FINAL,
    OPEN,
    OVERDUE,
    Attempt,
    Command,
    CommandOutcome,
    CommandState,
    Delivery,
    DeliveryChannel,
    DeliveryState,
    PushNow,
    Report,
    ReportStatus,
    Withdrawal,
)
from commands.pending_reason import AS_OF_NOW, current_state, why_open, why_unfinished
from commands.push_now import PUSH_NOW_SQL
from commands.queue import UnknownCommand
from commands.reports import KEPT
from commands.schemas import (
    CommandDetail,
    CommandPage,
    CommandQuery,
    CommandRow,
    Counts,
    DeliveryDetail,
    DeliveryPage,
    DeliveryQuery,
    DeliveryRow,
    PushCounts,
    PushSummary,
    Result,
    TimelineEvent,
)
from nexmdm.common import database, pagination

# Each may be large, and none is told of a delivery.
_UNREAD: Final = ("command__params", "command__target", "device__presence__last_status", "device__tags")

# `current` is the state as of now, swept or not.
_COMMAND_STATUSES: Final = f"""
    SELECT command.id, command.cancelled_at, counted.*
    FROM commands_command command, LATERAL (
        SELECT
            count(*) FILTER (WHERE current = 'pending'), count(*) FILTER (WHERE current = 'received'),
            count(*) FILTER (WHERE current = 'succeeded'), count(*) FILTER (WHERE current = 'failed'),
            count(*) FILTER (WHERE current = 'expired'), count(*) FILTER (WHERE current = 'cancelled'),
            count(*) FILTER (WHERE current IN ('expired', 'cancelled') AND EXISTS (
                SELECT FROM commands_report report
                WHERE report.delivery_id = delivery.id AND report.late AND NOT report.duplicate
                    AND report.status IN ('succeeded', 'failed')
            )),
            count(*) FILTER (WHERE push_now = 'waiting'), count(*) FILTER (WHERE push_now = 'accepted'),
            count(*) FILTER (WHERE push_now = 'retrying'), count(*) FILTER (WHERE push_now = 'undeliverable'),
            count(*) FILTER (WHERE push_now = 'superseded'), count(*) FILTER (WHERE push_now = 'no_push_token'),
            max(COALESCE(settled_at, open_until))
        FROM (
            SELECT *,
                CASE WHEN state IN ('pending', 'received') AND open_until <= now() THEN 'expired' ELSE state END
                    AS current,
                {PUSH_NOW_SQL} AS push_now
            FROM commands_delivery WHERE command_id = command.id
        ) delivery
    ) counted
    WHERE command.id = ANY(%s)
"""  # noqa: S608  (a constant of ours; values are parameters)

DELIVERIES_PER_QUERY: Final = 200_000
"""How many deliveries one query counts at most, unless a single command has more."""

TIMELINE_REPORTS: Final = KEPT + 2
"""How many reports a timeline shows at most, the newest: all that are kept, unless they are of an older version."""

TIMELINE_ATTEMPTS: Final = 1000
"""How many attempts a timeline shows at most, the newest: those of ten days, if each fails."""


@dataclass(frozen=True, slots=True)
class CommandStatus:
    """How a command stands: its deliveries, counted, and what follows from that."""

    state: CommandState
    outcome: CommandOutcome | None
    completed_at: datetime | None
    counts: Counts
    push: PushCounts


def is_open(request_id: UUID) -> bool:
    """Tell whether a command waits for anything. Raises UnknownCommand."""
    if not Command.objects.filter(id=request_id).exists():
        raise UnknownCommand
    return Delivery.objects.open().filter(command_id=request_id).exists()


def command(request_id: UUID) -> CommandDetail:
    """Return a command with its counts. Raises UnknownCommand."""
    row = Command.objects.filter(id=request_id).first()
    status = _command_statuses([request_id]).get(request_id)
    if row is None or status is None:
        raise UnknownCommand
    return CommandDetail(
        **_command_fields(row, status.state, status.outcome),
        completed_at=status.completed_at,
        cancelled_at=row.cancelled_at,
        counts=status.counts,
        push=status.push,
    )


def command_statuses(sizes: Mapping[UUID, int]) -> dict[UUID, CommandStatus]:
    """Return how commands stand, each given with the number of its devices: one query for each AT_ONCE of these."""
    found: dict[UUID, CommandStatus] = {}
    batch: list[UUID] = []
    total = 0
    for request_id, size in sizes.items():
        if batch and total + size > DELIVERIES_PER_QUERY:
            found |= _command_statuses(batch)
            batch, total = [], 0
        batch.append(request_id)
        total += size
    return found | _command_statuses(batch)


def _command_statuses(request_ids: list[UUID]) -> dict[UUID, CommandStatus]:
    return {request_id: _command_status(*row) for request_id, *row in database.rows(_COMMAND_STATUSES, [request_ids])}


def _command_status(cancelled_at: datetime | None, *counted: Any) -> CommandStatus:
    *numbers, last_settled = counted
    counts = Counts(**dict(zip(Counts.model_fields, numbers[:7], strict=True)))
    states = [state for state in DeliveryState if getattr(counts, state)]
    state, outcome = standing.of_states(states, was_cancelled=cancelled_at is not None)
    push = PushCounts(**dict(zip(PushCounts.model_fields, numbers[7:], strict=True)))
    return CommandStatus(state, outcome, None if outcome is None else last_settled, counts, push)


def commands(query: CommandQuery) -> CommandPage:
    """Return a page of commands, newest first."""
    rows: QuerySet[Any] = Command.objects.annotate(seen=standing.SEEN)
    if query.action is not None:
        rows = rows.filter(action=query.action)
    if query.device_id is not None:
        rows = rows.filter(Exists(Delivery.objects.filter(command_id=OuterRef("id"), device_id=query.device_id)))
    if query.since is not None:
        rows = rows.filter(issued_at__gte=query.since)
    if query.until is not None:
        rows = rows.filter(issued_at__lt=query.until)
    if query.state is not None:
        rows = rows.filter(standing.state_conditions()[query.state])
    if query.outcome is not None:
        rows = rows.filter(standing.outcome_conditions()[query.outcome])
    found, next_cursor = pagination.paginate(rows, query, UUID)
    return CommandPage(items=[_command_row(row) for row in found], next_cursor=next_cursor)


def _command_row(row: Any) -> CommandRow:
    stands = standing.of_seen(row.seen, was_cancelled=row.cancelled_at is not None)
    return CommandRow(**_command_fields(row, *stands))


def _command_fields(row: Command, state: CommandState, outcome: CommandOutcome | None) -> dict[str, Any]:
    same = ("action", "target", "priority", "note", "issued_by", "issued_at", "expires_at", "device_count")
    fields = {name: getattr(row, name) for name in same}
    return fields | {"request_id": row.id, "params": json.loads(row.params), "state": state, "outcome": outcome}


def deliveries(request_id: UUID, query: DeliveryQuery) -> DeliveryPage:
    """Return a page of a command's deliveries, newest first. Raises UnknownCommand."""
    if not Command.objects.filter(id=request_id).exists():
        raise UnknownCommand
    rows = _in_state(_deliveries().filter(command_id=request_id), query.state)
    found, next_cursor = pagination.paginate(rows, query, int)
    return DeliveryPage(items=[_delivery_row(row) for row in found], next_cursor=next_cursor)


def delivery(request_id: UUID, device_id: UUID) -> DeliveryDetail:
    """Return one delivery with its timeline. Raises UnknownCommand."""
    row = _described().filter(command_id=request_id, device_id=device_id).first()
    if row is None:
        raise UnknownCommand
    return _detail(row, TIMELINE_ATTEMPTS, TIMELINE_REPORTS)


def newest_of(delivery_id: int, most: int) -> DeliveryDetail:
    """Return a delivery as delivery() does, with no more than so many of its newest attempts and reports."""
    return _detail(_described().get(id=delivery_id), most, most)


def _detail(row: Any, most_attempts: int, most_reports: int) -> DeliveryDetail:
    """Complete a row of _described()."""
    attempts = list(Attempt.objects.filter(delivery=row.id).order_by("-number")[: most_attempts + 1])
    reports = list(Report.objects.filter(delivery=row.id).order_by("-id").defer("output")[: most_reports + 1])
    row.last_attempt, row.final_report = attempts[:1], list(_final_reports().filter(delivery=row.id))
    events = [
        TimelineEvent(at=row.command.issued_at, event="issued"),
        *_newest("attempts", [_attempt_event(attempt) for attempt in attempts], most_attempts),
        *_newest("reports", [_report_event(report) for report in reports], most_reports),
        *_not_kept(row, reports),
        *_settlement(row),
    ]
    events.sort(key=lambda event: (event.event != "issued", event.at))
    return DeliveryDetail(**_delivery_row(row).model_dump(), timeline=events)


def _newest(kind: str, newest_first: list[TimelineEvent], most: int) -> list[TimelineEvent]:
    """Return the newest of some events, oldest first; before them one that says so if there are more."""
    shown = newest_first[:most][::-1]
    if len(newest_first) <= most:
        return shown
    return [TimelineEvent(at=shown[0].at, event="left_out", detail=f"earlier {kind} are not shown"), *shown]


def _not_kept(row: Delivery, newest_first: list[Report]) -> list[TimelineEvent]:
    """Return the event that says how many reports came that were too many to keep: after the 100th that was kept."""
    if not row.reports_not_kept or not newest_first:
        return []
    last = newest_first[0]
    count = row.reports_not_kept
    detail = f"{count} further reports were counted and not kept"
    return [TimelineEvent(at=last.last_repeated_at or last.reported_at, event="left_out", count=count, detail=detail)]


def _settlement(row: Delivery) -> list[TimelineEvent]:
    settled = _settled_at(row)
    if settled is None:
        return []
    by = Withdrawal(row.withdrawn_by).label if row.withdrawn_by else None
    return [TimelineEvent(at=settled, event="settled", state=current_state(row), detail=by)]


def _settled_at(row: Delivery) -> datetime | None:
    return row.open_until if row.state in OPEN and current_state(row) == DeliveryState.EXPIRED else row.settled_at


def _deliveries() -> QuerySet[Any]:
    """Return deliveries as a list shows them: with one attempt and one report each at most, however many there are."""
    return _described().prefetch_related(
        Prefetch("attempts", Attempt.objects.filter(number=F("delivery__attempt_count")), to_attr="last_attempt"),
        Prefetch("reports", _final_reports(), to_attr="final_report"),
    )


def _final_reports() -> QuerySet[Report]:
    """Return the results and late results, as report_one_final_per_delivery has them."""
    return Report.objects.filter(status__in=FINAL, duplicate=False)


def _described() -> QuerySet[Any]:
    as_of_now = Delivery.objects.annotate(**AS_OF_NOW)
    return as_of_now.select_related("command", "device", "device__presence").defer(*_UNREAD)


def _in_state(rows: QuerySet[Any], state: DeliveryState | None) -> QuerySet[Any]:
    if state is None:
        return rows
    if state == DeliveryState.EXPIRED:
        return rows.filter(Q(state=state) | OVERDUE)
    if state in OPEN:
        return rows.filter(state=state, open_until__gt=Now())
    return rows.filter(state=state)


def _delivery_row(row: Any) -> DeliveryRow:
    return DeliveryRow(
        request_id=row.command_id,
        device_id=row.device_id,
        alias=row.device.alias,
        state=current_state(row),
        delivered_via=row.delivered_via,
        push=_push_summary(row),
        issued_at=row.command.issued_at,
        expires_at=row.command.expires_at,
        received_at=row.received_at,
        settled_at=_settled_at(row),
        result=_final_word(row, late=False),
        late_result=_final_word(row, late=True),
        why_open=why_open(row),
        why_unfinished=why_unfinished(row),
    )


def _push_summary(row: Any) -> PushSummary:
    last: Attempt | None = next(iter(row.last_attempt), None)
    return PushSummary(
        state=PushNow(row.push_now),
        attempts=row.attempt_count,
        last_http_status=last.http_status if last else None,
        last_fcm_error=(last.fcm_error or None) if last else None,
        message_id=(last.message_id or None) if last else None,
        next_attempt_at=row.next_attempt_at if current_state(row) in OPEN else None,
    )


def _final_word(row: Any, *, late: bool) -> Result | None:
    report: Report | None = next((report for report in row.final_report if report.late == late), None)
    if report is None:
        return None
    return Result(
        status=ReportStatus(report.status),
        message=report.message or None,
        output=report.output,
        finished_at=report.device_finished_at,
        reported_at=report.reported_at,
    )


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
