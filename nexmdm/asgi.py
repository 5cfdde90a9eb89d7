"""The ASGI stack: metrics → guard → the express lane for heartbeats, the lean handler for the API's other calls,
Django's full handler for the admin site.
"""

import os
from typing import Any, Final

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
django.setup(set_prefix=False)

import structlog  # noqa: E402
from asgiref.sync import sync_to_async  # noqa: E402
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler  # noqa: E402
from django.core.exceptions import ImproperlyConfigured, SuspiciousFileOperation  # noqa: E402
from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.db import connections  # noqa: E402
from django.http import FileResponse, Http404, HttpRequest, HttpResponse  # noqa: E402

from devices import stopping  # noqa: E402
from devices.database import unit  # noqa: E402
from nexmdm import checkin, checks, express, heartbeat_summary, memory, metrics, refusals  # noqa: E402
from nexmdm.express import Express  # noqa: E402
from nexmdm.guard import App, Guard, Receive, Scope, Send  # noqa: E402
from nexmdm.lean import LeanHandler  # noqa: E402
from nexmdm.metrics import Timed  # noqa: E402

log = structlog.get_logger()

CLASSIC_PATHS: Final = ("/django-admin/", "/static/")


class StaticFiles(ASGIStaticFilesHandler):
    """Django's static files; what would climb out of their folder is not found, like any other."""

    def serve(self, request: HttpRequest) -> HttpResponse | FileResponse:
        """Serve a file, or raise Http404."""
        try:
            return super().serve(request)
        except SuspiciousFileOperation as error:
            raise Http404 from error


class Application:
    """Chooses the handler by path, and takes part in the server's start and stop."""

    def __init__(self) -> None:
        self._lean = LeanHandler()
        self._express = Express(self._lean)
        self._classic: Any = StaticFiles(ASGIHandler())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] != "http":
            raise ValueError(f"There is no {scope['type']} here.")
        elif scope["path"] == express.PATH:
            await self._express(scope, receive, send)
        elif scope["path"].startswith(CLASSIC_PATHS) or scope["path"] == "/django-admin":
            scope["nexmdm.route"] = "/django-admin/" if scope["path"].startswith("/django-admin") else "/static/"
            await self._classic(scope, receive, send)
        else:
            await self._lean(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            checks.refuse(await unit(checks.connections))
        except ImproperlyConfigured as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
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
