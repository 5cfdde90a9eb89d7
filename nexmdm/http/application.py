"""The ASGI stack: metrics → guard → the express lane for heartbeats, the lean handler for the API's other calls,
Django's full handler for the admin site, and its files from memory.
"""

import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
django.setup(set_prefix=False)

import structlog  # noqa: E402
from asgiref.sync import sync_to_async  # noqa: E402
from django.core.exceptions import ImproperlyConfigured  # noqa: E402
from django.db import connections  # noqa: E402

from devices import stopping  # noqa: E402
from devices.database import unit  # noqa: E402
from nexmdm import (  # noqa: E402
    checkin,
    checks,
    connection_bounds,
    express,
    heartbeat_summary,
    memory,
    metrics,
    refusals,
    site_handler,
    static_files,
)
from nexmdm.express import Express  # noqa: E402
from nexmdm.guard import App, Guard, Receive, Scope, Send  # noqa: E402
from nexmdm.lean import LeanHandler  # noqa: E402
from nexmdm.metrics import Timed  # noqa: E402
from nexmdm.site_handler import SiteHandler  # noqa: E402
from nexmdm.static_files import StaticFiles  # noqa: E402

log = structlog.get_logger()


class Application:
    """Chooses the handler by path, and takes part in the server's start and stop."""

    def __init__(self) -> None:
        self._lean = LeanHandler()
        self._express = Express(self._lean)
        self._site = SiteHandler(self._lean)
        self._static_files = StaticFiles()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] != "http":
            raise ValueError(f"There is no {scope['type']} here.")
        elif scope["path"] == express.PATH:
            await self._express(scope, receive, send)
        elif site_handler.serves(scope["path"]):
            await self._site(scope, receive, send)
        elif scope["path"].startswith(static_files.PREFIX):
            await self._static_files(scope, receive, send)
        else:
            await self._lean(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            checks.refuse(await unit(checks.connections))
        except ImproperlyConfigured as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        connection_bounds.report_lowered()
        stopping.watch()
        memory.settle()
        with heartbeat_summary.lines():
            log.info("web.started", pid=os.getpid())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await checkin.batcher().drain()
            await refusals.drain()
        metrics.hand_over()
        await sync_to_async(_close_pools)()
        log.info("web.stopped", pid=os.getpid())
        await send({"type": "lifespan.shutdown.complete"})


def _close_pools() -> None:
    for name in connections:
        connection: Any = connections[name]
        connection.close_pool()


checks.refuse([*checks.settings_in_force(), *checks.metrics_folder()])
application: App = Timed(Guard(Application()))
