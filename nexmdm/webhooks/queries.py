"""The operations of admins on webhooks."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.db.models import F
from django.db.models.functions import Coalesce
from uuid_utils.compat import uuid7

from nexmdm.common import database, pagination
from nexmdm.common.domain_error import DomainError
from nexmdm.common.pagination import Page
from nexmdm.events import feed
from nexmdm.events.cursor import Cursor
from nexmdm.models import Webhook, WebhookAttempt
from nexmdm.webhooks import leases, messages, retries, signatures


class UnknownWebhook(DomainError):
    detail = "There is no webhook with this id."


def create(*, url: str, types: Iterable[str], tags: Iterable[str], description: str) -> Webhook:
    """Create a webhook that gets the events from now on. `types` and `tags` are its filter. Raises EventsNotReady."""
    webhook = Webhook(
        id=uuid7(),
        url=url,
        types=_unique(types),
        tags=_unique(tags),
        description=description,
        secret_key=signatures.current_key_id(),
    )
    leases.set_cursor(webhook, feed.newest_place())
    webhook.save(force_insert=True)
    webhook.refresh_from_db()
    return webhook


def webhook(webhook_id: UUID) -> Webhook:
    """Return a webhook. Raises UnknownWebhook."""
    return _found(Webhook.objects.filter(pk=webhook_id).first())


def webhooks(page: Page) -> tuple[list[Webhook], str | None]:
    """Return a page of webhooks, newest first, and the cursor of the next page. Raises ForeignCursor."""
    return pagination.paginate(Webhook.objects.all(), page, UUID)


def attempts(webhook_id: UUID, page: Page) -> tuple[list[WebhookAttempt], str | None]:
    """Return a page of a webhook's attempts, newest first, and the cursor of the next page.

    Raises UnknownWebhook, ForeignCursor.
    """
    return pagination.paginate(webhook(webhook_id).attempts.all(), page, int)


def change(webhook_id: UUID, changes: dict[str, Any], principal: str) -> Webhook:
    """Change the fields of a webhook that `changes` contains. Raises UnknownWebhook.

    If the URL changes or the webhook is resumed, the next attempt is due immediately. The webhook then has 72 hours
    again before failures pause it.
    """
    changed = _locked(webhook_id)
    if changes.get("paused") and not changed.paused:
        leases.pause(changed, f"Paused by {principal}.", by="admin")
    was_resumed = changed.paused and changes.get("paused") is False
    if was_resumed:
        changed.paused, changed.why = False, ""
    if was_resumed or changes.get("url", changed.url) != changed.url:
        retries.note_delivered(changed, database.now())
    changed.url = changes.get("url", changed.url)
    changed.types = _unique(changes.get("types", changed.types))
    changed.tags = _unique(changes.get("tags", changed.tags))
    return _saved(changed)


def replay(webhook_id: UUID, after: Cursor | None) -> Webhook:
    """Move the cursor of a webhook. If `after` is None, move the cursor to the oldest event.

    Raises UnknownWebhook, CursorExpired, EventsNotReady.
    """
    changed = _locked(webhook_id)
    leases.set_cursor(changed, feed.place_of(after))
    retries.note_delivered(changed, database.now())
    return _saved(changed)


def rotate_secret(webhook_id: UUID) -> Webhook:
    """Give a webhook a new secret. Raises UnknownWebhook."""
    changed = _locked(webhook_id)
    changed.previous_secret_key, changed.secret_key = changed.secret_key, signatures.current_key_id()
    changed.secret_number += 1
    changed.rotated_at = database.now()
    return _saved(changed)


def delete(webhook_id: UUID) -> Webhook:
    """Delete a webhook and its attempts. Return the deleted webhook. Raises UnknownWebhook."""
    deleted = _locked(webhook_id)
    Webhook.objects.filter(pk=webhook_id).delete()
    return deleted


def ask_for_test(webhook_id: UUID) -> str:
    """Let a dispatcher send a test event to a webhook. Return the id of the test event. Raises UnknownWebhook.

    If an earlier test event is not sent yet, the function returns the id of this event and adds no further test.
    """
    if not Webhook.objects.filter(pk=webhook_id).update(test_id=Coalesce(F("test_id"), uuid7())):
        raise UnknownWebhook
    (test_id,) = Webhook.objects.filter(pk=webhook_id).values_list("test_id", flat=True)
    assert test_id is not None
    return messages.test_event_id(test_id)


def attempt_at(webhook_id: UUID, event_id: str) -> WebhookAttempt | None:
    """Return the newest attempt to send this event to this webhook, or None."""
    return WebhookAttempt.objects.filter(webhook=webhook_id, event_id=event_id).order_by("-pk").first()


def _locked(webhook_id: UUID) -> Webhook:
    return _found(Webhook.objects.select_for_update().filter(pk=webhook_id).first())


def _found(webhook: Webhook | None) -> Webhook:
    if webhook is None:
        raise UnknownWebhook
    return webhook


def _saved(changed: Webhook) -> Webhook:
    changed.revision += 1
    changed.save()
    return changed


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
