"""What an admin calls that needs both apps: revoke, reinstate, summary, audit."""

from uuid import UUID

import structlog
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from ninja import Query, Router

from commands import queue
from commands.models import Withdrawal
from devices import enrollment, queries
from devices.schemas import DeviceRow
from nexmdm.auth.callers import WriteResult, caller_of
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.types import EmptyBody, respond
from nexmdm.monitoring import fleet_summary
from nexmdm.monitoring.fleet_summary import AuditPage, AuditQuery, Summary

log = structlog.get_logger()

router = Router(tags=["fleet"])


@router.post("/devices/{uuid:device_id}/revoke", response=DeviceRow, url_name="revoke")
async def revoke_device(request: HttpRequest, device_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Shut a device out at once, in every process; its open commands are cancelled, and no push leaves any more.

    To wipe a phone and revoke it: wipe, wait for the result, then revoke.
    """

    def work() -> WriteResult:
        enrollment.revoke(device_id)
        queue.cancel_all_of(device_id, Withdrawal.REVOCATION)
        transaction.on_commit(lambda: log.info("device.revoked", device_id=str(device_id)))
        return WriteResult(queries.device(device_id))

    return await caller_of(request).run(work)


@router.post("/devices/{uuid:device_id}/reinstate", response=DeviceRow, url_name="reinstate")
async def reinstate_device(request: HttpRequest, device_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Let a revoked device in again: the same token works."""

    def work() -> WriteResult:
        enrollment.reinstate(device_id)
        transaction.on_commit(lambda: log.info("device.reinstated", device_id=str(device_id)))
        return WriteResult(queries.device(device_id))

    return await caller_of(request).run(work)


@router.get("/summary", response=Summary, url_name="summary")
async def summary(request: HttpRequest) -> HttpResponse:
    """Count the fleet: devices by presence, open deliveries, and the last hour's pushes by FCM code."""
    return respond(await run_in_db_thread(fleet_summary.summary))


@router.get("/audit", response=AuditPage, url_name="audit")
async def list_audit(request: HttpRequest, query: Query[AuditQuery]) -> HttpResponse:
    """List the signed writes, newest first: carried out, refused or failed. (Repeats and 429 leave no entry.)"""
    return respond(await run_in_db_thread(fleet_summary.audit, query))
