"""The filters of the lists of commands, deliveries, attempts and reports.

The choices of a filter do not depend on the rows of the list.
"""

from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

from django.db.models import Q, QuerySet, Sum
from django.db.models.functions import Now
from django.http import HttpRequest

from commands import push_now, standing
from commands.actions import CATALOGUE
from commands.models import (
    FCM_ERRORS,
    OPEN,
    OVERDUE,
    Attempt,
    AttemptOutcome,
    Command,
    Delivery,
    DeliveryState,
    ReportStatus,
)
from nexmdm.common.read_only_admin.base import ROWS_PER_PAGE
from nexmdm.common.read_only_admin.filters import AgeFilter, ChoiceFilter, DateRangeFilter, SpanFilter, all_of

HTTP_STATUSES: Final = (200, 400, 401, 403, 404, 429, 500, 502, 503, 504)

LATEST: Final = 10_000
"""To decide whether an action is common, this number of commands is read, beginning with the newest command."""

COMMON: Final = 1000
"""An action is common if its share of the deliveries is more than 1 / COMMON. The deliveries with the action must also
fill more than one page. Only the deliveries of the newest commands are read (LATEST).
"""


class ActionFilter(ChoiceFilter):
    """The filter by the command's action."""

    title = "action"
    parameter_name = "action"
    column: ClassVar = "action"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each action of the catalogue."""
        return {name: Q(**{self.column: name}) for name in CATALOGUE}


class DeliveryActionFilter(ActionFilter):
    """The filter by the action of the delivery's command."""

    column = "command__action"
    delivery: ClassVar = "pk"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of commands with this action."""
        action = self.value()
        # A common action and a rare action need different queries.
        if action not in CATALOGUE or _is_common(action):
            return super().queryset(request, queryset)
        return queryset.filter(**{f"{self.delivery}__in": all_of(Delivery.objects.filter(command__action=action))})


class AttemptActionFilter(DeliveryActionFilter):
    """The filter by the action of the attempt's command."""

    column = "delivery__command__action"
    delivery = "delivery"


def _is_common(action: str) -> bool:
    """Return whether the action is common, by the rules of COMMON."""
    latest = Command.objects.order_by("-pk")[:LATEST]
    counted = latest.aggregate(
        all=Sum("device_count", default=0), mine=Sum("device_count", default=0, filter=Q(action=action))
    )
    return bool(counted["mine"] > ROWS_PER_PAGE and counted["mine"] * COMMON > counted["all"])


class CommandStateFilter(ChoiceFilter):
    """The filter by the state of the command."""

    title = "state"
    parameter_name = "state"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each state of a command."""
        return standing.state_conditions()


class CommandOutcomeFilter(ChoiceFilter):
    """The filter by the outcome of the command."""

    title = "outcome"
    parameter_name = "outcome"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each outcome of a command."""
        return standing.outcome_conditions()


class StateFilter(ChoiceFilter):
    """The filter by the present state of the delivery. An overdue delivery counts as expired."""

    title = "state"
    parameter_name = "state"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each state of a delivery."""
        settled = {state: Q(state=state) for state in DeliveryState.values if state not in OPEN}
        still_open = {state.value: Q(state=state, open_until__gt=Now()) for state in OPEN}
        expired = {DeliveryState.EXPIRED.value: Q(state=DeliveryState.EXPIRED) | OVERDUE}
        return {"not succeeded": ~Q(state=DeliveryState.SUCCEEDED), **still_open, **settled, **expired}


class PushFilter(ChoiceFilter):
    """The filter by the state of the push."""

    title = "push"
    parameter_name = "push"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each state of a push in the lists."""
        return push_now.conditions()


class OutcomeFilter(ChoiceFilter):
    """The filter by the outcome of the attempt."""

    title = "outcome"
    parameter_name = "outcome"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each outcome of an attempt."""
        return {outcome: Q(outcome=outcome) for outcome in AttemptOutcome.values}


class HttpStatusFilter(ChoiceFilter):
    """The filter by FCM's HTTP status. `none`: FCM has not answered the request."""

    title = "HTTP status"
    parameter_name = "http_status"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each known HTTP status of FCM, for any other status, and for no status."""
        known = {str(status): Q(http_status=status) for status in HTTP_STATUSES}
        other = Q(http_status__isnull=False) & ~Q(http_status__in=HTTP_STATUSES)
        return {**known, "other": other, "none": Q(http_status=None)}


class FcmErrorFilter(ChoiceFilter):
    """The filter by FCM's error code. `none`: an answer without an error code, or no answer."""

    title = "FCM code"
    parameter_name = "fcm_error"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each known error code of FCM, for any other code, and for no code."""
        known = {code: Q(fcm_error=code) for code in FCM_ERRORS}
        return {**known, "other": ~Q(fcm_error__in=["", *FCM_ERRORS]), "none": Q(fcm_error="")}


class DeliveryHttpStatusFilter(HttpStatusFilter):
    """The filter by the HTTP status of any attempt of the delivery."""

    def conditions(self) -> dict[str, Q]:
        """Return for each HTTP status the condition for deliveries with an attempt that has this status."""
        return {name: _any_attempt(condition) for name, condition in super().conditions().items()}


class DeliveryFcmErrorFilter(FcmErrorFilter):
    """The filter by the FCM code of any attempt of the delivery."""

    def conditions(self) -> dict[str, Q]:
        """Return for each FCM code the condition for deliveries with an attempt that has this code."""
        return {name: _any_attempt(condition) for name, condition in super().conditions().items()}


def _any_attempt(condition: Q) -> Q:
    return Q(pk__in=Attempt.objects.filter(condition).order_by().values("delivery"))


class CommandAge(AgeFilter):
    """The filter by the age of the command."""

    column = "issued_at"


class CommandEnd(SpanFilter):
    """The filter by the time since the last delivery of the command was settled."""

    title = "ended within the last"
    parameter_name = "ended"
    spans: ClassVar = {"1 hour": timedelta(hours=1), "1 day": timedelta(days=1), "7 days": timedelta(days=7)}

    def narrowed(self, rows: QuerySet[Any], moment: datetime) -> QuerySet[Any]:
        """Keep the commands that ended after `moment`.

        The server stores the end of a command a few seconds after the end.
        """
        return rows.filter(pk__in=all_of(Command.objects.filter(finished_at__gt=moment)))


class CommandTime(DateRangeFilter):
    """The filter by the time of issue of the command."""

    column = "issued_at"


class DeliveryAge(AgeFilter):
    """The filter by the age of the delivery's command."""

    column = "command__issued_at"


class DeliveryTime(DateRangeFilter):
    """The filter by the time of issue of the delivery's command."""

    column = "command__issued_at"


class AttemptAge(AgeFilter):
    """The filter by the age of the attempt."""

    column = "started_at"


class AttemptTime(DateRangeFilter):
    """The filter by the time of the attempt."""

    column = "started_at"


class ReportAge(AgeFilter):
    """The filter by the age of the report."""

    column = "reported_at"


class ReportTime(DateRangeFilter):
    """The filter by the time of the report."""

    column = "reported_at"


class ReportStatusFilter(ChoiceFilter):
    """The filter by the status in the report."""

    title = "status"
    parameter_name = "status"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each status of a report."""
        return {status: Q(status=status) for status in ReportStatus.values}
