"""The admin page of the audit."""

from typing import ClassVar
from uuid import UUID

from django.db.models import Q

from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import Column
from nexmdm.common.read_only_admin.filters import AgeFilter, ChoiceFilter, DateRangeFilter


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


class AuditEntryAdmin(ReadOnlyAdmin):
    """Who asked for what, and how it ended."""

    list_display = ("when", "principal", "address", "method", "path", "status", "code", "request_id")
    list_filter = (EndingFilter, MethodFilter, AuditAge, AuditTime)
    search_fields = ("request_id", "path")
    search_help_text = "A whole request id, or the start of a path."
    fields: ClassVar = [
        "when", "principal", "admin_key_id", "address", "method", "path", "body_sha256", "idempotency_key", "status",
        "code", "request_id", "correlation_id", "previous", "hash",
    ]  # fmt: skip

    exported: ClassVar = {
        "id": "id", "at": "at", "principal": "principal", "admin_key_id": "admin_key_id",
        "idempotency_key": "idempotency_key", "address": "address", "method": "method", "path": "path",
        "body_sha256": "body_sha256", "status": "status", "code": "code", "request_id": "request_id",
        "correlation_id": "correlation_id", "previous": "previous", "hash": "hash",
    }  # fmt: skip

    when = Column("at")

    def identified(self, key: UUID) -> Q:
        """Return the condition for the request id of a command."""
        return Q(request_id=key)

    def named(self, text: str) -> Q:
        """Return the condition for the start of a path."""
        return Q(path__startswith=text)
