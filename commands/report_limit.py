"""The limit on how often a device may report (DEVICE_RATE_LIMIT).

Each process counts the reports of a device in memory. When this count exceeds a twentieth of the limit, the process
adds its count to a shared count in the database. Each further report of the device is added too. Therefore an ordinary
device causes no SQL. If only one process runs, a device can send exactly as many reports as the limit. Each further
process raises this number by at most a tenth of the limit.

A report counts for a device only if the token of the report is valid. Without this rule, any client could use up the
reports of a device. A batch checks the tokens of its reports while it records the reports. Until then, each report
reserves a place in the count of its token.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass
from threading import Lock
from typing import Final
from uuid import UUID

from django.conf import settings
from django.core.cache import cache
from prometheus_client import Counter as CounterMetric

from devices import tokens
from nexmdm.common import rates

UNSHARED_PART: Final = 20
"""Each process counts a part of the limit only in memory: the limit divided by this number.

If the window of a process overlaps with two shared windows, the process can use this part twice.
"""

REMEMBERED: Final = 100_000
"""The largest number of devices that a process counts. The counts then take 20 MB.

If one more device reports, all counts begin again.
"""

REFUSED: Final = CounterMetric(
    "nexmdm_reports_refused", "Reports that got the answer 429, because the device exceeded DEVICE_RATE_LIMIT."
)


class TooManyReports(Exception):
    """The device reports more often than DEVICE_RATE_LIMIT allows. `retry_after_seconds` is at least 1."""

    def __init__(self, seconds_left: float) -> None:
        super().__init__()
        self.retry_after_seconds = max(1, math.ceil(seconds_left))


@dataclass(slots=True)
class _Count:
    """The reports of one device in one window. The window begins with the first report.

    `ends_at` is a time of time.monotonic(). `is_over`: the device is over the limit until the window ends.
    """

    ends_at: float
    number: int = 0
    shared: int = 0
    """The number of these reports that the shared count already contains."""

    is_over: bool = False


class ReportLimit:
    """The report counts of one process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[UUID, _Count] = {}
        self._reserved: Counter[str] = Counter()
        self._sweep_at = 0.0

    def check(self, device_id: UUID) -> None:
        """Raise TooManyReports if this process knows that the device is over the limit. Runs no SQL."""
        count, now = self._counts.get(device_id), time.monotonic()
        if count is not None and count.is_over and now < count.ends_at:
            raise _refused(count.ends_at - now)

    def reserve(self, token: tokens.Token) -> bool:
        """Reserve a place for a report whose token is not checked yet. Return whether a place was free.

        If the result is True, call settle() when the token has been checked. If the result is False, check the token,
        and then call admit().
        """
        limit, _ = rates.parse(settings.DEVICE_RATE_LIMIT)
        with self._lock:
            count = self._counts.get(token.id)
            number = count.number if count is not None and time.monotonic() < count.ends_at else 0
            # Count by the whole token: guesses at a device's secret must take no place from the device.
            if number + self._reserved[token.text] >= limit // UNSHARED_PART:
                return False
            self._reserved[token.text] += 1
            return True

    def settle(self, token: tokens.Token, *, is_proved: bool) -> None:
        """Free the place of a report for which reserve() returned True. If `is_proved`, the token was valid, and the
        report is counted.
        """
        with self._lock:
            self._reserved[token.text] -= 1
            if not self._reserved[token.text]:
                del self._reserved[token.text]
        if is_proved:
            _, seconds = rates.parse(settings.DEVICE_RATE_LIMIT)
            self._counted(token.id, time.monotonic(), seconds)

    def admit(self, device_id: UUID) -> None:
        """Count a report whose token was valid. Raises TooManyReports if the device is over the limit. May run SQL."""
        limit, seconds = rates.parse(settings.DEVICE_RATE_LIMIT)
        now = time.monotonic()
        count = self._counted(device_id, now, seconds)
        unshared = limit // UNSHARED_PART
        with self._lock:
            more, count.shared = count.number - count.shared, count.number if count.number > unshared else 0
        if count.number <= unshared:
            return
        seconds_left = count.ends_at - now
        total = _share(f"reports:{device_id}", more, seconds_left)
        if total > limit:
            count.is_over = True
            raise _refused(seconds_left)

    def forget(self) -> None:
        """Delete all counts and all reserved places of this process."""
        with self._lock:
            self._counts.clear()
            self._reserved.clear()

    def _counted(self, device_id: UUID, now: float, seconds: int) -> _Count:
        with self._lock:
            self._sweep(now, seconds)
            count = self._counts.get(device_id)
            if count is None or now >= count.ends_at:
                count = self._counts[device_id] = _Count(now + seconds)
            count.number += 1
            return count

    def _sweep(self, now: float, seconds: int) -> None:
        if len(self._counts) >= REMEMBERED:
            self._counts.clear()
        if now >= self._sweep_at:
            self._sweep_at = now + seconds
            self._counts = {device_id: count for device_id, count in self._counts.items() if now < count.ends_at}


def _share(key: str, number: int, seconds_left: float) -> int:
    """Add `number` to the shared count, and return the sum. When the window ends, the shared count begins again."""
    return number if cache.add(key, number, seconds_left) else cache.incr(key, number)


def _refused(seconds_left: float) -> TooManyReports:
    REFUSED.inc()
    return TooManyReports(seconds_left)


reports: Final = ReportLimit()
"""The report counts of this process."""
