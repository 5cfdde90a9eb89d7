"""The endpoints of the admin API for commands: issue, read, wait, cancel. (Access: nexmdm/auth/admin_router.py.)"""

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
"""The time between two checks for a waiting client. So the client gets its answer within 250 ms after the result."""

SMALL_AUDIENCE: Final = 10
"""A command to at most this number of named devices may share a transaction with others."""

MAX_PARAM_ERRORS: Final = 100
"""The largest number of parameter errors that one answer names."""
ISSUED = Counter("nexmdm_commands_issued", "Commands queued, by action.", ["action"])


class InvalidParams(DomainError):
    detail = "The params are not valid for this action."

    def __init__(self, errors: list[dict[str, Any]], detail: str = detail) -> None:
        super().__init__(f"{detail} No command was sent.")
        self.errors = errors


def _summarize_command(request: HttpRequest, _: Mapping[str, Any]) -> Summary:
    """Return the action and the target of a command, as the body names them, even if the body is invalid."""
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

    The dispatcher sends the pushes immediately afterwards. Devices named by id or alias must all be enrolled, and
    neither revoked nor retired. `tags` selects the devices with at least one of the tags. `tags` and `all` leave
    revoked and retired devices out. `expires_in_seconds` is the time in which a phone must begin: by default 600, for
    `reboot` 3600, for `lock` and `wipe` 2419200. A phone that reports `received` or `running` in this time gets one
    hour more for its final report. `expect_count`: the command is refused if it is for another number of devices.
    `supersede`: the open commands of the same action on these devices are cancelled. `dry_run`: the request is checked
    and its devices are counted, but nothing is queued. `wipe` requires `target.device_ids`, and `expect_count` for
    several devices.
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
"""Commands to few devices: those that wait at the same moment share a transaction."""


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
    """Read a command with its counts. With `wait_seconds`, the answer comes when the command ends, or after this time.

    Its `state` is the first of these that applies. `open`: a delivery is open. `cancelled`: a cancellation withdrew
    some of its deliveries, or all of them were withdrawn for other reasons. `completed`: a phone sent its final report
    in time. `expired`: none of these. Its `outcome` is null while the command is open. After that, it is `succeeded`
    (on every device), `partial` (on some), `failed` (on none, and failed on at least one), `expired` (none succeeded or
    failed) or `cancelled` (all were withdrawn). `push` counts the deliveries by the answers of FCM, `counts` by the
    reports of the phones. A server that is stopping does not wait.
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
    """Read a command that is not open any more, once for all waiting clients, because its counts may take long."""
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
    """List a command's deliveries, one per device."""
    return respond(await run_in_db_thread(delivery_page, request_id, query))


@router.get("/commands/{uuid:request_id}/deliveries/{uuid:device_id}", response=DeliveryDetail, url_name="delivery")
async def read_delivery(request: HttpRequest, request_id: UUID, device_id: UUID) -> HttpResponse:
    """Read one delivery with its timeline: issue, each attempt, each report, settlement."""
    return respond(await run_in_db_thread(delivery_detail, request_id, device_id))


@router.post("/commands/{uuid:request_id}/cancel", response=CommandCancelled, url_name="cancel")
@summarized(by_path("cancel", "request_id"))
async def cancel_command(request: HttpRequest, request_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Cancel the open deliveries of a command. A push cannot be recalled: the phone may have the command already.

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
