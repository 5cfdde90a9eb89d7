"""Functions that append events to the event feed. An event is written in the transaction that stores its fact.

If the events of one statement differ only in their device, one row stores up to DEVICES_PER_ROW events. For example,
the cancellation of a command to 100,000 devices writes 100 rows. nexmdm/events/feed.py returns one event for each
device.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from nexmdm.common import database


class EventType(StrEnum):
    """The types of events."""

    DEVICE_ENROLLED = "device.enrolled"
    DEVICE_RE_ENROLLED = "device.re_enrolled"
    DEVICE_UPDATED = "device.updated"
    DEVICE_REVOKED = "device.revoked"
    DEVICE_REINSTATED = "device.reinstated"
    DEVICE_RETIRED = "device.retired"
    DEVICE_ONLINE = "device.online"
    DEVICE_OFFLINE = "device.offline"
    DEVICE_PUSH_DEAD = "device.push_dead"
    COMMAND_ISSUED = "command.issued"
    COMMAND_FINISHED = "command.finished"
    DELIVERY_RECEIVED = "delivery.received"
    DELIVERY_SETTLED = "delivery.settled"
    AUDIT_REFUSED = "audit.refused"
    WEBHOOK_PAUSED = "webhook.paused"


DEVICES_PER_ROW: Final = 1000
"""The largest number of devices in one row. The ids of these devices take 16 kB."""


RFC3339: Final = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""
"""SQL: the format for to_char(), with which UTC times are written into the data of events."""


class Event(NamedTuple):
    """An event that is not stored yet. It must contain no secret and no push target."""

    type: EventType
    device_id: UUID | None = None
    request_id: UUID | None = None
    data: Mapping[str, Any] = {}


APPEND: Final = """
    INSERT INTO nexmdm_event (type, device_ids, request_id, data)
    SELECT type, CASE WHEN device_id IS NOT NULL THEN ARRAY[device_id] END, request_id, data
    FROM ROWS FROM (
        jsonb_to_recordset(%(events)s::jsonb) AS (type text, device_id uuid, request_id uuid, data jsonb)
    ) WITH ORDINALITY AS given (type, device_id, request_id, data, position)
    ORDER BY position
"""


def parameters(events: Sequence[Event]) -> dict[str, str]:
    """Return the parameters of the statement APPEND."""
    return {"events": orjson.dumps([event._asdict() for event in events]).decode()}


def append(*events: Event) -> None:
    """Append events in this order. The caller must open the transaction."""
    database.execute(APPEND, parameters(events))


def append_for_devices(devices: str, event_type: EventType, request_id: str, data: str) -> str:
    """Return an INSERT statement that appends one event for each row of `devices`.

    All arguments except `event_type` are SQL. `devices` is a table or query whose rows have the column `device_id`.
    `request_id` and `data` are expressions on the columns of `devices`.
    """
    return f"""
        INSERT INTO nexmdm_event (type, device_ids, request_id, data)
        SELECT '{event_type}', array_agg(device_id ORDER BY place), request_id, data
        FROM (
            SELECT device_id, request_id, data,
                row_number() OVER (PARTITION BY request_id, data ORDER BY device_id) - 1 AS place
            FROM (SELECT device_id, {request_id} AS request_id, {data} AS data FROM {devices}) about
        ) placed
        GROUP BY request_id, data, place / {DEVICES_PER_ROW}
        ORDER BY request_id, min(place)
    """  # noqa: S608  (constants of our modules; values are parameters)
