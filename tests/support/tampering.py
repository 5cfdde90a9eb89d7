"""Changes that the owner of the database can make to the audit without the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.db import transaction

from nexmdm.audit import chain
from nexmdm.common import database
from nexmdm.models import AuditEntry, AuditMark

# All except those against TRUNCATE, which are off while the tests run (see conftest).
GUARDS = (
    *(("nexmdm_auditentry", f"audit_{name}") for name in ("appended", "followed", "not_changed", "not_deleted")),
    ("nexmdm_auditmark", "audit_mark_guarded"),
)


@contextmanager
def unguarded() -> Iterator[None]:
    """Switch the audit's triggers off, for one transaction."""
    with transaction.atomic():
        _switch("DISABLE")
        yield
        _switch("ENABLE")


def _switch(how: str) -> None:
    for table, trigger in GUARDS:
        database.execute(f"ALTER TABLE {table} {how} TRIGGER {trigger}")


def change(entry_id: int, **values: Any) -> None:
    """Change an entry."""
    with unguarded():
        AuditEntry.objects.filter(id=entry_id).update(**values)


def delete(*entry_ids: int) -> None:
    """Delete entries."""
    with unguarded():
        AuditEntry.objects.filter(id__in=entry_ids).delete()


def forge(entry_id: int, *, previous: str, **values: Any) -> AuditEntry:
    """Insert an entry with the correct hash of its content."""
    fields = {"principal": "admin", "method": "POST", "path": "/admin/forged", "status": 200, "previous": previous}
    with unguarded():
        AuditEntry.objects.create(id=entry_id, **fields, **values)
    seal(entry_id)
    return AuditEntry.objects.get(id=entry_id)


def seal(entry_id: int) -> str:
    """Give an entry the correct hash of its present content; return the hash."""
    right = chain.digest(AuditEntry.objects.get(id=entry_id))
    change(entry_id, hash=right)
    return right


def rewrite() -> None:
    """Chain all entries again as they are, and move the mark, like an expert who hides a change."""
    previous = chain.BEGINNING.hash
    for entry_id in AuditEntry.objects.order_by("id").values_list("id", flat=True):
        change(entry_id, previous=previous)
        previous = seal(entry_id)
        with unguarded():
            AuditMark.objects.filter(name=AuditMark.NEWEST).update(entry_id=entry_id, hash=previous)


def grow_old(*entry_ids: int, at: datetime) -> None:
    """Change the times of entries."""
    with unguarded():
        AuditEntry.objects.filter(id__in=entry_ids).update(at=at)
    rewrite()
