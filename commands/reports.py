"""Reports: take a phone's word on a command. Runs inside its caller's transaction; all times are the database's."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db.models import F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Greatest, Now

from commands.models import FINAL, OPEN, Channel, Command, Delivery, Report, ReportStatus, State

EXTRA_TIME: Final = timedelta(hours=1)
"""What a phone that has a command gets, beyond its expiry, for its final word."""


class UnknownRequest(Exception):
    """This device has no delivery of that request."""


@dataclass(frozen=True, slots=True)
class Said:
    """One report of a phone."""

    status: ReportStatus
    message: str = ""
    output: dict[str, Any] | None = None
    finished_at: datetime | None = None
    via: Channel | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """How a report was taken: the delivery's state after it, and whether the report came again or too late."""

    state: State
    duplicate: bool
    late: bool


def take(device_id: UUID, request_id: UUID, said: Said) -> Taken:
    """Keep a phone's report; settle the delivery with the first final one. Raises UnknownRequest.

    Any report after a final one is a duplicate and changes nothing. A final one after expiry or cancellation leaves the
    state and is late.
    """
    # The lock comes first, in a statement of its own: what follows must see what the holder before us wrote.
    locked = Delivery.objects.select_for_update(no_key=True).annotate(overdue=Q(open_until__lte=Now()))
    delivery = locked.filter(command_id=request_id, device_id=device_id).first()
    if delivery is None:
        raise UnknownRequest
    changes: dict[str, Any] = {}
    if delivery.state in OPEN and getattr(delivery, "overdue"):  # noqa: B009  (annotated above)
        delivery.state = State.EXPIRED
        changes |= {"state": State.EXPIRED, "settled_at": F("open_until"), "next_attempt_at": None}
    duplicate = _has_final(delivery)
    late = said.status in FINAL and delivery.state in (State.EXPIRED, State.CANCELLED)
    _keep(delivery, said, late=late, duplicate=duplicate)
    if delivery.state in OPEN:
        changes |= _word_taken(said)
    if said.via is not None and delivery.delivered_via is None:
        changes["delivered_via"] = said.via
    if changes:
        Delivery.objects.filter(id=delivery.id).update(**changes)
    return Taken(State(changes.get("state", delivery.state)), duplicate, late)


def _has_final(delivery: Delivery) -> bool:
    if delivery.state in (State.EXPIRED, State.CANCELLED):
        return Report.objects.filter(delivery=delivery, status__in=FINAL).exists()
    return delivery.state not in OPEN


def _keep(delivery: Delivery, said: Said, *, late: bool, duplicate: bool) -> None:
    Report.objects.create(
        delivery=delivery,
        status=said.status,
        message=said.message,
        output=said.output,
        device_finished_at=said.finished_at,
        via=said.via,
        late=late,
        duplicate=duplicate,
    )


def _word_taken(said: Said) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "received_at": Coalesce("received_at", Now()),
        "reported_at": Now(),
        "next_attempt_at": None,
        "state": State.RECEIVED,
    }
    if said.status in FINAL:
        changes |= {"state": State(said.status.value), "settled_at": Now()}
    elif said.status != ReportStatus.DEFERRED:
        changes["open_until"] = _longer
    return changes


_longer = Greatest(
    "open_until",
    Subquery(Command.objects.filter(id=OuterRef("command_id")).values(until=F("expires_at") + EXTRA_TIME)),
)
