"""Schemas of commands: bodies, queries and answers."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StringConstraints, model_validator
from typing_extensions import TypedDict

from commands.actions import FOUR_WEEKS
from commands.models import (
    CommandOutcome,
    CommandState,
    DeliveryChannel,
    DeliveryState,
    Priority,
    PushNow,
    ReportStatus,
)
from devices.audience import Target
from nexmdm.common.pagination import Page
from nexmdm.common.tolerance.field_warnings import Warnings
from nexmdm.common.tolerance.repair import DECIDES, INFORMS, INFORMS_EXACTLY
from nexmdm.common.types import (
    STORABLE_TEXT,
    Body,
    DeviceBody,
    FreeObject,
    Identifier,
    NamedAlias,
    QueryNumber,
    ResponseSchema,
    Storable,
    Tag,
    Text,
    Time,
)

MAX_EXPIRY_SECONDS = FOUR_WEEKS


def _true(value: object) -> object:
    if value is not True:  # pydantic would also accept 1
        raise ValueError("must be true")
    return value


class TargetBody(Body):
    """The target of a command: exactly one of the four fields. `tags` selects devices that have any of the tags."""

    device_ids: Annotated[list[Identifier], Field(min_length=1, fail_fast=True)] | None = None
    aliases: Annotated[list[NamedAlias], Field(min_length=1, fail_fast=True)] | None = None
    tags: Annotated[list[Tag], Field(min_length=1, fail_fast=True)] | None = None
    all: Annotated[Literal[True], BeforeValidator(_true)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "TargetBody":
        given = [name for name in ("device_ids", "aliases", "tags", "all") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("must name exactly one of device_ids, aliases, tags, all")
        return self

    def to_target(self) -> Target:
        """Return the target, each entry once."""
        return Target(
            device_ids=list(dict.fromkeys(self.device_ids or [])),
            aliases=list(dict.fromkeys(self.aliases or [])),
            tags=list(dict.fromkeys(self.tags or [])),
            everyone=bool(self.all),
        )


class NewCommand(Body):
    """A command for one phone or many. Its parameters are those of the action."""

    action: Annotated[str, Field(max_length=64)]
    params: FreeObject = {}
    target: TargetBody
    expires_in_seconds: Annotated[StrictInt, Field(ge=1, le=MAX_EXPIRY_SECONDS)] | None = None
    priority: Priority = Priority.HIGH
    dry_run: StrictBool = False
    expect_count: Annotated[StrictInt, Field(ge=0, le=2**31 - 1)] | None = None
    supersede: StrictBool = False
    note: Annotated[Text, Field(max_length=200)] = ""


class PushPlan(ResponseSchema):
    """The number of devices that get a push. The others get the command with their heartbeat."""

    queued: int
    no_push_token: int


class CommandIssued(ResponseSchema):
    """The number of devices that a command was queued for; in a dry run, that it would be queued for."""

    request_id: UUID | None
    action: str
    state: CommandState
    issued_at: Time
    expires_at: Time
    device_count: int
    push: PushPlan
    dry_run: bool


class CommandQuery(Page, extra="forbid"):
    """Filters of the list of commands."""

    action: Annotated[Text, Field(max_length=64)] | None = None
    state: CommandState | None = None
    outcome: CommandOutcome | None = None
    device_id: Identifier | None = None
    since: Time | None = None
    until: Time | None = None


class CommandRow(ResponseSchema):
    """A command, with its outcome once it is not open any more. A late result changes neither state nor outcome."""

    request_id: UUID
    action: str
    params: dict[str, Any]
    target: dict[str, Any]
    priority: Priority
    note: str
    issued_by: str
    state: CommandState
    outcome: CommandOutcome | None
    issued_at: Time
    expires_at: Time
    device_count: int


class ListedCommand(CommandRow):
    """A command in a list. `succeeded` counts the devices that succeeded in time.

    `late` counts the final reports that came after expiry or cancellation; it is null while the command is open. Both
    are null if the command has too many devices to count in a list.
    """

    succeeded: int | None
    late: int | None


class CommandPage(ResponseSchema):
    """One page of commands."""

    items: list[ListedCommand]
    next_cursor: str | None


class Counts(ResponseSchema):
    """The deliveries of a command by state; `late` counts those with a result that came too late."""

    pending: int
    received: int
    succeeded: int
    failed: int
    expired: int
    cancelled: int
    late: int


class PushCounts(ResponseSchema):
    """The deliveries of a command by their push state. `accepted`: FCM took the push; the phone may not have it.

    `superseded`: the delivery was settled (by a report, a cancellation or expiry) while its push was waiting or
    retrying.
    """

    waiting: int
    accepted: int
    retrying: int
    undeliverable: int
    superseded: int
    no_push_token: int


class CommandDetail(CommandRow):
    """A command with its counts."""

    completed_at: Time | None
    cancelled_at: Time | None
    counts: Counts
    push: PushCounts


class WaitQuery(Body):
    """`wait_seconds`: the time, 30 s at most, to wait until no delivery of the command is open."""

    wait_seconds: Annotated[QueryNumber, Field(ge=0, le=30)] = 0


class PushSummary(ResponseSchema):
    """The push of one delivery. `superseded`: it was waiting or retrying when the delivery was settled otherwise."""

    state: PushNow
    attempts: int
    last_http_status: int | None
    last_fcm_error: str | None
    message_id: str | None
    next_attempt_at: Time | None


class Result(ResponseSchema):
    """A phone's final report."""

    status: ReportStatus
    message: str | None
    output: dict[str, Any] | None
    finished_at: Time | None
    reported_at: Time


class DeliveryRow(ResponseSchema):
    """One command for one device, with its state, push and result.

    `why_open` is what the delivery waits for. `why_unfinished` is why the delivery expired or was withdrawn; later
    events on the device do not change this text.
    """

    request_id: UUID
    device_id: UUID
    alias: str | None
    state: DeliveryState
    delivered_via: DeliveryChannel | None
    push: PushSummary
    issued_at: Time
    expires_at: Time
    received_at: Time | None
    settled_at: Time | None
    result: Result | None
    late_result: Result | None
    why_open: str | None
    why_unfinished: str | None


class TimelineEvent(ResponseSchema):
    """One event of a delivery: its issue, an attempt, a report, or its settlement.

    Equal reports in a row are one event with a `count`, and `last_at`. `left_out` means that there were more events
    (`count` of them, if that is known) than are stored or shown.
    """

    at: Time
    event: Literal["issued", "attempt", "report", "left_out", "settled"]
    attempt: int | None = None
    outcome: str | None = None
    http_status: int | None = None
    fcm_error: str | None = None
    message_id: str | None = None
    latency_ms: int | None = None
    status: str | None = None
    message: str | None = None
    via: DeliveryChannel | None = None
    count: int | None = None
    last_at: Time | None = None
    late: bool | None = None
    duplicate: bool | None = None
    state: DeliveryState | None = None
    detail: str | None = None


class DeliveryDetail(DeliveryRow):
    """A delivery with its timeline, oldest event first."""

    timeline: list[TimelineEvent]


class DeliveryQuery(Page, extra="forbid"):
    """Filters of the deliveries of a command. `not_succeeded`: all but those that succeeded in time."""

    state: DeliveryState | Literal["not_succeeded"] | None = None


class DeliveryPage(ResponseSchema):
    """One page of deliveries."""

    items: list[DeliveryRow]
    next_cursor: str | None


class CommandCancelled(ResponseSchema):
    """The deliveries that a cancellation withdrew. `may_still_run` counts those that may have reached a phone."""

    request_id: UUID
    cancelled: int
    already_settled: int
    may_still_run: int


Message = Annotated[str, StringConstraints(max_length=1000), STORABLE_TEXT]


def _priority(value: object) -> object:
    # Android's constants in RemoteMessage: PRIORITY_UNKNOWN, PRIORITY_HIGH, PRIORITY_NORMAL.
    if isinstance(value, int) and not isinstance(value, bool):
        return {0: "unknown", 1: "high", 2: "normal"}.get(value, value)
    return value.lower() if isinstance(value, str) else value


ArrivalPriority = Annotated[Literal["high", "normal", "unknown"], BeforeValidator(_priority)]


class PushArrival(TypedDict, total=False):
    """The FCM message as the phone got it. A priority is a word, or the number that Android's RemoteMessage has for it.

    With `priority` normal and `original_priority` high, FCM has downgraded the message.
    """

    priority: Annotated[ArrivalPriority | None, INFORMS_EXACTLY]
    original_priority: Annotated[ArrivalPriority | None, INFORMS_EXACTLY]
    sent_at: Annotated[Time | None, INFORMS_EXACTLY]
    received_at: Annotated[Time | None, INFORMS_EXACTLY]


class ActionResult(DeviceBody):
    """A phone's report on a command. A field that is null counts as not sent.

    An output of more than 16 KiB as JSON, or of more than 16 levels, is dropped as a whole.
    """

    request_id: Annotated[Identifier, DECIDES]
    status: Annotated[ReportStatus, DECIDES]
    message: Annotated[Message | None, INFORMS] = None
    output: Annotated[Annotated[dict[str, Any], Storable(16 * 1024)] | None, INFORMS] = None
    finished_at: Annotated[Time | None, INFORMS] = None
    via: Annotated[DeliveryChannel | None, INFORMS] = None
    push: Annotated[Annotated[PushArrival, Storable(1024)] | None, INFORMS] = None


class ActionResultTaken(ResponseSchema):
    """The state of the delivery after the report.

    `duplicate`: a final report came before this one, so this one changes nothing. `late`: this is a final report, but
    the delivery was expired or cancelled before, so its state stays.
    """

    request_id: UUID
    state: DeliveryState
    duplicate: bool
    late: bool
    warnings: Warnings = []
