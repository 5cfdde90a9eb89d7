"""The schemas of commands in the API: bodies, queries and answers."""

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
    """The target of a command: exactly one of the four fields. `tags` selects the devices that have at least one of the
    tags.
    """

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
        """Return the target. Repeated entries are removed."""
        return Target(
            device_ids=list(dict.fromkeys(self.device_ids or [])),
            aliases=list(dict.fromkeys(self.aliases or [])),
            tags=list(dict.fromkeys(self.tags or [])),
            everyone=bool(self.all),
        )


class NewCommand(Body):
    """A command for one or many devices. `params` contains the parameters of the action."""

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
    """`queued` counts the devices that get a push. `no_push_token` counts the devices that can get no push."""

    queued: int
    no_push_token: int


class CommandIssued(ResponseSchema):
    """The command that was queued, and the number of its devices. In a dry run, nothing was queued."""

    request_id: UUID | None
    action: str
    state: CommandState
    issued_at: Time
    expires_at: Time
    device_count: int
    push: PushPlan
    dry_run: bool


class CommandQuery(Page, extra="forbid"):
    """Filters of the list of commands. `since` and `until` are limits of `issued_at`; `until` itself is excluded."""

    action: Annotated[Text, Field(max_length=64)] | None = None
    state: CommandState | None = None
    outcome: CommandOutcome | None = None
    device_id: Identifier | None = None
    since: Time | None = None
    until: Time | None = None


class CommandRow(ResponseSchema):
    """A command. While the command is open, `outcome` is null. A late result changes neither `state` nor `outcome`."""

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
    """A command in a list. `succeeded` counts the devices on which the command succeeded in time. `late` counts late
    results.

    While the command is open, `late` is null. If a command has too many devices, `succeeded` and `late` are null.
    """

    succeeded: int | None
    late: int | None


class CommandPage(ResponseSchema):
    """One page of commands."""

    items: list[ListedCommand]
    next_cursor: str | None


class Counts(ResponseSchema):
    """The deliveries of a command, counted by state. `late` counts the deliveries with a late result."""

    pending: int
    received: int
    succeeded: int
    failed: int
    expired: int
    cancelled: int
    late: int


class PushCounts(ResponseSchema):
    """The deliveries of a command, counted by the state of their push.

    `accepted`: FCM accepted the push. This does not show that the phone got the push. `superseded`: the delivery was
    settled while its push was waiting or retrying.
    """

    waiting: int
    accepted: int
    retrying: int
    undeliverable: int
    superseded: int
    no_push_token: int


class CommandDetail(CommandRow):
    """A command with its counts. `completed_at` is the time when the last delivery was settled."""

    completed_at: Time | None
    cancelled_at: Time | None
    counts: Counts
    push: PushCounts


class WaitQuery(Body):
    """`wait_seconds`: the longest time to wait for the end of the command, at most 30 s."""

    wait_seconds: Annotated[QueryNumber, Field(ge=0, le=30)] = 0


class PushSummary(ResponseSchema):
    """The push of one delivery. `superseded`: the delivery was settled while the push was waiting or retrying."""

    state: PushNow
    attempts: int
    last_http_status: int | None
    last_fcm_error: str | None
    message_id: str | None
    next_attempt_at: Time | None


class Result(ResponseSchema):
    """A phone's final report. `finished_at` is the phone's time, and `reported_at` is the server's time."""

    status: ReportStatus
    message: str | None
    output: dict[str, Any] | None
    finished_at: Time | None
    reported_at: Time


class DeliveryRow(ResponseSchema):
    """One command for one device, with its state, push and result.

    `why_open` is what the delivery waits for. `why_unfinished` is why the delivery expired or was withdrawn. Later
    events on the device do not change `why_unfinished`.
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

    Repeated reports that are not final are one event: `count` is their number, and `last_at` is the time of the last
    report. An event `left_out` stands for `count` events that are not stored or not shown. An unknown `count` is null.
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
    """Filters of the deliveries of a command. `not_succeeded` selects all deliveries except `succeeded`."""

    state: DeliveryState | Literal["not_succeeded"] | None = None


class DeliveryPage(ResponseSchema):
    """One page of deliveries."""

    items: list[DeliveryRow]
    next_cursor: str | None


class CommandCancelled(ResponseSchema):
    """The result of a cancellation. `cancelled` counts the deliveries that the cancellation withdrew.

    `already_settled` counts the deliveries that were settled before. `may_still_run` counts the withdrawn deliveries
    that may have reached their phones.
    """

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
    """The FCM message as the phone got it. A priority is a word, or the number that Android's RemoteMessage uses for
    the word.

    If `priority` is normal and `original_priority` is high, FCM has downgraded the message.
    """

    priority: Annotated[ArrivalPriority | None, INFORMS_EXACTLY]
    original_priority: Annotated[ArrivalPriority | None, INFORMS_EXACTLY]
    sent_at: Annotated[Time | None, INFORMS_EXACTLY]
    received_at: Annotated[Time | None, INFORMS_EXACTLY]


class ActionResult(DeviceBody):
    """A phone's report on a command. A field that is null counts as not sent.

    An `output` of more than 16 KiB as JSON is dropped as a whole. An `output` of more than 16 levels is dropped too.
    """

    request_id: Annotated[Identifier, DECIDES]
    status: Annotated[ReportStatus, DECIDES]
    message: Annotated[Message | None, INFORMS] = None
    output: Annotated[Annotated[dict[str, Any], Storable(16 * 1024)] | None, INFORMS] = None
    finished_at: Annotated[Time | None, INFORMS] = None
    via: Annotated[DeliveryChannel | None, INFORMS] = None
    push: Annotated[Annotated[PushArrival, Storable(1024)] | None, INFORMS] = None


class ActionResultTaken(ResponseSchema):
    """The state of the delivery after the report. `duplicate`: a final report came before, and this report changes
    nothing.

    `late`: this final report came after expiry or cancellation, and does not change the state.
    """

    request_id: UUID
    state: DeliveryState
    duplicate: bool
    late: bool
    warnings: Warnings = []
