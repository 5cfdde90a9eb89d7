"""The rows of the API as the client prints them: their columns, their computed fields, and their order.

The functions whose name ends in `_rank` return a sort key. A row with a low key comes first.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from nexmdm.client.arguments import IDENTIFIER

Json = dict[str, Any]


class Columns(NamedTuple):
    """The columns of a list.

    The format `table` has the columns in `shown`, with the most important column first. The formats `wide` and CSV also
    have the columns in `more`.
    """

    shown: tuple[str, ...]
    more: tuple[str, ...] = ()

    def of(self, row: Json, name: str) -> Any:
        """Return a field of a row. A column in `more` may be missing in the answer of an older server."""
        return row.get(name) if name in self.more else row[name]


DEVICES: Final = Columns(
    ("device_id", "alias", "presence", "last_seen_at", "push", "hardware_id", "tags"),
    (
        "offline_since", "manufacturer", "model", "os_version", "agent_version", "enrolled_at", "revoked_at",
        "retired_at", "last_status", "last_refusal",
    ),
)  # fmt: skip
TOKENS: Final = Columns(
    ("id", "label", "state", "uses", "max_uses", "expires_at", "tags", "re_enroll", "created_at"), ("revoked_at",)
)
COMMANDS: Final = Columns(
    ("request_id", "action", "outcome", "state", "succeeded", "device_count", "issued_at", "expires_at", "note"),
    ("params", "target", "priority", "issued_by"),
)
DELIVERIES: Final = Columns(
    ("device_id", "alias", "state", "reason", "delivered_via"),
    ("push", "issued_at", "expires_at", "received_at", "settled_at", "result", "late_result"),
)
PRESENCE: Final = Columns(("state", "from", "to", "length"))
EVENTS: Final = Columns(("when", "event", "outcome", "via", "http_status", "latency_ms", "detail"))
AUDIT: Final = Columns(
    ("at", "status", "action", "target", "principal", "device_count", "dry_run", "code", "request_id"),
    ("address", "method", "path", "correlation_id", "body_sha256"),
)
_PUSH_HEALTH: Final = (
    "answered_percent", "accepted", "answered_by_push", "answered_by_heartbeat", "downgraded", "p50_ms", "p95_ms",
    "devices", "attempts",
)  # fmt: skip
WEBHOOKS: Final = Columns(("id", "url", "paused", "types", "tags", "description"), ("why", "created_at", "cursor"))
WEBHOOK_ATTEMPTS: Final = Columns(("at", "delivered", "http_status", "type", "event_id", "latency_ms", "error"))
PROFILES: Final = Columns(("name", "url", "secrets"))

WORST_FIRST: Final = ("failed", "expired", "cancelled", "received", "pending", "succeeded")
"""The states of a delivery, with the worst state first."""

PRESENCES: Final = ("offline", "never", "online", "revoked", "retired")
"""The presences of a device, with the worst presence first."""

_PUSHES: Final = ("dead", "failing", "none", "ok")
_OUTCOMES: Final = ("failed", "expired", "partial", "cancelled", None, "succeeded")
_CUT_ID: Final = re.compile(r"(?<=, )[0-9a-f-]*…$")
_LAST: Final = "~"
"""A text that sorts after every time of the API."""


def as_it_is(row: Json) -> Json:
    """Return the row unchanged."""
    return row


def token(row: Json) -> Json:
    """Return an enrollment token with the computed field `state`."""
    if row["revoked_at"]:
        return row | {"state": "revoked"}
    if moment(row["expires_at"]) <= datetime.now(UTC):
        return row | {"state": "expired"}
    return row | {"state": "exhausted" if row["uses"] >= row["max_uses"] else "open"}


def command(row: Json) -> Json:
    """Return a command whose `outcome` also contains the number of late results.

    A `?` stands for a number that an older server did not send.
    """
    # In lists, a server of the previous version does not count successes and late results.
    succeeded = row.get("succeeded")
    row = row | {"succeeded": "?" if succeeded is None else succeeded}
    if not row["outcome"] or row.get("late", 0) == 0:
        return row
    late = "?" if row["late"] is None else row["late"]
    return row | {"outcome": f"{row['outcome']}, {late} late"}


def audit_entry(row: Json) -> Json:
    """Return an audit entry with the fields of its summary at the top level."""
    return {**row, **row["summary"]}


def device_ids(target: str) -> list[str]:
    """Return the device ids in the target of an audit entry. The target is a text such as `device_ids: …, …`."""
    by_id = target.partition(": ")[0] in ("device_id", "device_ids", "tag")
    return IDENTIFIER.findall(target) if by_id else []


def with_names(entry: Json, names: Mapping[str, str]) -> Json:
    """Return an audit entry whose target contains names of devices instead of their ids.

    `names` contains the names by device id. The server may have cut a long target in the middle of an id. This part of
    an id is removed.
    """
    target = _CUT_ID.sub("…", entry["summary"]["target"] or "")
    for one in device_ids(target):
        target = target.replace(one, names.get(one, one))
    return entry | {"summary": entry["summary"] | {"target": target or None}}


def delivery(row: Json) -> Json:
    """Return a delivery with the computed field `reason`.

    The reason is the report of the phone. Without a result, the reason explains why there is no result.
    """
    if row["result"]:
        return row | {"reason": row["result"]["message"] or row["result"]["status"]}
    late = f"The phone reported {row['late_result']['status']} later." if row["late_result"] else None
    return row | {"reason": " ".join(filter(None, (row["why_open"], row["why_unfinished"], late)))}


def succeeded_late(row: Json) -> bool:
    """Return whether the late result of a delivery is `succeeded`."""
    return bool(row["late_result"] and row["late_result"]["status"] == "succeeded")


def event(row: Json) -> Json:
    """Return an event of a timeline with the columns of EVENTS."""
    remarks = [name for name in ("late", "duplicate") if row[name]]
    if last_at := row.get("last_at"):
        remarks.append(f"{row['count']} times, last {_to_the_millisecond(last_at)}")
    details = [row[name] for name in ("fcm_error", "message_id", "message", "detail") if row[name]]
    return row | {
        "when": _to_the_millisecond(row["at"]),
        "outcome": row["outcome"] or row["status"] or row["state"],
        "detail": "; ".join([*remarks, *details]) or None,
    }


def presence(row: Json) -> Json:
    """Return an item of a presence history with the computed field `length`. An item without an end lasts until now."""
    to = moment(row["to"]) if row["to"] else datetime.now(UTC)
    # Without fractions of seconds, because the table shows the times without fractions.
    length = to.replace(microsecond=0) - moment(row["from"]).replace(microsecond=0)
    return row | {"length": str(max(length, timedelta(0)))}


def push_health_columns(by: str) -> Columns:
    """Return the columns of push health. `by` is the field whose values are the rows."""
    return Columns((by, *_PUSH_HEALTH))


def push_health(by: str) -> Callable[[Json], Json]:
    """Return a function that adds the computed fields to a row of push health."""

    def described(row: Json) -> Json:
        share = _answered_share(row)
        return row | {by: row["key"], "answered_percent": None if share is None else round(100 * share)}

    return described


def push_health_rank(row: Json) -> tuple[bool, float, int, str]:
    """Return a sort key for the share of accepted pushes that brought the command to the phone.

    The lowest share comes first. The share is 0 if FCM accepted no push. Rows without any push come last.
    """
    return row["attempts"] == row["accepted"] == 0, _answered_share(row) or 0, -row["attempts"], row["key"]


def _answered_share(row: Json) -> float | None:
    # Without min(), the share could be above 1, because an answer may belong to a push from before `since`.
    return min(1.0, row["answered_by_push"] / row["accepted"]) if row["accepted"] else None


def device_rank(row: Json) -> tuple[int, str, int]:
    """Return a sort key for the problems of a device.

    Offline devices come first, and among them the device that was silent longest.
    """
    presence = row["presence"]
    silence = (row["last_seen_at"] or _LAST) if presence == "offline" else _LAST
    return _place(PRESENCES, presence), silence, _place(_PUSHES, row["push"])


def command_rank(row: Json) -> int:
    """Return a sort key for the outcome of a command, with failed commands first."""
    return _place(_OUTCOMES, row["outcome"])


def delivery_rank(row: Json) -> int:
    """Return a sort key for the state of a delivery, with the worst state first.

    Deliveries that succeeded late come after all other deliveries.
    """
    return _place(WORST_FIRST, row["state"]) + len(WORST_FIRST) * succeeded_late(row)


def moment(text: str) -> datetime:
    """Return a time of the API as a datetime."""
    return datetime.fromisoformat(text)


def _place(order: tuple[Any, ...], value: Any) -> int:
    return order.index(value) if value in order else -1


def _to_the_millisecond(at: str) -> str:
    return moment(at).isoformat(timespec="milliseconds").replace("+00:00", "Z")
