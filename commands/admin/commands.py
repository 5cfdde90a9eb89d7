"""A read-only window on the work: commands, and devices with the work they were given."""

from collections.abc import Sequence
from itertools import accumulate, takewhile
from operator import attrgetter
from typing import Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin
from django.db.models import Case, F, JSONField, Q, QuerySet, TextField, When
from django.db.models.functions import Cast, Length
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from commands.admin import filters
from commands.admin.deliveries import BULKY, NOW, DeliveryAdmin, complete, reason
from commands.models import Command, Delivery, DeliveryState
from commands.queries.commands import CommandStatus, command_detail, command_statuses
from commands.schemas import Counts
from devices.admin import SECRETS, DeviceAdmin
from devices.identity import search
from devices.models import Device
from nexmdm.common.read_only_admin.base import NewestRows, ReadOnlyAdmin, ReadOnlyInline
from nexmdm.common.read_only_admin.columns import NOTHING, Column, link, link_to_list, pretty
from nexmdm.models import AuditEntry

LONGEST_TARGET: Final = 20_000
"""How long the JSON text of a target is at most in the CSV, as of five hundred device ids: a chunk has many."""

_SHORT_TARGET: Final = {
    "target_length": Length(Cast("target", TextField())),
    "short_target": Case(When(target_length__lte=LONGEST_TARGET, then=F("target")), output_field=JSONField()),
}

MOST: Final = 100_000
"""How many deliveries a list of commands counts at most. What it leaves out is counted on each command's own page."""


class _NewestDeliveries(NewestRows):
    """The newest deliveries, with what is known of them beyond their own columns."""

    def get_queryset(self) -> QuerySet[Any]:
        """Return the newest deliveries, read once."""
        was_read = hasattr(self, "_newest")
        newest = super().get_queryset()
        if not was_read:
            complete(newest)
        return newest


class _Deliveries(ReadOnlyInline):
    """The last deliveries of a device or a command, each a link away."""

    model = Delivery
    formset = _NewestDeliveries

    action = DeliveryAdmin.action
    request_id = DeliveryAdmin.request_id
    to_device = DeliveryAdmin.to_device
    channel = DeliveryAdmin.channel
    state_now = DeliveryAdmin.state_now
    issued = DeliveryAdmin.issued
    settled = DeliveryAdmin.settled
    push = DeliveryAdmin.push
    attempts = DeliveryAdmin.attempts

    @admin.display(description="reason")
    def reason(self, delivery: Any) -> str:
        """Return why a delivery is open, or has come to nothing."""
        return reason(delivery.current) if delivery.current else NOTHING

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the deliveries as they stand now."""
        unread = [f"command__{name}" for name in BULKY] + [f"device__{name}" for name in SECRETS]
        deliveries = super().get_queryset(request).select_related("command", "device").defer(*unread)
        described: QuerySet[Any] = deliveries.annotate(**NOW)
        return described

    @admin.display(description="delivery")
    def itself(self, delivery: Delivery) -> SafeString:
        """Return a link to the delivery's own page."""
        return link(delivery, delivery.pk)


class DeliveriesOfDevice(_Deliveries):
    """The last commands of a device."""

    verbose_name_plural = "last commands"
    fields: ClassVar = [
        "itself", "action", "request_id", "state_now", "reason", "push", "attempts", "channel", "issued", "settled",
    ]  # fmt: skip


class DeliveriesOfCommand(_Deliveries):
    """The last deliveries of a command."""

    verbose_name_plural = "deliveries"
    fields: ClassVar = ["itself", "to_device", "state_now", "reason", "push", "attempts", "channel", "settled"]


class CommandAdmin(ReadOnlyAdmin):
    """What was asked, and how it stands by device."""

    list_display = (
        "id", "action", "standing", "came_to", "counts", "meant", "issued", "note", "issued_by", "expires",
    )  # fmt: skip
    list_filter = (
        filters.ActionFilter,
        filters.CommandStateFilter,
        filters.CommandOutcomeFilter,
        filters.CommandAge,
        filters.CommandTime,
    )
    search_fields = ("id", "deliveries__device__alias")
    search_help_text = "A whole request id or device id, or part of a device's alias or hardware id."
    inlines: ClassVar = [DeliveriesOfCommand]
    fieldsets: ClassVar = [
        (None, {"fields": ["id", "action", "pretty_params", "urgency", "pretty_target", "note"]}),
        ("Asked by", {"fields": ["issued_by", "audit_entries"]}),
        ("Times", {"fields": ["issued", "expires", "completed", "cancelled"]}),
        ("Deliveries", {"fields": ["state", "came_to", "device_count", "counts", "pushes", "all_deliveries"]}),
    ]
    exported: ClassVar = {
        "request_id": "id", "action": "action", "params": "params", "target": "short_target", "priority": "priority",
        "note": "note", "issued_by": "issued_by", "device_count": "device_count", "issued_at": "issued_at",
        "expires_at": "expires_at", "cancelled_at": "cancelled_at",
    }  # fmt: skip
    derived = ("state", "outcome", "completed_at", *Counts.model_fields)

    urgency = Column("priority")
    issued = Column("issued_at")
    expires = Column("expires_at")
    cancelled = Column("cancelled_at")
    state = Column("current.state")
    completed = Column("current.completed_at")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the command with its counts, or None."""
        command = super().get_object(request, object_id, from_field)
        if command is not None:
            command.current = command_detail(command.pk)
        return command

    def complete(self, rows: Sequence[Any]) -> None:
        """Give the commands of a page their counts, the narrowest first, as long as MOST allows."""
        narrowest_first = sorted(rows, key=attrgetter("device_count"))
        totals = accumulate(command.device_count for command in narrowest_first)
        few = takewhile(lambda one: one[1] <= MOST, zip(narrowest_first, totals, strict=True))
        statuses = command_statuses({command.pk: command.device_count for command, _ in few})
        alone = _only_devices([command.pk for command in rows if command.device_count == 1])
        for command in rows:
            command.current, command.only_device = statuses.get(command.pk), alone.get(command.pk)

    def cells(self, rows: QuerySet[Any]) -> list[tuple[Any, ...]]:
        """Return the cells of some commands, with their states and counts."""
        found = super().cells(rows.annotate(**_SHORT_TARGET))
        size = 1 + list(self.exported).index("device_count")
        statuses = command_statuses({cells[0]: cells[size] for cells in found})
        return [(*cells, *_derived(statuses.get(cells[0]))) for cells in found]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the commands without their bulky columns."""
        return super().get_queryset(request).defer(*BULKY)

    def identified(self, key: UUID) -> Q:
        """Return the condition for a request id, or for a device that was meant."""
        if Command.objects.filter(pk=key).exists():
            return Q(pk=key)
        return Q(pk__in=Delivery.objects.filter(device=key).order_by().values("command"))

    def named(self, text: str) -> Q:
        """Return the condition for a device that was meant, by part of its alias or hardware id."""
        return Q(pk__in=Delivery.objects.filter(search.named(text, "device__")).order_by().values("command"))

    @admin.display(description="parameters")
    def pretty_params(self, command: Any) -> str:
        """Return the parameters, laid out for people."""
        return pretty(command.current.params)

    @admin.display(description="target")
    def pretty_target(self, command: Any) -> str:
        """Return whom the command was for."""
        return pretty(command.current.target)

    @admin.display(description="devices")
    def meant(self, command: Any) -> str:
        """Return the number of devices of a command; if it is for one device, a link to that device."""
        device = command.only_device
        return str(command.device_count) if device is None else link(device, device)

    @admin.display(description="state")
    def standing(self, command: Any) -> str:
        """Return the state of a command in a list."""
        return command.current.state if command.current else NOTHING

    @admin.display(description="outcome")
    def came_to(self, command: Any) -> str:
        """Return the outcome of a command that is not open any more, and the number of late results."""
        if not command.current or not command.current.outcome:
            return NOTHING
        late = command.current.counts.late
        return f"{command.current.outcome}, {late} late" if late else str(command.current.outcome)

    @admin.display(description="by state")
    def counts(self, command: Any) -> SafeString:
        """Return how many deliveries are in each state now, each number a link to them; and how many came too late."""
        if not command.current:
            return link(command, "on its own page")
        counted = command.current.counts.model_dump()
        links = [
            link_to_list(Delivery, f"{counted[state]} {state}", command__id__exact=command.pk, state=state)
            for state in DeliveryState.values
            if counted[state]
        ]
        late = [f"{counted['late']} with a late result"] if counted["late"] else []
        return format_html_join(", ", "{}", ([part] for part in [*links, *late]))

    @admin.display(description="by push")
    def pushes(self, command: Any) -> str:
        """Return how the pushes stand."""
        counted = command.current.push.model_dump()
        return ", ".join(f"{count} {state}" for state, count in counted.items() if count) or NOTHING

    @admin.display(description="one by one")
    def all_deliveries(self, command: Command) -> SafeString:
        """Return a link to the deliveries."""
        return link_to_list(Delivery, "All deliveries of this command", command__id__exact=command.pk)

    @admin.display(description="audit")
    def audit_entries(self, command: Command) -> SafeString:
        """Return a link to the signed requests about the command."""
        return link_to_list(AuditEntry, "Signed requests about this command", request_id=command.pk)


def _only_devices(request_ids: list[UUID]) -> dict[UUID, Device]:
    """Return the device of each of these commands, which are for one device each."""
    unread = [f"device__{name}" for name in SECRETS]
    deliveries = Delivery.objects.filter(command__in=request_ids).select_related("device").defer(*unread).order_by()
    return {delivery.command_id: delivery.device for delivery in deliveries}


def _derived(status: CommandStatus | None) -> tuple[Any, ...]:
    """Return the CSV's cells on how a command stands; empty ones if it has just been deleted."""
    if status is None:
        return (None,) * len(CommandAdmin.derived)
    return (status.state, status.outcome, status.completed_at, *status.counts.model_dump().values())


class BusyDeviceAdmin(DeviceAdmin):
    """A device with the work it was given."""

    inlines: ClassVar = [DeliveriesOfDevice]
    fieldsets: ClassVar = [*DeviceAdmin.fieldsets, ("Work", {"fields": ["all_deliveries", "audit_entries"]})]

    @admin.display(description="deliveries")
    def all_deliveries(self, device: Device) -> SafeString:
        """Return a link to the device's deliveries."""
        return link_to_list(Delivery, "All deliveries to this device", device__id__exact=device.pk)

    @admin.display(description="audit")
    def audit_entries(self, device: Device) -> SafeString:
        """Return a link to the signed requests about the device."""
        text = "Signed requests about this device, but for tag changes, and refused commands to several devices"
        return link_to_list(AuditEntry, text, q=device.pk)
