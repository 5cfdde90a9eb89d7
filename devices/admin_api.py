"""The endpoints of the admin API for devices and enrollment tokens."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import register_converter
from django.urls.converters import StringConverter
from ninja import Query

from commands import actions, queue
from commands.models import DeviceWas, Withdrawal
from devices import audience, enrollment, queries
from devices.presence import history
from devices.presence.schemas import PresenceHistory, PresenceQuery
from devices.schemas import (
    DeviceChange,
    DevicePage,
    DeviceQuery,
    DeviceReinstated,
    DeviceRevoked,
    DeviceRow,
    EnrollmentTokenMade,
    EnrollmentTokenPage,
    EnrollmentTokenRow,
    ListQuery,
    NewEnrollmentToken,
    Retag,
    Retagged,
    WithdrawnCommand,
)
from nexmdm.audit.summary import DEVICE, TOKEN, Summary, body_of, by_path, joined, target_text
from nexmdm.auth.admin_router import AdminRouter, summarized
from nexmdm.auth.signed_write import SignedCaller, WriteResult, caller_of
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.types import EmptyBody, respond
from nexmdm.config import provisioning

log = structlog.get_logger()


class TagConverter(StringConverter):
    """The URL path converter for a tag."""

    regex = "[A-Za-z0-9._:-]{1,64}"


register_converter(TagConverter, "tag")

router = AdminRouter(tags=["devices"])


@router.get("/devices", response=DevicePage, url_name="devices")
async def list_devices(request: HttpRequest, query: Query[DeviceQuery]) -> HttpResponse:
    """List devices, newest first.

    A device that is not active has the presence `revoked` or `retired`. Before the first heartbeat, the presence is
    `never`. A device is `online` while its last heartbeat is younger than 2.5 heartbeat intervals, and `offline` after
    this time. `offline_since` is the time when the device became offline. The 2.5 intervals do not include service
    gaps, in which no web worker ran.

    The filter `status` selects a presence. The filter `q` finds a part of an alias or of a hardware id, in upper or
    lower case. `q` also finds the start of a device id. No character in `q` has a special meaning.

    `push` is the push health. `failing`: FCM accepted none of the last five or more pushes. `dead`: FCM no longer knows
    the push target. `none`: the device has no push target. `ok`: none of these three. With every push health, a device
    gets its commands by heartbeat.
    """
    return respond(await run_in_db_thread(queries.devices, query))


@router.get("/devices/{uuid:device_id}", response=DeviceRow, url_name="device")
async def read_device(request: HttpRequest, device_id: UUID) -> HttpResponse:
    """Read one device."""
    return respond(await run_in_db_thread(queries.device, device_id))


@router.get("/devices/{uuid:device_id}/presence", response=PresenceHistory, url_name="device-presence", by_alias=True)
async def read_device_presence(request: HttpRequest, device_id: UUID, query: Query[PresenceQuery]) -> HttpResponse:
    """Read when a device was online and offline, oldest first, from its first heartbeat on.

    A device becomes offline 2.5 heartbeat intervals after its last heartbeat. An item with the state `unknown` is a
    service gap: no web worker ran, so the device could not send a heartbeat. A service gap counts neither as online nor
    as offline. A device that was online before a service gap is online after the gap. If a span ended more than
    `EVENT_RETENTION_DAYS` ago, the server deletes the span. An answer contains at most the newest 10,000 spans.
    """
    return respond(await run_in_db_thread(history.read, device_id, query.since))


@router.patch("/devices/{uuid:device_id}", response=DeviceRow, url_name="device")
@summarized(by_path("change_device", DEVICE))
async def change_device(request: HttpRequest, device_id: UUID, body: DeviceChange) -> HttpResponse:
    """Change a device's alias, replace its tags, or both. An alias of null deletes the alias.

    A retired device cannot be changed.
    """

    def work() -> WriteResult[Any]:
        changed = queries.change(device_id, body.model_dump(exclude_unset=True))
        return WriteResult(queries.device(device_id), device_count=int(changed))

    return await caller_of(request).run(work)


def _summarize_tag(request: HttpRequest, path: Mapping[str, Any]) -> Summary:
    body = body_of(request) or {}
    named = [target_text(name, body[name]) for name in ("add", "remove") if body.get(name)]
    return Summary("tag", joined(target_text("tag", [path["tag"]]), *named))


@router.post("/tags/{tag:tag}", response=Retagged, url_name="tag")
@summarized(_summarize_tag)
async def change_tag(request: HttpRequest, tag: str, body: Retag) -> HttpResponse:
    """Add a tag to some devices, and remove the tag from other devices.

    The answer contains the number of devices that changed. A device in both lists loses the tag. If a device is unknown
    or retired, nothing is changed.
    """

    def work() -> WriteResult[Any]:
        added, removed = audience.retag(tag, body.add, body.remove)
        return WriteResult(Retagged(tag=tag, added=added, removed=removed), device_count=added + removed)

    return await caller_of(request).run(work)


def _summarize_enrollment_token(request: HttpRequest, _: Mapping[str, Any]) -> Summary:
    label = (body_of(request) or {}).get("label")
    return Summary("create_enrollment_token", target_text("label", [label]) if label else "")


@router.post("/enrollment-tokens", response=EnrollmentTokenMade, url_name="enrollment-tokens")
@summarized(_summarize_enrollment_token)
async def create_enrollment_token(request: HttpRequest, body: NewEnrollmentToken) -> HttpResponse:
    """Create an enrollment token. Only this answer, and the answer to a repeat of the request, contains the token's
    text.

    `provisioning` is the content of the QR code for Android's setup wizard. With this content, the setup wizard
    installs the agent as device owner, and gives the agent the enrollment token. `provisioning` is null unless the
    server has the settings `PUBLIC_URL` and `AGENT_COMPONENT`.
    """

    def work() -> WriteResult[Any]:
        row, text = enrollment.create_token(
            label=body.label,
            max_uses=body.max_uses,
            lives=timedelta(seconds=body.expires_in_seconds),
            tags=body.tags,
            re_enroll=body.re_enroll,
        )
        return WriteResult(EnrollmentTokenRow.of(row), secrets=_secrets(text))

    return await caller_of(request).run(work, restore_secrets=_restore_secrets)


def _secrets(enrollment_token: str) -> Mapping[str, Any]:
    return {"enrollment_token": enrollment_token, "provisioning": provisioning.content(enrollment_token)}


def _restore_secrets(answer: dict[str, Any]) -> Mapping[str, Any]:
    text = enrollment.text_of(UUID(answer["id"]))
    return {} if text is None else _secrets(text)


@router.get("/enrollment-tokens", response=EnrollmentTokenPage, url_name="enrollment-tokens")
async def list_enrollment_tokens(request: HttpRequest, query: Query[ListQuery]) -> HttpResponse:
    """List enrollment tokens, newest first, without their texts."""
    return respond(await run_in_db_thread(queries.enrollment_tokens, query))


@router.post(
    "/enrollment-tokens/{uuid:token_id}/revoke", response=EnrollmentTokenRow, url_name="revoke-enrollment-token"
)
@summarized(by_path("revoke_enrollment_token", TOKEN))
async def revoke_enrollment_token(request: HttpRequest, token_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Revoke an enrollment token. Devices that registered with this token stay active."""
    return await caller_of(request).run(lambda: WriteResult(EnrollmentTokenRow.of(enrollment.revoke_token(token_id))))


@router.post("/devices/{uuid:device_id}/revoke", response=DeviceRevoked, url_name="revoke", tags=["fleet"])
@summarized(by_path("revoke", DEVICE))
async def revoke_device(request: HttpRequest, device_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Revoke a device: from this answer on, no process accepts its device token. The device's open commands are
    cancelled.

    The server sends the device no more pushes. To wipe and revoke a phone, send a `wipe`, wait for its result, then
    revoke the device. `withdrawn` lists each `wipe` and `lock` that was open. If `may_still_run` is true, the phone may
    have the command already. The server refuses the phone's report about this command. If the device is revoked
    already, the answer is 200 and nothing changes.
    """
    caller = caller_of(request)

    def work() -> WriteResult[Any]:
        changed = enrollment.revoke(device_id)
        answer = _cancel_open_commands(device_id)
        return _device_written(caller, "device.revoked", answer, changed=changed)

    return await caller.run(work)


@router.post("/devices/{uuid:device_id}/retire", response=DeviceRevoked, url_name="retire", tags=["fleet"])
@summarized(by_path("retire", DEVICE))
async def retire_device(request: HttpRequest, device_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Retire a device: revoke it permanently, and free its alias.

    A retired device has the presence `retired`, not `revoked`. The history of the device stays. Its hardware may
    register again with any valid enrollment token, and gets the same `device_id`. A phone that reports a `wipe` as
    `succeeded` retires its device. `withdrawn` has the same meaning as in the answer to a revocation. If the device is
    retired already, the answer is 200. In this case, nothing changes, except that an alias from an earlier version of
    NexMDM becomes free.
    """
    caller = caller_of(request)

    def work() -> WriteResult[Any]:
        changed = enrollment.retire(device_id)
        answer = _cancel_open_commands(device_id, DeviceWas.RETIRED)
        return _device_written(caller, "device.retired", answer, changed=changed)

    return await caller.run(work)


def _cancel_open_commands(device_id: UUID, device_was: DeviceWas | None = None) -> DeviceRevoked:
    withdrawn = _protective(queue.cancel_all_of(device_id, Withdrawal.REVOCATION, device_was))
    return DeviceRevoked(**queries.device(device_id).model_dump(), withdrawn=withdrawn)


def _protective(withdrawn: Iterable[queue.Withdrawn]) -> list[WithdrawnCommand]:
    return [
        WithdrawnCommand(request_id=one.request_id, action=one.action, may_still_run=one.may_still_run)
        for one in withdrawn
        if one.action in actions.PROTECTIVE
    ]


def _device_written(caller: SignedCaller, event: str, answer: DeviceRow, *, changed: bool) -> WriteResult[Any]:
    if changed:
        fields = {"device_id": str(answer.device_id), "principal": caller.principal}
        transaction.on_commit(lambda: log.info(event, **fields))
    return WriteResult(answer, device_count=int(changed))


@router.post("/devices/{uuid:device_id}/reinstate", response=DeviceReinstated, url_name="reinstate", tags=["fleet"])
@summarized(by_path("reinstate", DEVICE))
async def reinstate_device(request: HttpRequest, device_id: UUID, body: EmptyBody | None = None) -> HttpResponse:
    """Reverse a revocation: the phone's old device token works again. A retired device cannot be reinstated.

    The commands that the revocation withdrew stay withdrawn. `withdrawn` lists each `wipe` and `lock` among these
    commands, so that you can send these commands again. If `may_still_run` is true, the phone may have the command
    already. The server then accepts the phone's result as a late result. A `wipe` that the phone reports as `succeeded`
    retires the device. If the device is not revoked, the answer is 200 and nothing changes.
    """
    caller = caller_of(request)

    def work() -> WriteResult[Any]:
        revoked_at = enrollment.reinstate(device_id)
        withdrawn = [] if revoked_at is None else _protective(queue.withdrawn_since(device_id, revoked_at))
        answer = DeviceReinstated(**queries.device(device_id).model_dump(), withdrawn=withdrawn)
        return _device_written(caller, "device.reinstated", answer, changed=revoked_at is not None)

    return await caller.run(work)
