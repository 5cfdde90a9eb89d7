"""A read-only window on the work: commands, deliveries, attempts, reports. What is past its time shows as expired."""

import json
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
from devices.browsing import NOTHING, Column, Link, NewestRows, ReadOnlyAdmin, ReadOnlyInline, link_to_list, pretty
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


class CommandAdmin(ReadOnlyAdmin):
    """What was asked; the deliveries are a link away."""

    list_display = ("id", "action", "device_count", "issued_by", "note", "priority", "issued_at", "expires_at")
    list_filter = (filters.ActionFilter, filters.CommandStateFilter, filters.CommandAge)
    search_fields = ("id", "deliveries__device__alias")
    search_help_text = "A whole request id or device id, or the start of a device's alias."
    fieldsets: ClassVar = [
        (None, {"fields": ["id", "action", "pretty_params", "priority", "pretty_target", "note", "issued_by"]}),
        ("Times", {"fields": ["issued_at", "expires_at", "cancelled_at"]}),
        ("Deliveries", {"fields": ["device_count", "counts", "all_deliveries"]}),
    ]

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
        column = "command" if Command.objects.filter(pk=key).exists() else "device"
        return Q(**{f"{self.to_delivery}{column}": key})

    def named(self, text: str) -> Q:
        """Return the condition for the start of a device's alias."""
        return Q(**{f"{self.to_delivery}device__alias__startswith": text})


class AttemptInline(ReadOnlyInline):
    """The sends of a delivery."""

    model = Attempt
    fields: ClassVar = [
        "number", "outcome", "http_status", "fcm_error", "message_id", "latency_ms", "detail", "started_at",
        "finished_at",
    ]  # fmt: skip


class _Output:
    @admin.display(description="output")
    def pretty_output(self, report: Report) -> str:
        """Return what the phone sent along, laid out for people."""
        return pretty(report.output)


class ReportInline(_Output, ReadOnlyInline):
    """What the phone said about a delivery."""

    model = Report
    fields: ClassVar = [
        "status", "message", "pretty_output", "via", "late", "duplicate", "device_finished_at", "reported_at",
    ]  # fmt: skip


class DeliveryAdmin(_OfCommandAndDevice):
    """One command for one device, with its result, its attempts, and all that the phone said."""

    list_display = (
        "id", "to_command", "to_device", "state_now", "push_state", "attempt_count", "delivered_via", "issued_at",
        "settled_now",
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
        (None, {"fields": ["to_command", "to_device", "state_now", "delivered_via"]}),
        ("Result", {"fields": ["result"]}),
        ("Times", {"fields": ["issued_at", "open_until", "received_at", "reported_at", "settled_now"]}),
        ("Push", {"fields": ["push_state", "attempt_count", "failure_count", "next_attempt_at", "everything"]}),
    ]

    to_command = Link("command")
    to_device = Link("device")
    issued_at = Column("command.issued_at")
    state_now = Column("state_now", "state")
    settled_now = Column("settled_now", "settled at")

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

    to_command = Link("delivery.command")
    to_device = Link("delivery.device")
    of_delivery = Link("delivery", text=lambda delivery: delivery.pk)


class AttemptAdmin(_OfDelivery):
    """One FCM send, with FCM's answer."""

    list_display = (
        "id", "to_command", "to_device", "of_delivery", "number", "outcome", "http_status", "fcm_error", "latency_ms",
        "started_at",
    )  # fmt: skip
    list_filter = (
        filters.FcmErrorFilter,
        filters.HttpStatusFilter,
        filters.OutcomeFilter,
        filters.AttemptActionFilter,
        filters.AttemptAge,
    )
    fields: ClassVar = [
        "to_command", "to_device", "of_delivery", "number", "outcome", "http_status", "fcm_error", "message_id",
        "latency_ms", "detail", "started_at", "finished_at",
    ]  # fmt: skip


class ReportAdmin(_Output, _OfDelivery):
    """One thing a phone said about a delivery."""

    list_display = (
        "id", "to_command", "to_device", "of_delivery", "status", "message", "via", "late", "duplicate", "reported_at",
    )  # fmt: skip
    list_filter = (filters.ReportStatusFilter, filters.ReportAge)
    fields: ClassVar = [
        "to_command", "to_device", "of_delivery", "status", "message", "pretty_output", "via", "late", "duplicate",
        "device_finished_at", "reported_at",
    ]  # fmt: skip


class LatestDeliveries(NewestRows):
    """A device's latest deliveries."""

    most = 20


class DeliveryInline(ReadOnlyInline):
    """The latest deliveries of a device, each a link away."""

    model = Delivery
    formset = LatestDeliveries
    verbose_name_plural = "latest deliveries"
    show_change_link = True
    fields: ClassVar = ["to_command", "state_now", "push_state", "attempt_count", "issued_at", "settled_now"]

    to_command = DeliveryAdmin.to_command
    issued_at = DeliveryAdmin.issued_at
    state_now = DeliveryAdmin.state_now
    settled_now = DeliveryAdmin.settled_now

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the deliveries as they stand now."""
        bulky = [f"command__{name}" for name in BULKY]
        deliveries = super().get_queryset(request).select_related("command").defer(*bulky)
        described: QuerySet[Any] = deliveries.annotate(**NOW)
        return described


class BusyDeviceAdmin(DeviceAdmin):
    """A device with the work it was given."""

    inlines: ClassVar = [DeliveryInline]
    fieldsets: ClassVar = [*DeviceAdmin.fieldsets, ("Work", {"fields": ["all_deliveries"]})]

    @admin.display(description="deliveries")
    def all_deliveries(self, device: Device) -> SafeString:
        """Return a link to the device's deliveries."""
        return link_to_list(Delivery, "All deliveries to this device", device__id__exact=device.pk)
