"""The endpoints of the admin API about the whole fleet: the summary, the push health and the audit."""

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
    """Count the devices by presence, the open deliveries, and the last hour's pushes by the answer of FCM."""
    return respond(await run_in_db_thread(fleet_summary.summary))


@router.get("/push-health", response=PushHealthList, url_name="push-health")
async def list_push_health(request: HttpRequest, query: Query[PushHealthQuery]) -> HttpResponse:
    """Count the pushes and their results by model, manufacturer, os_version or agent_version.

    The default for `since` is a day ago. Compare `answered_by_heartbeat` with `answered_by_push`. If pushes do not wake
    a phone, the phone gets its commands by heartbeat. A push that FCM accepted may still not arrive.
    """
    return respond(await run_in_db_thread(push_health.list_health, query.by, query.since))


@router.get("/audit", response=AuditPage, url_name="audit")
async def list_audit(request: HttpRequest, query: Query[AuditQuery]) -> HttpResponse:
    """List the audit entries, newest first. A repeat of a write, and a write that got 429, has no entry.

    `summary` describes the write. `action` is the action of a command, or a name such as `cancel` or `retire` for other
    writes. `target` is the target in the request. `device_count` is the number of affected devices. `dry_run` is true
    for a dry run. The filter `device_id` finds the entries whose path contains the device. The filter also finds the
    entries whose command has a delivery to the device, and refused commands and dry runs for only this device.
    """
    return respond(await run_in_db_thread(queries.list_entries, query))
