"""The endpoints of the admin API for the whole fleet: the summary, push health, and the audit."""

from django.http import HttpRequest, HttpResponse
from ninja import Query

from nexmdm.audit import queries
from nexmdm.audit.queries import AuditPage, AuditQuery
from nexmdm.auth.admin_router import AdminRouter
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.types import respond
from nexmdm.monitoring import fleet_summary, push_health
from nexmdm.monitoring.fleet_summary import Summary
from nexmdm.monitoring.push_health import PushHealthList, PushHealthQuery

router = AdminRouter(tags=["fleet"])


@router.get("/summary", response=Summary, url_name="summary")
async def summary(request: HttpRequest) -> HttpResponse:
    """Count the fleet: devices by presence, open deliveries, and the last hour's pushes by FCM code."""
    return respond(await run_in_db_thread(fleet_summary.summary))


@router.get("/push-health", response=PushHealthList, url_name="push-health")
async def list_push_health(request: HttpRequest, query: Query[PushHealthQuery]) -> HttpResponse:
    """Count pushes and their results by model, manufacturer, os_version or agent_version (by default, of the last day).

    Compare `answered_by_heartbeat` with `answered_by_push`: where pushes do not wake the phone, heartbeats deliver the
    commands. A push that FCM accepted may still not arrive.
    """
    return respond(await run_in_db_thread(push_health.list_health, query.by, query.since))


@router.get("/audit", response=AuditPage, url_name="audit")
async def list_audit(request: HttpRequest, query: Query[AuditQuery]) -> HttpResponse:
    """List the signed writes, newest first: carried out, refused or failed. (Repeats and 429 have no entry.)

    `summary` describes a write: `action` is the action of a command, or else what was done (`cancel`, `retire`, …);
    `target` is as the request named it; `device_count` is the number of devices on which it was done; `dry_run` is true
    for a dry run. `device_id` finds the entries whose path names the device, or whose command has a delivery to it. It
    also finds refused commands and dry runs whose `device_ids` contains only this device.
    """
    return respond(await run_in_db_thread(queries.list_entries, query))
