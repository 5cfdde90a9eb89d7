"""What a phone calls about commands: it reports what became of one."""

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
    """Report on a command: received, running, deferred, or its final word. Sending it again changes nothing twice.

    The first `succeeded` or `failed` wins; whatever comes after it is a `duplicate`. A final word after the expiry or a
    cancellation is kept as `late`, and leaves the state. `via` is how the command had come. The first 100 reports on a
    command are kept, equal ones in a row as one, and in any case the first final one; further ones are answered alike,
    and only counted. A device that reports more often than DEVICE_RATE_LIMIT gets 429.

    A phone reports `succeeded` as its last act before it wipes itself, and is retired by that: for 24 hours its token
    may still repeat this one report, and nothing else.
    """
    token: tokens.Token = request.auth  # type: ignore[attr-defined]
    answer = await report_intake.take(token, body.fields, body.notes, request.META["REMOTE_ADDR"])
    if isinstance(answer, InvalidToken):
        raise answer
    return HttpResponse(answer, content_type="application/json")
