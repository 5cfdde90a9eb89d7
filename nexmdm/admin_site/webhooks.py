"""The pages of webhooks and of their attempts."""

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from nexmdm.common.read_only_admin.base import NewestRows, ReadOnlyAdmin, ReadOnlyInline
from nexmdm.common.read_only_admin.columns import (
    BAD,
    GOOD,
    NOTHING,
    WARN,
    Column,
    Link,
    badge,
    link_to_list,
    short_id,
)
from nexmdm.common.read_only_admin.filters import AgeFilter, ChoiceFilter
from nexmdm.models import Webhook, WebhookAttempt


class StateFilter(ChoiceFilter):
    """A filter by the state of a webhook."""

    title = "state"
    parameter_name = "state"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each state."""
        failing = Q(failing_since__isnull=False)
        return {"ok": Q(paused=False) & ~failing, "failing": Q(paused=False) & failing, "paused": Q(paused=True)}


class OutcomeFilter(ChoiceFilter):
    """A filter by the outcome of an attempt."""

    title = "outcome"
    parameter_name = "outcome"

    def conditions(self) -> dict[str, Q]:
        """Return the condition for each outcome."""
        answered = Q(http_status__isnull=False)
        return {
            "delivered": Q(is_delivered=True),
            "refused": Q(is_delivered=False) & answered,
            "no response": Q(is_delivered=False) & ~answered,
        }


class AttemptAge(AgeFilter):
    """A filter by the age of an attempt."""

    column = "at"


@admin.display(description="outcome")
def outcome(_: Any, attempt: WebhookAttempt) -> SafeString:
    """Return `delivered`, `no response`, or the HTTP status with which the receiver refused the event."""
    if attempt.is_delivered:
        return badge("delivered", GOOD)
    return badge(f"refused with {attempt.http_status}" if attempt.http_status else "no response", BAD)


class _NewestAttempts(NewestRows):
    """The newest attempts of a webhook."""

    @property
    def total(self) -> int:
        """Return the number of stored attempts of the webhook."""
        return WebhookAttempt.objects.filter(webhook=self.instance.pk).count()

    @property
    def whole_list(self) -> SafeString:
        """Return a link to the list of all attempts of the webhook."""
        return link_to_list(WebhookAttempt, "All attempts", webhook__id__exact=self.instance.pk)


class Attempts(ReadOnlyInline):
    """The newest attempts on the page of a webhook."""

    model = WebhookAttempt
    formset = _NewestAttempts
    verbose_name_plural = "attempts"
    empty = "The server has not sent an event to this webhook yet."
    fields: ClassVar = ["when", "outcome", "error", "type", "event_id", "latency_ms"]

    when = Column("at")
    outcome = outcome


class WebhookAdmin(ReadOnlyAdmin):
    """The list of webhooks, and a page for each webhook."""

    list_display = ("shown_as", "state", "why", "url", "types_shown", "tags_shown", "since", "next_try")
    empty = "To create a webhook, send POST /admin/webhooks."
    list_filter = (StateFilter,)
    fields: ClassVar = [
        "whole_id", "url", "description", "types_shown", "tags_shown", "created", "state", "why", "tries", "since",
        "next_try", "rotated",
    ]  # fmt: skip
    inlines = (Attempts,)
    exported: ClassVar = {
        "id": "id", "url": "url", "types": "types", "tags": "tags", "description": "description", "paused": "paused",
        "why": "why", "tries": "tries", "failing_since": "failing_since", "next_attempt_at": "next_attempt_at",
        "created_at": "created_at",
    }  # fmt: skip

    whole_id = Column("pk", "id")
    created = Column("created_at")
    since = Column("failing_since")
    rotated = Column("rotated_at", "secret rotated")

    @admin.display(description="webhook")
    def shown_as(self, webhook: Webhook) -> str:
        """Return the description, or a short form of the id if there is no description."""
        return webhook.description or short_id(webhook.pk)

    @admin.display(description="state")
    def state(self, webhook: Webhook) -> SafeString:
        """Return the state: ok, failing or paused."""
        if webhook.paused:
            return badge("paused", BAD)
        return badge("failing", WARN) if webhook.failing_since else badge("ok", GOOD)

    @admin.display(description="types")
    def types_shown(self, webhook: Webhook) -> str:
        """Return the event types of the webhook, or `all`."""
        return ", ".join(webhook.types) or "all"

    @admin.display(description="tags")
    def tags_shown(self, webhook: Webhook) -> str:
        """Return the tags of the webhook, or a dash."""
        return ", ".join(webhook.tags) or NOTHING

    next_try = Column("next_attempt_at", "next attempt")


class WebhookAttemptAdmin(ReadOnlyAdmin):
    """The list of attempts, and a page for each attempt."""

    list_display = ("when", "to_webhook", "outcome", "error", "type", "event_id", "latency_ms")
    empty = "Each attempt to send an event to a webhook is a row."
    list_filter = (OutcomeFilter, AttemptAge)
    linked_by = ("webhook__id__exact",)
    fields: ClassVar = ["when", "to_webhook", "outcome", "http_status", "error", "type", "event_id", "latency_ms"]
    exported: ClassVar = {
        "attempt_id": "id", "webhook_id": "webhook_id", "event_id": "event_id", "type": "type", "at": "at",
        "delivered": "is_delivered", "http_status": "http_status", "error": "error", "latency_ms": "latency_ms",
    }  # fmt: skip

    when = Column("at")
    to_webhook = Link("webhook", "webhook")
    outcome = outcome

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the attempts with their webhooks."""
        return super().get_queryset(request).select_related("webhook")
