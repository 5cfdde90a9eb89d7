"""How often somebody may call: django-ratelimit's counting behind our own async door, over counters in PostgreSQL.

(Its decorator does not work on Ninja's operations: above one it limits nothing, below one it is a 500.)
"""

import time
from typing import Any, Final

from django.conf import settings
from django_ratelimit.core import get_usage
from prometheus_client import Counter

from devices.database import unit
from nexmdm import address
from nexmdm.problems import Problem

COUNTED_ADDRESSES: Final = 1000
"""How many addresses have a failure counter of their own, per process and period of the limit (at least a minute). All
further addresses share one counter, so that an attack from many addresses cannot fill the table of counters. A good
credential passes in any case."""

FAILURES: Final = "failures"
"""The log's name for the limit of failed authentications."""

_TOGETHER: Final = "further addresses"
_LEAST_SECONDS: Final = 60
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

COUNTED_TOGETHER = Counter(
    "nexmdm_failures_counted_together",
    "Failed authentications from addresses without a counter of their own.",
)

_over_until: dict[str, float] = {}
"""Counters that are over the limit of failures, with the end of their period by time.monotonic()."""

_counted: set[str] = set()
"""The addresses that have a counter of their own in this period."""

_counted_since = float("-inf")


class RateLimited(Exception):
    """Too many requests. Wait as long as Retry-After says."""

    def __init__(self, retry_after_seconds: int, limit: str = "") -> None:
        super().__init__(f"Too many requests. Try again in {retry_after_seconds} s.")
        self.retry_after_seconds = retry_after_seconds
        self.reason = limit
        """The name of the limit, for the log."""

    @property
    def problem(self) -> Problem:
        """What the caller is told."""
        return Problem(429, "rate_limited", str(self), headers={"Retry-After": str(self.retry_after_seconds)})


async def count_call(principal: str, *, writes: bool) -> None:
    """Count a signed call of a principal. Raises RateLimited beyond its limit."""
    rate = settings.ADMIN_RATE_LIMIT if writes else settings.ADMIN_READ_RATE_LIMIT
    group = "write" if writes else "read"
    usage = await unit(_count, group, principal, rate)
    if usage["should_limit"]:
        raise RateLimited(max(1, usage["time_left"]), f"{group}s")


def seconds_over(client: str) -> int | None:
    """Return how long an address that is known to be over its limit of failures has to wait, else None."""
    key = address.counting_key(client)
    until = _over_until.get(key, 0.0)
    if len(_counted) >= COUNTED_ADDRESSES and key not in _counted:
        until = max(until, _over_until.get(_TOGETHER, 0.0))
    left = until - time.monotonic()
    return max(1, round(left)) if left > 0 else None


async def count_failure(client: str) -> int | None:
    """Count a failed authentication from an address; return the seconds to wait if there were too many, else None.

    An address over its limit is remembered to the end of the period: a flood of failures costs one look-up here.
    """
    if (left := seconds_over(client)) is not None:
        return left
    rate = settings.AUTH_FAILURE_RATE_LIMIT
    key = _counted_as(address.counting_key(client), rate)
    usage = await unit(_count, "failure", key, rate)
    if not usage["should_limit"]:
        return None
    seconds = max(1, int(usage["time_left"]))
    _over_until[key] = time.monotonic() + seconds
    return seconds


def forget() -> None:
    """Drop this process's memory of failures; the counters in the database stay."""
    global _counted_since  # noqa: PLW0603  (one ceiling for the process)
    _counted_since = float("-inf")
    _over_until.clear()
    _counted.clear()


def _counted_as(key: str, rate: str) -> str:
    """Return the name of an address's counter: its own while the process has room for one, else the shared one."""
    global _counted_since  # noqa: PLW0603  (one ceiling for the process)
    now = time.monotonic()
    if now - _counted_since > max(_LEAST_SECONDS, _period(rate)):
        _counted_since = now
        _counted.clear()
        for over in [over for over, until in _over_until.items() if until <= now]:
            del _over_until[over]
    if key not in _counted:
        if len(_counted) >= COUNTED_ADDRESSES:
            COUNTED_TOGETHER.inc()
            return _TOGETHER
        _counted.add(key)
    return key


def _period(rate: str) -> int:
    """Return the seconds of a rate's period (`60/m`, `5/10s`)."""
    period = rate.partition("/")[2]
    return int(period[:-1] or 1) * _UNITS[period[-1]]


def _count(group: str, key: str, rate: str) -> dict[str, Any]:
    usage: dict[str, Any] = get_usage(None, group=group, key=lambda *_: key, rate=rate, increment=True)
    return usage
