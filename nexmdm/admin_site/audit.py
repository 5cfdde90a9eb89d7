"""The pages of the audit."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from commands.models import Command
from devices.admin import SECRETS
from devices.models import Device, EnrollmentToken
from nexmdm.audit import queries, summary
from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import (
    BAD,
    GOOD,
    NOTHING,
    QUIET,
    WARN,
    Column,
    Narrowed,
    badge,
    link,
    link_to_list,
    short_id,
)
from nexmdm.common.read_only_admin.filters import AgeFilter, ChoiceFilter, DateRangeFilter, ExactTextFilter
from nexmdm.models import AuditEntry

STATUSES: Final = (200, 400, 404, 409, 422, 500, 503)

REFUSED: Final = 400
"""The lowest HTTP status of a refused request."""


class AuditAge(AgeFilter):
    """A filter by the age of an entry."""

    column = "at"


class AuditTime(DateRangeFilter):
    """A filter by the time of an entry."""

    column = "at"


class MethodFilter(ChoiceFilter):
    """A filter by the HTTP method."""

    title = "method"
    parameter_name = "method"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each method that writes."""
        return {method: Q(method=method) for method in ("POST", "PATCH", "PUT", "DELETE")}


class EndingFilter(ChoiceFilter):
    """A filter by the ending: carried out or refused."""

    title = "ending"
    parameter_name = "ending"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each ending."""
        return {"carried out": Q(status__lt=REFUSED), "refused": Q(status__gte=REFUSED)}


class StatusFilter(ChoiceFilter):
    """A filter by the HTTP status of the answer."""

    title = "status"
    parameter_name = "status"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each known status, and for `other`."""
        known = {str(status): Q(status=status) for status in STATUSES}
        return {**known, "other": ~Q(status__in=STATUSES)}


class PrincipalFilter(ExactTextFilter):
    """A filter by the principal. The principal may be an admin that is no longer configured."""

    title = "exact name of the principal"
    parameters = ("principal",)
    columns: ClassVar = {"principal": "principal"}


class AttemptFilter(ChoiceFilter):
    """A filter that separates dry runs from all other entries."""

    title = "dry run"
    parameter_name = "dry_run"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for dry runs, and the condition for all other entries."""
        return {"dry runs": Q(dry_run=True), "none of them": ~Q(dry_run=True)}


class AuditEntryAdmin(ReadOnlyAdmin):
    """The list of audit entries, and a page for each entry."""

    list_display = (
        "when", "who", "asked", "about", "device_count", "ended", "command", "address",
    )  # fmt: skip
    empty = "Each signed write of an admin is an entry, whether the server carried it out or refused it."
    list_filter = (PrincipalFilter, EndingFilter, StatusFilter, AttemptFilter, MethodFilter, AuditAge, AuditTime)
    linked_by = ("action", "request_id")
    search_fields = ("request_id", "path")
    search_help_text = "Type a whole request id, a whole device id, an action, a principal, or the start of a path."
    fieldsets: ClassVar = [
        (None, {"fields": ["when", "principal", "asked", "trial", "ended", "about", "device_count", "command"]}),
        ("The request", {"fields": [
            "address", "admin_key_id", "method", "path", "action", "target", "status", "code", "request_id",
            "correlation_id", "idempotency_key", "body_sha256",
        ]}),
        ("The audit chain", {"fields": ["previous", "hash"]}),
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
        """Return the action, with a badge for a dry run. Without a summary, return the method and the path."""
        if not entry.action:
            return f"{entry.method} {entry.path}"
        action = link_to_list(AuditEntry, entry.action, action=entry.action)
        return format_html("{} {}", action, badge("dry run", WARN)) if entry.dry_run else action

    @admin.display(description="command")
    def command(self, entry: AuditEntry) -> str:
        """Return a link to the command, or a dash."""
        return link(Command(pk=entry.request_id), short_id(entry.request_id)) if entry.request_id else NOTHING

    @admin.display(description="about")
    def about(self, entry: Any) -> str:
        """Return a link to the device, command or enrollment token of the entry, or the target as text."""
        row, (kind, _, name) = entry.row, entry.target.partition(": ")
        if row is not None:
            return link(row, f"{row._meta.verbose_name} {row}")  # noqa: SLF001
        if entry.request_id is not None and name == str(entry.request_id):
            return link(Command(pk=entry.request_id), "the command")
        if kind == "label":
            return format_html("{}: {}", kind, link_to_list(EnrollmentToken, name, q=name))
        return entry.target_named or NOTHING

    @admin.display(description="ending")
    def ended(self, entry: AuditEntry) -> SafeString:
        """Return whether the request was carried out, or the status and the code of the refusal."""
        if entry.status < REFUSED:
            return badge("only checked" if entry.dry_run else "done", QUIET if entry.dry_run else GOOD)
        return badge(f"{entry.status} {entry.code}".strip(), BAD)

    def name_of(self, row: AuditEntry) -> str:
        """Return the action, the principal and the ending of an entry as one text."""
        what = row.action or f"{row.method} {row.path}"
        dry_run = " (dry run)" if row.dry_run else ""
        ending = "" if row.status < REFUSED else f", refused with {row.status} {row.code}".rstrip()
        return f"{what}{dry_run} by {row.principal}{ending}"

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the entry with the attributes that complete() sets, or None."""
        entry = super().get_object(request, object_id, from_field)
        if entry is not None:
            self.complete([entry])
        return entry

    def complete(self, rows: Sequence[Any]) -> None:
        """Set two attributes on each entry.

        `row` is the device or the enrollment token of the entry, or None. `target_named` is the target with the names
        of devices instead of their ids.
        """
        tokens = {entry.pk: summary.token_in(entry.target) for entry in rows}
        named = [key for entry in rows for key in summary.devices_in(entry.target)]
        devices = _by_key(Device.objects.defer(*SECRETS), named)
        names = {key: str(device) for key, device in devices.items()}
        found = devices | _by_key(EnrollmentToken.objects.defer("token_sha256"), tokens.values())
        for entry in rows:
            key = summary.device_in(entry.target) or tokens[entry.pk]
            entry.row = None if key is None else found.get(key)
            entry.target_named = summary.with_names(entry.target, names)

    def identified(self, key: UUID) -> Q:
        """Return the condition for the entries about a command, an enrollment token or a device with this id."""
        if AuditEntry.objects.filter(request_id=key).exists():
            return Q(request_id=key)
        if EnrollmentToken.objects.filter(pk=key).exists():
            return Q(request_id=None, target=summary.on_token(key))
        return queries.about_device(key)

    def named(self, text: str) -> Q:
        """Return the condition for a searched text: the start of a path, an action or a principal.

        For a principal, upper and lower case make no difference.
        """
        if text.startswith("/"):
            return Q(path__startswith=text)
        # Actions have an index and principals do not, so the action comes first.
        return Q(action=text) if AuditEntry.objects.filter(action=text).exists() else Q(principal=text.lower())


def _by_key(rows: QuerySet[Any], keys: Iterable[UUID | None]) -> dict[UUID, Model]:
    wanted = {key for key in keys if key is not None}
    return rows.in_bulk(wanted) if wanted else {}
