"""The admin page of the audit."""

from typing import ClassVar, Final
from uuid import UUID

from django.contrib import admin
from django.db.models import Q
from django.utils.html import format_html

from commands.models import Command
from devices.models import Device
from nexmdm.audit import queries, summary
from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import NOTHING, Column, Narrowed, link, link_to_list
from nexmdm.common.read_only_admin.filters import AgeFilter, ChoiceFilter, DateRangeFilter, ExactTextFilter
from nexmdm.models import AuditEntry

STATUSES: Final = (200, 400, 404, 409, 422, 500, 503)


class AuditAge(AgeFilter):
    """By how long ago the request came."""

    column = "at"


class AuditTime(DateRangeFilter):
    """By when the request came."""

    column = "at"


class MethodFilter(ChoiceFilter):
    """By the request's method."""

    title = "method"
    parameter_name = "method"

    def conditions(self) -> dict[str, Q]:
        """Return the methods that write."""
        return {method: Q(method=method) for method in ("POST", "PATCH", "PUT", "DELETE")}


class EndingFilter(ChoiceFilter):
    """By whether the request was carried out."""

    title = "ending"
    parameter_name = "ending"

    def conditions(self) -> dict[str, Q]:
        """Return the two endings."""
        return {"carried out": Q(status__lt=400), "refused": Q(status__gte=400)}


class StatusFilter(ChoiceFilter):
    """By the status of the answer."""

    title = "status"
    parameter_name = "status"

    def conditions(self) -> dict[str, Q]:
        """Return the statuses that a signed write is answered with."""
        known = {str(status): Q(status=status) for status in STATUSES}
        return {**known, "other": ~Q(status__in=STATUSES)}


class PrincipalFilter(ExactTextFilter):
    """By who asked. It may be an admin who is not configured any more."""

    title = "principal, exactly"
    parameters = ("principal",)
    columns: ClassVar = {"principal": "principal"}


class AttemptFilter(ChoiceFilter):
    """By whether a command was sent, or only tried."""

    title = "dry run"
    parameter_name = "dry_run"

    def conditions(self) -> dict[str, Q]:
        """Return the two kinds."""
        return {"dry runs": Q(dry_run=True), "none of them": ~Q(dry_run=True)}


class AuditEntryAdmin(ReadOnlyAdmin):
    """Who asked for what, and how it ended."""

    list_display = (
        "when", "who", "address", "asked", "target", "device_count", "status", "code", "command",
    )  # fmt: skip
    list_filter = (PrincipalFilter, EndingFilter, StatusFilter, AttemptFilter, MethodFilter, AuditAge, AuditTime)
    linked_by = ("action", "request_id")
    search_fields = ("request_id", "path")
    search_help_text = "A whole request id or device id, an action, a principal, or the start of a path."
    fields: ClassVar = [
        "when", "principal", "action", "target", "device_count", "trial", "status", "code", "command", "device",
        "address", "admin_key_id", "method", "path", "body_sha256", "idempotency_key", "request_id", "correlation_id",
        "previous", "hash",
    ]  # fmt: skip

    exported: ClassVar = {
        "id": "id", "at": "at", "principal": "principal", "admin_key_id": "admin_key_id",
        "idempotency_key": "idempotency_key", "address": "address", "method": "method", "path": "path",
        "body_sha256": "body_sha256", "status": "status", "code": "code", "request_id": "request_id",
        "correlation_id": "correlation_id", "action": "action", "target": "target", "device_count": "device_count",
        "dry_run": "dry_run", "previous": "previous", "hash": "hash",
    }  # fmt: skip

    when = Column("at")
    who = Narrowed("principal", "principal")
    trial = Column("dry_run", "dry run")

    @admin.display(description="action")
    def asked(self, entry: AuditEntry) -> str:
        """Return what was asked for, and whether only to try it; of an entry without a summary, its path."""
        if not entry.action:
            return f"{entry.method} {entry.path}"
        action = link_to_list(AuditEntry, entry.action, action=entry.action)
        return format_html("{} (dry run)", action) if entry.dry_run else action

    @admin.display(description="command")
    def command(self, entry: AuditEntry) -> str:
        """Return a link to the command."""
        return link(Command(pk=entry.request_id), entry.request_id) if entry.request_id else NOTHING

    @admin.display(description="device")
    def device(self, entry: AuditEntry) -> str:
        """Return a link to the device that the path names, or the command's target alone; of an unknown one, its id."""
        device_id = summary.device_in(entry.target)
        if device_id is None:
            return NOTHING
        is_known = Device.objects.filter(pk=device_id).exists()
        return link(Device(pk=device_id), device_id) if is_known else str(device_id)

    def identified(self, key: UUID) -> Q:
        """Return the condition for the request id of a command, or for a device."""
        if AuditEntry.objects.filter(request_id=key).exists():
            return Q(request_id=key)
        return queries.about_device(key)

    def named(self, text: str) -> Q:
        """Return the condition for the start of a path, an action, or else a principal in any case."""
        if text.startswith("/"):
            return Q(path__startswith=text)
        # By the index of the actions; principals have none.
        return Q(action=text) if AuditEntry.objects.filter(action=text).exists() else Q(principal=text.lower())
