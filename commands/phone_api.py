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
    """Report on a command: received, running, deferred, succeeded or failed. A repeat changes nothing.

    The first `succeeded` or `failed` report counts; any later report is a `duplicate`. A final report after the expiry
    or a cancellation is stored as `late`, and does not change the state. `via` is how the command reached the phone.
    The first 100 reports on a command are stored (consecutive equal reports as one), and in any case the first final
    report. Further reports get the same answer as stored ones, and are only counted. A device that reports more often
    than DEVICE_RATE_LIMIT gets 429.

    Before a phone wipes itself, it reports `succeeded`, and is retired by that report. For 24 hours its token can still
    repeat this one report, and nothing else.
    """
    token: tokens.Token = request.auth  # type: ignore[attr-defined]
    answer = await report_intake.take(token, body.fields, body.notes, request.META["REMOTE_ADDR"])
    if isinstance(answer, InvalidToken):
        raise answer
    return HttpResponse(answer, content_type="application/json")
