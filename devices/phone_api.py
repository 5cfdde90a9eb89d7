"""The endpoints that phones call: heartbeat, register and rotate."""

from datetime import datetime
from functools import partial

import structlog
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from ninja import Body, Router
from prometheus_client import Counter

from commands import queue
from commands.models import Withdrawal
from commands.push import outbox
from devices import check_in, credentials, enrollment, token_check, tokens
from devices.credentials import InvalidToken
from devices.enrollment import Enrolled, Registration
from devices.schemas import Heartbeat, HeartbeatAnswer, Register, Registered, Rotated, Rotation
from nexmdm.auth import rate_limits
from nexmdm.auth.bearer import DEVICE, ENROLLMENT
from nexmdm.common import database
from nexmdm.common.database import run_for_phone, run_lookup
from nexmdm.common.tolerance import field_warnings
from nexmdm.common.tolerance.repair import Reading
from nexmdm.common.types import respond

log = structlog.get_logger()

# Keep the heartbeat as the first route: it is the most frequent request.
router = Router(tags=["device"])

REGISTERED = Counter(
    "nexmdm_devices_registered",
    "Registrations. re_enrolled: whether the hardware_id was already known.",
    ["re_enrolled"],
)


@router.post("/heartbeat", auth=DEVICE, response=HeartbeatAnswer, url_name="heartbeat")
async def heartbeat(request: HttpRequest, body: Body[Reading[Heartbeat]]) -> HttpResponse:
    """Report that this phone is alive, and get its open commands. The answer is sent after the commit.

    If a field is null or not sent, its stored value stays. Only a null `push_token` or `push_target` deletes the stored
    push target. `commands` contains at most 20 commands. Commands without a report come first, oldest first. The server
    sends each command again until the phone has sent its final report. If `has_more` is true, report on these commands,
    then send the next heartbeat.
    """
    token: tokens.Token = request.auth  # type: ignore[attr-defined]
    answer = await check_in.check_in(token, body.fields, body.notes, request.META["REMOTE_ADDR"])
    if isinstance(answer, InvalidToken):
        raise answer
    return HttpResponse(answer, content_type="application/json")


@router.post("/register", auth=ENROLLMENT, response=Registered, url_name="register")
async def register(request: HttpRequest, body: Body[Reading[Register]]) -> HttpResponse:
    """Register this phone. Only this answer contains its device token and its command key.

    If the answer is lost, register again with the same enrollment token before the device token is used. With an
    enrollment token for several devices, repeat the registration within 15 minutes. If the server already has a device
    of this phone that is not retired, the enrollment token must have been created with `re_enroll`. A phone that
    registers again keeps its `device_id`. Its old device token stops working immediately, and its open commands are
    cancelled.
    """
    presented: tokens.Token = request.auth  # type: ignore[attr-defined]
    registration = _registration(body.fields, request.META["REMOTE_ADDR"].partition("%")[0] or None)
    await run_lookup(enrollment.check, presented, registration)
    async with token_check.NEW_CREDENTIALS.turn(presented.id) as waited:
        if waited:
            await run_lookup(enrollment.check, presented, registration)
        secret = await token_check.new_secret()
        enrolled, server_time = await run_for_phone(
            database.retry_on_deadlock, lambda: _register(presented, registration, secret)
        )
    REGISTERED.labels(str(enrolled.re_enrolled).lower()).inc()
    field_warnings.record("/v1/register", enrolled.device_id, body.notes)
    log.info("device.registered", device_id=str(enrolled.device_id), re_enrolled=enrolled.re_enrolled)
    _warn_of_replacement(presented, registration, enrolled)
    return respond(
        Registered(
            device_id=enrolled.device_id,
            device_token=enrolled.device_token,
            command_key=enrolled.command_key,
            heartbeat_interval_seconds=settings.HEARTBEAT_INTERVAL_SECONDS,
            server_time=server_time,
            re_enrolled=enrolled.re_enrolled,
            warnings=field_warnings.shown(body.notes),
        )
    )


def _warn_of_replacement(presented: tokens.Token, registration: Registration, enrolled: Enrolled) -> None:
    if enrolled.re_enrolled or (enrolled.replaced and enrolled.earlier_address != registration.address):
        log.warning(
            "device.re_enrolled",
            device_id=str(enrolled.device_id),
            enrollment_token_id=str(presented.id),
            lost_answer=not enrolled.re_enrolled,
            address=registration.address,
            earlier_address=enrolled.earlier_address,
        )


def _registration(fields: Register, address: str | None) -> Registration:
    details = {name: getattr(fields, name) for name in ("manufacturer", "model", "os_version")}
    return Registration(
        hardware_id=fields.hardware_id,
        alias=fields.alias,
        push_target=fields.sent_push_target(),
        agent_version=fields.agent_version,
        details={name: value for name, value in details.items() if value is not None},
        address=address,
    )


@transaction.atomic
def _register(
    presented: tokens.Token, registration: Registration, secret: credentials.NewSecret
) -> tuple[Enrolled, datetime]:
    enrolled = enrollment.register(presented, registration, secret)
    if enrolled.re_enrolled:
        queue.cancel_all_of(enrolled.device_id, Withdrawal.ENROLLMENT)
    if registration.push_target is not None:
        outbox.set_push_target(enrolled.device_id, registration.push_target)
    return enrolled, database.now()


@router.post("/token/rotate", auth=DEVICE, response=Rotated, url_name="rotate")
async def rotate(request: HttpRequest, body: Rotation | None = None) -> HttpResponse:
    """Get a new device token and command key. The old token and key work until the new token is first used.

    If the new token is not used within 24 h, the new token and key are deleted. The old token and key then stay valid.
    A second rotation before this first use replaces the new token and key. After 10 rotations of one device in an hour,
    the server answers 429.
    """
    token: tokens.Token = request.auth  # type: ignore[attr-defined]
    rate_limits.check_rotation(token.id)
    await token_check.with_token_check(token, lambda: run_for_phone(credentials.authenticate, token))
    await rate_limits.count_rotation(token.id)
    async with token_check.NEW_CREDENTIALS.turn(token.id):
        secret = await token_check.new_secret()
        rotation = partial(run_for_phone, credentials.rotate, token, secret)
        device_token, command_key = await token_check.with_token_check(token, rotation)
    log.info("device.rotated", device_id=str(token.id))
    return respond(Rotated(device_token=device_token, command_key=command_key))
