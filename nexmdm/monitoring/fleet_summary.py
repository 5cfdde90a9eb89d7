"""The whole at a glance: the fleet counted, and the audit listed."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db.models import Count

from commands.models import AttemptOutcome, Delivery
from devices.models import Device, presences
from nexmdm.common import database, pagination
from nexmdm.common.pagination import Page
from nexmdm.common.types import ResponseSchema, Time
from nexmdm.models import AuditEntry

LAST_HOUR: Final = timedelta(hours=1)


_PUSHES: Final = """
    SELECT fcm_error, http_status, outcome, count(*), min(finished_at)
    FROM (
        SELECT fcm_error, http_status, outcome, finished_at FROM commands_attempt
        WHERE finished_at > now() - %s ORDER BY finished_at DESC LIMIT %s
    ) newest
    GROUP BY fcm_error, http_status, outcome
"""


class DevicesByPresence(ResponseSchema):
    """Devices by presence; the revoked ones are counted apart."""

    online: int
    offline: int
    never: int
    revoked: int


class Summary(ResponseSchema):
    """The fleet at a glance. Pushes are counted by FCM's error code, else by HTTP status, else by outcome."""

    devices: DevicesByPresence
    open_deliveries: int
    pushes_last_hour: dict[str, int]


class AuditQuery(Page, extra="forbid"):
    """Which entries to list."""

    since: Time | None = None
    until: Time | None = None


class AuditRow(ResponseSchema):
    """One signed write: who, from where, what, and how it ended."""

    at: Time
    principal: str
    address: str | None
    method: str
    path: str
    body_sha256: str
    status: int
    code: str | None
    request_id: UUID | None
    correlation_id: str


class AuditPage(ResponseSchema):
    """One page of the audit."""

    items: list[AuditRow]
    next_cursor: str | None


def summary() -> Summary:
    """Count the fleet."""
    return Summary(
        devices=devices_by_presence(),
        open_deliveries=Delivery.objects.open().count(),
        pushes_last_hour={pushes.code: pushes.count for pushes in pushes_of(LAST_HOUR)},
    )


def devices_by_presence() -> DevicesByPresence:
    """Count the devices, in one walk."""
    counted = {name: Count("pk", filter=condition) for name, condition in presences().items()}
    return DevicesByPresence(**Device.objects.aggregate(**counted))


@dataclass(frozen=True, slots=True)
class Pushes:
    """How many pushes ended with one code: FCM's error code, else the HTTP status, else the outcome."""

    code: str
    count: int
    oldest_at: datetime


def pushes_of(span: timedelta, most: int | None = None) -> list[Pushes]:
    """Count the pushes that ended in the last `span`, or the newest `most` of them; the most frequent code first."""
    counted: dict[str, Pushes] = {}
    for fcm_error, http_status, outcome, count, oldest_at in database.rows(_PUSHES, [span, most]):
        code = fcm_error or ("OK" if outcome == AttemptOutcome.ACCEPTED else str(http_status or outcome.upper()))
        same = counted.get(code, Pushes(code, 0, oldest_at))
        counted[code] = Pushes(code, same.count + count, min(same.oldest_at, oldest_at))
    return sorted(counted.values(), key=lambda pushes: -pushes.count)


def audit(query: AuditQuery) -> AuditPage:
    """Return a page of the audit, newest first."""
    rows = AuditEntry.objects.all()
    if query.since is not None:
        rows = rows.filter(at__gte=query.since)
    if query.until is not None:
        rows = rows.filter(at__lt=query.until)
    found, next_cursor = pagination.paginate(rows, query, int)
    return AuditPage(items=[_audit_row(entry) for entry in found], next_cursor=next_cursor)


def _audit_row(entry: AuditEntry) -> AuditRow:
    fields = {name: getattr(entry, name) for name in AuditRow.model_fields}
    return AuditRow(**fields | {"code": entry.code or None})
