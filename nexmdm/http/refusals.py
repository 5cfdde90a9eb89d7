"""The log of refusals: each answer 4xx or 503 is logged.

The guard calls note() for each answer with an error. The protocol calls note_unread() for data that never became a
request. Equal refusals within a second share one line. Two refusals are equal if they have the same code, the same
principal and the same device. If the device is unknown, they must have the same address. No line contains a token, a
query or a header.
"""

import time
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from django.urls import Resolver404, resolve
from prometheus_client import Counter

from devices import claims
from devices.claims import Claim
from nexmdm.auth import rate_limits
from nexmdm.common import addresses, problems, request_facts
from nexmdm.common.asgi_types import Scope
from nexmdm.common.collapsed_log import CollapsedLog
from nexmdm.common.problems import Problem
from nexmdm.common.request_facts import RequestFacts
from nexmdm.common.types import shown_name
from nexmdm.http.refused_devices import CURTAILED, Refusal, RefusedDevices

log = structlog.get_logger()

LINES: Final = 1000
"""The number of different refusals that have separate lines within a second. Further refusals share one line for each
code, without address and device. So many failing addresses fill neither the memory nor the log.
"""

REFUSED = Counter("nexmdm_requests_refused", "Answers 4xx and 503, by code.", ["code"])
_UNMATCHED: Final = "unmatched"
_PROVES_NOTHING: Final = frozenset(("invalid_token", "invalid_enrollment_token", "invalid_signature"))


def note(scope: Scope, status: int, body: bytes) -> None:
    """Log an answer if it is a refusal, and store it as the last refusal of its device. Never raises an error."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE:
        return
    try:
        _note(scope, status, body)
    except Exception as error:
        # An error here must not make the answer fail.
        log.error("request.refused", status=status, error=type(error).__name__, exc_info=error)


def _note(scope: Scope, status: int, body: bytes) -> None:
    known = request_facts.of(scope)
    answered = _problem_in(body)
    code: str = known.code or answered.get("code") or problems.GENERAL.get(status, "error")
    REFUSED.labels(code).inc()
    claim = _claim(status, code, known)
    client: str = scope["client"][0]
    if claim is None and _lines.count((code, addresses.counting_key(client))):
        return
    refusal = Refusal(
        code=code,
        status=status,
        method=scope["method"],
        route=known.route or _route(scope["path"]),
        address=client,
        correlation_id=known.correlation_id,
        principal=known.principal,
        reason=known.reason or _place(answered),
        device_id=known.device_id,
        at=time.monotonic(),
    )
    if claim is None:
        _log(refusal)
    else:
        _devices.look_up(refusal, claim)


def note_unread(problem: Problem, client: str, correlation_id: str, reason: str) -> None:
    """Log the refusal of data that did not become a request."""
    REFUSED.labels(problem.code).inc()
    where = ("", _UNMATCHED, addresses.canonical(client))
    _log(Refusal(problem.code, problem.status, *where, correlation_id=correlation_id, reason=reason))


async def drain() -> None:
    """Find the devices of all waiting refusals. Store and log these refusals. Call drain() before the process ends."""
    await _devices.drain()
    _lines.write_all()


def forget() -> None:
    """Delete all refusals that wait to be logged or stored."""
    _devices.forget()
    _lines.forget()


def _problem_in(body: bytes) -> dict[str, Any]:
    if not body.startswith(b"{"):
        return {}
    try:
        found: dict[str, Any] = orjson.loads(body)
    except ValueError:  # the first part of a longer answer
        return {}
    return found


def _place(answered: dict[str, Any]) -> str:
    errors = answered.get("errors")
    return ".".join(shown_name(str(part)) for part in errors[0]["loc"])[:200] if errors else ""


def _route(path: str) -> str:
    try:
        return f"/{resolve(path).route}"
    except Resolver404:
        return _UNMATCHED


def _claim(status: int, code: str, known: RequestFacts) -> Claim | None:
    """Return the request's token as a Claim, which contains no secret. Return None if there is no token, or if the
    refusal means that the token is wrong.
    """
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or code in _PROVES_NOTHING or known.reason == rate_limits.FAILURES:
        return None
    headers = known.headers.values.get(b"authorization", ())
    if len(headers) != 1:
        return None
    scheme, _, text = headers[0].decode("latin-1").partition(" ")
    return claims.of(text.strip()) if scheme.lower() == "bearer" else None


def _log(refusal: Refusal, count: int = 1) -> None:
    if not _lines.has_room(refusal.key):
        CURTAILED.labels("lines").inc(count)
        refusal = replace(refusal, address="", principal="", reason="", device_id=None, enrollment_token_id=None)
    _lines.add(refusal.key, refusal, count)


def _write(refusal: Refusal, count: int) -> None:
    fields = {
        "method": refusal.method,
        "route": refusal.route,
        "address": refusal.address,
        "device_id": refusal.device_id,
        "enrollment_token_id": refusal.enrollment_token_id,
        "principal": refusal.principal,
        "reason": refusal.reason,
    }
    log.warning(
        "request.refused",
        correlation_id=refusal.correlation_id,
        status=refusal.status,
        code=refusal.code,
        count=count,
        **{name: str(value) for name, value in fields.items() if value},
    )


_lines: Final = CollapsedLog(_write, LINES)
_devices: Final = RefusedDevices(_log)
