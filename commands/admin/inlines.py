"""The deliveries on the page of their command. Deliveries that have not succeeded come first."""

from typing import Any, ClassVar, Final

from django.contrib import admin
from django.db.models import Case, Q, QuerySet, When
from django.http import HttpRequest
from django.utils.safestring import SafeString

from commands.admin.deliveries import BULKY, NOW, DeliveryAdmin, complete, reason
from commands.models import Delivery, DeliveryState
from commands.schemas import Counts
from devices.admin import SECRETS
from nexmdm.common.read_only_admin.base import NewestRows, ReadOnlyInline
from nexmdm.common.read_only_admin.columns import NOTHING, link, link_to_list

_FAILED_FIRST: Final = Case(
    When(state_now=DeliveryState.FAILED, then=0), When(state_now=DeliveryState.EXPIRED, then=1), default=2
)


class _NewestDeliveries(NewestRows):
    """The newest deliveries of a command. Failed deliveries come first, then expired deliveries."""

    order = (_FAILED_FIRST, "-pk")
    state: ClassVar[str]
    """The choice of the state filter that selects all these deliveries in the list of deliveries."""

    def get_queryset(self) -> QuerySet[Any]:
        was_read = hasattr(self, "_newest")
        newest = super().get_queryset()
        if not was_read:
            complete(newest)
        return newest

    @property
    def counts(self) -> Counts:
        counts: Counts = self.instance.current.counts
        return counts

    @property
    def whole_list(self) -> SafeString:
        """Return a link to the command's list of deliveries. The state filter of the list has the choice `state`."""
        text = f"All deliveries: {self.state}"
        return link_to_list(Delivery, text, command__id__exact=self.instance.pk, state=self.state)


class _NotSucceededRows(_NewestDeliveries):
    state = "not succeeded"

    @property
    def total(self) -> int:
        return int(self.instance.device_count) - self.counts.succeeded


class _SucceededRows(_NewestDeliveries):
    state = "succeeded"

    @property
    def total(self) -> int:
        return self.counts.succeeded


class _Deliveries(ReadOnlyInline):
    """The newest deliveries of a command that match `condition`."""

    model = Delivery
    condition: ClassVar[Q]
    fields: ClassVar = ["to_device", "state_now", "reason", "push", "attempts", "channel", "settled", "itself"]

    to_device = DeliveryAdmin.to_device
    channel = DeliveryAdmin.channel
    state_now = DeliveryAdmin.state_now
    settled = DeliveryAdmin.settled
    push = DeliveryAdmin.push
    attempts = DeliveryAdmin.attempts

    @admin.display(description="reason")
    def reason(self, delivery: Any) -> str:
        """Return why a delivery is open or did not succeed. For a failed delivery, the text is the phone's message."""
        return reason(delivery.current) if delivery.current else NOTHING

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the deliveries with their present states."""
        unread = [f"command__{name}" for name in BULKY] + [f"device__{name}" for name in SECRETS]
        deliveries = super().get_queryset(request).select_related("command", "device").defer(*unread)
        described: QuerySet[Any] = deliveries.filter(self.condition).annotate(**NOW)
        return described

    @admin.display(description="delivery")
    def itself(self, delivery: Delivery) -> SafeString:
        """Return a link to the page of the delivery."""
        return link(delivery, "timeline")


class NotSucceeded(_Deliveries):
    """The newest deliveries that have not succeeded.

    Failed deliveries come first, then expired deliveries, then cancelled and open deliveries.
    """

    formset = _NotSucceededRows
    verbose_name_plural = "not succeeded"
    empty = "The command succeeded on every device."
    condition = ~Q(state=DeliveryState.SUCCEEDED)


class Succeeded(_Deliveries):
    """The newest deliveries that succeeded."""

    formset = _SucceededRows
    verbose_name_plural = "succeeded"
    empty = "The command has not succeeded on any device."
    condition = Q(state=DeliveryState.SUCCEEDED)
