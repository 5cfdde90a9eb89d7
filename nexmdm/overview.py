"""The whole at a glance: the fleet counted, and the audit listed."""

from datetime import timedelta
from typing import Final
from uuid import UUID

from django.db.models import Count
from django.db.models.functions import Now

from commands.models import Attempt, Delivery, Outcome
from devices import paging
from devices.models import Device
from devices.paging import Page
from devices.wire import Answer, Time
from nexmdm.models import AuditEntry

LAST_HOUR: Final = timedelta(hours=1)


class DevicesByPresence(Answer):
    """Devices by presence; the revoked ones are counted apart."""

    online: int
    offline: int
    never: int
    revoked: int


class Summary(Answer):
    """The fleet at a glance. Pushes are counted by FCM's error code, else by HTTP status, else by outcome."""

    devices: DevicesByPresence
    open_deliveries: int
    pushes_last_hour: dict[str, int]


class AuditQuery(Page, extra="forbid"):
    """Which entries to list."""

    since: Time | None = None
    until: Time | None = None


class AuditRow(Answer):
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


class AuditPage(Answer):
    """One page of the audit."""

    items: list[AuditRow]
    next_cursor: str | None


def summary() -> Summary:
    """Count the fleet."""
    active = Device.objects.active()
    never, online = active.never_seen().count(), active.online().count()
    total = active.count()
    return Summary(
        devices=DevicesByPresence(
            online=online,
            offline=total - never - online,
            never=never,
            revoked=Device.objects.filter(revoked_at__isnull=False).count(),
        ),
        open_deliveries=Delivery.objects.open().count(),
        pushes_last_hour=_pushes_last_hour(),
    )


def _pushes_last_hour() -> dict[str, int]:
    ended = Attempt.objects.filter(finished_at__gt=Now() - LAST_HOUR).order_by()
    counted: dict[str, int] = {}
    for fcm_error, http_status, outcome, count in ended.values_list("fcm_error", "http_status", "outcome").annotate(
        count=Count("id")
    ):
        code = fcm_error or ("OK" if outcome == Outcome.ACCEPTED else str(http_status or outcome.upper()))
        counted[code] = counted.get(code, 0) + count
    return counted


def audit(query: AuditQuery) -> AuditPage:
    """Return a page of the audit, newest first."""
    rows = AuditEntry.objects.all()
    if query.since is not None:
        rows = rows.filter(at__gte=query.since)
    if query.until is not None:
        rows = rows.filter(at__lt=query.until)
    found, next_cursor = paging.take(rows, query, int)
    return AuditPage(items=[_audit_row(entry) for entry in found], next_cursor=next_cursor)


def _audit_row(entry: AuditEntry) -> AuditRow:
    fields = {name: getattr(entry, name) for name in AuditRow.model_fields}
    return AuditRow(**fields | {"code": entry.code or None})
