"""The endpoints for operations: whether the process serves, whether it is ready, and the metrics."""

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
"""The time that /readyz waits for its look-up: so /readyz answers within 3 s, in any state of the database."""

LOOK_SECONDS: Final = 2
"""The time that the look-up, and each of its statements, may take: so it ends before /readyz stops waiting."""

FRESH_SECONDS: Final = 1
"""The time for which a result is kept: more frequent requests get the same answer, and cost no look-up."""

_WAITING_COMMITS: Final = """
    SELECT count(*) FROM pg_stat_activity
    WHERE usename = current_user AND wait_event = 'SyncRep'
        AND state_change < now() - make_interval(secs => %(seconds)s)
"""
_may_write = [True]
_WRITE: Final = "SELECT pg_logical_emit_message(true, 'nexmdm', '')"
"""Writes to PostgreSQL's log (WAL) and to no table, so that a standby must confirm the commit."""

log = structlog.get_logger()
router = Router(tags=["operations"])

FORWARDING: Final = (
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Forwarded-Server",
    "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "X-Original-Forwarded-For", "X-Envoy-External-Address",
    "True-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP", "Fly-Client-IP", "Via",
)  # fmt: skip
"""Headers that proxies send: if a request has one of them, its peer is not the client."""


class Health(ResponseSchema):
    """The process serves."""

    status: str


class Readiness(ResponseSchema):
    """Whether the server can serve requests. The states of dispatchers, pushing and webhooks never cause a 503."""

    status: str
    database: str
    migrations: str
    dispatcher: str
    push: str
    webhooks: str


@router.api_operation(["GET", "HEAD"], "/healthz", response=Health, url_name="healthz")
async def healthz(request: HttpRequest) -> HttpResponse:
    """Answer while the process serves."""
    return respond(Health(status="ok"))


@router.api_operation(["GET", "HEAD"], "/readyz", response={200: Readiness, 503: Readiness}, url_name="readyz")
async def readyz(request: HttpRequest) -> HttpResponse:
    """Report whether the database and its migrations are there, and whether a dispatcher runs and can push.

    `webhooks` is `ok`, or how many webhooks are paused.
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
            # Some providers do not allow this write: then check a commit without a write.
            log.warning("readyz.without_write", detail=safe_message(error))
            _may_write[0] = False
            return _look(writing=False)


@transaction.atomic
def _look(*, writing: bool) -> Readiness:
    """Check the database, including the commit of a write."""
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
    """Raise OperationalError if earlier commits wait for a synchronous standby.

    A look-up that then committed would wait too, and keep one of PostgreSQL's connections after /readyz has answered.
    If no commit waits yet, the look-up's own commit shows whether it must.
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
    """Return the migrations that this code requires. They are read from disk once."""
    return frozenset(MigrationLoader(None).disk_migrations)


@router.get("/metrics", include_in_schema=False, url_name="metrics")
async def read_metrics(request: HttpRequest) -> HttpResponse:
    """Return the metrics to a client that sends METRICS_TOKEN; if it is not set, only to clients on loopback.

    A request that a proxy forwards does not count as loopback, unless a trusted proxy names a loopback client.
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
    """Return whether the client is on this machine. A proxy on this machine is not the client."""
    named_by_a_trusted_proxy = request_facts.of(request.scope).is_forwarded  # type: ignore[attr-defined]
    forwarded = any(name in request.headers for name in FORWARDING)
    return addresses.is_loopback(request.META["REMOTE_ADDR"]) and (named_by_a_trusted_proxy or not forwarded)
