"""The spans in which devices are online. A heartbeat begins a span.

If no heartbeat comes for 2.5 heartbeat intervals, the dispatcher ends the span. The time of service gaps does not
count. A transaction that changes `online_from` must first lock the presence row of the device, and then read this row
in another statement. So each span begins and ends only once, and has one event for its beginning and one event for its
end.
"""

from datetime import timedelta
from typing import Final

from django.db import transaction

from devices.models import DESCRIBED
from devices.presence import service_time
from nexmdm.common import database
from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import RFC3339, EventType

_FELL_SILENT: Final = f"""{DESCRIBED} || jsonb_build_object(
    'last_seen_at', to_char(last_seen_at AT TIME ZONE 'UTC', {RFC3339}),
    'offline_at', to_char(offline_at AT TIME ZONE 'UTC', {RFC3339})
)"""

LOCK: Final = """
    SELECT count(*) FROM (
        SELECT FROM devices_presence WHERE device_id = ANY(%(device_ids)s::uuid[])
        ORDER BY device_id FOR NO KEY UPDATE
    ) locked
"""


def was_online(presence: str) -> str:
    """Return an SQL condition. It is true if a heartbeat at this moment continues the span of its device.

    `presence` names the locked presence row. The condition is also true for a device that was online before spans
    existed.
    """
    return f"""COALESCE({presence}.last_seen_at > {service_time.online_after()} AND (
        {presence}.online_from IS NOT NULL
        OR NOT EXISTS (SELECT FROM devices_presencespan span WHERE span.device_id = {presence}.device_id)
    ), false)"""


def flips(before: str) -> str:
    """Return CTEs that store the changes which heartbeats at this moment cause: ends of earlier spans, and events.

    `before` names a relation: the locked presence rows as they were before the heartbeats, and the column `was_online`.
    """
    return f"""ended AS (
        SELECT device_id, online_from, last_seen_at, {service_time.online_until("last_seen_at")} AS offline_at
        FROM {before} WHERE online_from IS NOT NULL AND NOT was_online
    ), stored AS (
        {_store("ended")}
    ), appended AS (
        INSERT INTO nexmdm_event (type, device_ids, data)
        SELECT type, ARRAY[device_id], data FROM (
            SELECT device_id, 1 AS place, '{EventType.DEVICE_OFFLINE}' AS type, {_FELL_SILENT} AS data
            FROM ended JOIN devices_device device ON device.id = device_id
            UNION ALL
            SELECT device_id, 2, '{EventType.DEVICE_ONLINE}', {DESCRIBED}
            FROM {before} JOIN devices_device device ON device.id = device_id WHERE NOT was_online
        ) happened ORDER BY device_id, place
    )"""  # noqa: S608  (SQL of our modules)


def _store(ended: str) -> str:
    return f"""
        INSERT INTO devices_presencespan (device_id, online_from, offline_at)
        SELECT device_id, online_from, offline_at FROM {ended} ORDER BY device_id
    """  # noqa: S608  (SQL of our modules)


@transaction.atomic
def end_silent(limit: int) -> int:
    """End the spans of up to `limit` devices that are offline. Return the number of devices.

    A revoked device gets no event, because the server refuses its heartbeats. Presence rows that a heartbeat has locked
    are skipped: the heartbeat ends the span if necessary. If the heartbeat does not end the span, a later call ends the
    span.
    """
    held = database.rows(
        f"""
        SELECT device_id FROM devices_presence
        WHERE online_from IS NOT NULL AND last_seen_at <= {service_time.certainly_offline_until()}
        ORDER BY device_id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
        """,  # noqa: S608  (SQL of our modules)
        {"limit": limit},
    )
    if held:
        database.execute(_end(), {"device_ids": [device_id for (device_id,) in held]})
    return len(held)


def _end() -> str:
    append = events.append_for_devices("active", EventType.DEVICE_OFFLINE, "NULL::uuid", _FELL_SILENT)
    return f"""
        WITH silent AS MATERIALIZED (
            SELECT device_id, online_from, last_seen_at, alias, tags, revoked_at,
                {service_time.online_until("presence.last_seen_at")} AS offline_at
            FROM devices_presence presence JOIN devices_device device ON device.id = device_id
            WHERE device_id = ANY(%(device_ids)s)
        ), active AS (
            SELECT * FROM silent WHERE revoked_at IS NULL
        ), stored AS (
            {_store("silent")}
        ), appended AS (
            {append}
        )
        UPDATE devices_presence SET online_from = NULL WHERE device_id = ANY(%(device_ids)s)
    """  # noqa: S608  (SQL of our modules; values are parameters)


def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` spans that ended more than `kept` ago. Return the number of deleted spans.

    Service gaps that ended more than `kept` ago are deleted too. A service gap is not deleted while a device may be
    online because of this gap.
    """
    database.execute(
        f"""
        DELETE FROM devices_servicegap
        WHERE ended_at < LEAST(now() - %(kept)s, {service_time.certainly_offline_until()})
        """,  # noqa: S608
        {"kept": kept},
    )
    return database.execute(
        """
        DELETE FROM devices_presencespan WHERE id IN (
            SELECT id FROM devices_presencespan WHERE offline_at < now() - %(kept)s ORDER BY offline_at LIMIT %(limit)s
        )
        """,
        {"kept": kept, "limit": limit},
    )
