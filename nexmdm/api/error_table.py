"""The table that gives the problem details for each domain error, and the handlers of all other errors."""

from collections.abc import Callable
from itertools import islice
from typing import Final

import structlog
from django.core.exceptions import SuspiciousOperation, TooManyFieldsSent
from django.db import Error
from django.http import Http404, HttpRequest, HttpResponse
from ninja.errors import HttpError, ValidationError

import commands.admin_api
from commands import issuing, queue, report_limit, reports
from devices import audience, credentials, enrollment
from devices.identity import aliases
from nexmdm.auth import signature_verification, signed_write
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.common import database, group_commit, pagination, problems
from nexmdm.common.domain_error import DomainError
from nexmdm.common.overload import gates
from nexmdm.common.postgresql.errors import Meaning, meaning_of
from nexmdm.common.problems import Problem
from nexmdm.common.types import shown_name
from nexmdm.events import cursor, epochs
from nexmdm.webhooks import queries as webhooks

log = structlog.get_logger()

_BEARER: Final = {"WWW-Authenticate": "Bearer"}
_NXD1: Final = {"WWW-Authenticate": "NXD1"}


class UnknownQuery(DomainError):
    detail = "The query has parameters that the operation does not have."

    def __init__(self, names: list[str]) -> None:
        super().__init__("The query has unknown parameters. `errors` names each parameter.")
        self.errors = [
            {"loc": ["query", shown_name(name)], "msg": "is not a parameter of this operation"} for name in names
        ]


# The status, the code and the headers of the answer to each domain error. The message of the error becomes `detail`.
ERRORS: Final[dict[type[DomainError], tuple[int, str, dict[str, str]]]] = {
    signature_verification.InvalidSignature: (401, "invalid_signature", _NXD1),
    signature_verification.IdempotencyKeyRequired: (400, "idempotency_key_required", {}),
    signed_write.IdempotencyInFlight: (409, "idempotency_in_flight", {}),
    signed_write.IdempotencyKeyReused: (422, "idempotency_key_reused", {}),
    credentials.InvalidToken: (401, "invalid_token", _BEARER),
    credentials.DeviceRevoked: (403, "device_revoked", {}),
    enrollment.InvalidEnrollmentToken: (401, "invalid_enrollment_token", _BEARER),
    enrollment.EnrollmentTokenExpired: (401, "enrollment_token_expired", _BEARER),
    enrollment.EnrollmentTokenExhausted: (401, "enrollment_token_exhausted", _BEARER),
    enrollment.EnrollmentTokenRevoked: (401, "enrollment_token_revoked", _BEARER),
    enrollment.HardwareKnown: (409, "hardware_known", {}),
    aliases.AliasTaken: (409, "alias_taken", {}),
    enrollment.DeviceRetired: (409, "device_retired", {}),
    enrollment.UnknownDevice: (404, "not_found", {}),
    enrollment.UnknownEnrollmentToken: (404, "not_found", {}),
    audience.EmptyAudience: (422, "empty_audience", {}),
    issuing.AudienceChanged: (409, "audience_changed", {}),
    issuing.PushPayloadTooLarge: (422, "push_payload_too_large", {}),
    reports.UnknownRequest: (404, "unknown_request", {}),
    cursor.CursorExpired: (410, "cursor_expired", {}),
    epochs.EventsNotReady: (503, "overloaded", {}),
    webhooks.UnknownWebhook: (404, "not_found", {}),
    queue.UnknownCommand: (404, "not_found", {}),
    pagination.ForeignCursor: (422, "invalid_request", {}),
    UnknownQuery: (422, "invalid_request", {}),
    commands.admin_api.InvalidParams: (422, "invalid_request", {}),
    group_commit.Overloaded: (503, "overloaded", {}),
    group_commit.Draining: (503, "overloaded", {}),
    group_commit.ClientLeft: (503, "overloaded", {}),
    gates.GateFull: (503, "overloaded", {}),
    database.DeadlockRetriesExhausted: (503, "overloaded", {}),
}


def _domain_error(request: HttpRequest, error: DomainError) -> HttpResponse:
    status, code, headers = ERRORS[type(error)]
    return Problem(status, code, str(error), getattr(error, "errors", None), headers).response()


def _unknown_devices(request: HttpRequest, error: audience.UnknownDevices) -> HttpResponse:
    named = islice(error.reasons.items(), problems.MOST_ERRORS)
    errors = [{"loc": ["body"], "msg": f"{name} is {reason}"} for name, reason in named]
    return Problem(422, "unknown_devices", str(error), errors).response()


def _invalid_request(request: HttpRequest, error: ValidationError) -> HttpResponse:
    errors = [{"loc": _location(one["loc"]), "msg": one["msg"].removeprefix("Value error, ")} for one in error.errors]
    return Problem(
        422, "invalid_request", "The request is not valid. `errors` names each problem and its place.", errors
    ).response()


def _location(loc: tuple[str | int, ...]) -> list[str | int]:
    """Return the place of an error without the name that Ninja adds for the parameter of the view.

    Example: `(body, body, target)` becomes `[body, target]`.
    """
    source, *rest = loc
    kept = rest[1:] if len(rest) > 1 or rest in (["body"], ["query"]) else rest
    return [source, *(part if isinstance(part, int) else shown_name(part) for part in kept)]


def rate_limited(request: HttpRequest, error: RateLimited) -> HttpResponse:
    return error.problem.response()


def _too_many_reports(request: HttpRequest, error: report_limit.TooManyReports) -> HttpResponse:
    return RateLimited(error.retry_after_seconds).problem.response()


def overloaded(error: group_commit.Overloaded) -> Problem:
    """Return the problem details for a request that would wait too long. The header Retry-After is in seconds."""
    status, code, _ = ERRORS[group_commit.Overloaded]
    return Problem(status, code, str(error), headers={"Retry-After": str(error.retry_after_seconds)})


def _overloaded(request: HttpRequest, error: group_commit.Overloaded) -> HttpResponse:
    return overloaded(error).response()


def _http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    if error.status_code == 400:
        detail = (
            "The body is not JSON in UTF-8. NaN and Infinity are not JSON. In requests to /admin, lone surrogates "
            "are not allowed."
        )
        return Problem(400, "invalid_json", detail).response()
    return problems.general(error.status_code, error.message).response()


def _not_found(request: HttpRequest, error: Http404) -> HttpResponse:
    return problems.NOT_FOUND.response()


def _suspicious(request: HttpRequest, error: SuspiciousOperation) -> HttpResponse:
    return problems.general(400, "The request is malformed. Correct the request before you send it again.").response()


def _too_many_parameters(request: HttpRequest, error: TooManyFieldsSent) -> HttpResponse:
    return Problem(
        422, "invalid_request", "The query has too many parameters. Send only the parameters of the operation.", []
    ).response()


def _database_error(request: HttpRequest, error: Error) -> HttpResponse:
    meaning = meaning_of(error)
    if meaning is Meaning.OURS:
        return _internal(request, error)
    if meaning is Meaning.CONTENDED:
        return _domain_error(request, database.DeadlockRetriesExhausted())
    database.log_unavailable(error)
    return problems.DATABASE_UNAVAILABLE.response()


def _internal(request: HttpRequest, error: Exception) -> HttpResponse:
    log.error("request.failed", error=type(error).__name__, exc_info=error)
    return problems.INTERNAL.response()


HANDLERS: Final[dict[type[Exception], Callable[..., HttpResponse]]] = {
    **dict.fromkeys(ERRORS, _domain_error),
    audience.UnknownDevices: _unknown_devices,
    RateLimited: rate_limited,
    report_limit.TooManyReports: _too_many_reports,
    group_commit.Overloaded: _overloaded,
    ValidationError: _invalid_request,
    HttpError: _http_error,
    Http404: _not_found,
    TooManyFieldsSent: _too_many_parameters,
    SuspiciousOperation: _suspicious,
    Error: _database_error,
    Exception: _internal,
}
