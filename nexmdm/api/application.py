"""The API: the apps' routers with their auth, and the one table from domain error to problem."""

from collections.abc import Awaitable, Callable
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
import structlog
from django.conf import settings
from django.core.exceptions import SuspiciousOperation, TooManyFieldsSent
from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from ninja.errors import HttpError, ValidationError
from ninja.openapi.docs import Swagger
from ninja.operation import Operation
from ninja.parser import Parser

import commands.admin_api
import devices.admin_api
from commands import queue, report_limit, reports
from devices import audience, check_in, credentials, enrollment, phone_api
from nexmdm.api import documentation, health, summary
from nexmdm.api.openapi.document import DescribedAPI
from nexmdm.audit import entries
from nexmdm.auth import rate_limits, signed_call, signed_request
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.auth.signed_call import SignedCaller
from nexmdm.auth.signed_request import DEVICE, SIGNED
from nexmdm.common import database, pagination, problems
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.overload import gates
from nexmdm.common.problems import Problem
from nexmdm.common.tolerance import tolerant_json
from nexmdm.common.types import parse_json, shown_name
from nexmdm.http import refusals

log = structlog.get_logger()

_BEARER: Final = {"WWW-Authenticate": "Bearer"}
_NXD1: Final = {"WWW-Authenticate": "NXD1"}
_DEVICE_ROUTES: Final = "/v1/"


class UnknownQuery(Exception):
    """The operation does not know these query parameters."""

    def __init__(self, names: list[str]) -> None:
        super().__init__("The query has parameters that are not known here.")
        self.errors = [
            {"loc": ["query", shown_name(name)], "msg": "is not a parameter of this operation"} for name in names
        ]


# The one table of errors: what each means to the caller. The sentence for people is the error's own text.
ERRORS: Final[dict[type[Exception], tuple[int, str, dict[str, str]]]] = {
    signed_request.InvalidSignature: (401, "invalid_signature", _NXD1),
    signed_request.IdempotencyKeyRequired: (400, "idempotency_key_required", {}),
    signed_call.IdempotencyInFlight: (409, "idempotency_in_flight", {}),
    signed_call.IdempotencyKeyReused: (422, "idempotency_key_reused", {}),
    credentials.InvalidToken: (401, "invalid_token", _BEARER),
    credentials.DeviceRevoked: (403, "device_revoked", {}),
    enrollment.InvalidEnrollmentToken: (401, "invalid_enrollment_token", _BEARER),
    enrollment.EnrollmentTokenExpired: (401, "enrollment_token_expired", _BEARER),
    enrollment.EnrollmentTokenExhausted: (401, "enrollment_token_exhausted", _BEARER),
    enrollment.EnrollmentTokenRevoked: (401, "enrollment_token_revoked", _BEARER),
    enrollment.HardwareKnown: (409, "hardware_known", {}),
    enrollment.AliasTaken: (409, "alias_taken", {}),
    enrollment.UnknownDevice: (404, "not_found", {}),
    enrollment.UnknownEnrollmentToken: (404, "not_found", {}),
    audience.EmptyAudience: (422, "empty_audience", {}),
    queue.AudienceChanged: (409, "audience_changed", {}),
    queue.PushPayloadTooLarge: (422, "push_payload_too_large", {}),
    reports.UnknownRequest: (404, "unknown_request", {}),
    queue.UnknownCommand: (404, "not_found", {}),
    pagination.ForeignCursor: (422, "invalid_request", {}),
    UnknownQuery: (422, "invalid_request", {}),
    commands.admin_api.InvalidParams: (422, "invalid_request", {}),
    check_in.Overloaded: (503, "overloaded", {}),
    check_in.Draining: (503, "overloaded", {}),
    gates.GateFull: (503, "overloaded", {}),
    database.DeadlockRetriesExhausted: (503, "overloaded", {}),
}


class OrjsonParser(Parser):
    """Bodies by orjson; those with very long numbers by the standard library, which keeps them whole for the checks.

    Bodies of phones are read tolerantly, so that each field of them can be judged by its role.
    """

    def parse_body(self, request: HttpRequest) -> Any:
        """Return the JSON of a body."""
        parse = tolerant_json.parse if request.path.startswith(_DEVICE_ROUTES) else parse_json
        return parse(request.body)


_PAGE: Final[dict[str, Any]] = {"validatorUrl": None, "docExpansion": "list", "defaultModelsExpandDepth": 0}


class NexmdmAPI(DescribedAPI):
    """Ninja, without the response that it prepares for each call: every operation here answers with one of its own."""

    _unused: Final = HttpResponse()

    def on_exception(self, request: HttpRequest, exc: Any) -> HttpResponse:
        """Return the answer to an error, and note for the log of refusals what the error knows."""
        refusals.explain(_scope_of(request), exc)
        return super().on_exception(request, exc)

    def create_temporal_response(self, request: HttpRequest) -> HttpResponse:  # noqa: ARG002
        """Return what nobody looks at."""
        return self._unused


api = NexmdmAPI(
    errors=ERRORS,
    title="NexMDM",
    version="1",
    description=Path(__file__).with_name("openapi").joinpath("description.md").read_text(encoding="utf-8"),
    parser=OrjsonParser(),
    openapi_url="/openapi.json" if settings.API_DOCS else None,
    docs_url="/docs" if settings.API_DOCS else None,
    docs=Swagger(_PAGE),
    docs_decorator=documentation.made_once,
    urls_namespace="api",
)


def _scope_of(request: HttpRequest) -> refusals.Scope:
    scope: refusals.Scope = request.scope  # type: ignore[attr-defined]
    return scope


def _domain_error(request: HttpRequest, error: Exception) -> HttpResponse:
    status, code, headers = ERRORS[type(error)]
    return Problem(status, code, _sentence(error), getattr(error, "errors", None), headers).response()


def _unknown_devices(request: HttpRequest, error: audience.UnknownDevices) -> HttpResponse:
    errors = [
        {"loc": ["body"], "msg": f"{name} is not known (or revoked)"} for name in error.unknown[: problems.MOST_ERRORS]
    ]
    return Problem(422, "unknown_devices", _sentence(error), errors).response()


def _invalid_request(request: HttpRequest, error: ValidationError) -> HttpResponse:
    errors = [{"loc": _location(one["loc"]), "msg": one["msg"].removeprefix("Value error, ")} for one in error.errors]
    return Problem(422, "invalid_request", "The request does not fit its schema; see errors.", errors).response()


def _location(loc: tuple[str | int, ...]) -> list[str | int]:
    """Drop the level that Ninja adds for the parameter's own name: (body, body, target) means body, target."""
    source, *rest = loc
    kept = rest[1:] if len(rest) > 1 or rest in (["body"], ["query"]) else rest
    return [source, *(part if isinstance(part, int) else shown_name(part) for part in kept)]


def _rate_limited(request: HttpRequest, error: RateLimited) -> HttpResponse:
    return error.problem.response()


def _too_many_reports(request: HttpRequest, error: report_limit.TooManyReports) -> HttpResponse:
    return RateLimited(error.retry_after_seconds).problem.response()


def _http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    if error.status_code == 400:
        detail = "The body is not JSON in UTF-8 (NaN and infinity are not JSON, nor are lone surrogates under /admin)."
        return Problem(400, "invalid_json", detail).response()
    return problems.general(error.status_code, error.message).response()


def _not_found(request: HttpRequest, error: Http404) -> HttpResponse:
    return problems.NOT_FOUND.response()


def _suspicious(request: HttpRequest, error: SuspiciousOperation) -> HttpResponse:
    return problems.general(400, "The request cannot be served as it was sent.").response()


def _too_many_parameters(request: HttpRequest, error: TooManyFieldsSent) -> HttpResponse:
    return Problem(422, "invalid_request", "The query has more parameters than any operation takes.", []).response()


def _database_unavailable(request: HttpRequest, error: Exception) -> HttpResponse:
    log.error("database.unavailable", error=type(error).__name__, detail=database.safe_message(error)[:200])
    return problems.DATABASE_UNAVAILABLE.response()


def _internal(request: HttpRequest, error: Exception) -> HttpResponse:
    log.error("request.failed", error=type(error).__name__, exc_info=error)
    return problems.INTERNAL.response()


def _sentence(error: Exception) -> str:
    return str(error) or (type(error).__doc__ or "").strip()


_HANDLERS: Final[dict[type[Exception], Callable[..., HttpResponse]]] = {
    **dict.fromkeys(ERRORS, _domain_error),
    audience.UnknownDevices: _unknown_devices,
    RateLimited: _rate_limited,
    report_limit.TooManyReports: _too_many_reports,
    ValidationError: _invalid_request,
    HttpError: _http_error,
    Http404: _not_found,
    TooManyFieldsSent: _too_many_parameters,
    SuspiciousOperation: _suspicious,
    OperationalError: _database_unavailable,
    InterfaceError: _database_unavailable,
    Exception: _internal,
}
for _error, _handler in _HANDLERS.items():
    api.add_exception_handler(_error, _handler)


View = Callable[..., Awaitable[HttpResponseBase]]
R = TypeVar("R", bound=HttpResponseBase)


def _failures_limited(run: View) -> View:
    """Answer 429 instead of 401 when an address has failed too often; a good credential always passes."""

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
        return response  # A bad credential is one whether or not it can be counted.
    return response if seconds is None else api.on_exception(request, RateLimited(seconds, rate_limits.FAILURES))


async def refusal(request: HttpRequest, error: Exception) -> HttpResponse:
    """Return the answer to an error that was raised outside of Ninja's operations; a failure is counted as theirs."""
    return await _limit_failures(request, api.on_exception(request, error))


def _audited(run: View) -> View:
    """Write an audit entry for a signed write that was not done (one that was done wrote its own, with the work)."""

    @wraps(run)
    async def audited(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = await run(request, *args, **kwargs)
        signed = getattr(request, "auth", None)
        if isinstance(signed, SignedCaller) and request.method != "GET" and isinstance(response, HttpResponse):
            await _record_refusal(signed, response)
        return response

    return audited


async def _record_refusal(signed: SignedCaller, response: HttpResponse) -> None:
    """Record what was refused or failed. A refusal that cannot be recorded is none: the database is unavailable."""
    status = response.status_code
    if status < HTTPStatus.BAD_REQUEST or status == HTTPStatus.TOO_MANY_REQUESTS:
        return
    try:
        await run_in_db_thread(entries.record, signed, status=status, code=orjson.loads(response.content)["code"])
    except (DatabaseError, InterfaceError) as error:
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        # It has failed, mostly for the same reason, and its answer says so; the log has to do for the audit.
        log.error(
            "audit.unwritten",
            error=type(error).__name__,
            principal=signed.principal,
            method=signed.method,
            path=signed.target,
            status=status,
        )


def _known_query_only(view: View) -> View:
    """Refuse query parameters that the operation does not know."""
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
api.add_router("/v1", phone_api.router)
api.add_router("/v1", commands.admin_api.device_router, auth=DEVICE)
for _router in (commands.admin_api.admin_router, devices.admin_api.admin_router, summary.router):
    _router.add_decorator(_audited, mode="view")
    api.add_router("/admin", _router, auth=SIGNED)
api.add_router("", health.router)
