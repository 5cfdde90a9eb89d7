"""Access to the admin API. A client with an admin key and its secret may call all operations. Writes are audited."""

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from ninja import Router
from ninja.decorators import decorate_view
from ninja.types import TCallable

from nexmdm.audit import entries
from nexmdm.audit.summary import Summarize
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.auth.signature_verification import SIGNED
from nexmdm.auth.signed_write import SignedCaller
from nexmdm.common.database import run_briefly
from nexmdm.common.overload.gates import GateFull

View = Callable[..., Awaitable[HttpResponseBase]]

log = structlog.get_logger()


def audited(run: View) -> View:
    """Decorate a view: write an audit entry for each signed write that is refused or fails.

    The audit entry of a write that is carried out is written together with the changes of the write.
    """

    @wraps(run)
    async def audited(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = await run(request, *args, **kwargs)
        signed = getattr(request, "auth", None)
        if isinstance(signed, SignedCaller) and request.method != "GET" and isinstance(response, HttpResponse):
            return await _record_refusal(signed, response)
        return response

    return audited


def summarized(summarize: Summarize) -> Callable[[TCallable], TCallable]:
    """Return a decorator for a signed write. `summarize` returns the summary for the audit entry."""

    def summarizing(run: View) -> View:
        @wraps(run)
        async def described(request: HttpRequest, **path: Any) -> HttpResponseBase:
            request.summarize = partial(summarize, request, path)  # type: ignore[attr-defined]
            return await run(request, **path)

        return described

    return decorate_view(summarizing)


async def _record_refusal(signed: SignedCaller, response: HttpResponse) -> HttpResponse:
    """Record a refused or failed write, and return its answer. A write over the rate limit is not recorded.

    If a refusal cannot be recorded, the error of the database is raised. If a failed write (status 500 or above) cannot
    be recorded, a log line replaces the audit entry.
    """
    status = response.status_code
    if status < HTTPStatus.BAD_REQUEST or status == HTTPStatus.TOO_MANY_REQUESTS:
        return response
    try:
        await run_briefly(_count_and_record, signed, status, orjson.loads(response.content)["code"])
    except RateLimited as limited:
        return limited.problem.response()
    except (DatabaseError, InterfaceError, GateFull) as error:
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        # The write has already failed, mostly because of the database, and its answer reports the failure. The log line
        # replaces the audit entry.
        log.error(
            "audit.unwritten",
            error=type(error).__name__,
            principal=signed.principal,
            method=signed.method,
            path=signed.target,
            status=status,
        )
    return response


def _count_and_record(signed: SignedCaller, status: int, code: str) -> None:
    signed.check_limit()
    entries.record(signed, status=status, code=code)


class AdminRouter(Router):
    """A router of the admin API. Its operations require a signature, and each signed write leaves an audit entry."""

    def __init__(self, **options: Any) -> None:
        super().__init__(auth=SIGNED, **options)
        self.add_decorator(audited, mode="view")
