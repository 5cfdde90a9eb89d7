"""The audit entries: one entry for each signed write, carried out or refused.

A write over the rate limit has no entry.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol
from uuid import UUID

import orjson
from django.db import transaction

from nexmdm.audit.summary import Summary
from nexmdm.common import database
from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import Event, EventType
from nexmdm.models import AuditEntry, AuditMark

# Delete the oldest entries up to the first young entry: the remaining entries must be one chain without a gap. If two
# transactions prune at the same time, the second transaction waits for the mark, and then finds a moved mark.
_MOVE_MARK: Final = """
    INSERT INTO nexmdm_auditmark AS mark (name, entry_id, hash)
    SELECT %(pruned)s, id, hash FROM (
        SELECT id, hash, bool_and(at < now() - %(kept)s) OVER (ORDER BY id) AS old
        FROM (SELECT id, hash, at FROM nexmdm_auditentry ORDER BY id LIMIT %(limit)s) oldest
    ) judged
    WHERE old ORDER BY id DESC LIMIT 1
    ON CONFLICT (name) DO UPDATE SET entry_id = excluded.entry_id, hash = excluded.hash
    WHERE mark.entry_id < excluded.entry_id
    RETURNING entry_id
"""


# Check the mark only at the commit: between the two steps of prune(), the mark names an entry that still exists. An
# outer transaction may have set another time for the check.
_MARK_FIRST: Final = "SET CONSTRAINTS audit_mark_takes_all DEFERRED"


class Audited(Protocol):
    """The facts about a caller that an audit entry contains."""

    @property
    def principal(self) -> str: ...
    @property
    def admin_key_id(self) -> str: ...
    @property
    def idempotency_key(self) -> str: ...
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
    @property
    def summarize(self) -> Callable[[], Summary]: ...


INSERT: Final = """
    INSERT INTO nexmdm_auditentry (
        principal, admin_key_id, idempotency_key, address, method, path, body_sha256, status, code, request_id,
        correlation_id, action, target, device_count, dry_run
    )
    SELECT principal, admin_key_id, idempotency_key, address, method, path, body_sha256, status, code, request_id,
        correlation_id, action, target, device_count, dry_run
    FROM json_to_recordset(%(entries)s::json) AS given (
        principal text, admin_key_id text, idempotency_key text, address inet, method text, path text,
        body_sha256 text, status smallint, code text, request_id uuid, correlation_id text, action text, target text,
        device_count int, dry_run boolean
    )
"""
"""The SQL that writes entries in the order of parameters().

INSERT must be the last statement of a transaction. record() explains why.
"""


def parameters(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the parameters of INSERT. Each entry comes from values()."""
    return {"entries": orjson.dumps(entries).decode()}


def values(
    caller: Audited, *, status: int, code: str = "", request_id: UUID | None = None, device_count: int | None = None
) -> dict[str, Any]:
    """Return the content of an entry.

    `device_count` is the number of devices that the write changed, or would have changed in a dry run.
    """
    summary = caller.summarize()
    return {
        "principal": caller.principal,
        "admin_key_id": caller.admin_key_id,
        "idempotency_key": caller.idempotency_key,
        "address": caller.address,
        "method": caller.method,
        "path": caller.target,
        "body_sha256": caller.body_sha256,
        "status": status,
        "code": code,
        "request_id": request_id,
        "correlation_id": caller.correlation_id,
        "action": summary.action,
        "target": summary.target,
        "device_count": device_count,
        "dry_run": summary.dry_run,
    }


def record(caller: Audited, *, status: int, code: str) -> None:
    """Write the audit entry and the event of a refusal, in a separate transaction.

    INSERT waits until all other transactions that have written an entry have ended. After INSERT, all other
    transactions that write an entry wait for this transaction. Therefore INSERT must be the last statement of its
    transaction.
    """
    entry = values(caller, status=status, code=code)
    content = {name: entry[name] for name in ("principal", "method", "path", "status", "code", "action", "target")}
    refused = events.parameters([Event(EventType.AUDIT_REFUSED, data=content)])
    database.execute_batch(events.APPEND, INSERT, parameters=parameters([entry]) | refused)


@transaction.atomic
def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` entries that are older than `kept`, oldest first. Return the number of entries.

    The place of the last deleted entry is stored. The remaining chain begins after this place. If `kept` is less than a
    day, the database refuses the deletion.
    """
    database.execute(_MARK_FIRST)
    moved = database.rows(_MOVE_MARK, {"pruned": AuditMark.PRUNED, "kept": kept, "limit": limit})
    if not moved:
        return 0
    deleted, _ = AuditEntry.objects.filter(id__lte=moved[0][0]).delete()
    return deleted
