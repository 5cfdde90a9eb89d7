"""Push health: counts of pushes and their results by a field of the devices.

After the end of each hour, the dispatcher stores the counts of this hour. A query uses these counts for whole hours. It
counts single rows only for the parts of hours at the beginning and at the end.
"""

import math
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

import orjson
from django.db import transaction
from django.db.models import Count, Max, QuerySet
from django.db.models.functions import Now
from pydantic import Field

from devices.models import Device, Presence
from nexmdm.common import database
from nexmdm.common.types import Body, ResponseSchema, Time
from nexmdm.models import PushHealthHour

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
SETTLING: Final = timedelta(minutes=5)
"""The time from the end of an hour until its pushes are counted.

By then, every transaction that began in the hour has ended.
"""

BANDS_PER_DOUBLING: Final = 8
"""The number of latency bands from a latency to its double. All latencies within a band count as equal.

The error of a latency is at most 4.5 %, which is half of a band."""


class PushHealthField(StrEnum):
    """The fields of a device by which pushes can be counted."""

    MODEL = "model"
    MANUFACTURER = "manufacturer"
    OS_VERSION = "os_version"
    AGENT_VERSION = "agent_version"


class PushHealthQuery(Body):
    """The query of push health.

    - `by`: a field of the devices. The answer has one row for each value of this field.
    - `since`: the time from which pushes are counted. The default is a day ago.
    """

    by: PushHealthField = PushHealthField.MODEL
    since: Time | None = None


class PushHealthRow(ResponseSchema):
    """The push health of the devices with one value of a field.

    `key` is this value. `key` is empty for phones that reported no value. A push is counted if it ended after `since`.
    An answer is a settled delivery about which the phone had sent a report. It is counted if it was settled after
    `since`.
    """

    key: str
    devices: Annotated[int, Field(description="Active devices that have this value now.")]
    attempts: Annotated[int, Field(description="Pushes that were sent to FCM.")]
    accepted: Annotated[int, Field(description="Pushes that FCM accepted.")]
    answered_by_push: Annotated[
        int,
        Field(description="Settled deliveries whose phone reported `via`: `push`. The phone got the command by push."),
    ]
    answered_by_heartbeat: Annotated[
        int,
        Field(
            description="Settled deliveries whose phone reported `via`: `heartbeat`. The phone got the "
            "command by heartbeat."
        ),
    ]
    downgraded: Annotated[
        int,
        Field(
            description="Settled deliveries whose push was sent with the priority `high` and arrived with the priority "
            "`normal`."
        ),
    ]
    p50_ms: Annotated[
        int | None,
        Field(
            description="The median time from FCM's acceptance of the push to the first report of a phone that got the "
            "command by push; exact to 5 %."
        ),
    ]
    p95_ms: int | None


class PushHealthList(ResponseSchema):
    """The push health. The value with the most attempts comes first."""

    items: list[PushHealthRow]


# Counts of the pushes and answers between two times. Attempts without a request to FCM are not counted.
_COUNTED: Final = """
    WITH event AS (
        SELECT delivery.device_id, 1 AS attempts, (attempt.outcome = 'accepted')::int AS accepted,
            0 AS answered_by_push, 0 AS answered_by_heartbeat, 0 AS downgraded, NULL::float8 AS seconds
        FROM commands_attempt attempt JOIN commands_delivery delivery ON delivery.id = attempt.delivery_id
        WHERE attempt.finished_at >= %(since)s AND attempt.finished_at < %(until)s
            AND NOT (attempt.outcome = 'blocked' AND attempt.http_status IS NULL)
        UNION ALL
        SELECT device_id, 0, 0, (delivered_via = 'push')::int, (delivered_via = 'heartbeat')::int,
            (push_arrival @> '{"original_priority": "high", "priority": "normal"}')::int,
            CASE WHEN delivered_via = 'push' THEN (
                SELECT extract(epoch FROM delivery.received_at - min(finished_at))::float8
                FROM commands_attempt WHERE delivery_id = delivery.id AND outcome = 'accepted'
            ) END
        FROM commands_delivery delivery
        WHERE settled_at >= %(since)s AND settled_at < %(until)s AND received_at IS NOT NULL
    ), part AS (
        SELECT field, value, event.*,
            CASE WHEN seconds IS NOT NULL
                THEN floor(log(2, GREATEST(seconds * 1000, 1)::numeric) * %(bands_per_doubling)s)::int END AS band
        FROM event
        JOIN devices_device device ON device.id = event.device_id
        JOIN devices_presence presence ON presence.device_id = event.device_id
        CROSS JOIN LATERAL (VALUES
            ('model', device.model), ('manufacturer', device.manufacturer),
            ('os_version', device.os_version), ('agent_version', presence.agent_version)
        ) AS part (field, value)
        WHERE field = ANY(%(fields)s)
    ), banded AS (
        SELECT field, value, band, sum(attempts) AS attempts, sum(accepted) AS accepted,
            sum(answered_by_push) AS answered_by_push, sum(answered_by_heartbeat) AS answered_by_heartbeat,
            sum(downgraded) AS downgraded, count(*) AS events
        FROM part GROUP BY field, value, band
    )
    SELECT field, value, sum(attempts)::int AS attempts, sum(accepted)::int AS accepted,
        COALESCE(sum(answered_by_push), 0)::int AS answered_by_push,
        COALESCE(sum(answered_by_heartbeat), 0)::int AS answered_by_heartbeat,
        COALESCE(sum(downgraded), 0)::int AS downgraded,
        COALESCE(jsonb_object_agg(band, events) FILTER (WHERE band IS NOT NULL), '{}') AS latencies
    FROM banded GROUP BY field, value
"""
_READ: Final = f"""
    SELECT field, value, attempts, accepted, answered_by_push, answered_by_heartbeat, downgraded, latencies::text
    FROM ({_COUNTED}) counted
"""  # noqa: S608  (constants of this module; values are parameters)
_COUNT_HOUR: Final = f"""
    INSERT INTO nexmdm_pushhealthhour (
        starts_at, field, value, attempts, accepted, answered_by_push, answered_by_heartbeat, downgraded, latencies
    )
    SELECT %(since)s, counted.* FROM ({_COUNTED}) counted
    UNION ALL SELECT %(since)s, '', '', 0, 0, 0, 0, 0, '{{}}'
    ON CONFLICT DO NOTHING
"""  # noqa: S608
_HOURS: Final = """
    SELECT field, value, attempts, accepted, answered_by_push, answered_by_heartbeat, downgraded, latencies::text
    FROM nexmdm_pushhealthhour
    WHERE field = ANY(%(fields)s) AND starts_at >= %(since)s AND starts_at < %(until)s
"""
# The start of the next hour to count, and the time until which counts are final. If no hour is counted yet, the next
# hour is the first hour with a push or an answer. A delivery may be past `open_until` and not be settled yet. Its
# `settled_at` will be `open_until`. So the hour of `open_until` is not final until this delivery is settled.
_NEXT_HOUR: Final = """
    SELECT date_trunc('hour', COALESCE(
        (SELECT max(starts_at) + interval '1 hour' FROM nexmdm_pushhealthhour WHERE field = ''),
        LEAST((SELECT min(finished_at) FROM commands_attempt), (SELECT min(settled_at) FROM commands_delivery)),
        now() - interval '1 hour'
    ), 'UTC'), LEAST(now() - %(settling)s, (
        SELECT min(open_until) FROM commands_delivery
        WHERE state IN ('pending', 'received') AND open_until < now()
    ))
"""


def list_health(by: PushHealthField, since: datetime | None) -> PushHealthList:
    """Return the push health by the field `by`, for pushes since `since`. The default is a day ago."""
    now = database.now()
    since = now - DAY if since is None else since
    totals: dict[str, Counter[str]] = {}
    latencies: dict[str, Counter[int]] = {}
    for _, value, *counts, bands in _counted([by], since, now):
        totals.setdefault(value, Counter()).update(dict(zip(_COUNTS, counts, strict=True)))
        latencies.setdefault(value, Counter()).update({int(band): n for band, n in orjson.loads(bands).items()})
    devices = _devices(by)
    rows = [
        _row(key, devices.get(key, 0), totals.get(key, Counter()), latencies.get(key, Counter()))
        for key in {*devices, *totals}
    ]
    return PushHealthList(items=sorted(rows, key=lambda row: (-row.attempts, -row.devices, row.key)))


def _devices(by: PushHealthField) -> dict[str, int]:
    rows: QuerySet[Any] = Device.objects.active()
    if by is PushHealthField.AGENT_VERSION:
        rows = Presence.objects.filter(device__revoked_at=None)
    # The other fields are columns of the device, and need no join with the presence, which would be slow.
    return dict(rows.order_by().values_list(by.value).annotate(Count("pk")))


_COUNTS: Final = ("attempts", "accepted", "answered_by_push", "answered_by_heartbeat", "downgraded")


def _counted(fields: list[str], since: datetime, until: datetime) -> Iterable[tuple[Any, ...]]:
    """Return the counts from `since` until `until`, by field and value.

    The counts of whole hours come from the stored hours. All other counts come from single rows.
    """
    first = _hour_of(since + HOUR - timedelta(microseconds=1))
    last = PushHealthHour.objects.filter(field="").aggregate(last=Max("starts_at"))["last"]
    stored_until = until if last is None else min(until, last + HOUR)
    if last is None or stored_until <= first:
        return _rows(_READ, fields, since, until)
    return [
        *_rows(_READ, fields, since, first),
        *_rows(_HOURS, fields, first, stored_until),
        *_rows(_READ, fields, stored_until, until),
    ]


def _rows(query: str, fields: list[str], since: datetime, until: datetime) -> list[tuple[Any, ...]]:
    bounds = {"fields": fields, "since": since, "until": until, "bands_per_doubling": BANDS_PER_DOUBLING}
    return database.rows(query, bounds) if since < until else []


def _hour_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _row(key: str, devices: int, counts: Counter[str], latencies: Counter[int]) -> PushHealthRow:
    return PushHealthRow(
        key=key,
        devices=devices,
        **{name: counts[name] for name in _COUNTS},
        p50_ms=_percentile(latencies, 0.5),
        p95_ms=_percentile(latencies, 0.95),
    )


def _percentile(latencies: Counter[int], share: float) -> int | None:
    """Return a percentile of the latencies, in ms. The result is the middle of a latency band.

    `latencies` contains the number of answers in each band. `share` is 0.5 for the median. Return None if there are no
    answers.
    """
    left = math.ceil(latencies.total() * share)
    for band in sorted(latencies):
        left -= latencies[band]
        if left <= 0:
            return round(2 ** ((band + 0.5) / BANDS_PER_DOUBLING))
    return None


def count_hours(limit: int) -> int:
    """Store the counts of past hours that are not stored yet. Return how many hours were stored, at most `limit`.

    The oldest hour is stored first. The work stops at the first hour whose counts may still change. Each hour has its
    own transaction.
    """
    for done in range(limit):
        if not _count_next_hour():
            return done
    return limit


@transaction.atomic
def _count_next_hour() -> bool:
    database.advisory_lock("push health", "hours")
    starts_at, complete_until = database.row(_NEXT_HOUR, {"settling": SETTLING})
    if starts_at + HOUR > complete_until:
        return False
    bounds = {"since": starts_at, "until": starts_at + HOUR, "bands_per_doubling": BANDS_PER_DOUBLING}
    database.execute(_COUNT_HOUR, bounds | {"fields": [field.value for field in PushHealthField]})
    return True


def prune(kept: timedelta, limit: int) -> int:
    """Delete the stored counts of hours that began more than `kept` ago. Return the number of deleted rows.

    One call deletes at most `limit` rows.
    """
    old = PushHealthHour.objects.filter(starts_at__lt=Now() - kept).order_by("starts_at").values_list("id", flat=True)
    deleted, _ = PushHealthHour.objects.filter(id__in=list(old[:limit])).delete()
    return deleted
