"""By what the lists of the admin site can be narrowed: choices that are known beforehand, so that none is looked up."""

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
from nexmdm.common.read_only_admin.filters import AgeFilter, ChoiceFilter, DateRangeFilter, all_of

HTTP_STATUSES: Final = (200, 400, 401, 403, 404, 429, 500, 502, 503, 504)

LATEST: Final = 10_000
"""How many commands are looked at to tell whether an action is common."""

COMMON: Final = 1000
"""An action is common if it has one in so many of the latest deliveries, and enough of them to fill a page."""


class ActionFilter(ChoiceFilter):
    """By the command's action."""

    title = "action"
    parameter_name = "action"
    column: ClassVar = "action"

    def conditions(self) -> dict[str, Q]:
        """Return the actions of the catalogue."""
        return {name: Q(**{self.column: name}) for name in CATALOGUE}


class DeliveryActionFilter(ActionFilter):
    """By the action of the delivery's command."""

    column = "command__action"
    delivery: ClassVar = "pk"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the rows of commands with this action, found by the way that suits how common it is."""
        action = self.value()
        if action not in CATALOGUE or _is_common(action):
            return super().queryset(request, queryset)
        return queryset.filter(**{f"{self.delivery}__in": all_of(Delivery.objects.filter(command__action=action))})


class AttemptActionFilter(DeliveryActionFilter):
    """By the action of the attempt's command."""

    column = "delivery__command__action"
    delivery = "delivery"


def _is_common(action: str) -> bool:
    """Tell whether a walk from the newest row soon fills a page with this action."""
    latest = Command.objects.order_by("-pk")[:LATEST]
    counted = latest.aggregate(
        all=Sum("device_count", default=0), mine=Sum("device_count", default=0, filter=Q(action=action))
    )
    return bool(counted["mine"] > ROWS_PER_PAGE and counted["mine"] * COMMON > counted["all"])


class CommandStateFilter(ChoiceFilter):
    """By how the command stands as a whole."""

    title = "state"
    parameter_name = "state"

    def conditions(self) -> dict[str, Q]:
        """Return the states that a command derives from its deliveries."""
        return standing.state_conditions()


class CommandOutcomeFilter(ChoiceFilter):
    """By what came of the command."""

    title = "outcome"
    parameter_name = "outcome"

    def conditions(self) -> dict[str, Q]:
        """Return the outcomes that a command derives from its deliveries."""
        return standing.outcome_conditions()


class StateFilter(ChoiceFilter):
    """By the state as of now."""

    title = "state"
    parameter_name = "state"

    def conditions(self) -> dict[str, Q]:
        """Return the states of a delivery."""
        settled = {state: Q(state=state) for state in DeliveryState.values if state not in OPEN}
        still_open = {state.value: Q(state=state, open_until__gt=Now()) for state in OPEN}
        expired = {DeliveryState.EXPIRED.value: Q(state=DeliveryState.EXPIRED) | OVERDUE}
        return {"not succeeded": ~Q(state=DeliveryState.SUCCEEDED), **still_open, **settled, **expired}


class PushFilter(ChoiceFilter):
    """By how the push stands."""

    title = "push"
    parameter_name = "push"

    def conditions(self) -> dict[str, Q]:
        """Return the states of a push as they are shown."""
        return push_now.conditions()


class OutcomeFilter(ChoiceFilter):
    """By how the send ended."""

    title = "outcome"
    parameter_name = "outcome"

    def conditions(self) -> dict[str, Q]:
        """Return the outcomes of an attempt."""
        return {outcome: Q(outcome=outcome) for outcome in AttemptOutcome.values}


class HttpStatusFilter(ChoiceFilter):
    """By FCM's HTTP status; `none` is a send that got no answer (yet)."""

    title = "HTTP status"
    parameter_name = "http_status"

    def conditions(self) -> dict[str, Q]:
        """Return the statuses that FCM is known to answer with."""
        known = {str(status): Q(http_status=status) for status in HTTP_STATUSES}
        other = Q(http_status__isnull=False) & ~Q(http_status__in=HTTP_STATUSES)
        return {**known, "other": other, "none": Q(http_status=None)}


class FcmErrorFilter(ChoiceFilter):
    """By FCM's error code; `none` is an answer without one, and no answer at all."""

    title = "FCM code"
    parameter_name = "fcm_error"

    def conditions(self) -> dict[str, Q]:
        """Return the codes that FCM is known to answer with."""
        known = {code: Q(fcm_error=code) for code in FCM_ERRORS}
        return {**known, "other": ~Q(fcm_error__in=["", *FCM_ERRORS]), "none": Q(fcm_error="")}


class DeliveryHttpStatusFilter(HttpStatusFilter):
    """By the HTTP status of any of its attempts."""

    def conditions(self) -> dict[str, Q]:
        """Return the statuses, asked of the attempts."""
        return {name: _any_attempt(condition) for name, condition in super().conditions().items()}


class DeliveryFcmErrorFilter(FcmErrorFilter):
    """By the FCM code of any of its attempts."""

    def conditions(self) -> dict[str, Q]:
        """Return the codes, asked of the attempts."""
        return {name: _any_attempt(condition) for name, condition in super().conditions().items()}


def _any_attempt(condition: Q) -> Q:
    return Q(pk__in=Attempt.objects.filter(condition).order_by().values("delivery"))


class CommandAge(AgeFilter):
    """By how long ago the command was issued."""

    column = "issued_at"


class CommandTime(DateRangeFilter):
    """By when the command was issued."""

    column = "issued_at"


class DeliveryAge(AgeFilter):
    """By how long ago the delivery's command was issued."""

    column = "command__issued_at"


class DeliveryTime(DateRangeFilter):
    """By when the delivery's command was issued."""

    column = "command__issued_at"


class AttemptAge(AgeFilter):
    """By how long ago the send began."""

    column = "started_at"


class AttemptTime(DateRangeFilter):
    """By when the send began."""

    column = "started_at"


class ReportAge(AgeFilter):
    """By how long ago the report came."""

    column = "reported_at"


class ReportTime(DateRangeFilter):
    """By when the report came."""

    column = "reported_at"


class ReportStatusFilter(ChoiceFilter):
    """By what the phone said."""

    title = "status"
    parameter_name = "status"

    def conditions(self) -> dict[str, Q]:
        """Return what a phone can say."""
        return {status: Q(status=status) for status in ReportStatus.values}
