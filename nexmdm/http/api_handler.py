"""The handler of the API. It uses Django's resolver and views, but no middleware and no signals of Django.

Django's own handler copies each body to a file object. It runs signals and `response.close` in threads, and cancels a
view if its client has left. This handler does none of these things (docs/decisions/0002-lean-asgi-stack.md).
"""

from http import HTTPStatus
from io import BytesIO
from typing import Any, Final

from asgiref.sync import ThreadSensitiveContext
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch

from nexmdm.api.application import api, refusal
from nexmdm.common import addresses, database, problems, request_facts
from nexmdm.common.asgi_types import Receive, Scope, Send


class ApiRequest(ASGIRequest):
    """Django's request, with a body that was read before."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        super().__init__(scope, BytesIO(body))
        self._body = body


class ApiHandler(ASGIHandler):
    """The ASGI application of the API."""

    def __init__(self) -> None:
        super().__init__()
        self._static_routes: dict[str, ResolverMatch] = {}

    def load_middleware(self, is_async: bool = False) -> None:  # noqa: ARG002
        """Load no middleware."""
        self._view_middleware: list[Any] = []
        self._template_response_middleware: list[Any] = []
        self._exception_middleware: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        """Serve one request to its end, even if its client has left."""
        message = await receive()
        await self.serve(scope, message["body"], send)

    async def serve(self, scope: Scope, body: bytes, send: Send) -> None:
        """Serve a request whose body was read before."""
        database.begin_request(addresses.counting_key(scope["client"][0]))
        async with ThreadSensitiveContext():
            request = ApiRequest(scope, body)
            response = await self._respond(request)
            request_facts.of(scope).route = _route(request)
            # Send the answer inside the context. The end of the context waits for its thread, and this thread may still
            # run a look-up that the view does not wait for.
            await self._send(response, send)

    async def refuse(self, scope: Scope, body: bytes, error: Exception, send: Send) -> None:
        """Answer with the problem for `error`, as if a view had raised `error`."""
        database.begin_request(addresses.counting_key(scope["client"][0]))
        async with ThreadSensitiveContext():
            response = await refusal(ApiRequest(scope, body), error)
        await self._send(response, send)

    async def _respond(self, request: ApiRequest) -> HttpResponse:
        try:
            response = await self._get_response_async(request)  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001  (the API's one table of errors says what it means)
            return api.on_exception(request, error)
        return _as_problem(response)

    def resolve_request(self, request: HttpRequest) -> ResolverMatch:
        """Return the view for a request. A path without parameters is looked up only once."""
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
        if response.status_code != HTTPStatus.NOT_MODIFIED:
            headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _route(request: ApiRequest) -> str:
    match = request.resolver_match
    return f"/{match.route}" if match is not None else "unmatched"


def _as_problem(response: HttpResponseBase) -> HttpResponse:
    assert isinstance(response, HttpResponse)
    status = response.status_code
    if status < 400 or response["Content-Type"].startswith(("application/json", problems.MEDIA_TYPE)):
        return response
    kept = {"Allow": response["Allow"]} if "Allow" in response else {}
    return problems.general(status, _DETAILS.get(status, response.reason_phrase), **kept).response()


_DETAILS: Final = {405: "This path does not allow this method. The Allow header lists the allowed methods."}
