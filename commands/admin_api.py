"""The endpoints of the admin API for commands: issue, read, wait, cancel.

nexmdm/auth/admin_router.py defines who may call these endpoints.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any, Final
from uuid import UUID

import structlog
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from ninja import Query
from prometheus_client import Counter
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from commands import actions, issuing, queue
from commands.issuing import CommandRequest, Issued
from commands.models import CommandState
from commands.queries.commands import command_detail, command_page, is_open
from commands.queries.deliveries import delivery_detail, delivery_page
from commands.schemas import (
    CommandCancelled,
    CommandDetail,
    CommandIssued,
    CommandPage,
    CommandQuery,
    DeliveryDetail,
    DeliveryPage,
    DeliveryQuery,
    NewCommand,
    PushPlan,
    TargetBody,
    WaitQuery,
)
from devices.audience import DevicesBusy
from nexmdm.audit.summary import Summary, action_text, body_of, by_path, target_text
from nexmdm.auth.admin_router import AdminRouter, summarized
from nexmdm.auth.shared_writes import Alone, SharedWrites
from nexmdm.auth.signed_write import WriteResult, caller_of
from nexmdm.common import database, shutdown
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.domain_error import DomainError
from nexmdm.common.types import EmptyBody, respond, shown_name

log = structlog.get_logger()
router = AdminRouter(tags=["commands"])

WAIT_POLL_SECONDS: Final = 0.15
"""The time between two checks for a waiting client, in seconds.

The client gets its answer within 250 ms after the end of the command.
"""

SMALL_AUDIENCE: Final = 10
"""A command that names at most this number of devices by id may share a transaction with other commands."""

MAX_PARAM_ERRORS: Final = 100
"""The largest number of parameter errors in one answer."""
ISSUED = Counter("nexmdm_commands_issued", "Commands queued, by action.", ["action"])


class InvalidParams(DomainError):
    detail = "The params are not valid for this action."

    def __init__(self, errors: list[dict[str, Any]], detail: str = detail) -> None:
        super().__init__(f"{detail} No command was sent.")
        self.errors = errors


def _summarize_command(request: HttpRequest, _: Mapping[str, Any]) -> Summary:
    """Return the audit summary of a command. The body may be invalid."""
    body = body_of(request)
    if body is None:
        return Summary()
    dry_run = body.get("dry_run", False)
    is_dry_run = dry_run if isinstance(dry_run, bool) else None
    return Summary(action_text(body.get("action")), _target_text(body.get("target")), is_dry_run)


def _target_text(target: object) -> str:
    if not isinstance(target, dict) or len(target) != 1:
        return ""
    ((kind, named),) = target.items()
    if kind == "all":
        return "all" if named is True else ""
    return target_text(kind, named) if kind in TargetBody.model_fields else ""


@router.post("/command", response=CommandIssued, url_name="command")
@summarized(_summarize_command)
async def issue_command(request: HttpRequest, body: NewCommand) -> HttpResponse:
    """Issue a command to the devices that match its target now. A device that matches later does not get the command.

    The dispatcher sends the pushes immediately. If the target names devices by id or alias, each of these devices must
    be active. `tags` selects the active devices that have at least one of the tags. `all` selects all active devices.

    `expires_in_seconds` is the time in which a phone must begin the command. The default is 600. For `reboot`, the
    default is 3600. For `lock` and `wipe`, the default is 2419200. If a phone reports `received` or `running` in this
    time, the phone has one more hour for its final report.

    If the number of devices differs from `expect_count`, the command is refused. `supersede` cancels the open commands
    of the same action on these devices. With `dry_run`, the server checks the request and counts its devices, but
    queues nothing. `wipe` requires `target.device_ids`. For several devices, `wipe` also requires `expect_count`.
    """
    caller = caller_of(request)
    command_request = _command_request(body, caller.principal)
    if _is_small(body):
        with suppress(Alone):
            outcome = await small_commands.run(caller, command_request)
            if isinstance(outcome, WriteResult):
                _count_and_log(outcome.answer)
            return outcome.response()

    def work() -> WriteResult[Any]:
        result = _result(issuing.issue(command_request, dry_run=body.dry_run), dry_run=body.dry_run)
        if not body.dry_run:
            transaction.on_commit(lambda: _count_and_log(result.answer))
        return result

    return await caller.run(work)


def _is_small(body: NewCommand) -> bool:
    """Return whether a command may share a transaction: it writes few rows, and cancels no delivery."""
    named = body.target.device_ids or ()
    return 0 < len(named) <= SMALL_AUDIENCE and not body.dry_run and not body.supersede


def _issue_together(requests: Sequence[CommandRequest]) -> list[WriteResult[Any] | Exception]:
    return [_shared_result(outcome) for outcome in issuing.issue_together(requests)]


def _shared_result(outcome: Issued | issuing.Refusal) -> WriteResult[Any] | Exception:
    if isinstance(outcome, DevicesBusy):
        return Alone()
    return _result(outcome, dry_run=False) if isinstance(outcome, Issued) else outcome


small_commands: Final = SharedWrites(_issue_together)
"""The signed writes that issue a command to few devices. Writes that wait at the same moment share a transaction."""


def _command_request(body: NewCommand, issued_by: str) -> CommandRequest:
    action = actions.CATALOGUE.get(body.action)
    if action is None:
        known = f"must be one of {', '.join(actions.CATALOGUE)}"
        raise InvalidParams([{"loc": ["body", "action"], "msg": known}], "There is no such action.")
    if action.destructive and (trouble := _too_broad(body)):
        raise InvalidParams([trouble], f"{trouble['msg']}.")
    try:
        params = action.model_validate(body.params)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidParams([_error_of_params(one) for one in found[:MAX_PARAM_ERRORS]]) from error
    return CommandRequest(
        action=action.name,
        params=actions.text_of(params),
        target=body.target.to_target(),
        target_as_given=body.target.model_dump(mode="json", exclude_none=True),
        issued_by=issued_by,
        expires_in_seconds=body.expires_in_seconds or action.expires_in_seconds,
        priority=body.priority,
        note=body.note,
        expect_count=body.expect_count,
        supersede=body.supersede,
    )


def _error_of_params(one: ErrorDetails) -> dict[str, Any]:
    place = [part if isinstance(part, int) else shown_name(part) for part in one["loc"]]
    return {"loc": ["body", "params", *place], "msg": one["msg"]}


def _too_broad(body: NewCommand) -> dict[str, Any] | None:
    device_ids = body.target.to_target().device_ids
    if not device_ids:
        return {"loc": ["body", "target"], "msg": f"`{body.action}` requires `target.device_ids`"}
    if len(device_ids) > 1 and body.expect_count is None:
        return {"loc": ["body", "expect_count"], "msg": f"`{body.action}` of several devices requires `expect_count`"}
    return None


def _count_and_log(answer: CommandIssued) -> None:
    ISSUED.labels(answer.action).inc()
    log.info(
        "command.issued",
        request_id=str(answer.request_id),
        action=answer.action,
        device_count=answer.device_count,
        pushable=answer.push.queued,
    )


def _result(issued: Issued, *, dry_run: bool) -> WriteResult[CommandIssued]:
    content = issued.content
    request_id = None if dry_run else content.request_id
    answer = CommandIssued(
        request_id=request_id,
        action=content.action,
        state=CommandState.OPEN,
        issued_at=content.issued_at,
        expires_at=content.expires_at,
        device_count=issued.device_count,
        push=PushPlan(queued=issued.pushable, no_push_token=issued.device_count - issued.pushable),
        dry_run=dry_run,
    )
    return WriteResult(answer, request_id=request_id, device_count=issued.device_count, kept=not dry_run)


@router.get("/commands", response=CommandPage, url_name="commands")
async def list_commands(request: HttpRequest, query: Query[CommandQuery]) -> HttpResponse:
    """List commands, newest first."""
    return respond(await run_in_db_thread(command_page, query))


@router.get("/commands/{uuid:request_id}", response=CommandDetail, url_name="command-detail")
async def read_command(request: HttpRequest, request_id: UUID, query: Query[WaitQuery]) -> HttpResponse:
    """Read a command with its counts.

    With `wait_seconds`, the server answers when the command ends, but at the latest after this number of seconds. A
    server that is stopping does not wait.

    `state` is the first of these words that applies. `open`: a delivery is open. `cancelled`: an admin's cancellation
    withdrew some deliveries, or other causes withdrew all deliveries. `completed`: a phone sent its final report in
    time. `expired`: no phone sent its final report in time.

    While the command is open, `outcome` is null. When the command has ended, `outcome` is one of five words.
    `succeeded`: the command succeeded on every device. `partial`: the command succeeded on some devices, but not on
    all. `failed`: the command succeeded on no device, and failed on at least one device. `expired`: no phone sent its
    final report in time, and at least one delivery expired. `cancelled`: all deliveries were withdrawn.

    `counts` counts the deliveries by their state. `push` counts the deliveries by the state of their push.
    """
    until = time.monotonic() + query.wait_seconds
    # The end is stored in a row, so poll it; there is no notification.
    while time.monotonic() < until and not shutdown.is_requested():
        if not await run_in_db_thread(is_open, request_id):
            return respond(await _ended(request_id))
        await asyncio.sleep(min(WAIT_POLL_SECONDS, max(0.0, until - time.monotonic())))
        database.continue_request()
    return respond(await run_in_db_thread(command_detail, request_id))


_ended_now: Final[dict[UUID, asyncio.Task[CommandDetail]]] = {}


async def _ended(request_id: UUID) -> CommandDetail:
    """Read a command that has ended. All waiting clients share one read, because the counts may take long."""
    reading = _ended_now.get(request_id)
    if reading is None:
        # Use a new context: the context of the first request must not end this read when that request ends.
        reading = asyncio.get_running_loop().create_task(
            run_in_db_thread(command_detail, request_id), context=Context()
        )
        _ended_now[request_id] = reading
        reading.add_done_callback(lambda _: _ended_now.pop(request_id, None))
    return await asyncio.shield(reading)


@router.get("/commands/{uuid:request_id}/deliveries", response=DeliveryPage, url_name="deliveries")
async def list_deliveries(request: HttpRequest, request_id: UUID, query: Query[DeliveryQuery]) -> HttpResponse:
    """List the deliveries of a command, newest first. A command has one delivery for each of its devices."""
    return respond(await run_in_db_thread(delivery_page, request_id, query))


@router.get("/commands/{uuid:request_id}/deliveries/{uuid:device_id}", response=DeliveryDetail, url_name="delivery")
async def read_delivery(request: HttpRequest, request_id: UUID, device_id: UUID) -> HttpResponse:
    """Read one delivery with its timeline: issue, attempts, reports, settlement."""
    return respond(await run_in_db_thread(delivery_detail, request_id, device_id))


@router.post("/commands/{uuid:request_id}/cancel", response=CommandCancelled, url_name="cancel")
@summarized(by_path("cancel", "request_id"))
async def cancel_command(request: HttpRequest, request_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Cancel the open deliveries of a command. A push cannot be recalled: a phone may already have the command.

    `may_still_run` counts the withdrawn deliveries that may have reached their phones.
    """

    def work() -> WriteResult[Any]:
        cancelled = queue.cancel(request_id)
        answer = CommandCancelled(
            request_id=request_id,
            cancelled=cancelled.withdrawn,
            already_settled=cancelled.already_settled,
            may_still_run=cancelled.may_still_run,
        )
        return WriteResult(answer, request_id=request_id, device_count=cancelled.withdrawn)

    return await caller_of(request).run(work)
