"""What a phone calls about commands: it reports what became of one."""

from uuid import UUID

import structlog
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from ninja import Body, Router
from prometheus_client import Counter

from commands import report_limit, reports
from commands.reports import ReportInput
from commands.schemas import ActionResult, ActionResultTaken
from devices import credentials, tokens
from devices.credentials import DeviceRevoked
from devices.token_check import with_token_check
from nexmdm.common import database
from nexmdm.common.database import run_for_phone
from nexmdm.common.tolerance import field_warnings
from nexmdm.common.tolerance.repair import Reading
from nexmdm.common.types import respond

log = structlog.get_logger()

router = Router(tags=["device"])

RESULTS = Counter("nexmdm_action_results", "Reports of phones, by what they say.", ["status"])
NOT_KEPT = Counter("nexmdm_reports_not_kept", "Reports that were counted and not kept, for their delivery has enough.")


@router.post("/action-result", response=ActionResultTaken, url_name="action-result")
async def action_result(request: HttpRequest, body: Body[Reading[ActionResult]]) -> HttpResponse:
    """Report on a command: received, running, deferred, or its final word. Sending it again changes nothing twice.

    The first `succeeded` or `failed` wins; whatever comes after it is a `duplicate`. A final word after the expiry or a
    cancellation is kept as `late`, and leaves the state. `via` is how the command had come. The first 100 reports on a
    command are kept, equal ones in a row as one, and in any case the first final one; further ones are answered alike,
    and only counted. A device that reports more often than DEVICE_RATE_LIMIT gets 429.

    A phone reports `succeeded` as its last act before it wipes itself, and is retired by that: for 24 hours its token
    may still repeat this one report, and nothing else.
    """
    token: tokens.Token = request.auth  # type: ignore[attr-defined]
    report = body.fields
    report_limit.reports.check(token.id)
    report_input = ReportInput(report.status, report.message or "", report.output, report.finished_at, report.via)
    result = await with_token_check(token, lambda: run_for_phone(_take_report, token, report.request_id, report_input))
    RESULTS.labels(report.status.value).inc()
    if not result.kept:
        NOT_KEPT.inc()
    field_warnings.record("/v1/action-result", token.id, body.notes)
    log.info(
        "action_result.ingested",
        device_id=str(token.id),
        request_id=str(report.request_id),
        status=report.status.value,
        state=result.state.value,
        duplicate=result.duplicate,
        late=result.late,
    )
    return respond(
        ActionResultTaken(
            request_id=report.request_id,
            state=result.state,
            duplicate=result.duplicate,
            late=result.late,
            warnings=field_warnings.shown(body.notes),
        )
    )


def _take_report(token: tokens.Token, request_id: UUID, report: ReportInput) -> reports.ReportResult:
    # Counted before the transaction: a report that is refused in it counts all the same.
    device_id = _reporting_device(token, request_id, report)
    report_limit.reports.admit(device_id)
    return database.retry_on_deadlock(lambda: _record(device_id, request_id, report))


@transaction.atomic
def _record(device_id: UUID, request_id: UUID, report: ReportInput) -> reports.ReportResult:
    return reports.record_report(device_id, request_id, report)


def _reporting_device(token: tokens.Token, request_id: UUID, report: ReportInput) -> UUID:
    try:
        return credentials.authenticate(token)
    except DeviceRevoked:
        if reports.is_last_word(token.id, request_id, report):
            return token.id
        raise
