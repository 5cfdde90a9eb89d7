"""A read-only window on the fleet. Of credentials and push tokens it shows that there are some, never what they are."""

from datetime import datetime, timedelta
from typing import Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin
from django.db.models import Case, CharField, Q, QuerySet, Value, When
from django.http import HttpRequest
from django.utils.html import format_html

from devices.identity import search
from devices.models import PUSH_HEALTH, Device, LastRefusal, not_seen_after, presence_name, presences
from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import NOTHING, Column, Narrowed, moment, pretty
from nexmdm.common.read_only_admin.filters import ChoiceFilter, ExactTextFilter, SpanFilter

SECRETS: Final = ("push_token", "token_hash", "token_digest", "next_hash", "next_digest")
"""The columns of a device that no list of this site reads."""


class PresenceFilter(ChoiceFilter):
    """By when the device was last heard."""

    title = "presence"
    parameter_name = "presence"

    def conditions(self) -> dict[str, Q]:
        """Return the presences."""
        return presences()


class PushFilter(ChoiceFilter):
    """By what is known of the push token."""

    title = "push token"
    parameter_name = "push"

    def conditions(self) -> dict[str, Q]:
        """Return what can be known of a push token."""
        return PUSH_HEALTH


class SilenceFilter(SpanFilter):
    """By for how long the device has sent no heartbeat; before its first one, the enrollment counts."""

    title = "silent for"
    parameter_name = "silent"
    spans: ClassVar = {"1 hour": timedelta(hours=1), "1 day": timedelta(days=1), "7 days": timedelta(days=7)}

    def narrowed(self, rows: QuerySet[Any], moment: datetime) -> QuerySet[Any]:
        """Keep the devices without a heartbeat after this moment."""
        return rows.filter(not_seen_after(moment))


class ReportedFilter(ExactTextFilter):
    """By what the device reported of itself."""

    title = "what it reported, exactly"
    parameters = ("model", "os_version", "agent_version")
    columns: ClassVar = {"model": "model", "os_version": "os_version", "agent_version": "presence__agent_version"}


class DeviceAdmin(ReadOnlyAdmin):
    """The devices, and what each last said."""

    list_display = (
        "id", "alias", "hardware_id", "model", "tag_list", "presence_now", "last_seen_at", "push",
        "agent_version",
    )  # fmt: skip
    list_display_links = ("id", "alias")
    list_filter = (PresenceFilter, SilenceFilter, PushFilter, ReportedFilter)
    search_fields = ("alias", "hardware_id", "id")
    search_help_text = "Part of an alias or a hardware id, or a device id or its start."
    fieldsets: ClassVar = [
        (None, {"fields": ["id", "hardware_id", "alias", "tag_list", "manufacturer", "same_model", "same_os"]}),
        ("Presence", {"fields": ["presence_now", "last_seen_at", "same_agent", "last_status", "refused"]}),
        ("Push", {"fields": ["push"]}),
        ("Enrollment", {"fields": ["enrolled_with", "enrolled", "enrolled_from", "revoked", "retired"]}),
    ]
    exported: ClassVar = {
        "device_id": "id", "hardware_id": "hardware_id", "alias": "alias", "tags": "tags",
        "manufacturer": "manufacturer", "model": "model", "os_version": "os_version",
        "agent_version": "presence__agent_version", "presence": "presence_named",
        "last_seen_at": "presence__last_seen_at", "last_status": "presence__last_status", "push": "push_named",
        "enrolled_at": "enrolled_at", "revoked_at": "revoked_at",
        "retired_at": "retired_at",
        "last_refusal_at": "last_refusal__at", "last_refusal_route": "last_refusal__route",
        "last_refusal_code": "last_refusal__code",
    }  # fmt: skip

    presence_now = Column("presence_named", "presence")
    last_seen_at = Column("presence.last_seen_at")
    agent_version = Column("presence.agent_version")
    same_model = Narrowed("model", "model")
    same_os = Narrowed("os_version", "os_version")
    same_agent = Narrowed("presence.agent_version", "agent_version")
    tag_list = Column("tags")
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
            push_named=Case(*states, output_field=CharField()),
        )
        return described

    def named(self, text: str) -> Q:
        """Return the condition for part of an alias or a hardware id, or the start of a device id."""
        return search.matching(text)

    def identified(self, key: UUID) -> Q:
        """Return the condition for a device id."""
        return Q(pk=key)

    @admin.display(description="push token")
    def push(self, device: Any) -> str:
        """Return ok, failing, none, or since when the push token is dead."""
        if device.push_named == "dead":
            return format_html("dead since {}", moment(device.push_token_dead_at))
        return str(device.push_named)

    @admin.display(description="last refusal")
    def refused(self, device: Device) -> str:
        """Return when a request of the phone was last refused, with which code and on which route."""
        refusal: LastRefusal | None = getattr(device, "last_refusal", None)
        if refusal is None:
            return NOTHING
        return format_html("{} {} at {}", moment(refusal.at), refusal.code, refusal.route)

    @admin.display(description="last status")
    def last_status(self, device: Device) -> str:
        """Return what the phone last said about itself."""
        return pretty(device.presence.last_status)
