"""Reports: take a phone's word on a command. Runs inside its caller's transaction; all times are the database's."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from django.db import transaction
from django.db.models import F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Greatest, Now

from commands import actions, queue
from commands.models import (
    FINAL,
    OPEN,
    Command,
    Delivery,
    DeliveryChannel,
    DeliveryState,
    Report,
    ReportStatus,
    Withdrawal,
)
from devices import enrollment
from nexmdm.common import database
from nexmdm.common.domain_error import DomainError

log = structlog.get_logger()

KEPT: Final = 100
"""Reports of one delivery that are kept; beyond them only the one that is its result, or its late result.

A phone that works needs a handful. One that reports without end must not fill the database.
"""

EXTRA_TIME: Final = timedelta(hours=1)
"""What a phone that has a command gets, beyond its expiry, for its final word."""


LAST_WORD_TIME: Final = timedelta(hours=24)
"""How long a phone that was retired by its own success may repeat it: the answer may have been lost."""


class UnknownRequest(DomainError):
    detail = "This device has no delivery of that request."


@dataclass(frozen=True, slots=True)
class ReportInput:
    """One report of a phone."""

    status: ReportStatus
    message: str = ""
    output: dict[str, Any] | None = None
    finished_at: datetime | None = None
    via: DeliveryChannel | None = None


@dataclass(frozen=True, slots=True)
class ReportResult:
    """How a report was taken: the delivery's state after it, whether the report came again or too late, and is kept."""

    state: DeliveryState
    duplicate: bool
    late: bool
    kept: bool


def record_report(device_id: UUID, request_id: UUID, report: ReportInput) -> ReportResult:
    """Keep a phone's report; settle the delivery with the first final one. Raises UnknownRequest.

    Any report after a final one is a duplicate and changes nothing. A final one after expiry or cancellation leaves the
    state and is late. What is too much to keep (see KEPT) is counted.
    """
    # The lock comes first, in a statement of its own: what follows must see what the holder before us wrote.
    locked = Delivery.objects.select_for_update(no_key=True, of=("self",)).annotate(
        overdue=Q(open_until__lte=Now()), action=F("command__action")
    )
    delivery = locked.filter(command_id=request_id, device_id=device_id).first()
    if delivery is None:
        raise UnknownRequest
    changes: dict[str, Any] = {}
    if delivery.state in OPEN and getattr(delivery, "overdue"):  # noqa: B009  (annotated above)
        delivery.state = DeliveryState.EXPIRED
        changes |= queue.EXPIRED
    duplicate = _has_final(delivery)
    late = report.status in FINAL and delivery.state in (DeliveryState.EXPIRED, DeliveryState.CANCELLED)
    kept = _keep(delivery, report, late=late, duplicate=duplicate)
    if not kept:
        changes["reports_not_kept"] = F("reports_not_kept") + 1
    if delivery.state in OPEN:
        changes |= _word_taken(report)
    if report.via is not None and delivery.delivered_via is None:
        changes["delivered_via"] = report.via
    if changes:
        Delivery.objects.filter(id=delivery.id).update(**changes)
    if report.status == ReportStatus.SUCCEEDED:
        _retire_if_wiped(delivery)
    return ReportResult(DeliveryState(changes.get("state", delivery.state)), duplicate, late, kept)


def _retire_if_wiped(delivery: Any) -> None:
    """Retire the device if its success is kept, and not that of the phone before it was enrolled again.

    A repeat retires it, too: a worker of the version before may have taken the first report.
    """
    if delivery.action not in actions.RETIRING:
        return
    succeeded = Report.objects.filter(delivery=delivery.id, status=ReportStatus.SUCCEEDED, duplicate=False).exists()
    if not succeeded or delivery.withdrawn_by == Withdrawal.ENROLLMENT:
        return
    device_id = delivery.device_id
    was_open = delivery.state in OPEN
    settled_at = None if was_open else delivery.settled_at or delivery.open_until
    if enrollment.retire_wiped(device_id, settled_at):
        queue.cancel_all_of(device_id, Withdrawal.REVOCATION)
        transaction.on_commit(lambda: log.info("device.retired", device_id=str(device_id), by=delivery.action))


def is_last_word(device_id: UUID, request_id: UUID, report: ReportInput) -> bool:
    """Tell whether this repeats the success that retired a device lately: all that its old token may still say."""
    return (
        report.status == ReportStatus.SUCCEEDED
        and Report.objects.filter(
            delivery__command=request_id,
            delivery__device=device_id,
            delivery__command__action__in=actions.RETIRING,
            delivery__device__retired_at__gt=Now() - LAST_WORD_TIME,
            reported_at__gt=F("delivery__device__enrolled_at"),
            status=ReportStatus.SUCCEEDED,
            duplicate=False,
        ).exists()
    )


def _has_final(delivery: Delivery) -> bool:
    if delivery.state in (DeliveryState.EXPIRED, DeliveryState.CANCELLED):
        # As report_one_final_per_delivery has it, however many reports there are.
        return Report.objects.filter(delivery=delivery, status__in=FINAL, duplicate=False).exists()
    return delivery.state not in OPEN


# One statement for what one report may need: a look at the last one, and at how many there are. The delivery is locked,
# so no other report of it comes in between.
_KEEP: Final = """
    WITH given AS (
        SELECT %(status)s::varchar AS status, %(message)s::varchar AS message, %(output)s::jsonb AS output,
            %(via)s::varchar AS via, %(finished_at)s::timestamptz AS device_finished_at
    ), last AS (
        SELECT * FROM commands_report WHERE delivery_id = %(delivery_id)s ORDER BY id DESC LIMIT 1
    ), repeated AS (
        UPDATE commands_report report
        SET repeat_count = report.repeat_count + 1, last_repeated_at = statement_timestamp()
        FROM last, given
        WHERE report.id = last.id AND NOT %(is_final)s AND last.duplicate = %(duplicate)s
            AND (last.status, last.message, last.output, last.via, last.device_finished_at) IS NOT DISTINCT FROM
                (given.status, given.message, given.output, given.via, given.device_finished_at)
        RETURNING report.id
    ), added AS (
        INSERT INTO commands_report
            (delivery_id, status, message, output, via, device_finished_at, late, duplicate)
        SELECT %(delivery_id)s, status, message, output, via, device_finished_at, %(late)s, %(duplicate)s FROM given
        WHERE NOT EXISTS (SELECT FROM repeated) AND (
            (%(is_final)s AND NOT %(duplicate)s) OR NOT EXISTS (
                SELECT FROM commands_report WHERE delivery_id = %(delivery_id)s OFFSET %(kept)s - 1 LIMIT 1
            )
        )
        RETURNING id
    )
    SELECT EXISTS (SELECT FROM repeated UNION ALL SELECT FROM added)
"""


def _keep(delivery: Delivery, report: ReportInput, *, late: bool, duplicate: bool) -> bool:
    """Keep a report, or count up the last one if that was equal and not final. Return False if it is one too many."""
    (kept,) = database.row(
        _KEEP,
        {
            "delivery_id": delivery.id,
            "status": report.status,
            "message": report.message,
            "output": None if report.output is None else orjson.dumps(report.output).decode(),
            "via": report.via,
            "finished_at": report.finished_at,
            "is_final": report.status in FINAL,
            "late": late,
            "duplicate": duplicate,
            "kept": KEPT,
        },
    )
    return bool(kept)


def _word_taken(report: ReportInput) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "received_at": Coalesce("received_at", Now()),
        "reported_at": Now(),
        "next_attempt_at": None,
        "state": DeliveryState.RECEIVED,
    }
    if report.status in FINAL:
        changes |= {"state": DeliveryState(report.status.value), "settled_at": Now()}
    elif report.status != ReportStatus.DEFERRED:
        changes["open_until"] = _longer
    return changes


_longer = Greatest(
    "open_until",
    Subquery(Command.objects.filter(id=OuterRef("command_id")).values(until=F("expires_at") + EXTRA_TIME)),
)
