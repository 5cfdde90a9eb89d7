"""The ASGI application of a web worker: metrics, then the guard, then one of four handlers.

The path selects the handler:
- the fast path, for heartbeats and reports
- the handler of the API
- the handler of the admin site
- the handler of static files
"""

import asyncio
import os
from typing import Any

import structlog
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from commands import report_intake
from commands.admin_api import small_commands
from devices import check_in
from nexmdm.common import gc_tuning, shutdown
from nexmdm.common.asgi_types import App, Receive, Scope, Send
from nexmdm.common.database import run_in_db_thread
from nexmdm.config import checks
from nexmdm.http import (
    admin_site_handler,
    connection_bounds,
    heartbeat_summary,
    refusals,
    static_files,
)
from nexmdm.http.admin_site_handler import SiteHandler
from nexmdm.http.api_handler import ApiHandler
from nexmdm.http.fast_path import fast_paths
from nexmdm.http.guard.guard import Guard
from nexmdm.http.static_files import StaticFiles
from nexmdm.monitoring import metrics, service_marks
from nexmdm.monitoring.metrics import Timed

log = structlog.get_logger()


class Application:
    """Selects the handler of a request, and does the work of the server's start and stop."""

    def __init__(self) -> None:
        self._api = ApiHandler()
        self._fast_paths = fast_paths(self._api)
        self._site = SiteHandler(self._api)
        self._static_files = StaticFiles()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the ASGI lifespan. Raises ValueError for other types of scopes."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] != "http":
            raise ValueError(f"NexMDM serves only HTTP, not {scope['type']}.")
        elif (fast_path := self._fast_paths.get(scope["path"])) is not None:
            await fast_path(scope, receive, send)
        elif admin_site_handler.serves(scope["path"]):
            await self._site(scope, receive, send)
        elif scope["path"].startswith(static_files.PREFIX):
            await self._static_files(scope, receive, send)
        else:
            await self._api(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            checks.refuse(await run_in_db_thread(checks.connections))
        except ImproperlyConfigured as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        connection_bounds.report_lowered()
        shutdown.watch()
        gc_tuning.freeze_startup_objects()
        with heartbeat_summary.lines():
            await self._serve(receive, send)
        metrics.flush_buffers()
        await sync_to_async(_close_pools)()
        log.info("web.stopped", pid=os.getpid())
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, receive: Receive, send: Send) -> None:
        async with service_marks.written():
            log.info("web.started", pid=os.getpid())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await asyncio.gather(check_in.batcher().drain(), report_intake.batcher().drain(), small_commands.drain())
            await refusals.drain()


def _close_pools() -> None:
    for name in connections:
        connection: Any = connections[name]
        connection.close_pool()


def build() -> App:
    """Return the whole ASGI application. Raises ImproperlyConfigured if the settings are invalid."""
    checks.refuse([*checks.settings_in_force(), *checks.metrics_folder()])
    return Timed(Guard(Application()))
