"""The endpoint with which a phone reports on a command."""

from django.http import HttpRequest, HttpResponse
from ninja import Body, Router

from commands import report_intake
from commands.schemas import ActionResult, ActionResultTaken
from devices import tokens
from devices.credentials import InvalidToken
from nexmdm.common.tolerance.repair import Reading

router = Router(tags=["device"])


@router.post("/action-result", response=ActionResultTaken, url_name="action-result")
async def action_result(request: HttpRequest, body: Body[Reading[ActionResult]]) -> HttpResponse:
    """Report on a command: received, running, deferred, succeeded or failed.

    The first `succeeded` or `failed` report counts. Any later report is a `duplicate`, and changes nothing. A final
    report after expiry or cancellation is stored as `late`, and does not change the state. `via` is the way in which
    the command reached the phone.

    The server stores the first 100 reports on a command, and in any case the first final report. If a phone repeats a
    report that is not final, the repetitions are stored as one report. Further reports get the same answer as stored
    reports, and are only counted. If a device reports more often than DEVICE_RATE_LIMIT, the device gets 429.

    Before a phone wipes itself, the phone reports `succeeded`. This report retires the device. For 24 hours, the phone
    can repeat this report. The phone's token is not valid for any other request.
    """
    token: tokens.Token = request.auth  # type: ignore[attr-defined]
    answer = await report_intake.take(token, body.fields, body.notes, request.META["REMOTE_ADDR"])
    if isinstance(answer, InvalidToken):
        raise answer
    return HttpResponse(answer, content_type="application/json")
