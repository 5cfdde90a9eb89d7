"""The read-only admin pages of deliveries, attempts and reports. An overdue delivery is shown as expired."""

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, ClassVar, Final
from uuid import UUID

from django.contrib import admin
from django.db.models import Case, CharField, DateTimeField, F, Q, QuerySet, Value, When
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from commands.admin import arrival, filters, timeline
from commands.models import OVERDUE, Attempt, Command, Delivery, DeliveryState, Report
from commands.push_now import PUSH_NOW
from commands.queries import deliveries
from commands.schemas import DeliveryRow
from devices.admin import SECRETS
from devices.identity import search
from nexmdm.common.read_only_admin.base import ReadOnlyAdmin
from nexmdm.common.read_only_admin.columns import (
    NOTHING,
    Column,
    Link,
    State,
    badge,
    link_to_list,
    pretty,
    short_id,
)
from nexmdm.common.read_only_admin.filters import all_of

NOW: Final = {
    "state_now": Case(When(OVERDUE, then=Value(DeliveryState.EXPIRED)), default=F("state"), output_field=CharField()),
    "settled_now": Case(When(OVERDUE, then=F("open_until")), default=F("settled_at"), output_field=DateTimeField()),
    "push_now": PUSH_NOW,
    "next_push_at": Case(When(OVERDUE, then=None), default=F("next_attempt_at"), output_field=DateTimeField()),
}
"""Annotations with the present state of a delivery. An overdue delivery counts as expired."""

# The target of a command may contain thousands of device ids. A list must not read the target for each of its hundred
# rows.
BULKY: Final = ("params", "target")

MOST_EVENTS: Final = 100
"""The largest number of attempts, and the largest number of reports, in the timeline of a delivery.

The timeline shows the newest attempts and reports.
"""

_key: Final = attrgetter("pk")


def _short_key(command: Command) -> SafeString:
    return short_id(command.pk)


def _command_name(command: Command) -> str:
    return f"{command.action} for {command.device_count:,} device{'' if command.device_count == 1 else 's'}"


class _OfCommandAndDevice(ReadOnlyAdmin):
    """The base class of the pages of deliveries, attempts and reports. The search finds rows by request id or by
    device.

    `to_delivery` is the path in the ORM from a row to its delivery, such as `delivery__`.
    """

    to_delivery: ClassVar = ""

    search_help_text = "Type a whole request id, a whole device id, or a part of an alias or a hardware id."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows with their command and device. Large columns and secrets are not read."""
        command, device = f"{self.to_delivery}command", f"{self.to_delivery}device"
        unread = [f"{command}__{name}" for name in BULKY] + [f"{device}__{name}" for name in SECRETS]
        return super().get_queryset(request).select_related(command, device).defer(*unread)

    def identified(self, key: UUID) -> Q:
        """Return the condition for rows with this request id or this device id."""
        return Q(command=key) if Command.objects.filter(pk=key).exists() else Q(device=key)

    def named(self, text: str) -> Q:
        """Return the condition for rows whose device has `text` in its alias or hardware id."""
        return search.named(text, f"{self.to_delivery}device__")


class _Sent:
    """The columns of an attempt on the admin site."""

    nth = Column("number", "no.")
    ended = State("outcome")
    http = Column("http_status", "HTTP")
    fcm_code = Column("fcm_error", "FCM code")
    latency = Column("latency_ms", "latency (ms)")
    started = Column("started_at")
    finished = Column("finished_at")


class _ReportColumns:
    """The columns of a report on the admin site."""

    status_shown = State("status")
    channel = Column("via")
    done = Column("device_finished_at")
    reported = Column("reported_at")
    repeats = Column("repeat_count", "repeats")
    last_repeat = Column("last_repeated_at", "last repeat")
    too_late = Column("late")
    again = Column("duplicate")

    @admin.display(description="output")
    def pretty_output(self, report: Report) -> str:
        """Return the output that the phone sent, formatted for people."""
        return pretty(report.output)


def complete(rows: Iterable[Any]) -> None:
    """Set `current` of each delivery to the delivery's row in the API (DeliveryRow).

    If a delivery has just been deleted, its `current` is None.
    """
    listed = list(rows)
    known = deliveries.rows_of([row.pk for row in listed])
    for row in listed:
        row.current = known.get(row.pk)


def reason(row: DeliveryRow) -> str:
    """Return why a delivery is open or did not succeed. For a failed delivery, the text is the phone's message."""
    late = f"The phone reported {row.late_result.status} later." if row.late_result else None
    said = row.result.message if row.result and row.state == DeliveryState.FAILED else None
    return " ".join(filter(None, (row.why_open, row.why_unfinished, late, said))) or NOTHING


def _derived(row: DeliveryRow | None) -> tuple[Any, ...]:
    """Return the CSV cells of a delivery that do not come from columns of its table.

    If the delivery has just been deleted, the cells are empty.
    """
    if row is None:
        return (None,) * len(DeliveryAdmin.derived)
    results = ((result.status, result.message) if result else (None, None) for result in (row.result, row.late_result))
    return (row.why_open, row.why_unfinished, *chain.from_iterable(results))


class DeliveryAdmin(_OfCommandAndDevice):
    """The admin pages of deliveries. The page of one delivery shows the result and the timeline."""

    change_form_template = "commands/delivery.html"
    empty = "A command has one delivery for each of its devices. To send a command, run manage.py fleet ping all."

    list_display = ("action", "to_device", "state_now", "reason", "push", "issued", "settled", "request_id", "id")
    list_filter = (
        filters.DeliveryActionFilter,
        filters.StateFilter,
        filters.DeliveryHttpStatusFilter,
        filters.DeliveryFcmErrorFilter,
        filters.PushFilter,
        filters.DeliveryAge,
        filters.DeliveryTime,
    )
    search_fields = ("command__id", "device__id", "device__alias")
    linked_by = ("command__id__exact", "device__id__exact")
    fieldsets: ClassVar = [
        (None, {"fields": ["of_command", "to_device", "state_now", "why_open", "why_unfinished", "channel"]}),
        ("Result", {"fields": ["result", "reports_not_kept"]}),
        ("Times", {"fields": ["issued", "until", "received", "reported", "settled"]}),
        ("Push", {"fields": ["push", "arrived", "attempts", "failure_count", "next_push", "everything"]}),
        ("Ids", {"fields": ["request_id", "id"]}),
    ]
    exported: ClassVar = {
        "delivery_id": "id", "request_id": "command_id", "action": "command__action", "device_id": "device_id",
        "alias": "device__alias", "state": "state_now", "delivered_via": "delivered_via", "push": "push_now",
        "attempts": "attempt_count", "issued_at": "command__issued_at", "expires_at": "command__expires_at",
        "received_at": "received_at", "settled_at": "settled_now",
    }  # fmt: skip
    derived = ("why_open", "why_unfinished", "result", "result_message", "late_result", "late_result_message")

    action = Column("command.action")
    of_command = Link("command", "command", _command_name)
    request_id = Link("command", "request id", _short_key)
    to_device = Link("device")
    state_now = State("state_now", "state")
    issued = Column("command.issued_at")
    until = Column("open_until")
    received = Column("received_at")
    reported = Column("reported_at")
    settled = Column("settled_now", "settled at")
    push = State("push_now", "push")
    attempts = Column("attempt_count", "attempts")
    channel = Column("delivered_via", "via")
    next_push = Column("next_push_at", "next attempt at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the deliveries with their present states."""
        deliveries: QuerySet[Any] = super().get_queryset(request).annotate(**NOW)
        return deliveries

    def complete(self, rows: Sequence[Any]) -> None:
        """Set `current` of each delivery on a page, by complete() of this module."""
        complete(rows)

    def cells(self, rows: QuerySet[Any]) -> list[tuple[Any, ...]]:
        """Return the CSV cells of deliveries, with their reasons and results."""
        found = super().cells(rows)
        known = deliveries.rows_of([cells[0] for cells in found])
        return [(*cells, *_derived(known.get(cells[0]))) for cells in found]

    def name_of(self, row: Delivery) -> str:
        """Return the action of the delivery, and the device."""
        return f"{row.command.action} for {row.device}"

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the delivery with its timeline, or None if the delivery does not exist."""
        delivery = super().get_object(request, object_id, from_field)
        if delivery is not None:
            found = deliveries.newest_of(delivery.pk, MOST_EVENTS)
            delivery.current, delivery.steps = found, list(timeline.steps(found.timeline))
        return delivery

    @admin.display(description="reason")
    def reason(self, delivery: Any) -> str:
        """Return why a delivery is open or did not succeed. For a failed delivery, the text is the phone's message."""
        return reason(delivery.current) if delivery.current else NOTHING

    @admin.display(description="why open")
    def why_open(self, delivery: Any) -> str:
        """Return what an open delivery waits for."""
        return delivery.current.why_open or NOTHING

    @admin.display(description="why unfinished")
    def why_unfinished(self, delivery: Any) -> str:
        """Return why a delivery expired or was withdrawn."""
        return delivery.current.why_unfinished or NOTHING

    @admin.display(description="result")
    def result(self, delivery: Any) -> str:
        """Return the phone's final report: the result or the late result."""
        late = delivery.current.late_result
        final = late or delivery.current.result
        if final is None:
            return NOTHING
        word = ", late: the delivery was already settled" if late else ""
        output = "" if final.output is None else pretty(final.output)
        return format_html("{}{} {} {}", badge(final.status), word, final.message or "", output)

    @admin.display(description="arrival")
    def arrived(self, delivery: Delivery) -> SafeString:
        """Return how the push arrived at the phone, if the phone reported the arrival."""
        return arrival.describe(delivery.push_arrival)

    @admin.display(description="complete lists")
    def everything(self, delivery: Delivery) -> SafeString:
        """Return links to all attempts and all reports of the delivery. The timeline shows only the newest rows."""
        attempts = link_to_list(Attempt, "attempts", delivery__id__exact=delivery.pk)
        reports = link_to_list(Report, "reports", delivery__id__exact=delivery.pk)
        return format_html("{}, {}", attempts, reports)


OF_DELIVERY: Final = {
    "delivery_id": "delivery_id", "request_id": "delivery__command_id", "action": "delivery__command__action",
    "device_id": "delivery__device_id", "alias": "delivery__device__alias",
}  # fmt: skip
"""The columns that identify the delivery of an attempt or of a report in the CSV."""


class _OfDelivery(_OfCommandAndDevice):
    """The base class of the pages of attempts and reports. The pages show the command and device of the delivery."""

    to_delivery = "delivery__"
    search_fields = ("delivery__command__id", "delivery__device__id", "delivery__device__alias")
    linked_by = ("delivery__id__exact",)

    action = Column("delivery.command.action")
    of_command = Link("delivery.command", "command", _command_name)
    request_id = Link("delivery.command", "request id", _short_key)
    to_device = Link("delivery.device")
    of_delivery = Link("delivery", text=_key)

    def identified(self, key: UUID) -> Q:
        """Return the condition for rows with this request id or this device id."""
        # A scan from the newest row on may take long to find a request id.
        if Command.objects.filter(pk=key).exists():
            return Q(delivery__in=all_of(Delivery.objects.filter(command=key)))
        return Q(delivery__device=key)


class AttemptAdmin(_Sent, _OfDelivery):
    """The admin pages of attempts, with FCM's answers."""

    empty = "Each push is an attempt. Until Firebase is configured, commands reach phones by heartbeats only."

    list_display = (
        "action", "to_device", "nth", "ended", "http", "fcm_code", "latency", "started", "of_delivery", "request_id",
    )  # fmt: skip
    list_filter = (
        filters.FcmErrorFilter,
        filters.HttpStatusFilter,
        filters.OutcomeFilter,
        filters.AttemptActionFilter,
        filters.AttemptAge,
        filters.AttemptTime,
    )
    fields: ClassVar = [
        "of_command", "to_device", "of_delivery", "nth", "ended", "http", "fcm_code", "latency", "detail", "started",
        "finished", "message_id", "request_id",
    ]  # fmt: skip
    exported: ClassVar = {
        "attempt_id": "id", **OF_DELIVERY, "attempt": "number", "outcome": "outcome", "http_status": "http_status",
        "fcm_error": "fcm_error", "message_id": "message_id", "latency_ms": "latency_ms", "detail": "detail",
        "started_at": "started_at", "finished_at": "finished_at",
    }  # fmt: skip

    def name_of(self, row: Attempt) -> str:
        """Return the number of the attempt, the action, and the device."""
        return f"push {row.number} of {row.delivery.command.action} for {row.delivery.device}"


class ReportAdmin(_ReportColumns, _OfDelivery):
    """The admin pages of the reports of phones."""

    empty = "A phone reports on each command that it gets."

    list_display = (
        "action", "to_device", "status_shown", "message", "channel", "too_late", "again", "reported",
        "of_delivery", "request_id",
    )  # fmt: skip
    list_filter = (filters.ReportStatusFilter, filters.ReportAge, filters.ReportTime)
    fields: ClassVar = [
        "of_command", "to_device", "of_delivery", "status_shown", "message", "pretty_output", "channel",
        "too_late", "again", "done", "reported", "repeats", "last_repeat", "request_id",
    ]  # fmt: skip
    exported: ClassVar = {
        "report_id": "id", **OF_DELIVERY, "status": "status", "message": "message", "output": "output", "via": "via",
        "late": "late", "duplicate": "duplicate", "finished_at": "device_finished_at", "reported_at": "reported_at",
        "repeats": "repeat_count", "last_repeated_at": "last_repeated_at",
    }  # fmt: skip

    def name_of(self, row: Report) -> str:
        """Return the action, the device, and the status that the phone reported."""
        return f"{row.delivery.command.action} for {row.delivery.device}: {row.status}"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the reports. The output of a report is read only for the page of this report."""
        return super().get_queryset(request).defer("output")
