"""The audit, as an admin reads it."""

from uuid import UUID

from nexmdm.common import pagination
from nexmdm.common.pagination import Page
from nexmdm.common.types import ResponseSchema, Time
from nexmdm.models import AuditEntry


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


def list_entries(query: AuditQuery) -> AuditPage:
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
