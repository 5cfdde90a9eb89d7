"""How often somebody may call: django-ratelimit's counting behind our own async door, over counters in PostgreSQL.

(Its decorator does not work on Ninja's operations: above one it limits nothing, below one it is a 500.)
"""

import time
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django_ratelimit.core import get_usage

from devices.database import unit
from nexmdm.problems import Problem

REMEMBERED: Final = 10_000
"""How many addresses over the limit a process remembers at most."""

_over_until: dict[str, float] = {}


class RateLimited(Exception):
    """Too many requests. Wait as long as Retry-After says."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"Too many requests. Try again in {retry_after_seconds} s.")
        self.retry_after_seconds = retry_after_seconds

    @property
    def problem(self) -> Problem:
        """What the caller is told."""
        return Problem(429, "rate_limited", str(self), headers={"Retry-After": str(self.retry_after_seconds)})


ROTATION_RATE_LIMIT: Final = "10/h"
"""Rotations of one device. A phone needs one a day at the most, and each costs a bcrypt hash."""


async def count_rotation(device_id: UUID) -> None:
    """Count a rotation of a device that has shown its token. Raises RateLimited beyond its limit."""
    _refuse_above_limit(await unit(count, "rotation", str(device_id), ROTATION_RATE_LIMIT))


async def count_call(principal: str, *, writes: bool) -> None:
    """Count a signed call of a principal. Raises RateLimited beyond its limit."""
    rate = settings.ADMIN_RATE_LIMIT if writes else settings.ADMIN_READ_RATE_LIMIT
    _refuse_above_limit(await unit(count, "write" if writes else "read", principal, rate))


def _refuse_above_limit(usage: dict[str, Any]) -> None:
    if usage["should_limit"]:
        raise RateLimited(max(1, usage["time_left"]))


def seconds_over(address: str) -> int | None:
    """Return how long an address that is known to be over its limit of failures has to wait, else None."""
    left = _over_until.get(address, 0.0) - time.monotonic()
    return max(1, round(left)) if left > 0 else None


async def count_failure(address: str) -> int | None:
    """Count a failed authentication from an address; return the seconds to wait if there were too many, else None.

    An address over its limit is remembered to the end of the window: a flood of failures costs one look-up here.
    """
    if (left := seconds_over(address)) is not None:
        return left
    usage = await unit(count, "failure", address, settings.AUTH_FAILURE_RATE_LIMIT)
    if not usage["should_limit"]:
        return None
    if len(_over_until) >= REMEMBERED:
        _over_until.clear()
    seconds = max(1, int(usage["time_left"]))
    _over_until[address] = time.monotonic() + seconds
    return seconds


def count(group: str, key: str, rate: str) -> dict[str, Any]:
    """Count one more of a group's key, in a thread; return how that stands to the rate, as django-ratelimit says it."""
    usage: dict[str, Any] = get_usage(None, group=group, key=lambda *_: key, rate=rate, increment=True)
    return usage
