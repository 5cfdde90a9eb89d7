"""Leases: which dispatcher serves a webhook, and how the dispatcher stores its results.

A dispatcher takes a webhook for a short time, and renews this lease with each result that it stores. If the dispatcher
ends abruptly, another dispatcher continues from the stored cursor as soon as the lease is over.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import uuid4

from django.db import transaction

from nexmdm.common import database
from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import Event, EventType
from nexmdm.events import feed
from nexmdm.events.cursor import Cursor
from nexmdm.models import Webhook, WebhookAttempt
from nexmdm.webhooks import retries
from nexmdm.webhooks.receivers import TIMEOUT_SECONDS

LEASE: Final = timedelta(seconds=2 * TIMEOUT_SECONDS)
"""How long a lease is valid. A request begins only if the rest of it is enough to get and store the answer."""

_DUE: Final = """
    SELECT webhook.id FROM nexmdm_webhook webhook CROSS JOIN nexmdm_eventmark mark
    WHERE lease_until <= now() AND (test_id IS NOT NULL OR (
        NOT paused AND next_attempt_at <= now() AND (
            (cursor_xid, cursor_id) <= (%(xid)s::text::xid8, %(id)s) OR cursor_epoch <> mark.epoch
        )
    ))
"""
_CLAIM: Final = f"""
    WITH healthy AS MATERIALIZED (
        {_DUE} AND failing_since IS NULL
        ORDER BY lease_until LIMIT %(most)s FOR UPDATE OF webhook SKIP LOCKED
    ), failing AS MATERIALIZED (
        {_DUE} AND failing_since IS NOT NULL
        ORDER BY lease_until LIMIT LEAST(%(most_failing)s, %(most)s - (SELECT count(*) FROM healthy))
        FOR UPDATE OF webhook SKIP LOCKED
    )
    UPDATE nexmdm_webhook webhook SET lease = %(lease)s, lease_until = now() + %(length)s
    FROM (SELECT id FROM healthy UNION ALL SELECT id FROM failing) due WHERE webhook.id = due.id
    RETURNING webhook.id
"""  # noqa: S608  (constants of this module; values are parameters)


class Attempted(NamedTuple):
    """One attempt to send an event: the status of the response, or why there was none; and the time that it took."""

    event_id: str
    type: str
    at: datetime
    http_status: int | None
    error: str
    latency_ms: int

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver has acknowledged the event."""
        return self.http_status is not None and 200 <= self.http_status < 300


class Results(NamedTuple):
    """What a dispatcher has found out about a webhook since it last stored results.

    `cursor` is the place after the events that were acknowledged, and after those that the webhook does not get.
    `was_tested`: the test that an admin asked for was sent. `failure` is the reason why the last event was not
    acknowledged. `obstacle` is the reason why nothing can be sent until an admin acts.
    """

    cursor: Cursor
    attempts: Sequence[Attempted]
    was_tested: bool
    was_acknowledged: bool
    failure: str
    obstacle: str


@transaction.atomic
def claim(most: int, most_failing: int) -> list[Webhook]:
    """Take up to `most` webhooks that have something to send and that no dispatcher serves.

    Up to `most_failing` of them are webhooks whose last attempt failed. The others come first.
    """
    xid, row_id = feed.newest_readable()
    parameters = {"lease": uuid4(), "length": LEASE, "xid": str(xid), "id": row_id}
    parameters |= {"most": most, "most_failing": most_failing}
    claimed = [webhook_id for (webhook_id,) in database.rows(_CLAIM, parameters)]
    return list(Webhook.objects.filter(pk__in=claimed)) if claimed else []


def cursor_of(webhook: Webhook) -> Cursor:
    """Return the place of the next event of a webhook."""
    return Cursor(webhook.cursor_epoch, int(webhook.cursor_xid), webhook.cursor_id, webhook.cursor_place)


def set_cursor(webhook: Webhook, cursor: Cursor) -> None:
    """Set the place of a webhook's next event on its row, which the caller saves."""
    webhook.cursor_epoch, webhook.cursor_xid = cursor.epoch, str(cursor.xid)
    webhook.cursor_id, webhook.cursor_place = cursor.id, cursor.place


@transaction.atomic
def store(served: Webhook, results: Results, *, ends: bool) -> Webhook | None:
    """Store results, and renew or end the lease. Return the webhook as it is now; None if the lease was lost.

    If an admin has moved the webhook's cursor meanwhile, the cursor stays where the admin moved it. If an admin has
    changed the webhook in any way meanwhile, a failure has no effect.
    """
    webhook = Webhook.objects.select_for_update().filter(pk=served.pk, lease=served.lease).first()
    if webhook is None:
        return None
    now = database.now()
    if results.was_tested and webhook.test_id == served.test_id:
        webhook.test_id = None
    if cursor_of(webhook) == cursor_of(served):
        set_cursor(webhook, results.cursor)
    if webhook.revision == served.revision and not webhook.paused:
        _apply(webhook, results, now)
    webhook.lease = None if ends else webhook.lease
    webhook.lease_until = now if ends else now + LEASE
    webhook.save()
    WebhookAttempt.objects.bulk_create(
        WebhookAttempt(webhook=webhook, is_delivered=one.is_delivered, **one._asdict()) for one in results.attempts
    )
    return webhook


def _apply(webhook: Webhook, results: Results, now: datetime) -> None:
    if results.was_acknowledged:
        retries.note_delivered(webhook, now)
    why = results.obstacle
    if results.failure:
        why = retries.note_failed(webhook, now, results.failure)
    if why:
        pause(webhook, why, by="dispatcher")


def pause(webhook: Webhook, why: str, *, by: str) -> None:
    """Pause a webhook: change its row, which the caller saves, and append the event."""
    webhook.paused, webhook.why = True, why[:300]
    data = {"webhook_id": str(webhook.id), "why": webhook.why, "by": by}
    events.append(Event(EventType.WEBHOOK_PAUSED, data=data))
