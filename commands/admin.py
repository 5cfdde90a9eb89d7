"""A read-only window on the work: commands, deliveries, attempts, reports. What is past its time shows as expired."""

import json
from operator import attrgetter
from typing import Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin
from django.db.models import Case, CharField, Count, DateTimeField, F, Q, QuerySet, Value, When
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from commands import filters
from commands.models import FINAL, Attempt, Command, Delivery, Report, State
from devices.admin import SECRETS, DeviceAdmin
from devices.browsing import (
    NOTHING,
    Column,
    Link,
    NewestRows,
    ReadOnlyAdmin,
    ReadOnlyInline,
    all_of,
    link,
    link_to_list,
    pretty,
)
from devices.models import Device

NOW: Final = {
    "state_now": Case(When(filters.OVERDUE, then=Value(State.EXPIRED)), default=F("state"), output_field=CharField()),
    "settled_now": Case(
        When(filters.OVERDUE, then=F("open_until")), default=F("settled_at"), output_field=DateTimeField()
    ),
}
"""How a delivery stands at this moment, swept or not."""

# A command may name thousands of devices in its target: no list reads that a hundred times.
BULKY: Final = ("params", "target")


_key: Final = attrgetter("pk")


class CommandAdmin(ReadOnlyAdmin):
    """What was asked; the deliveries are a link away."""

    list_display = ("id", "action", "device_count", "issued_by", "note", "urgency", "issued", "expires")
    list_filter = (filters.ActionFilter, filters.CommandStateFilter, filters.CommandAge)
    search_fields = ("id", "deliveries__device__alias")
    search_help_text = "A whole request id or device id, or the start of a device's alias."
    fieldsets: ClassVar = [
        (None, {"fields": ["id", "action", "pretty_params", "urgency", "pretty_target", "note", "issued_by"]}),
        ("Times", {"fields": ["issued", "expires", "cancelled"]}),
        ("Deliveries", {"fields": ["device_count", "counts", "all_deliveries"]}),
    ]

    urgency = Column("priority")
    issued = Column("issued_at")
    expires = Column("expires_at")
    cancelled = Column("cancelled_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the commands without their bulky columns; a command's own page reads those by itself."""
        return super().get_queryset(request).defer(*BULKY)

    def identified(self, key: UUID) -> Q:
        """Return the condition for a request id, or for a device that was meant."""
        if Command.objects.filter(pk=key).exists():
            return Q(pk=key)
        return Q(pk__in=Delivery.objects.filter(device=key).order_by().values("command"))

    def named(self, text: str) -> Q:
        """Return the condition for a device that was meant, by its alias."""
        return Q(pk__in=Delivery.objects.filter(device__alias__startswith=text).order_by().values("command"))

    @admin.display(description="parameters")
    def pretty_params(self, command: Command) -> str:
        """Return the parameters, laid out for people."""
        return pretty(json.loads(command.params))

    @admin.display(description="target")
    def pretty_target(self, command: Command) -> str:
        """Return whom the command was for."""
        return pretty(command.target)

    @admin.display(description="by state")
    def counts(self, command: Command) -> SafeString:
        """Return how many deliveries are in each state now, each number a link to them."""
        now = Delivery.objects.filter(command=command).order_by().annotate(state_now=NOW["state_now"])
        counted = dict(now.values_list("state_now").annotate(Count("pk")))
        links = [
            link_to_list(Delivery, f"{counted[state]} {state}", command__id__exact=command.pk, state=state)
            for state in State.values
            if state in counted
        ]
        return format_html_join(", ", "{}", ([link] for link in links))

    @admin.display(description="one by one")
    def all_deliveries(self, command: Command) -> SafeString:
        """Return a link to the deliveries."""
        return link_to_list(Delivery, "All deliveries of this command", command__id__exact=command.pk)


class _OfCommandAndDevice(ReadOnlyAdmin):
    """What belongs to one command for one device: found by request id, device id, or alias."""

    to_delivery: ClassVar = ""

    search_help_text = "A whole request id or device id, or the start of a device's alias."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows with their command and device, but for what is bulky or secret."""
        command, device = f"{self.to_delivery}command", f"{self.to_delivery}device"
        unread = [f"{command}__{name}" for name in BULKY] + [f"{device}__{name}" for name in SECRETS]
        return super().get_queryset(request).select_related(command, device).defer(*unread)

    def identified(self, key: UUID) -> Q:
        """Return the condition for a request id or a device id, whichever it is: each has an index of its own."""
        return Q(command=key) if Command.objects.filter(pk=key).exists() else Q(device=key)

    def named(self, text: str) -> Q:
        """Return the condition for the start of a device's alias."""
        return Q(**{f"{self.to_delivery}device__alias__startswith": text})


class _Sent:
    """What became of a send, in the contract's own words."""

    nth = Column("number", "no.")
    ended = Column("outcome")
    http = Column("http_status", "HTTP")
    fcm_code = Column("fcm_error", "FCM code")
    latency = Column("latency_ms", "ms")
    started = Column("started_at")
    finished = Column("finished_at")


class AttemptInline(_Sent, ReadOnlyInline):
    """The sends of a delivery."""

    model = Attempt
    fields: ClassVar = ["nth", "ended", "http", "fcm_code", "message_id", "latency", "detail", "started", "finished"]


class _Said:
    """What a report says, in the contract's own words."""

    said = Column("status")
    channel = Column("via")
    done = Column("device_finished_at")
    heard = Column("reported_at")

    @admin.display(description="output")
    def pretty_output(self, report: Report) -> str:
        """Return what the phone sent along, laid out for people."""
        return pretty(report.output)


class ReportInline(_Said, ReadOnlyInline):
    """What the phone said about a delivery."""

    model = Report
    fields: ClassVar = ["said", "message", "pretty_output", "channel", "late", "duplicate", "done", "heard"]


class DeliveryAdmin(_OfCommandAndDevice):
    """One command for one device, with its result, its attempts, and all that the phone said."""

    list_display = (
        "id", "action", "request_id", "to_device", "state_now", "push", "attempts", "channel", "issued",
        "settled",
    )  # fmt: skip
    list_filter = (
        filters.DeliveryActionFilter,
        filters.StateFilter,
        filters.DeliveryHttpStatusFilter,
        filters.DeliveryFcmErrorFilter,
        filters.PushFilter,
    )
    search_fields = ("command__id", "device__id", "device__alias")
    linked_by = ("command__id__exact", "device__id__exact")
    inlines: ClassVar = [AttemptInline, ReportInline]
    fieldsets: ClassVar = [
        (None, {"fields": ["action", "request_id", "to_device", "state_now", "channel"]}),
        ("Result", {"fields": ["result"]}),
        ("Times", {"fields": ["issued", "until", "received", "reported", "settled"]}),
        ("Push", {"fields": ["push", "attempts", "failure_count", "next_push", "everything"]}),
    ]

    action = Column("command.action")
    request_id = Link("command", "request id", _key)
    to_device = Link("device")
    state_now = Column("state_now", "state")
    issued = Column("command.issued_at")
    until = Column("open_until")
    received = Column("received_at")
    reported = Column("reported_at")
    settled = Column("settled_now", "settled at")
    push = Column("push_state", "push")
    attempts = Column("attempt_count", "attempts")
    channel = Column("delivered_via", "via")
    next_push = Column("next_attempt_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the deliveries as they stand now."""
        deliveries: QuerySet[Any] = super().get_queryset(request).annotate(**NOW)
        return deliveries

    @admin.display(description="result")
    def result(self, delivery: Delivery) -> str:
        """Return the phone's final word, late or not."""
        final = Report.objects.filter(delivery=delivery, status__in=FINAL, duplicate=False).first()
        if final is None:
            return NOTHING
        word = f"{final.status}, late: the delivery was settled before" if final.late else final.status
        output = "" if final.output is None else pretty(final.output)
        return format_html("<strong>{}</strong> {} {}", word, final.message, output)

    @admin.display(description="whole lists")
    def everything(self, delivery: Delivery) -> SafeString:
        """Return links to all attempts and reports, since this page shows the newest only."""
        attempts = link_to_list(Attempt, "attempts", delivery__id__exact=delivery.pk)
        reports = link_to_list(Report, "reports", delivery__id__exact=delivery.pk)
        return format_html("{}, {}", attempts, reports)


class _OfDelivery(_OfCommandAndDevice):
    """What belongs to a delivery, with the delivery's command and device beside it."""

    to_delivery = "delivery__"
    search_fields = ("delivery__command__id", "delivery__device__id", "delivery__device__alias")
    linked_by = ("delivery__id__exact",)

    action = Column("delivery.command.action")
    request_id = Link("delivery.command", "request id", _key)
    to_device = Link("delivery.device")
    of_delivery = Link("delivery", text=_key)

    def identified(self, key: UUID) -> Q:
        """Return the condition for a request id, whose deliveries may all be old, or for a device id."""
        if Command.objects.filter(pk=key).exists():
            return Q(delivery__in=all_of(Delivery.objects.filter(command=key)))
        return Q(delivery__device=key)


class AttemptAdmin(_Sent, _OfDelivery):
    """One FCM send, with FCM's answer."""

    list_display = (
        "id", "action", "request_id", "to_device", "of_delivery", "nth", "ended", "http", "fcm_code", "latency",
        "started",
    )  # fmt: skip
    list_filter = (
        filters.FcmErrorFilter,
        filters.HttpStatusFilter,
        filters.OutcomeFilter,
        filters.AttemptActionFilter,
        filters.AttemptAge,
    )
    fields: ClassVar = [
        "action", "request_id", "to_device", "of_delivery", "nth", "ended", "http", "fcm_code", "message_id",
        "latency", "detail", "started", "finished",
    ]  # fmt: skip


class ReportAdmin(_Said, _OfDelivery):
    """One thing a phone said about a delivery."""

    list_display = (
        "id", "action", "request_id", "to_device", "of_delivery", "said", "message", "channel", "late", "duplicate",
        "heard",
    )  # fmt: skip
    list_filter = (filters.ReportStatusFilter, filters.ReportAge)
    fields: ClassVar = [
        "action", "request_id", "to_device", "of_delivery", "said", "message", "pretty_output", "channel", "late",
        "duplicate", "done", "heard",
    ]  # fmt: skip


class LatestDeliveries(NewestRows):
    """A device's latest deliveries."""

    most = 20


class DeliveryInline(ReadOnlyInline):
    """The latest deliveries of a device, each a link away."""

    model = Delivery
    formset = LatestDeliveries
    verbose_name_plural = "latest deliveries"
    fields: ClassVar = ["itself", "action", "request_id", "state_now", "push", "attempts", "issued", "settled"]

    action = DeliveryAdmin.action
    request_id = DeliveryAdmin.request_id
    state_now = DeliveryAdmin.state_now
    issued = DeliveryAdmin.issued
    settled = DeliveryAdmin.settled
    push = DeliveryAdmin.push
    attempts = DeliveryAdmin.attempts

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the deliveries as they stand now."""
        bulky = [f"command__{name}" for name in BULKY]
        deliveries = super().get_queryset(request).select_related("command").defer(*bulky)
        described: QuerySet[Any] = deliveries.annotate(**NOW)
        return described

    @admin.display(description="delivery")
    def itself(self, delivery: Delivery) -> SafeString:
        """Return a link to the delivery's own page."""
        return link(delivery, delivery.pk)


class BusyDeviceAdmin(DeviceAdmin):
    """A device with the work it was given."""

    inlines: ClassVar = [DeliveryInline]
    fieldsets: ClassVar = [*DeviceAdmin.fieldsets, ("Work", {"fields": ["all_deliveries"]})]

    @admin.display(description="deliveries")
    def all_deliveries(self, device: Device) -> SafeString:
        """Return a link to the device's deliveries."""
        return link_to_list(Delivery, "All deliveries to this device", device__id__exact=device.pk)
