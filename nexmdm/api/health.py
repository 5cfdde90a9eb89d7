"""The endpoints for monitoring: `/healthz`, `/readyz` and `/metrics`."""

import hmac
from functools import cache
from typing import Any, Final

import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, ProgrammingError, connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpRequest, HttpResponse
from ninja import Router
from psycopg.errors import InsufficientPrivilege, UndefinedFunction

from nexmdm.common import addresses, database, problems, request_facts
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.overload.shared_lookup import SharedLookup
from nexmdm.common.postgresql import deadline
from nexmdm.common.postgresql.errors import safe_message
from nexmdm.common.problems import Problem
from nexmdm.common.types import ResponseSchema, respond
from nexmdm.monitoring import dispatcher_status, metrics
from nexmdm.webhooks import status as webhook_status

READY_SECONDS: Final = 2.5
"""How long /readyz waits for the result of its check, in seconds.

With this limit, /readyz answers within 3 s in every state of the database.
"""

LOOK_SECONDS: Final = 2
"""The time limit for the check of the database and for each of its statements, in seconds.

The check must end before READY_SECONDS, because /readyz then stops waiting.
"""

FRESH_SECONDS: Final = 1
"""How long a result of the check stays valid, in seconds. Requests in this time cause no new check."""

_WAITING_COMMITS: Final = """
    SELECT count(*) FROM pg_stat_activity
    WHERE usename = current_user AND wait_event = 'SyncRep'
        AND state_change < now() - make_interval(secs => %(seconds)s)
"""
_may_write = [True]
_WRITE: Final = "SELECT pg_logical_emit_message(true, 'nexmdm', '')"
"""A write to the WAL of PostgreSQL but to no table. A synchronous standby must confirm its commit."""

log = structlog.get_logger()
router = Router(tags=["operations"])

FORWARDING: Final = (
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Forwarded-Server",
    "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "X-Original-Forwarded-For", "X-Envoy-External-Address",
    "True-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP", "Fly-Client-IP", "Via",
)  # fmt: skip
"""The headers that proxies add. If a request has one of these headers, a proxy sent it."""


class Health(ResponseSchema):
    """The process answers requests."""

    status: str


class Readiness(ResponseSchema):
    """Whether the server can serve requests. `dispatcher`, `push` and `webhooks` never cause a 503."""

    status: str
    database: str
    migrations: str
    dispatcher: str
    push: str
    webhooks: str


@router.api_operation(["GET", "HEAD"], "/healthz", response=Health, url_name="healthz")
async def healthz(request: HttpRequest) -> HttpResponse:
    """Answer 200 while the process can answer requests."""
    return respond(Health(status="ok"))


@router.api_operation(["GET", "HEAD"], "/readyz", response={200: Readiness, 503: Readiness}, url_name="readyz")
async def readyz(request: HttpRequest) -> HttpResponse:
    """Check the database, its migrations, the dispatchers and the webhooks.

    The answer is 200 if the database can be used and all migrations are applied. In all other cases, the answer is 503.
    `dispatcher` is `ok` if a dispatcher runs. `push` is `circuit_open` if the circuit of every running dispatcher is
    open. `webhooks` is `ok`, or the numbers of paused and of failing webhooks.
    """
    try:
        ready = await _ready.outcome(within_seconds=READY_SECONDS)
    except (DatabaseError, InterfaceError, TimeoutError):
        push = "unconfigured" if settings.FIREBASE_SERVICE_ACCOUNT is None else "unknown"
        ready = Readiness(
            status="unavailable",
            database="unavailable",
            migrations="unknown",
            dispatcher="unknown",
            push=push,
            webhooks="unknown",
        )
    response = respond(ready)
    if ready.status != "ok":
        response.status_code = 503
        response["Retry-After"] = str(problems.RETRY_AFTER_SECONDS)
        request_facts.of(request.scope).code = "not_ready"  # type: ignore[attr-defined]
    return response


def _readiness() -> Readiness:
    with deadline.within(LOOK_SECONDS):
        try:
            return _look(writing=_may_write[0])
        except ProgrammingError as error:
            if not (_may_write[0] and isinstance(error.__cause__, InsufficientPrivilege | UndefinedFunction)):
                raise
            # Some providers do not allow this write. For these providers, the check commits without a write.
            log.warning("readyz.without_write", detail=safe_message(error))
            _may_write[0] = False
            return _look(writing=False)


@transaction.atomic
def _look(*, writing: bool) -> Readiness:
    database.execute("SELECT set_config('statement_timeout', %s, true)", [f"{LOOK_SECONDS}s"])
    database.refuse_read_only()
    _refuse_waiting_commits()
    if writing:
        database.execute(_WRITE)
    missing = _missing_migrations()
    if missing:
        return Readiness(
            status="unavailable",
            database="ok",
            migrations=f"{missing} missing",
            dispatcher="unknown",
            push="unknown",
            webhooks="unknown",
        )
    return Readiness(
        status="ok",
        database="ok",
        migrations="ok",
        dispatcher=dispatcher_status.dispatcher_state(),
        push=dispatcher_status.push_state(),
        webhooks=webhook_status.readiness(),
    )


def _refuse_waiting_commits() -> None:
    """Raise OperationalError if commits have waited for a synchronous standby for LOOK_SECONDS or more.

    In this state, the commit of the check for /readyz would also wait. This check would then occupy a connection of
    PostgreSQL after /readyz has answered.
    """
    if database.row(_WAITING_COMMITS, {"seconds": LOOK_SECONDS}) != (0,):
        raise OperationalError(
            "Commits wait for a synchronous standby that is not connected. Check PostgreSQL's "
            "synchronous_standby_names."
        )


_ready: Final = SharedLookup(lambda: database.run_in_db_thread_ungated(_readiness), fresh_seconds=FRESH_SECONDS)


def _missing_migrations() -> int:
    return len(_migrations() - set(MigrationRecorder(connection).applied_migrations()))


@cache
def _migrations() -> frozenset[tuple[str, str]]:
    """Return the app and the name of each migration of this version. The files are read only once."""
    return frozenset(MigrationLoader(None).disk_migrations)


@router.get("/metrics", include_in_schema=False, url_name="metrics")
async def read_metrics(request: HttpRequest) -> HttpResponse:
    """Return the metrics in the format of Prometheus. If METRICS_TOKEN is set, the client must send this token.

    If METRICS_TOKEN is not set, only clients on loopback get the metrics, and only with the embedded database. All
    other clients get 404. If a proxy forwards the request, the proxy must be in TRUSTED_PROXIES and name a client on
    loopback.
    """
    if refusal := _refuse_metrics(request):
        return refusal.response()
    metrics.flush_buffers()
    text: Any = await _exposition.outcome()
    return HttpResponse(text, content_type=metrics.CONTENT_TYPE)


_exposition: Final = SharedLookup(lambda: run_in_db_thread(metrics.exposition))


def _refuse_metrics(request: HttpRequest) -> Problem | None:
    if settings.METRICS_TOKEN:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), settings.METRICS_TOKEN.encode()):
            return None
        return Problem(
            401, "invalid_token", "Send METRICS_TOKEN as the bearer token.", headers={"WWW-Authenticate": "Bearer"}
        )
    return None if settings.EMBEDDED and _is_local(request) else problems.NOT_FOUND


def _is_local(request: HttpRequest) -> bool:
    """Return whether the client is on this machine.

    The request must come from loopback, and no proxy may have forwarded it. If a trusted proxy forwarded the request,
    the proxy must name a client on loopback.
    """
    named_by_a_trusted_proxy = request_facts.of(request.scope).is_forwarded  # type: ignore[attr-defined]
    forwarded = any(name in request.headers for name in FORWARDING)
    return addresses.is_loopback(request.META["REMOTE_ADDR"]) and (named_by_a_trusted_proxy or not forwarded)
