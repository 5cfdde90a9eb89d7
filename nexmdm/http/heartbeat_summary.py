"""A log line about the heartbeats of a web worker, every ten seconds, if HEARTBEAT_LOG is `summary`.

The line is computed from the metrics, so it adds no work to a heartbeat.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import structlog
from django.conf import settings

from devices import check_in
from nexmdm.common.timers import Timer
from nexmdm.http import fast_path
from nexmdm.monitoring import metrics

log = structlog.get_logger()

SECONDS: Final = 10
_P95: Final = 0.95


@dataclass(frozen=True, slots=True)
class _Counted:
    """The counts of this process at one moment: heartbeats by verdict, and answers by latency bucket."""

    at: float
    verdicts: Counter[str]
    answered: list[int]

    @classmethod
    def now(cls) -> "_Counted":
        return cls(time.monotonic(), check_in.verdicts(), metrics.bucket_counts(fast_path.HEARTBEAT, "POST"))


class HeartbeatSummary:
    """Writes the log lines about the heartbeats of one process."""

    def __init__(self) -> None:
        self._last = _Counted.now()
        self._timer = Timer(self._write_and_go_on)

    def start(self) -> None:
        """Write a line every ten seconds from now on. Use it on the event loop."""
        self._timer.set(self._last.at + SECONDS)

    def stop(self) -> None:
        """Write the last line. After this line, write no more lines."""
        self._timer.stop()
        self.write()

    def write(self) -> None:
        """Write a line about the heartbeats since the last line. If there were no heartbeats, write nothing."""
        before, self._last = self._last, _Counted.now()
        verdicts = self._last.verdicts - before.verdicts
        if not verdicts:
            return
        answered = [now - then for now, then in zip(self._last.answered, before.answered, strict=True)]
        log.info(
            "heartbeat.summary",
            seconds=round(self._last.at - before.at, 1),
            count=verdicts.total(),
            verdicts=dict(verdicts),
            p95_ms=round(1000 * _quantile(answered, _P95), 1),
        )

    def _write_and_go_on(self) -> None:
        self.write()
        self.start()


@contextmanager
def lines() -> Iterator[None]:
    """Write the lines inside this block, if HEARTBEAT_LOG is `summary`. Use it on the event loop."""
    if settings.HEARTBEAT_LOG != "summary":
        yield
        return
    summary = HeartbeatSummary()
    summary.start()
    try:
        yield
    finally:
        summary.stop()


def _quantile(counts: Sequence[int], share: float) -> float:
    """Return the time within which the share `share` of the requests was answered.

    `counts` has the number of answers in each bucket. The time is interpolated inside its bucket, as Prometheus does.
    """
    totals = list(accumulate(counts))
    wanted = share * totals[-1]
    place = bisect_left(totals, wanted)
    if not counts[place] or place == len(metrics.BUCKETS):
        return metrics.BUCKETS[min(place, len(metrics.BUCKETS) - 1)]
    low = metrics.BUCKETS[place - 1] if place else 0.0
    return low + (metrics.BUCKETS[place] - low) * (wanted - totals[place] + counts[place]) / counts[place]
