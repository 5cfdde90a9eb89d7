"""The ASGI stack: metrics → guard → the lean handler for the API, Django's full handler for the admin site.

Stock Django spools each body, runs its signals' receivers and `response.close` in threads, and cancels a view whose
client has left. The lean handler does none of that (docs/decisions/0002-lean-asgi-stack.md has the figures).
"""

import os
from io import BytesIO
from typing import Any, Final

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
django.setup(set_prefix=False)

import structlog  # noqa: E402
from asgiref.sync import ThreadSensitiveContext, sync_to_async  # noqa: E402
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler  # noqa: E402
from django.core.exceptions import SuspiciousFileOperation  # noqa: E402
from django.core.handlers.asgi import ASGIHandler, ASGIRequest  # noqa: E402
from django.db import connections  # noqa: E402
from django.http import FileResponse, Http404, HttpRequest, HttpResponse  # noqa: E402
from django.http.response import HttpResponseBase  # noqa: E402
from django.urls import ResolverMatch  # noqa: E402

from devices import stopping  # noqa: E402
from nexmdm import checkin, problems  # noqa: E402
from nexmdm.api import api  # noqa: E402
from nexmdm.guard import App, Guard, Receive, Scope, Send  # noqa: E402
from nexmdm.metrics import Timed  # noqa: E402

log = structlog.get_logger()

CLASSIC_PATHS: Final = ("/django-admin/", "/static/")


class LeanRequest(ASGIRequest):
    """Django's request with its body already read."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        super().__init__(scope, BytesIO(body))
        self._body = body


class LeanHandler(ASGIHandler):
    """Django's resolver and views, and nothing between them and the server."""

    def __init__(self) -> None:
        super().__init__()
        self._static_routes: dict[str, ResolverMatch] = {}

    def load_middleware(self, is_async: bool = False) -> None:  # noqa: ARG002
        """Load none: the API has its own layers."""
        self._view_middleware: list[Any] = []
        self._template_response_middleware: list[Any] = []
        self._exception_middleware: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        """Serve one request to its end, whether or not its client stays."""
        message = await receive()
        async with ThreadSensitiveContext():
            request = LeanRequest(scope, message["body"])
            response = await self._respond(request)
        scope["nexmdm.route"] = _route(request)
        await self._send(response, send)

    async def _respond(self, request: LeanRequest) -> HttpResponse:
        try:
            response = await self._get_response_async(request)  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001  (the API's one table of errors says what it means)
            return api.on_exception(request, error)
        return _as_problem(response)

    def resolve_request(self, request: HttpRequest) -> ResolverMatch:
        """Find the view; a path without parameters in it is looked up once."""
        match = self._static_routes.get(request.path_info)
        if match is None:
            match = super().resolve_request(request)
            if not match.kwargs:
                self._static_routes[request.path_info] = match
        request.resolver_match = match
        return match

    async def _send(self, response: HttpResponse, send: Send) -> None:
        body = response.content
        headers = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in response.items()]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _route(request: LeanRequest) -> str:
    match = request.resolver_match
    return f"/{match.route}" if match is not None else "unmatched"


def _as_problem(response: HttpResponseBase) -> HttpResponse:
    """Turn an error that is no problem yet (Ninja's 405, say) into one; keep its Allow."""
    assert isinstance(response, HttpResponse)
    status = response.status_code
    if status < 400 or response["Content-Type"].startswith(("application/json", problems.MEDIA_TYPE)):
        return response
    kept = {"Allow": response["Allow"]} if "Allow" in response else {}
    return problems.general(status, _DETAILS.get(status, response.reason_phrase), **kept).response()


_DETAILS: Final = {405: "This path does not take this method; Allow lists those it takes."}


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
        self._lean: App = LeanHandler()
        self._classic: Any = StaticFiles(ASGIHandler())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] != "http":
            raise ValueError(f"There is no {scope['type']} here.")
        elif scope["path"].startswith(CLASSIC_PATHS) or scope["path"] == "/django-admin":
            scope["nexmdm.route"] = "/django-admin/" if scope["path"].startswith("/django-admin") else "/static/"
            await self._classic(scope, receive, send)
        else:
            await self._lean(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        stopping.watch()
        log.info("web.started", pid=os.getpid())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await checkin.batcher().drain()
        await sync_to_async(_close_pools)()
        log.info("web.stopped", pid=os.getpid())
        await send({"type": "lifespan.shutdown.complete"})


def _close_pools() -> None:
    for name in connections:
        connection: Any = connections[name]
        connection.close_pool()


application: App = Timed(Guard(Application()))
