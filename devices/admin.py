"""The read-only admin pages of devices and enrollment tokens.

The pages show whether a device has credentials and a push target. The pages never show the secrets.
"""

from datetime import datetime, timedelta
from typing import Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin
from django.db.models import Case, CharField, F, Q, QuerySet, Value, When
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from devices.identity import search
from devices.models import (
    PUSH_HEALTH,
    Device,
    EnrollmentToken,
    LastRefusal,
    PushKind,
    not_seen_after,
)
from devices.presence.states import offline_since, presence_name, presences
from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import (
    NOTHING,
    WARN,
    Column,
    Id,
    Name,
    Narrowed,
    State,
    badge,
    link_to_list,
    moment,
    pretty,
)
from nexmdm.common.read_only_admin.filters import ChoiceFilter, ExactTextFilter, SpanFilter
from nexmdm.models import AuditEntry

SECRETS: Final = ("push_token", "token_hash", "token_digest", "next_hash", "next_digest")
"""The columns of a device that no page of the admin site reads."""

REPORTED: Final = ("same_manufacturer", "same_model", "same_os", "same_agent")
"""The names of the columns that show what the phone reported about itself."""

ACTIVE: Final = "active"
"""The choice of the presence filter for all devices that are neither revoked nor retired."""

LOW_BATTERY_PERCENT: Final = 15

_KINDS: Final = {PushKind.TOKEN: "registration token", PushKind.FID: "installation id (FID)"}
_MINUTE: Final = timedelta(minutes=1)


def low_battery() -> Q:
    """Return the condition for active devices that reported a low battery in the last day and were not charging."""
    status = "presence__last_status"
    in_last_day = Q(revoked_at=None, presence__last_seen_at__gt=Now() - timedelta(days=1))
    # PostgreSQL sorts JSON texts and null below all numbers.
    is_low = Q(**{f"{status}__battery_pct__gte": 0, f"{status}__battery_pct__lte": LOW_BATTERY_PERCENT})
    # Do not use ~Q: for a status without the key `charging`, its condition would be neither true nor false.
    return in_last_day & is_low & (Q(**{f"{status}__charging": False}) | Q(**{f"{status}__charging__isnull": True}))


class PresenceFilter(ChoiceFilter):
    """The filter by presence."""

    title = "presence"
    parameter_name = "presence"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for active devices, and the condition for each presence value."""
        return {ACTIVE: Q(revoked_at=None), **presences()}


class BatteryFilter(ChoiceFilter):
    """The filter for devices that reported a low battery in the last day."""

    title = "battery"
    parameter_name = "battery"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for a low battery."""
        return {"low": low_battery()}


class PushFilter(ChoiceFilter):
    """The filter by push health."""

    title = "push token"
    parameter_name = "push"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each value of push health."""
        return PUSH_HEALTH


class SilenceFilter(SpanFilter):
    """The filter by the time since the last heartbeat, or since the enrollment if there was no heartbeat."""

    title = "silent for at least"
    parameter_name = "silent"
    spans: ClassVar = {"1 hour": timedelta(hours=1), "1 day": timedelta(days=1), "7 days": timedelta(days=7)}

    def narrowed(self, rows: QuerySet[Any], moment: datetime) -> QuerySet[Any]:
        """Keep the devices without a heartbeat after `moment`."""
        return rows.filter(not_seen_after(moment))


class SeenFilter(SpanFilter):
    """The filter for devices whose last heartbeat came within the chosen time.

    No index supports this filter, because each heartbeat would have to update the index.
    """

    title = "last seen within the last"
    parameter_name = "seen"
    spans: ClassVar = SilenceFilter.spans

    def narrowed(self, rows: QuerySet[Any], moment: datetime) -> QuerySet[Any]:
        """Keep the devices with a heartbeat after `moment`."""
        return rows.filter(presence__last_seen_at__gt=moment)


class ReportedFilter(ExactTextFilter):
    """The filter by exact values that the phone reported."""

    title = "exact value that the device reported"
    parameters = ("manufacturer", "model", "os_version", "agent_version")
    columns: ClassVar = {
        "manufacturer": "manufacturer", "model": "model", "os_version": "os_version",
        "agent_version": "presence__agent_version",
    }  # fmt: skip


class TagFilter(ExactTextFilter):
    """The filter by a tag."""

    title = "tag"
    parameters = ("tag",)
    columns: ClassVar = {"tag": "tags__contains"}

    def value_of(self, text: str) -> Any:
        """Return a list with only this tag, because the filter compares lists of tags."""
        return [text]


def token_states() -> dict[str, Q]:
    """Return the condition for each state of an enrollment token at this moment."""
    unused = Q(uses__lt=F("max_uses"))
    kept = Q(revoked_at=None)
    return {
        "live": kept & unused & Q(expires_at__gt=Now()),
        "used up": kept & ~unused,
        "expired": kept & unused & Q(expires_at__lte=Now()),
        "revoked": ~kept,
    }


class TokenStateFilter(ChoiceFilter):
    """The filter by the state of the enrollment token."""

    title = "state"
    parameter_name = "state"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each state of an enrollment token."""
        return token_states()


class DeviceAdmin(ReadOnlyAdmin):
    """The list of devices, and the page of each device."""

    list_display = (
        "name", "presence_now", "last_seen_at", "push", "battery", "tag_list", "model", "agent_version",
        "hardware_id", "device_id",
    )  # fmt: skip
    list_filter = (PresenceFilter, SeenFilter, SilenceFilter, PushFilter, BatteryFilter, TagFilter, ReportedFilter)
    linked_by = ("enrolled_with__id__exact",)
    empty = "A phone registers with an enrollment token. To create a token, run manage.py fleet enroll-token."
    search_fields = ("alias", "hardware_id", "id")
    search_help_text = "Type a part of an alias or a hardware id, or the start of a device id."
    fieldsets: ClassVar = [
        (None, {"fields": ["presence_now", "last_seen_at", "went_offline", "battery", "push", "tag_list", *REPORTED]}),
        ("Status", {"fields": ["last_status", "refused"]}),
        ("Push target", {"fields": ["push_target", "push_registered", "push_revived", "push_dead"]}),
        ("Enrollment", {"fields": ["enrolled_with", "enrolled", "enrolled_from", "revoked", "retired"]}),
        ("Names and ids", {"fields": ["alias", "hardware_id", "id"]}),
    ]
    exported: ClassVar = {
        "device_id": "id", "hardware_id": "hardware_id", "alias": "alias", "tags": "tags",
        "manufacturer": "manufacturer", "model": "model", "os_version": "os_version",
        "agent_version": "presence__agent_version", "presence": "presence_named",
        "last_seen_at": "presence__last_seen_at", "offline_since": "offline_since",
        "last_status": "presence__last_status", "push": "push_named",
        "enrolled_at": "enrolled_at", "revoked_at": "revoked_at", "retired_at": "retired_at",
        "last_refusal_at": "last_refusal__at", "last_refusal_route": "last_refusal__route",
        "last_refusal_code": "last_refusal__code",
    }  # fmt: skip

    name = Name("device")
    device_id = Id("pk", "device id")
    presence_now = State("presence_named", "presence")
    last_seen_at = Column("presence.last_seen_at")
    went_offline = Column("offline_since", "offline since")
    agent_version = Column("presence.agent_version")
    same_manufacturer = Narrowed("manufacturer", "manufacturer")
    same_model = Narrowed("model", "model")
    same_os = Narrowed("os_version", "os_version")
    same_agent = Narrowed("presence.agent_version", "agent_version")
    push_registered = Column("push_registered_at", "registered at")
    push_revived = Column("push_revived_at", "revived at")
    push_dead = Column("push_token_dead_at", "dead since")
    enrolled = Column("enrolled_at")
    revoked = Column("revoked_at")
    retired = Column("retired_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the devices with their presence, and without their secrets."""
        states = [When(condition, then=Value(name)) for name, condition in PUSH_HEALTH.items()]
        devices = (
            super().get_queryset(request).select_related("presence", "last_refusal", "enrolled_with").defer(*SECRETS)
        )
        described: QuerySet[Any] = devices.annotate(
            presence_named=presence_name(),
            offline_since=offline_since(),
            push_named=Case(*states, output_field=CharField()),
        )
        return described

    def named(self, text: str) -> Q:
        """Return the condition for a part of an alias or hardware id, or for the start of a device id."""
        return search.matching(text)

    def identified(self, key: UUID) -> Q:
        """Return the condition for a device id."""
        return Q(pk=key)

    @admin.display(description="push token")
    def push(self, device: Any) -> str:
        """Return the push health. For a dead push target, the text also shows since when the push target is dead."""
        if device.push_named == "dead":
            return format_html("{} since {}", badge("dead"), moment(device.push_token_dead_at))
        return badge(device.push_named)

    @admin.display(description="kind")
    def push_target(self, device: Any) -> str:
        """Return the kind of the push target, but never its text."""
        return NOTHING if device.push_named == "none" else _KINDS[device.push_kind]

    @admin.display(description="tags")
    def tag_list(self, device: Device) -> SafeString:
        """Return the tags. Each tag is a link to the list of devices with this tag."""
        links = ((link_to_list(Device, tag, tag=tag),) for tag in device.tags)
        return format_html_join(", ", "{}", links) or SafeString(NOTHING)

    @admin.display(description="battery")
    def battery(self, device: Device) -> str:
        """Return the last battery level that the phone reported, and whether the phone was charging."""
        status = device.presence.last_status or {}
        percent = status.get("battery_pct")
        if percent is None:
            return NOTHING
        charging = bool(status.get("charging"))
        text = f"{percent}%{', charging' if charging else ''}"
        return badge(text, WARN) if percent <= LOW_BATTERY_PERCENT and not charging else text

    @admin.display(description="last refusal")
    def refused(self, device: Device) -> str:
        """Return the last refusal of the device: its time, code and route."""
        refusal: LastRefusal | None = getattr(device, "last_refusal", None)
        if refusal is None:
            return NOTHING
        return format_html("{} {} at {}", moment(refusal.at), refusal.code, refusal.route)

    @admin.display(description="last status")
    def last_status(self, device: Device) -> str:
        """Return the status that the phone reported last."""
        return pretty(device.presence.last_status)


class EnrollmentTokenAdmin(ReadOnlyAdmin):
    """The list of enrollment tokens, and the page of each token. The digests of the tokens are not read."""

    list_display = ("name", "state", "used", "tag_list", "expires", "created", "token_id")
    list_filter = (TokenStateFilter,)
    search_fields = ("label", "id")
    search_help_text = "Type a part of a label, or the start of the id of an enrollment token."
    empty = "To create an enrollment token, run manage.py fleet enroll-token."
    fieldsets: ClassVar = [
        (None, {"fields": ["name", "state", "used", "tag_list", "again", "audit_entries"]}),
        ("Times", {"fields": ["created", "expires", "revoked"]}),
        ("Ids", {"fields": ["token_id"]}),
    ]
    exported: ClassVar = {
        "id": "id", "label": "label", "tags": "tags", "re_enroll": "re_enroll", "max_uses": "max_uses", "uses": "uses",
        "created_at": "created_at", "expires_at": "expires_at", "revoked_at": "revoked_at",
    }  # fmt: skip

    name = Name("label")
    token_id = Id("pk", "id")
    created = Column("created_at")
    expires = Column("expires_at")
    revoked = Column("revoked_at")
    again = Column("re_enroll")
    state = State("state_named", "state")
    tag_list = DeviceAdmin.tag_list

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the enrollment tokens with their states, and without their digests."""
        states = [When(condition, then=Value(name)) for name, condition in token_states().items()]
        described: QuerySet[Any] = (
            super().get_queryset(request).defer("token_sha256").annotate(
                state_named=Case(*states, output_field=CharField())
            )
        )  # fmt: skip
        return described

    def named(self, text: str) -> Q:
        """Return the condition for a part of a label, or for the start of an id."""
        ids = search.ids_that_begin_with(text.lower())
        by_label = Q(label__icontains=text) if "\0" not in text else Q(pk=None)
        return by_label if ids is None else by_label | Q(id__range=ids)

    @admin.display(description="audit")
    def audit_entries(self, token: EnrollmentToken) -> SafeString:
        """Return links to the audit entries about this token, and to all creations of tokens around that time."""
        about = link_to_list(AuditEntry, "Signed requests about this enrollment token", q=token.pk)
        first, last = (f"{token.created_at + one:%Y-%m-%dT%H:%M}" for one in (-_MINUTE, 2 * _MINUTE))
        made = link_to_list(
            AuditEntry,
            "requests that created a token at that time",
            action="create_enrollment_token",
            since=first,
            until=last,
        )
        return format_html("{}; {}", about, made)

    @admin.display(description="used")
    def used(self, token: EnrollmentToken) -> SafeString:
        """Return how often the token was used, as a link to the devices that were last enrolled with it."""
        text = f"{token.uses:,} of {token.max_uses:,}"
        return link_to_list(Device, text, enrolled_with__id__exact=token.pk)
