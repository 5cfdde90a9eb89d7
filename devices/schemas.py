"""Schemas of devices: bodies, queries and answers.

A reading of a phone that does not fit is repaired or dropped by nexmdm/common/tolerance/repair.py.
"""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StringConstraints
from typing_extensions import TypedDict

from devices.models import FAILING_FROM, Device, EnrollmentToken, LastRefusal
from nexmdm.common.pagination import Page
from nexmdm.common.tolerance.field_warnings import Warnings
from nexmdm.common.tolerance.repair import DECIDES, INFORMS, INFORMS_EXACTLY
from nexmdm.common.types import (
    MAX_INTEGER,
    STORABLE_TEXT,
    Alias,
    Body,
    Detail,
    DeviceBody,
    HardwareId,
    Identifier,
    PushToken,
    QueryInteger,
    ResponseSchema,
    Storable,
    Tag,
    Text,
    Time,
)

Presence = Literal["online", "offline", "never", "revoked", "retired"]
PushHealth = Literal["ok", "failing", "dead", "none"]

LONGEST_SILENCE_SECONDS: Final = 10 * 365 * 86_400


class Register(DeviceBody):
    """A phone introduces itself. A field that is null counts as not sent."""

    hardware_id: Annotated[HardwareId, DECIDES]
    alias: Annotated[Alias | None, DECIDES] = None
    push_token: Annotated[PushToken | None, INFORMS_EXACTLY] = None
    manufacturer: Annotated[Detail | None, INFORMS] = None
    model: Annotated[Detail | None, INFORMS] = None
    os_version: Annotated[Detail | None, INFORMS] = None
    agent_version: Annotated[Detail | None, INFORMS] = None


class Registered(ResponseSchema):
    """A phone's identity and credentials, shown this once."""

    device_id: UUID
    device_token: str
    command_key: str
    heartbeat_interval_seconds: int
    server_time: Time
    re_enrolled: bool
    warnings: Warnings = []


Amount = Annotated[StrictInt, Field(ge=0, le=MAX_INTEGER)]


class Status(TypedDict, total=False):
    """What a phone reports of itself; other keys are kept as they come. A field that is null counts as not sent.

    A status of more than 8 KiB as JSON, or of more than 16 levels, is dropped as a whole.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    battery_pct: Annotated[StrictInt, Field(ge=0, le=100), INFORMS]
    charging: Annotated[StrictBool, INFORMS]
    network: Annotated[str, StringConstraints(max_length=32, to_lower=True), STORABLE_TEXT, INFORMS]
    uptime_seconds: Annotated[Amount, INFORMS]
    free_storage_mb: Annotated[Amount, INFORMS]
    foreground_app: Annotated[str, StringConstraints(max_length=256), STORABLE_TEXT, INFORMS]


class Heartbeat(DeviceBody):
    """A phone is alive. A field not sent, or null, keeps its earlier value; a null push_token forgets it."""

    status: Annotated[Annotated[Status, Storable(8 * 1024)] | None, INFORMS] = None
    push_token: Annotated[PushToken | None, INFORMS_EXACTLY] = None
    agent_version: Annotated[Detail | None, INFORMS] = None


class HeartbeatAnswer(ResponseSchema):
    """When to send the next heartbeat, and what there is to do."""

    server_time: Time
    next_heartbeat_seconds: int
    commands: list["Envelope"]
    has_more: bool
    warnings: Warnings = []


class Envelope(ResponseSchema):
    """A signed command; all values are strings."""

    request_id: str
    action: str
    params: str
    issued_at: str
    expires_at: str
    signature: str


class Rotation(DeviceBody):
    """The body of a rotation: none, or an object, of which nothing is read."""


class Rotated(ResponseSchema):
    """A new pair of credentials; the old pair lives until the new token is first used."""

    device_token: str
    command_key: str


class LastRefusalRow(ResponseSchema):
    """The last time that a request of a device was refused (4xx): when, where, and the code of the answer."""

    at: Time
    route: str
    code: str

    @classmethod
    def of(cls, refusal: LastRefusal) -> "LastRefusalRow":
        """Describe a last refusal."""
        return cls(at=refusal.at, route=refusal.route, code=refusal.code)


class DeviceRow(ResponseSchema):
    """A device as an admin sees it."""

    device_id: UUID
    hardware_id: str
    alias: str | None
    tags: list[str]
    manufacturer: str
    model: str
    os_version: str
    agent_version: str
    presence: Presence
    last_seen_at: Time | None
    last_status: dict[str, Any] | None
    push: PushHealth
    enrolled_at: Time
    revoked_at: Time | None
    retired_at: Time | None
    last_refusal: LastRefusalRow | None

    @classmethod
    def of(cls, device: Any) -> "DeviceRow":
        """Describe a device, annotated `presence_named`, with its presence and last refusal joined."""
        presence = device.presence
        # Not there, where the device was never refused.
        refusal: LastRefusal | None = getattr(device, "last_refusal", None)
        return cls(
            device_id=device.id,
            hardware_id=device.hardware_id,
            alias=device.alias,
            tags=device.tags,
            manufacturer=device.manufacturer,
            model=device.model,
            os_version=device.os_version,
            agent_version=presence.agent_version,
            presence=device.presence_named,
            last_seen_at=presence.last_seen_at,
            last_status=presence.last_status,
            push=_push_health(device),
            enrolled_at=device.enrolled_at,
            revoked_at=device.revoked_at,
            retired_at=device.retired_at,
            last_refusal=None if refusal is None else LastRefusalRow.of(refusal),
        )


def _push_health(device: Device) -> PushHealth:
    """Return the state of models.PUSH_HEALTH that a device is in."""
    if device.push_token is None:
        return "none"
    if device.push_token_dead_at is not None:
        return "dead"
    return "failing" if device.push_failures >= FAILING_FROM else "ok"


class WithdrawnCommand(ResponseSchema):
    """A command that a device does not get any more. `may_still_run`: the phone may have got it already."""

    request_id: UUID
    action: str
    may_still_run: bool


class DeviceRevoked(DeviceRow):
    """A device that was revoked or retired. `withdrawn` names each `wipe` and `lock` that was open, now cancelled."""

    withdrawn: list[WithdrawnCommand]


class DeviceReinstated(DeviceRow):
    """A device that was let in again. `withdrawn` names each `wipe` and `lock` that its revocation has cancelled.

    One that may still run may be reported now; a `wipe` whose success is reported retires its device.
    """

    withdrawn: list[WithdrawnCommand]


class DevicePage(ResponseSchema):
    """One page of devices."""

    items: list[DeviceRow]
    next_cursor: str | None


Reported = Annotated[
    Detail | None, Field(description="Exactly as the device reported it; empty: the devices that reported none.")
]


class DeviceQuery(Page, extra="forbid"):
    """Which devices to list. `q` is part of an alias or a hardware id in any case, or a device id or its start."""

    status: Presence | None = None
    tag: Tag | None = None
    model: Reported = None
    os_version: Reported = None
    agent_version: Reported = None
    not_seen_for_seconds: Annotated[
        Annotated[QueryInteger, Field(ge=0, le=LONGEST_SILENCE_SECONDS)] | None,
        Field(
            description="No heartbeat for so long; before the first heartbeat, the time since the enrollment counts. "
            "Revoked and retired devices are among these, unless `status` leaves them out."
        ),
    ] = None
    push: Annotated[
        PushHealth | None,
        Field(
            description="`failing`: the last five pushes or more, across deliveries, ended without one accepted. "
            "`dead` outranks it; another push token starts the count anew."
        ),
    ] = None
    q: Annotated[Text, Field(min_length=1, max_length=128)] | None = None


class DeviceChange(Body):
    """What an admin may change of a device: its alias (null clears it), and all of its tags."""

    alias: Alias | None = None
    tags: Annotated[list[Tag], Field(max_length=64, fail_fast=True)] = []


class Retag(Body):
    """Which devices get a tag, and which lose it."""

    add: Annotated[list[Identifier], Field(max_length=25_000, fail_fast=True)] = []
    remove: Annotated[list[Identifier], Field(max_length=25_000, fail_fast=True)] = []


class Retagged(ResponseSchema):
    """How many devices got the tag, and how many lost it."""

    tag: str
    added: int
    removed: int


class NewEnrollmentToken(Body):
    """What an enrollment token lets in, and for how long."""

    label: Annotated[Text, Field(max_length=200)] = ""
    max_uses: Annotated[StrictInt, Field(ge=1, le=2**31 - 1)] = 1
    expires_in_seconds: Annotated[StrictInt, Field(ge=1, le=10 * 365 * 86_400)] = 86_400
    tags: Annotated[list[Tag], Field(max_length=64, fail_fast=True)] = []
    re_enroll: StrictBool = False


class EnrollmentTokenRow(ResponseSchema):
    """An enrollment token as an admin sees it."""

    id: UUID
    label: str
    max_uses: int
    uses: int
    tags: list[str]
    re_enroll: bool
    expires_at: Time
    revoked_at: Time | None
    created_at: Time

    @classmethod
    def of(cls, token: EnrollmentToken) -> "EnrollmentTokenRow":
        """Describe an enrollment token."""
        return cls(**{name: getattr(token, name) for name in EnrollmentTokenRow.model_fields})


class EnrollmentTokenMade(EnrollmentTokenRow):
    """A new enrollment token with its text, shown in the answer to its making only."""

    enrollment_token: str = ""


class EnrollmentTokenPage(ResponseSchema):
    """One page of enrollment tokens."""

    items: list[EnrollmentTokenRow]
    next_cursor: str | None


class ListQuery(Page, extra="forbid"):
    """A list without filters."""
