"""Reads of deliveries, with their state, reason and timeline."""

from collections.abc import Collection
from typing import Any, Final, Literal
from uuid import UUID

from django.db.models import F, Prefetch, Q, QuerySet
from django.db.models.functions import Now

from commands.models import (
    FINAL,
    OPEN,
    OVERDUE,
    Attempt,
    Command,
    Delivery,
    DeliveryState,
    PushNow,
    Report,
    ReportStatus,
)
from commands.pending_reason import AS_OF_NOW, current_state, why_open, why_unfinished
from commands.queries import timeline
from commands.queue import UnknownCommand
from commands.schemas import DeliveryDetail, DeliveryPage, DeliveryQuery, DeliveryRow, PushSummary, Result
from nexmdm.common import pagination

# These columns may be large. No answer about a delivery contains them.
_UNREAD: Final = ("command__params", "command__target", "device__presence__last_status", "device__tags")


def delivery_page(request_id: UUID, query: DeliveryQuery) -> DeliveryPage:
    """Return a page of a command's deliveries, newest first. Raises UnknownCommand."""
    if not Command.objects.filter(id=request_id).exists():
        raise UnknownCommand
    rows = _in_state(_deliveries().filter(command_id=request_id), query.state)
    found, next_cursor = pagination.paginate(rows, query, int)
    return DeliveryPage(items=[_delivery_row(row) for row in found], next_cursor=next_cursor)


def delivery_detail(request_id: UUID, device_id: UUID) -> DeliveryDetail:
    """Return one delivery with its timeline. Raises UnknownCommand if the command or the delivery does not exist."""
    row = _described().filter(command_id=request_id, device_id=device_id).first()
    if row is None:
        raise UnknownCommand("There is no command with this request_id, or the command has no delivery to this device.")
    return _detail(row, timeline.MOST_ATTEMPTS, timeline.MOST_REPORTS)


def newest_of(delivery_id: int, most: int) -> DeliveryDetail:
    """Return a delivery with its timeline: at most `most` attempts and `most` reports, beginning with the newest."""
    return _detail(_described().get(id=delivery_id), most, most)


def rows_of(delivery_ids: Collection[int]) -> dict[int, DeliveryRow]:
    """Return the deliveries with these ids, by id. Each delivery has the form of a row in the API's lists. Deleted
    deliveries are left out.
    """
    return {row.id: _delivery_row(row) for row in _deliveries().filter(id__in=delivery_ids)}


def _detail(row: Any, most_attempts: int, most_reports: int) -> DeliveryDetail:
    attempts = list(Attempt.objects.filter(delivery=row.id).order_by("-number")[: most_attempts + 1])
    reports = list(Report.objects.filter(delivery=row.id).order_by("-id").defer("output")[: most_reports + 1])
    row.last_attempt, row.final_report = attempts[:1], list(_final_reports().filter(delivery=row.id))
    events = timeline.events(row, attempts, reports, most_attempts, most_reports)
    return DeliveryDetail(**_delivery_row(row).model_dump(), timeline=events)


def _deliveries() -> QuerySet[Any]:
    """Return deliveries with their last attempt and their final report."""
    return _described().prefetch_related(
        Prefetch("attempts", Attempt.objects.filter(number=F("delivery__attempt_count")), to_attr="last_attempt"),
        Prefetch("reports", _final_reports(), to_attr="final_report"),
    )


def _final_reports() -> QuerySet[Report]:
    """Return the results and the late results. The filter must fit the index report_one_final_per_delivery."""
    return Report.objects.filter(status__in=FINAL, duplicate=False)


def _described() -> QuerySet[Any]:
    as_of_now = Delivery.objects.annotate(**AS_OF_NOW)
    return as_of_now.select_related("command", "device", "device__presence").defer(*_UNREAD)


def _in_state(rows: QuerySet[Any], state: DeliveryState | Literal["not_succeeded"] | None) -> QuerySet[Any]:
    if state is None:
        return rows
    if state == "not_succeeded":
        return rows.exclude(state=DeliveryState.SUCCEEDED)
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
        settled_at=timeline.settled_at(row),
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
