"""How often a device may report (DEVICE_RATE_LIMIT).

Each process counts a device's reports by itself. Once a device has a twentieth of the limit, the process adds its count
to one that all processes share, and from then on every further report. So a device of ordinary habits costs no
statement; one process lets exactly the limit through, and each further process at most a tenth of it more.

Only who has proved to be a device is counted as it: else anybody could use up its reports. A report whose token is
looked at by the statement that records it is counted after that, and has a place reserved meanwhile.
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
"""A process keeps this part of the limit to itself, a twentieth: twice, where its window and the shared one overlap."""

REMEMBERED: Final = 100_000
"""Devices that a process counts at most (20 MB): beyond it, all are counted anew."""

REFUSED: Final = CounterMetric("nexmdm_reports_refused", "Reports beyond DEVICE_RATE_LIMIT of their device.")


class TooManyReports(Exception):
    """This device reports too often. Wait as long as Retry-After says."""

    def __init__(self, seconds_left: float) -> None:
        super().__init__()
        self.retry_after_seconds = max(1, math.ceil(seconds_left))


@dataclass(slots=True)
class _Count:
    """The reports of one device in the window that began with its first one. `ends_at` is of time.monotonic()."""

    ends_at: float
    number: int = 0
    shared: int = 0
    """How many of them are in the count of all processes."""

    is_over: bool = False


class ReportLimit:
    """The counts of one process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[UUID, _Count] = {}
        self._reserved: Counter[str] = Counter()
        self._sweep_at = 0.0

    def check(self, device_id: UUID) -> None:
        """Raise TooManyReports for a device that is known to be over the limit. Costs no statement."""
        count, now = self._counts.get(device_id), time.monotonic()
        if count is not None and count.is_over and now < count.ends_at:
            raise _refused(count.ends_at - now)

    def reserve(self, token: tokens.Token) -> bool:
        """Reserve a place for a report that has yet to prove whose it is, in the part that is this process's own.

        False if there is none: then find out whose it is, and call admit(). Else call settle() in the end.
        """
        limit, _ = rates.parse(settings.DEVICE_RATE_LIMIT)
        with self._lock:
            count = self._counts.get(token.id)
            number = count.number if count is not None and time.monotonic() < count.ends_at else 0
            # By the whole token: who guesses at a device's secret takes no place from the device.
            if number + self._reserved[token.text] >= limit // UNSHARED_PART:
                return False
            self._reserved[token.text] += 1
            return True

    def settle(self, token: tokens.Token, *, is_proved: bool) -> None:
        """Give a reserved place back; count the report if its device has proved to be itself."""
        with self._lock:
            self._reserved[token.text] -= 1
            if not self._reserved[token.text]:
                del self._reserved[token.text]
        if is_proved:
            _, seconds = rates.parse(settings.DEVICE_RATE_LIMIT)
            self._counted(token.id, time.monotonic(), seconds)

    def admit(self, device_id: UUID) -> None:
        """Count a report of a device that has proved to be itself. Raises TooManyReports beyond the limit."""
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
        """Begin anew."""
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
    """Add to the count of all processes, which begins anew when its time is over; return it."""
    return number if cache.add(key, number, seconds_left) else cache.incr(key, number)


def _refused(seconds_left: float) -> TooManyReports:
    REFUSED.inc()
    return TooManyReports(seconds_left)


reports: Final = ReportLimit()
"""This process's counts."""
