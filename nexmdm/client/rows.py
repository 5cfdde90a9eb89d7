"""The rows of the API as the client's tables show them: the columns of each, and what is worked out for them."""

from datetime import UTC, datetime
from typing import Final

from nexmdm.client import display
from nexmdm.client.http_client import Json

# The columns, those first that a narrow terminal has to show.
DEVICE_COLUMNS: Final = ("device_id", "alias", "presence", "last_seen_at", "push", "hardware_id", "tags")
TOKEN_COLUMNS: Final = ("id", "label", "state", "uses", "max_uses", "expires_at", "tags", "re_enroll", "created_at")
COMMAND_COLUMNS: Final = (
    "request_id", "action", "outcome", "state", "device_count", "issued_at", "expires_at", "note",
)  # fmt: skip
DELIVERY_COLUMNS: Final = ("device_id", "alias", "state", "said", "delivered_via")
EVENT_COLUMNS: Final = ("when", "event", "outcome", "via", "http_status", "latency_ms", "said")
AUDIT_COLUMNS: Final = (
    "at", "status", "action", "target", "principal", "device_count", "dry_run", "code", "request_id", "address",
    "method", "path", "correlation_id",
)  # fmt: skip


def as_it_is(row: Json) -> Json:
    """Return a row that has all of its columns."""
    return row


def token(row: Json) -> Json:
    """Return an enrollment token with its state."""
    if row["revoked_at"]:
        return row | {"state": "revoked"}
    if moment(row["expires_at"]) <= datetime.now(UTC):
        return row | {"state": "expired"}
    return row | {"state": "exhausted" if row["uses"] >= row["max_uses"] else "open"}


def command(row: Json) -> Json:
    """Return a command whose outcome says how many results came too late for it; ? where the server did not count."""
    # A server of the version before does not count them in a list.
    if not row["outcome"] or row.get("late", 0) == 0:
        return row
    late = "?" if row["late"] is None else row["late"]
    return row | {"outcome": f"{row['outcome']}, {late} late"}


def audit_entry(row: Json) -> Json:
    """Return an entry of the audit with its summary as fields next to the others."""
    return {**row, **row["summary"]}


def delivery(row: Json) -> Json:
    """Return a delivery with what was said of it."""
    if row["result"]:
        return row | {"said": row["result"]["message"] or row["result"]["status"]}
    late = f"It reported {row['late_result']['status']} later." if row["late_result"] else None
    return row | {"said": " ".join(filter(None, (row["why_open"], row["why_unfinished"], late)))}


def succeeded_late(row: Json) -> bool:
    """Tell whether a delivery succeeded after it was settled otherwise."""
    return bool(row["late_result"]) and row["late_result"]["status"] == "succeeded"


def event(row: Json) -> Json:
    """Return an event of a timeline in the columns of one table."""
    remarks = [name for name in ("late", "duplicate") if row[name]]
    if last_at := row.get("last_at"):
        remarks.append(f"{row['count']} times, last {display.to_the_millisecond(last_at)}")
    details = [row[name] for name in ("fcm_error", "message_id", "message", "detail") if row[name]]
    return row | {
        "when": display.to_the_millisecond(row["at"]),
        "outcome": row["outcome"] or row["status"] or row["state"],
        "said": "; ".join([*remarks, *details]) or None,
    }


def moment(text: str) -> datetime:
    """Return a time of the API."""
    return datetime.fromisoformat(text)
