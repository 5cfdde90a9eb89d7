"""The metrics for Prometheus.

Request times are measured by the web worker. Gauges are read from the database when the metrics are requested. No label
contains an id or free text.
"""

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from commands.push import circuit_breaker
from nexmdm.common import database, request_facts
from nexmdm.common.asgi_types import App, Receive, Scope, Send
from nexmdm.monitoring import dispatcher_status, fleet_summary
from nexmdm.monitoring.fleet_summary import DevicesByPresence
from nexmdm.webhooks import status as webhook_status

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
GAUGES_LIVE_SECONDS: Final = 15
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"))

BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.3, 0.5, 1, 2, 5, 30)
FLUSH_SECONDS: Final = 0.25

REQUEST_SECONDS = Histogram(
    "nexmdm_request_seconds",
    "Time from the start of a request to the end of its answer, by route.",
    ["route", "method", "status"],
    buckets=BUCKETS,
)
MEMORY_BYTES = Gauge(
    "nexmdm_memory_bytes",
    "Resident memory of the largest process of each part.",
    ["part"],
    multiprocess_mode="livemax",
)
_MEMORY: Final = Path("/proc/self/statm")


class Timed:
    """An ASGI application that measures how long another application takes for each request."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and measure its time by route, method and status."""
        started = time.perf_counter()
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["type"] == "http":
                method = scope["method"] if scope["method"] in METHODS else "other"
                facts = request_facts.of(scope)
                buffer = _buffer_of(facts.route or "unmatched", method, facts.status)
                buffer.add(time.perf_counter() - started)


class HistogramBuffer:
    """A buffer for the request times with one route, method and status.

    Every FLUSH_SECONDS, the times in the buffer are added to the histogram. With several processes, a histogram is in a
    shared file. Without the buffer, each request would write to this file twice under a lock. These writes would cost
    more than the log line of a heartbeat.
    """

    def __init__(self, route: str, method: str, status: int) -> None:
        self._child: Any = REQUEST_SECONDS.labels(route, method, str(status))
        self._counts = [0] * len(self._child._buckets)  # noqa: SLF001  (no public function adds several)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Add one request that took `seconds`."""
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._seconds += seconds
        _FLUSH_TIMER.start()

    def flush(self) -> None:
        """Move the contents of the buffer to the histogram."""
        counts, self._counts = self._counts, [0] * len(self._counts)
        seconds, self._seconds = self._seconds, 0.0
        for bucket, count in zip(self._child._buckets, counts, strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)
        if seconds:
            self._child._sum.inc(seconds)  # noqa: SLF001

    def handed_over(self) -> list[int]:
        """Return the number of requests in each bucket of the histogram, for this process."""
        return [int(bucket.get()) for bucket in self._child._buckets]  # noqa: SLF001


class _FlushTimer:
    """The timer that flushes all buffers of an event loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Flush the buffers after FLUSH_SECONDS, unless a flush is already planned."""
        loop = asyncio.get_running_loop()
        if self._timer is None or self._loop is not loop:
            self._loop, self._timer = loop, loop.call_later(FLUSH_SECONDS, self.now)

    def now(self) -> None:
        """Flush the buffers immediately."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for buffer in list(_buffers.values()):
            buffer.flush()
        note_memory("web")


_FLUSH_TIMER: Final = _FlushTimer()
_buffers: Final[dict[tuple[str, str, int], HistogramBuffer]] = {}


def _buffer_of(route: str, method: str, status: int) -> HistogramBuffer:
    found = _buffers.get((route, method, status))
    if found is None:
        found = _buffers[route, method, status] = HistogramBuffer(route, method, status)
    return found


def flush_buffers() -> None:
    """Move the contents of all buffers to the histograms.

    Call this before the histograms are read, and before the process ends. Call this only on the event loop.
    """
    _FLUSH_TIMER.now()


def bucket_counts(route: str, method: str) -> list[int]:
    """Return how many requests of a route this process has answered, by the time that they took.

    The list has one number for each limit in BUCKETS. The last number counts the requests that took longer. Each
    request is counted only in its own bucket.
    """
    _FLUSH_TIMER.now()
    counts = [0] * (len(BUCKETS) + 1)
    for key, buffer in _buffers.items():
        if key[:2] == (route, method):
            counts = [sum(pair) for pair in zip(counts, buffer.handed_over(), strict=True)]
    return counts


def note_memory(part: str) -> None:
    """Set the gauge of this process's memory. `part` is the label, `web` or `dispatch`."""
    if _MEMORY.exists():
        MEMORY_BYTES.labels(part).set(int(_MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


_FAMILIES: Final = (
    ("nexmdm_devices", "Devices by presence. Revoked and retired devices are counted separately.", "presence",
        tuple(DevicesByPresence.model_fields)),
    ("nexmdm_open_deliveries", "Deliveries that wait for their result.", None, (None,)),
    ("nexmdm_oldest_due_push_seconds", "How long the oldest due push has waited.", None, (None,)),
    ("nexmdm_dispatchers", "Dispatchers that are alive, by the state of the circuit to FCM.", "circuit",
        (circuit_breaker.CLOSED, circuit_breaker.OPEN)),
    ("nexmdm_database_connections", "Connections of all processes to the database.", "state",
        ("active", "idle", "other")),
    ("nexmdm_database_connections_limit", "How many connections the database allows.", None, (None,)),
    ("nexmdm_oldest_write_transaction_seconds",
        "Age of the oldest open write transaction in the cluster that NexMDM's role can see.", None, (None,)),
    ("nexmdm_webhooks", "Webhooks by state.", "state", webhook_status.STATES),
    ("nexmdm_webhook_lag_seconds", "How long the oldest event has waited for a webhook that is not paused.", None,
        (None,)),
)  # fmt: skip
"""The name, help text, label and label values of each gauge, in the order of the values of `_values()`."""

_GAUGES: Final = """
    SELECT
        (SELECT count(*) FROM commands_delivery WHERE state IN ('pending', 'received') AND open_until > now()),
        (SELECT COALESCE(GREATEST(extract(epoch FROM now() - min(next_attempt_at)), 0), 0) FROM commands_delivery
            WHERE next_attempt_at IS NOT NULL AND %(pushes)s),
        dispatcher.*, backend.*, current_setting('max_connections')::int,
        (SELECT COALESCE(GREATEST(extract(epoch FROM now() - min(began_at)), 0), 0) FROM (
            SELECT xact_start AS began_at FROM pg_stat_activity WHERE backend_xid IS NOT NULL
            UNION ALL SELECT prepared FROM pg_prepared_xacts
        ) writing)
    FROM (
        SELECT count(*) FILTER (WHERE circuit <> %(open)s), count(*) FILTER (WHERE circuit = %(open)s)
        FROM nexmdm_dispatcherseen WHERE last_seen_at > now() - %(alive)s
    ) dispatcher, (
        SELECT count(*) FILTER (WHERE state = 'active'), count(*) FILTER (WHERE state = 'idle'),
            count(*) FILTER (WHERE state NOT IN ('active', 'idle'))
        FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user
    ) backend
"""


class Gauges(Collector):
    """The gauges from the database. Three statements read the values, which are then used for 15 s."""

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._values: Sequence[float] = ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges with their values."""
        if time.monotonic() - self._read_at > GAUGES_LIVE_SECONDS:
            self._values = _values()
            self._read_at = time.monotonic()
        values = iter(self._values)
        for name, description, label, words in _FAMILIES:
            family = GaugeMetricFamily(name, description, labels=[label] if label else [])
            for word in words:
                family.add_metric([word] if word else [], next(values))
            yield family


def _values() -> Sequence[float]:
    devices = fleet_summary.devices_by_presence().model_dump().values()
    return (*devices, *database.row(_GAUGES, _parameters()), *webhook_status.figures())


def _parameters() -> dict[str, Any]:
    return {
        "pushes": settings.FIREBASE_SERVICE_ACCOUNT is not None,
        "open": circuit_breaker.OPEN,
        "alive": dispatcher_status.ALIVE,
    }


_gauges: Final = Gauges()


def exposition() -> bytes:
    """Return all metrics in the text format of Prometheus.

    If PROMETHEUS_MULTIPROC_DIR is set, the metrics of all processes with this folder are added up. If the variable is
    not set, the metrics are only from this process.
    """
    registry = CollectorRegistry()
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        multiprocess.MultiProcessCollector(registry, path=str(Path(folder)))  # type: ignore[no-untyped-call]
        registry.register(_gauges)
        return generate_latest(registry)
    registry.register(_gauges)
    return generate_latest(REGISTRY) + generate_latest(registry)
