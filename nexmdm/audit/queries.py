"""Reads of the audit."""

from typing import Annotated, Any
from uuid import UUID

from django.db.models import Q, QuerySet
from pydantic import Field

from commands.models import Delivery
from nexmdm.audit.summary import LONGEST_ACTION, on_device
from nexmdm.common import pagination
from nexmdm.common.pagination import Page
from nexmdm.common.types import Identifier, QueryInteger, ResponseSchema, Text, Time
from nexmdm.models import DEVICE_PATH, AuditEntry


class AuditQuery(Page, extra="forbid"):
    """Filters of the audit entries. `since` and `until` are limits of `at`; `until` itself is excluded."""

    since: Time | None = None
    until: Time | None = None
    action: Annotated[Text, Field(max_length=LONGEST_ACTION)] | None = None
    device_id: Identifier | None = None
    request_id: Identifier | None = None
    principal: Annotated[Text, Field(max_length=64)] | None = None
    status: Annotated[QueryInteger, Field(ge=100, le=599)] | None = None

    def conditions(self) -> Q:
        """Return the condition for entries that match all filters."""
        wanted = {"at__gte": self.since, "at__lt": self.until}
        wanted |= {name: getattr(self, name) for name in ("action", "request_id", "principal", "status")}
        conditions = Q(**{name: value for name, value in wanted.items() if value is not None})
        return conditions if self.device_id is None else conditions & about_device(self.device_id)


class AuditSummary(ResponseSchema):
    """The summary of a signed write. A field is null if it does not apply, or if the request had no valid body."""

    action: str | None
    target: str | None
    device_count: int | None
    dry_run: bool | None


class AuditRow(ResponseSchema):
    """One signed write, with its admin, address, request and result."""

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
    summary: AuditSummary


class AuditPage(ResponseSchema):
    """One page of the audit."""

    items: list[AuditRow]
    next_cursor: str | None


def about_device(device_id: UUID) -> Q:
    """Return the condition for entries about a device: the path names the device, or the device has a delivery of the
    command.

    A refused command and a dry run have no delivery. Their entry is found only if this device is the whole target.
    """
    sent = Delivery.objects.filter(device=device_id).order_by().values("command_id")
    about_commands: QuerySet[Any] = AuditEntry.objects.filter(request_id__in=sent).order_by()
    return _any_of(*_naming_device(device_id), about_commands)


def naming_device(device_id: UUID) -> Q:
    """Return the condition for entries whose path or target names only this device. Entries with a request id are left
    out.
    """
    return _any_of(*_naming_device(device_id))


def _naming_device(device_id: UUID) -> tuple[QuerySet[Any], QuerySet[Any]]:
    others: QuerySet[Any] = AuditEntry.objects.filter(request_id=None).order_by()
    by_path = others.alias(device_path=DEVICE_PATH).filter(device_path=f"/admin/devices/{device_id}")
    return others.filter(target__in=on_device(device_id)), by_path


def _any_of(first: QuerySet[Any], *others: QuerySet[Any]) -> Q:
    # Use separate conditions, each with its own index. A single condition with OR could use no index.
    return Q(pk__in=first.values("pk").union(*(rows.values("pk") for rows in others), all=True))


def list_entries(query: AuditQuery) -> AuditPage:
    """Return a page of the audit, newest entry first."""
    found, next_cursor = pagination.paginate(AuditEntry.objects.filter(query.conditions()), query, int)
    return AuditPage(items=[_audit_row(entry) for entry in found], next_cursor=next_cursor)


def _audit_row(entry: AuditEntry) -> AuditRow:
    fields = {name: getattr(entry, name) for name in AuditRow.model_fields if name != "summary"}
    summary = AuditSummary(
        action=entry.action or None,
        target=entry.target or None,
        device_count=entry.device_count,
        dry_run=entry.dry_run,
    )
    return AuditRow(**fields | {"code": entry.code or None, "summary": summary})
