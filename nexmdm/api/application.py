"""The NinjaAPI object `api`, with all routers, error handlers and limits."""

from collections.abc import Awaitable, Callable
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from ninja.openapi.docs import Swagger
from ninja.operation import Operation
from ninja.parser import Parser

import commands.admin_api
import commands.phone_api
import devices.admin_api
import devices.phone_api
from nexmdm.api import documentation, events, health, summary, webhooks
from nexmdm.api.error_table import ERRORS, HANDLERS, UnknownQuery
from nexmdm.api.openapi.document import DescribedAPI
from nexmdm.auth import rate_limits
from nexmdm.auth.bearer import DEVICE
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.common import asgi_types, request_facts
from nexmdm.common.tolerance import tolerant_json
from nexmdm.common.types import parse_json
from nexmdm.version import VERSION

_DEVICE_ROUTES: Final = "/v1/"


class OrjsonParser(Parser):
    """A parser of JSON bodies for Ninja.

    For paths under `/v1/`, which phones call, the parser is tolerant (nexmdm/common/tolerance/). For all other paths,
    it is strict.
    """

    def parse_body(self, request: HttpRequest) -> Any:
        """Return the parsed JSON of the body."""
        parse = tolerant_json.parse if request.path.startswith(_DEVICE_ROUTES) else parse_json
        return parse(request.body)


_PAGE: Final[dict[str, Any]] = {"validatorUrl": None, "docExpansion": "list", "defaultModelsExpandDepth": 0}


class NexmdmAPI(DescribedAPI):
    """Ninja's API class without temporal responses.

    Ninja creates a response object for each call, but no operation of NexMDM uses this object.
    """

    _unused: Final = HttpResponse()

    def on_exception(self, request: HttpRequest, exc: Any) -> HttpResponse:
        """Return the answer to an error, and store facts about the error for the log."""
        request_facts.explain(_scope_of(request), exc)
        return super().on_exception(request, exc)

    def create_temporal_response(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002
        """Return an unused empty response, which is the same object for each call."""
        return self._unused


api = NexmdmAPI(
    errors=ERRORS,
    title="NexMDM",
    version=VERSION,
    servers=[{"url": "/", "description": "The server that publishes this document"}],
    description=Path(__file__).with_name("openapi").joinpath("description.md").read_text(encoding="utf-8"),
    parser=OrjsonParser(),
    openapi_url="/openapi.json" if settings.API_DOCS else None,
    docs_url="/docs" if settings.API_DOCS else None,
    docs=Swagger(_PAGE),
    docs_decorator=documentation.made_once,
    urls_namespace="api",
)


def _scope_of(request: HttpRequest) -> asgi_types.Scope:
    scope: asgi_types.Scope = request.scope  # type: ignore[attr-defined]
    return scope


for _error, _handler in HANDLERS.items():
    api.add_exception_handler(_error, _handler)


View = Callable[..., Awaitable[HttpResponseBase]]
R = TypeVar("R", bound=HttpResponseBase)


def _failures_limited(run: View) -> View:
    """Wrap a view: replace a 401 by a 429 if the client's address has failed to authenticate too often.

    A request with a valid credential never gets this 429.
    """

    @wraps(run)
    async def limited(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return await _limit_failures(request, await run(request, *args, **kwargs))

    return limited


async def _limit_failures(request: HttpRequest, response: R) -> R | HttpResponse:
    if response.status_code != HTTPStatus.UNAUTHORIZED:
        return response
    try:
        seconds = await rate_limits.count_failure(request.META["REMOTE_ADDR"])
    except (DatabaseError, InterfaceError):
        return response  # If the failure cannot be counted, the client still gets its 401.
    return response if seconds is None else api.on_exception(request, RateLimited(seconds, rate_limits.FAILURES))


async def refusal(request: HttpRequest, error: Exception) -> HttpResponse:
    """Return the answer to an error that was raised outside Ninja's operations.

    An answer with 401 counts as a failed authentication of the client's address.
    """
    return await _limit_failures(request, api.on_exception(request, error))


def _known_query_only(view: View) -> View:
    """Wrap a view: raise UnknownQuery if the request has a query parameter that the operation does not define."""
    operation: Operation = view._ninja_operation  # type: ignore[attr-defined]  # noqa: SLF001  (Ninja's own back-reference)
    queries = [model for model in operation.models if model.__ninja_param_source__ == "query"]
    known = {name for model in queries for name in model.__ninja_flatten_map__}

    @wraps(view)
    async def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.META["QUERY_STRING"] and (unknown := sorted(set(request.GET) - known)):
            raise UnknownQuery(unknown)
        return await view(request, *args, **kwargs)

    return checked


api.add_decorator(_known_query_only)
api.add_decorator(_failures_limited, mode="view")
api.add_router("/v1", devices.phone_api.router)
api.add_router("/v1", commands.phone_api.router, auth=DEVICE)
for _router in (commands.admin_api.router, devices.admin_api.router, summary.router, events.router, webhooks.router):
    api.add_router("/admin", _router)
api.add_router("", health.router)
