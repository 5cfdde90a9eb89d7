"""The rate limits of signed calls, failed authentications and rotations. PostgreSQL counts the calls.

A rate is the value of a setting, for example `120/m` for ADMIN_RATE_LIMIT: 120 calls in a window of one minute. The
windows and their counters are in rate_limit_windows.py.

django-ratelimit's decorator does not work on Ninja's operations. Above Ninja's decorator, it limits nothing. Below
Ninja's decorator, it causes a 500.
"""

import math
import time
from typing import Any, Final
from uuid import UUID

from django.conf import settings

from nexmdm.auth.address_limits import AddressLimit
from nexmdm.auth.rate_limit_windows import count, count_at_once
from nexmdm.common.database import run_for_phone, run_in_db_thread, run_lookup
from nexmdm.common.domain_error import DomainError
from nexmdm.common.overload.gates import GateFull
from nexmdm.common.problems import Problem

FAILURES: Final = "failures"
"""The name of the limit of failed authentications in the log."""

failures: Final = AddressLimit("failure")
"""The limit of failed authentications by address. Over the limit, a further failure gets 429.

A valid credential works even over the limit.
"""


class RateLimited(DomainError):
    detail = "Too many requests. Try again after the number of seconds in Retry-After."

    def __init__(self, retry_after_seconds: int, limit: str = "") -> None:
        super().__init__(f"Too many requests. Try again in {retry_after_seconds} s.")
        self.retry_after_seconds = retry_after_seconds
        self.reason = limit
        """The name of the limit, for the log."""

    @property
    def problem(self) -> Problem:
        """The problem details of the answer."""
        return Problem(429, "rate_limited", str(self), headers={"Retry-After": str(self.retry_after_seconds)})


ROTATIONS: Final = "rotations"
"""The name of the limit of rotations in the log."""

ROTATION_RATE_LIMIT: Final = "10/h"
"""The limit of rotations of one device. A phone needs at most one rotation a day, and each rotation costs a bcrypt
hash.
"""


ROTATING_DEVICES: Final = 10_000
"""The largest number of devices over the limit that a process remembers. If one more device is over the limit, the
process forgets the earliest of these devices.
"""

_rotated_too_often: dict[UUID, float] = {}
"""The time at which each device over the limit may rotate again, as a time of time.monotonic()."""


def check_rotation(device_id: UUID) -> None:
    """Raise RateLimited if this process knows that the device is over the limit of rotations. Runs no SQL."""
    left = _rotated_too_often.get(device_id, 0.0) - time.monotonic()
    if left > 0:
        raise RateLimited(max(1, round(left)), ROTATIONS)


async def count_rotation(device_id: UUID) -> None:
    """Count a rotation of a device whose token was valid. Raises RateLimited if the device is over the limit."""
    usage = await run_for_phone(count, "rotation", str(device_id), ROTATION_RATE_LIMIT)
    if usage["should_limit"]:
        if len(_rotated_too_often) >= ROTATING_DEVICES:
            del _rotated_too_often[next(iter(_rotated_too_often))]
        _rotated_too_often[device_id] = time.monotonic() + usage["time_left"]
    _refuse_above_limit(usage, ROTATIONS)


async def count_read(principal: str) -> None:
    """Count a signed read of an admin. Raises RateLimited if the admin is over the limit."""
    await run_in_db_thread(_count_call, "read", principal, settings.ADMIN_READ_RATE_LIMIT)


def count_writes(principal: str, calls: int) -> tuple[int, RateLimited]:
    """Count signed writes of an admin. Call this function in a thread, outside a transaction.

    Return how many of these writes are over the limit, and the error to raise for them.
    """
    return _count_calls("write", principal, settings.ADMIN_RATE_LIMIT, calls)


def _count_call(group: str, principal: str, rate: str) -> None:
    too_many, limited = _count_calls(group, principal, rate, 1)
    if too_many:
        raise limited


def _count_calls(group: str, principal: str, rate: str, calls: int) -> tuple[int, RateLimited]:
    too_many, seconds_left = count_at_once(group, principal, rate, calls)
    return too_many, RateLimited(max(1, math.ceil(seconds_left)), f"{group}s")


def _refuse_above_limit(usage: dict[str, Any], limit: str) -> None:
    if usage["should_limit"]:
        raise RateLimited(max(1, usage["time_left"]), limit)


def forget() -> None:
    """Delete what this process remembers about clients over a limit. The counters in the database stay."""
    failures.forget()
    _rotated_too_often.clear()


async def count_failure(client: str) -> int | None:
    """Count a failed authentication. Return the seconds to wait if the address is over the limit, or None.

    The process remembers an address over the limit until the period ends. Until then, a failure runs no SQL. If too
    many failures from many addresses wait to be counted, a further failure is not counted.
    """
    if (left := failures.seconds_over(client)) is not None:
        return left
    try:
        return await run_lookup(failures.count, client, settings.AUTH_FAILURE_RATE_LIMIT)
    except GateFull:
        return None
