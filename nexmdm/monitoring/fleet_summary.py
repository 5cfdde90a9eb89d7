"""Counts of the fleet: devices by presence, open deliveries, and pushes by their result."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db.models import Count

from commands.models import AttemptOutcome, Delivery
from devices.models import Device
from devices.presence.states import presences
from nexmdm.common import database
from nexmdm.common.types import ResponseSchema

LAST_HOUR: Final = timedelta(hours=1)


_PUSHES: Final = """
    SELECT fcm_error, http_status, outcome, count(*), min(finished_at)
    FROM (
        SELECT fcm_error, http_status, outcome, finished_at FROM commands_attempt
        WHERE finished_at > now() - %s ORDER BY finished_at DESC LIMIT %s
    ) newest
    GROUP BY fcm_error, http_status, outcome
"""


class DevicesByPresence(ResponseSchema):
    """The number of devices with each presence. Each device is counted once."""

    online: int
    offline: int
    never: int
    revoked: int
    retired: int


class Summary(ResponseSchema):
    """Counts of the fleet.

    The keys of `pushes_last_hour` are `OK` and the error codes of FCM. Without an error code, the key is the HTTP
    status. Without an HTTP status, the key is the outcome of the attempt.
    """

    devices: DevicesByPresence
    open_deliveries: int
    pushes_last_hour: dict[str, int]


def summary() -> Summary:
    """Return the counts of the fleet."""
    return Summary(
        devices=devices_by_presence(),
        open_deliveries=Delivery.objects.open().count(),
        pushes_last_hour={pushes.code: pushes.count for pushes in pushes_of(LAST_HOUR)},
    )


def devices_by_presence() -> DevicesByPresence:
    """Return the number of devices with each presence. This is one query."""
    counted = {name: Count("pk", filter=condition) for name, condition in presences().items()}
    return DevicesByPresence(**Device.objects.aggregate(**counted))


@dataclass(frozen=True, slots=True)
class Pushes:
    """The number of pushes with the same result.

    `code` is `OK`, the error code of FCM, the HTTP status, or the outcome of the attempt. `oldest_at` is the time at
    which the first of these pushes ended.
    """

    code: str
    count: int
    oldest_at: datetime


def pushes_of(span: timedelta, most: int | None = None) -> list[Pushes]:
    """Count the pushes that ended in the last `span`, by code. The most frequent code is first.

    If `most` is set, only the newest `most` pushes are counted.
    """
    counted: dict[str, Pushes] = {}
    for fcm_error, http_status, outcome, count, oldest_at in database.rows(_PUSHES, [span, most]):
        code = fcm_error or ("OK" if outcome == AttemptOutcome.ACCEPTED else str(http_status or outcome.upper()))
        same = counted.get(code, Pushes(code, 0, oldest_at))
        counted[code] = Pushes(code, same.count + count, min(same.oldest_at, oldest_at))
    return sorted(counted.values(), key=lambda pushes: -pushes.count)
