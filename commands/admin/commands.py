"""The admin pages of commands, with the action, the target, and the state on the devices."""

from collections.abc import Sequence
from itertools import accumulate, takewhile
from operator import attrgetter
from typing import Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin
from django.db.models import Case, F, JSONField, Q, QuerySet, TextField, When
from django.db.models.functions import Cast, Length
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from commands.admin import filters
from commands.admin.deliveries import BULKY
from commands.admin.inlines import NotSucceeded, Succeeded
from commands.models import Command, Delivery, DeliveryState
from commands.queries.commands import CommandStatus, command_detail, command_statuses
from commands.schemas import Counts
from devices.admin import SECRETS
from devices.identity import search
from devices.models import Device
from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import NOTHING, Column, Id, State, badge, link, link_to_list, pretty
from nexmdm.models import AuditEntry

LONGEST_TARGET: Final = 20_000
"""The longest target in the CSV, in characters of its JSON text: about five hundred device ids.

Longer targets are left out of the CSV, because the CSV is built in chunks of many rows. A few long targets would make a
chunk too large.
"""

_SHORT_TARGET: Final = {
    "target_length": Length(Cast("target", TextField())),
    "short_target": Case(When(target_length__lte=LONGEST_TARGET, then=F("target")), output_field=JSONField()),
}

MOST: Final = 100_000
"""The largest number of deliveries that a list of commands counts.

The page of one command counts all deliveries of this command.
"""


class CommandAdmin(ReadOnlyAdmin):
    """The list of commands, and the page of each command."""

    list_display = (
        "action", "standing", "came_to", "counts", "meant", "note", "issued", "issued_by", "request_id",
    )  # fmt: skip
    empty = "To send a command, run manage.py fleet ping all."
    list_filter = (
        filters.ActionFilter,
        filters.CommandStateFilter,
        filters.CommandOutcomeFilter,
        filters.CommandEnd,
        filters.CommandAge,
        filters.CommandTime,
    )
    search_fields = ("id", "deliveries__device__alias")
    search_help_text = (
        "Type a whole request id, a whole device id, or a part of an alias or a hardware id. To search notes, use "
        "the search box at the top of the page."
    )
    change_form_template = "commands/command.html"
    inlines: ClassVar = [NotSucceeded, Succeeded]
    fieldsets: ClassVar = [
        (None, {"fields": ["state", "came_to", "counts", "meant", "note", "issued", "issued_by", "audit_entries"]}),
        ("Deliveries", {"fields": ["pushes", "unsuccessful", "all_deliveries"]}),
        ("Times", {"fields": ["expires", "completed", "cancelled"]}),
        ("The request", {"fields": ["action", "pretty_params", "urgency", "pretty_target", "id"]}),
    ]
    exported: ClassVar = {
        "request_id": "id", "action": "action", "params": "params", "target": "short_target", "priority": "priority",
        "note": "note", "issued_by": "issued_by", "device_count": "device_count", "issued_at": "issued_at",
        "expires_at": "expires_at", "cancelled_at": "cancelled_at",
    }  # fmt: skip
    derived = ("state", "outcome", "completed_at", *Counts.model_fields)

    request_id = Id("pk", "request id")
    urgency = Column("priority")
    issued = Column("issued_at")
    expires = Column("expires_at")
    cancelled = Column("cancelled_at")
    state = State("current.state")
    completed = Column("current.completed_at")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the command with its counts, or None if the command does not exist."""
        command = super().get_object(request, object_id, from_field)
        if command is not None:
            command.current = command_detail(command.pk)
            command.only_device = only_devices([command.pk]).get(command.pk) if command.device_count == 1 else None
        return command

    def name_of(self, row: Any) -> str:
        """Return the action and the number of devices. If the command is for one device, return the action and the
        device.
        """
        return f"{row.action} for {row.only_device or f'{row.device_count:,} devices'}"

    def complete(self, rows: Sequence[Any]) -> None:
        """Set `current` (the counts) and `only_device` of the commands on a page.

        Commands to few devices are counted first. In total, at most MOST deliveries are counted. If a command is not
        counted, its `current` is None.
        """
        narrowest_first = sorted(rows, key=attrgetter("device_count"))
        totals = accumulate(command.device_count for command in narrowest_first)
        few = takewhile(lambda one: one[1] <= MOST, zip(narrowest_first, totals, strict=True))
        statuses = command_statuses({command.pk: command.device_count for command, _ in few})
        alone = only_devices([command.pk for command in rows if command.device_count == 1])
        for command in rows:
            command.current, command.only_device = statuses.get(command.pk), alone.get(command.pk)

    def cells(self, rows: QuerySet[Any]) -> list[tuple[Any, ...]]:
        """Return the CSV cells of commands, with their states and counts."""
        found = super().cells(rows.annotate(**_SHORT_TARGET))
        size = 1 + list(self.exported).index("device_count")
        statuses = command_statuses({cells[0]: cells[size] for cells in found})
        return [(*cells, *_derived(statuses.get(cells[0]))) for cells in found]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the commands. Large columns are not read."""
        return super().get_queryset(request).defer(*BULKY)

    def identified(self, key: UUID) -> Q:
        """Return the condition for the command with this request id, or for the commands to the device with this id."""
        if Command.objects.filter(pk=key).exists():
            return Q(pk=key)
        return Q(pk__in=Delivery.objects.filter(device=key).order_by().values("command"))

    def named(self, text: str) -> Q:
        """Return the condition for commands to devices that have `text` in their alias or hardware id."""
        return Q(pk__in=Delivery.objects.filter(search.named(text, "device__")).order_by().values("command"))

    @admin.display(description="parameters")
    def pretty_params(self, command: Any) -> str:
        """Return the parameters of the command, formatted for people."""
        return pretty(command.current.params)

    @admin.display(description="target")
    def pretty_target(self, command: Any) -> str:
        """Return the target of the command, formatted for people."""
        return pretty(command.current.target)

    @admin.display(description="devices")
    def meant(self, command: Any) -> str:
        """Return the number of devices of a command. If the command is for one device, return a link to this device."""
        device = command.only_device
        return str(command.device_count) if device is None else link(device, device)

    @admin.display(description="state")
    def standing(self, command: Any) -> str:
        """Return the state of a command, or `-` if the deliveries of the command were not counted."""
        return badge(command.current.state) if command.current else NOTHING

    @admin.display(description="outcome")
    def came_to(self, command: Any) -> str:
        """Return the outcome of a command and the number of late results. For an open command, return `-`."""
        if not command.current or not command.current.outcome:
            return NOTHING
        late = command.current.counts.late
        outcome = badge(command.current.outcome)
        return format_html("{}, {} late", outcome, late) if late else outcome

    @admin.display(description="by state")
    def counts(self, command: Any) -> SafeString:
        """Return the number of deliveries in each state, and the number of late results. Each number of deliveries is a
        link.
        """
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
        """Return the number of pushes in each state."""
        counted = command.current.push.model_dump()
        return ", ".join(f"{count} {state}" for state, count in counted.items() if count) or NOTHING

    @admin.display(description="not succeeded")
    def unsuccessful(self, command: Command) -> SafeString:
        """Return a link to the deliveries of the command that have not succeeded."""
        text = "All deliveries of this command that have not succeeded"
        return link_to_list(Delivery, text, command__id__exact=command.pk, state="not succeeded")

    @admin.display(description="one by one")
    def all_deliveries(self, command: Command) -> SafeString:
        """Return a link to all deliveries of the command."""
        return link_to_list(Delivery, "All deliveries of this command", command__id__exact=command.pk)

    @admin.display(description="audit")
    def audit_entries(self, command: Command) -> SafeString:
        """Return a link to the signed requests about the command."""
        return link_to_list(AuditEntry, "Signed requests about this command", request_id=command.pk)


def only_devices(request_ids: list[UUID]) -> dict[UUID, Device]:
    """Return the device of each command, by request id. Each command must be for one device."""
    unread = [f"device__{name}" for name in SECRETS]
    deliveries = Delivery.objects.filter(command__in=request_ids).select_related("device").defer(*unread).order_by()
    return {delivery.command_id: delivery.device for delivery in deliveries}


def _derived(status: CommandStatus | None) -> tuple[Any, ...]:
    """Return the CSV cells about the state of a command. If the command has just been deleted, the cells are empty."""
    if status is None:
        return (None,) * len(CommandAdmin.derived)
    return (status.state, status.outcome, status.completed_at, *status.counts.model_dump().values())
