"""The audit: one entry for each signed write, carried out or refused."""

from datetime import timedelta
from typing import Protocol
from uuid import UUID

from django.db.models.functions import Now

from nexmdm.models import AuditEntry


class Audited(Protocol):
    """What an entry says of a caller."""

    @property
    def principal(self) -> str: ...
    @property
    def address(self) -> str | None: ...
    @property
    def method(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def body_sha256(self) -> str: ...
    @property
    def correlation_id(self) -> str: ...


def record(caller: Audited, *, status: int, code: str = "", request_id: UUID | None = None) -> None:
    """Write an entry: with the work, in its transaction; or for a refusal, in one of its own."""
    AuditEntry.objects.create(
        principal=caller.principal,
        address=caller.address,
        method=caller.method,
        path=caller.target,
        body_sha256=caller.body_sha256,
        status=status,
        code=code,
        request_id=request_id,
        correlation_id=caller.correlation_id,
    )


def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` entries that are older than `kept`; return how many."""
    old = AuditEntry.objects.filter(at__lt=Now() - kept).order_by("at").values_list("id", flat=True)
    deleted, _ = AuditEntry.objects.filter(id__in=list(old[:limit])).delete()
    return deleted
