"""Prometheus: a histogram of requests from the outermost layer, gauges read from the database at scrape time.

No label carries an id or free text.
"""

import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from django.conf import settings
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from devices import database
from devices.models import online_window
from nexmdm.guard import App, Message, Receive, Scope, Send

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
GAUGES_LIVE_SECONDS: Final = 15
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"))

REQUEST_SECONDS = Histogram(
    "nexmdm_request_seconds",
    "Time to the end of the answer, by route.",
    ["route", "method", "status"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.3, 0.5, 1, 2, 5, 30),
)


class Timed:
    """An ASGI application that measures another one."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and observe it under its route's name."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = scope.get("nexmdm.route", "unmatched")
            _child(route, method, status).observe(time.perf_counter() - started)


@cache
def _child(route: str, method: str, status: int) -> Histogram:
    return REQUEST_SECONDS.labels(route, method, str(status))


_GAUGES: Final = """
    SELECT
        (SELECT count(*) FROM commands_delivery WHERE state IN ('pending', 'received') AND open_until > now()),
        (SELECT COALESCE(GREATEST(extract(epoch FROM now() - min(next_attempt_at)), 0), 0) FROM commands_delivery
            WHERE next_attempt_at IS NOT NULL AND %s),
        (SELECT count(*) FROM devices_presence presence JOIN devices_device device ON device.id = presence.device_id
            WHERE presence.last_seen_at > now() - %s AND device.revoked_at IS NULL)
"""


class Gauges(Collector):
    """The gauges that only the database knows, by one statement at scrape time, kept for 15 s."""

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._values: tuple[float, float, float] = (0, 0, 0)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges."""
        if time.monotonic() - self._read_at > GAUGES_LIVE_SECONDS:
            self._values = database.row(_GAUGES, [settings.FIREBASE_SERVICE_ACCOUNT is not None, online_window()])
            self._read_at = time.monotonic()
        open_deliveries, oldest_due, online = self._values
        yield GaugeMetricFamily("nexmdm_open_deliveries", "Deliveries that wait for their result.", open_deliveries)
        yield GaugeMetricFamily(
            "nexmdm_oldest_due_push_seconds", "How long the oldest due push has waited.", oldest_due
        )
        yield GaugeMetricFamily("nexmdm_devices_online", "Devices heard within 2.5 heartbeat intervals.", online)


_gauges: Final = Gauges()


def exposition() -> bytes:
    """Return all metrics: of every process that shares PROMETHEUS_MULTIPROC_DIR, else of this one."""
    registry = CollectorRegistry()
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        multiprocess.MultiProcessCollector(registry, path=str(Path(folder)))  # type: ignore[no-untyped-call]
        registry.register(_gauges)
        return generate_latest(registry)
    registry.register(_gauges)
    return generate_latest(REGISTRY) + generate_latest(registry)
