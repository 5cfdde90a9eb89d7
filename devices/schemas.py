"""Schemas of devices: bodies, queries and answers.

nexmdm/common/tolerance/repair.py repairs or drops values from phones that do not fit these schemas.
"""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StringConstraints
from typing_extensions import TypedDict

from devices.models import EnrollmentToken, LastRefusal
from devices.push_targets import PushTarget
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
from nexmdm.config.provisioning import Provisioning

Presence = Literal["online", "offline", "never", "revoked", "retired"]
PushHealth = Literal["ok", "failing", "dead", "none"]

LONGEST_SILENCE_SECONDS: Final = 10 * 365 * 86_400


class _PushTargetText(TypedDict):
    kind: Annotated[Literal["token", "fid"], INFORMS_EXACTLY]
    value: Annotated[PushToken, INFORMS_EXACTLY]


class SentPushTarget(_PushTargetText, total=False):
    """A push token of FCM, or a FID: the id of a Firebase installation.

    `registered_at` is the time when the phone registered the push target, by the server's clock; a future time counts
    as now. A push token that FCM called dead stays dead. A FID that FCM called dead becomes live again if its
    `registered_at` is later than the refused push. This happens at most once an hour. If several devices send a push
    target of one installation, only the last of these devices keeps its push target.
    """

    registered_at: Annotated[Time | None, INFORMS_EXACTLY]


class PushTargetBody(DeviceBody):
    """The two fields for a push target. If both are sent, only `push_target` counts.

    `push_token` is a push target of kind `token`.
    """

    push_token: Annotated[PushToken | None, INFORMS_EXACTLY] = None
    push_target: Annotated[Annotated[SentPushTarget, Storable(20_000)] | None, INFORMS] = None

    @property
    def sends_push_target(self) -> bool:
        """Return whether the phone sent a push target or a null."""
        return not self.model_fields_set.isdisjoint(("push_token", "push_target"))

    def sent_push_target(self) -> PushTarget | None:
        """Return the push target that the phone sent, or None."""
        if "push_target" in self.model_fields_set:
            sent = self.push_target
            return sent and PushTarget(sent["kind"], sent["value"], sent.get("registered_at"))
        return None if self.push_token is None else PushTarget("token", self.push_token)


class Register(PushTargetBody):
    """The body of a registration. A field that is null counts as not sent."""

    hardware_id: Annotated[HardwareId, DECIDES]
    alias: Annotated[Alias | None, DECIDES] = None
    manufacturer: Annotated[Detail | None, INFORMS] = None
    model: Annotated[Detail | None, INFORMS] = None
    os_version: Annotated[Detail | None, INFORMS] = None
    agent_version: Annotated[Detail | None, INFORMS] = None


class Registered(ResponseSchema):
    """The id and the credentials of a device. Only this answer contains the credentials."""

    device_id: UUID
    device_token: str
    command_key: str
    heartbeat_interval_seconds: int
    server_time: Time
    re_enrolled: bool
    warnings: Warnings = []


Amount = Annotated[StrictInt, Field(ge=0, le=MAX_INTEGER)]


class Status(TypedDict, total=False):
    """The status that a phone reports. Other keys are stored as sent. A field that is null counts as not sent.

    A status with more than 8 KiB of JSON, or with more than 16 levels, is dropped completely.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    battery_pct: Annotated[StrictInt, Field(ge=0, le=100), INFORMS]
    charging: Annotated[StrictBool, INFORMS]
    network: Annotated[str, StringConstraints(max_length=32, to_lower=True), STORABLE_TEXT, INFORMS]
    uptime_seconds: Annotated[Amount, INFORMS]
    free_storage_mb: Annotated[Amount, INFORMS]
    foreground_app: Annotated[str, StringConstraints(max_length=256), STORABLE_TEXT, INFORMS]


class Heartbeat(PushTargetBody):
    """The body of a heartbeat. If a field is null or not sent, its stored value stays.

    Only a null `push_token` or `push_target` deletes the stored push target.
    """

    status: Annotated[Annotated[Status, Storable(8 * 1024)] | None, INFORMS] = None
    agent_version: Annotated[Detail | None, INFORMS] = None


class HeartbeatAnswer(ResponseSchema):
    """The time until the next heartbeat, and the open commands."""

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
    """The body of a rotation. The body may be missing, or be any JSON object. The server ignores the fields of the
    object.
    """


class Rotated(ResponseSchema):
    """A new device token and a new command key. The old token and key work until the new token is first used."""

    device_token: str
    command_key: str


class LastRefusalRow(ResponseSchema):
    """The last time that the server refused a request of the device (4xx): time, route and code."""

    at: Time
    route: str
    code: str


class DeviceRow(ResponseSchema):
    """A device, as the admin API shows it."""

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
    offline_since: Time | None
    last_status: dict[str, Any] | None
    push: PushHealth
    enrolled_at: Time
    revoked_at: Time | None
    retired_at: Time | None
    last_refusal: LastRefusalRow | None

    @classmethod
    def of(cls, device: Any) -> "DeviceRow":
        """Return the answer for a device from a query of devices/queries.py, with its annotations."""
        presence = device.presence
        # A device has no last refusal if none of its requests was refused.
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
            offline_since=device.offline_since,
            last_status=presence.last_status,
            push=device.push_health,
            enrolled_at=device.enrolled_at,
            revoked_at=device.revoked_at,
            retired_at=device.retired_at,
            last_refusal=LastRefusalRow(at=refusal.at, route=refusal.route, code=refusal.code) if refusal else None,
        )


class WithdrawnCommand(ResponseSchema):
    """A command that was withdrawn from a device. `may_still_run`: the phone may have the command already."""

    request_id: UUID
    action: str
    may_still_run: bool


class DeviceRevoked(DeviceRow):
    """A device that was revoked or retired. `withdrawn` lists each open `wipe` and `lock` that was cancelled."""

    withdrawn: list[WithdrawnCommand]


class DeviceReinstated(DeviceRow):
    """A device that was reinstated. `withdrawn` lists each `wipe` and `lock` that the revocation cancelled.

    If `may_still_run` is true, the phone can still report on the command. A succeeded `wipe` retires the device.
    """

    withdrawn: list[WithdrawnCommand]


class DevicePage(ResponseSchema):
    """One page of devices."""

    items: list[DeviceRow]
    next_cursor: str | None


Reported = Annotated[
    Detail | None,
    Field(description="The exact value that the device reported. An empty value finds devices without a value."),
]


class DeviceQuery(Page, extra="forbid"):
    """Filters of devices. `q` is a part of an alias or hardware id in any case, or the start of a device id."""

    status: Presence | None = None
    tag: Tag | None = None
    model: Reported = None
    os_version: Reported = None
    agent_version: Reported = None
    not_seen_for_seconds: Annotated[
        Annotated[QueryInteger, Field(ge=0, le=LONGEST_SILENCE_SECONDS)] | None,
        Field(
            description="Only devices without a heartbeat for this time. If a device has sent no heartbeat, the "
            "time since the enrollment counts. Revoked and retired devices are included, unless `status` excludes them."
        ),
    ] = None
    push: Annotated[
        PushHealth | None,
        Field(
            description="`failing`: FCM accepted none of the last five or more pushes to the device, over all "
            "deliveries. A new push token sets this count to 0. A `dead` device is not also `failing`."
        ),
    ] = None
    q: Annotated[Text, Field(min_length=1, max_length=128)] | None = None


class DeviceChange(Body):
    """The fields of a device that an admin may change. A null alias deletes the alias. `tags` replaces all tags."""

    alias: Alias | None = None
    tags: Annotated[list[Tag], Field(max_length=64, fail_fast=True)] = []


class Retag(Body):
    """The devices that get a tag, and the devices that lose it."""

    add: Annotated[list[Identifier], Field(max_length=25_000, fail_fast=True)] = []
    remove: Annotated[list[Identifier], Field(max_length=25_000, fail_fast=True)] = []


class Retagged(ResponseSchema):
    """How many devices got the tag (`added`), and how many devices lost the tag (`removed`)."""

    tag: str
    added: int
    removed: int


class NewEnrollmentToken(Body):
    """The properties of a new enrollment token, such as how many devices may use it, and for how long."""

    label: Annotated[Text, Field(max_length=200)] = ""
    max_uses: Annotated[StrictInt, Field(ge=1, le=2**31 - 1)] = 1
    expires_in_seconds: Annotated[StrictInt, Field(ge=1, le=10 * 365 * 86_400)] = 86_400
    tags: Annotated[list[Tag], Field(max_length=64, fail_fast=True)] = []
    re_enroll: StrictBool = False


class EnrollmentTokenRow(ResponseSchema):
    """An enrollment token, as the admin API shows it."""

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
        """Return the answer for an enrollment token."""
        return cls(**{name: getattr(token, name) for name in EnrollmentTokenRow.model_fields})


class EnrollmentTokenMade(EnrollmentTokenRow):
    """A new enrollment token with its text. Only this answer contains the text."""

    enrollment_token: str = ""
    provisioning: Provisioning | None = None


class EnrollmentTokenPage(ResponseSchema):
    """One page of enrollment tokens."""

    items: list[EnrollmentTokenRow]
    next_cursor: str | None


class ListQuery(Page, extra="forbid"):
    """The query of a list without filters."""
