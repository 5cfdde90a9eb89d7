"""What a phone calls that needs both apps: heartbeat (the hottest path, so its route comes first), register, rotate."""

import random
from functools import partial
from typing import Any, Final

import orjson
import structlog
from asgiref.sync import ThreadSensitiveContext
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from ninja import Router
from prometheus_client import Counter

from commands import outbox, queue
from commands.models import Withdrawal
from devices import credentials, database, enrollment, settling, tokens
from devices.database import unit
from devices.enrollment import Enrolled, Registration
from devices.heartbeats import Beat
from devices.schemas import Heartbeat, HeartbeatAnswer, Register, Registered, Rotated
from devices.wire import Nothing, respond
from nexmdm import checkin
from nexmdm.auth import DEVICE, ENROLLMENT
from nexmdm.checkin import CheckedIn

log = structlog.get_logger()

router = Router(tags=["device"])

INTERVAL_SPREAD: Final = 10
"""The next heartbeat is due this part of the interval earlier or later: a tenth."""

REGISTERED = Counter("nexmdm_devices_registered", "Registrations, by whether the hardware was known.", ["re_enrolled"])


@router.post("/heartbeat", auth=DEVICE, response=HeartbeatAnswer, url_name="heartbeat")
async def heartbeat(request: HttpRequest, body: Heartbeat) -> HttpResponse:
    """Say that this phone is alive; get what there is to do. The answer leaves after the commit.

    A field that is not sent, or null, keeps its earlier value; only a null `push_token` forgets the one there was.
    `commands` are at most 20: those that the phone has not spoken of first, oldest first; each is offered until its
    final report. With `has_more`, report on these and send a heartbeat at once.
    """
    token: tokens.Token = request.auth  # type: ignore[attr-defined]
    said = beat(token, body)
    checked_in = await settling.settled(token, lambda: _checked_in(said))
    return HttpResponse(await answer(token, checked_in), content_type="application/json")


async def _checked_in(said: Beat) -> CheckedIn:
    return checkin.good(await checkin.batcher().submit(said))


def beat(token: tokens.Token, body: Heartbeat) -> Beat:
    """Return what is to be recorded of a heartbeat."""
    status: Any = body.status
    return Beat(
        token,
        status=None if status is None else status.model_dump(exclude_unset=True),
        agent_version=body.agent_version,
        push_token_sent="push_token" in body.model_fields_set,
        push_token=body.push_token,
    )


@transaction.atomic
def _change_push_token(token: tokens.Token, push_token: str | None) -> None:
    outbox.own_push_token(token.id, push_token)
    # The row is ours now: had the phone been revoked or enrolled again since its heartbeat, this undoes the change.
    credentials.authenticate(token)


async def answer(token: tokens.Token, checked_in: CheckedIn) -> bytes:
    """Finish a heartbeat that was recorded: write its push token if that is new, log it, and return its answer."""
    if checked_in.push_token_changed:
        change = partial(_change_push_token, token, checked_in.push_token)
        async with ThreadSensitiveContext():
            await settling.settled(token, lambda: unit(database.retrying, change))
    write = log.info if settings.HEARTBEAT_LOG == "each" else log.debug
    write("heartbeat.upsert", device_id=str(token.id), commands=len(checked_in.offer.commands))
    interval: int = settings.HEARTBEAT_INTERVAL_SECONDS
    spread = interval // INTERVAL_SPREAD
    return orjson.dumps(
        {
            "server_time": checked_in.server_time,
            "next_heartbeat_seconds": random.randint(interval - spread, interval + spread),
            "commands": checked_in.offer.commands,
            "has_more": checked_in.offer.has_more,
        }
    )


@router.post("/register", auth=ENROLLMENT, response=Registered, url_name="register")
async def register(request: HttpRequest, body: Register) -> HttpResponse:
    """Enrol this phone. Its device token and command key are shown this once.

    If the answer is lost, register again with the same enrollment token before the device token is used. A phone that
    is known already is let in by a token made with `re_enroll` only: it keeps its `device_id`, its old token stops at
    once, and its open commands are cancelled.
    """
    presented: tokens.Token = request.auth  # type: ignore[attr-defined]
    await unit(enrollment.check_token, presented)
    secret = await settling.new_secret()
    enrolled = await unit(database.retrying, lambda: _register(presented, _registration(body), secret))
    REGISTERED.labels(str(enrolled.re_enrolled).lower()).inc()
    log.info("device.registered", device_id=str(enrolled.device_id), re_enrolled=enrolled.re_enrolled)
    return respond(
        Registered(
            device_id=enrolled.device_id,
            device_token=enrolled.device_token,
            command_key=enrolled.command_key,
            heartbeat_interval_seconds=settings.HEARTBEAT_INTERVAL_SECONDS,
            server_time=await unit(database.now),
            re_enrolled=enrolled.re_enrolled,
        )
    )


def _registration(body: Register) -> Registration:
    details = {name: getattr(body, name) for name in ("manufacturer", "model", "os_version")}
    return Registration(
        hardware_id=body.hardware_id,
        alias=body.alias,
        push_token=body.push_token,
        agent_version=body.agent_version,
        details={name: value for name, value in details.items() if value is not None},
    )


@transaction.atomic
def _register(presented: tokens.Token, said: Registration, secret: credentials.NewSecret) -> Enrolled:
    enrolled = enrollment.register(presented, said, secret)
    if enrolled.re_enrolled:
        queue.cancel_all_of(enrolled.device_id, Withdrawal.ENROLLMENT)
    if said.push_token is not None:
        outbox.own_push_token(enrolled.device_id, said.push_token)
    return enrolled


@router.post("/token/rotate", auth=DEVICE, response=Rotated, url_name="rotate")
async def rotate(request: HttpRequest, body: Nothing | None = None) -> HttpResponse:
    """Get a new device token and command key. The old pair works until the new token is first used.

    A new pair that is not used within 24 h is dropped, and the old one stays. Rotating again before the first use
    replaces the new pair.
    """
    token: tokens.Token = request.auth  # type: ignore[attr-defined]
    await settling.settled(token, lambda: unit(credentials.authenticate, token))
    secret = await settling.new_secret()
    device_token, command_key = await settling.settled(token, lambda: unit(credentials.rotate, token, secret))
    log.info("device.rotated", device_id=str(token.id))
    return respond(Rotated(device_token=device_token, command_key=command_key))
