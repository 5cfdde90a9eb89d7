"""Leases: a dispatcher takes a webhook for a short time, and stores the results of its requests.

Each time the dispatcher stores results, it renews the lease. If the dispatcher ends without warning, another dispatcher
takes the webhook when the lease is over. It continues from the stored cursor.
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
"""The length of a lease. A request begins only if enough of the lease is left for the answer and for storing it."""

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
    """One attempt to send an event. `http_status` is the status of the response, or None without a response.

    `error` is the reason why there was no response. `latency_ms` is the time that the request took.
    """

    event_id: str
    type: str
    at: datetime
    http_status: int | None
    error: str
    latency_ms: int

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver has acknowledged the event by a status from 200 to 299."""
        return self.http_status is not None and 200 <= self.http_status < 300


class Results(NamedTuple):
    """The results of a dispatcher's work for a webhook since the last stored results.

    - `cursor` is the place after all events that were acknowledged or that the webhook does not get.
    - `was_tested`: the test that an admin asked for was sent.
    - `was_acknowledged`: the receiver has acknowledged at least one event.
    - `failure` is the reason why the last event was not acknowledged, or empty.
    - `obstacle` is the reason why nothing can be sent until an admin acts, or empty.
    """

    cursor: Cursor
    attempts: Sequence[Attempted]
    was_tested: bool
    was_acknowledged: bool
    failure: str
    obstacle: str


@transaction.atomic
def claim(most: int, most_failing: int) -> list[Webhook]:
    """Take the leases of up to `most` webhooks that have something to send and no valid lease. Return these webhooks.

    At most `most_failing` of the webhooks are failing: their last attempt failed. Webhooks that are not failing are
    taken first.
    """
    xid, row_id = feed.newest_readable()
    parameters = {"lease": uuid4(), "length": LEASE, "xid": str(xid), "id": row_id}
    parameters |= {"most": most, "most_failing": most_failing}
    claimed = [webhook_id for (webhook_id,) in database.rows(_CLAIM, parameters)]
    return list(Webhook.objects.filter(pk__in=claimed)) if claimed else []


def cursor_of(webhook: Webhook) -> Cursor:
    """Return the place of the webhook's next event."""
    return Cursor(webhook.cursor_epoch, int(webhook.cursor_xid), webhook.cursor_id, webhook.cursor_place)


def set_cursor(webhook: Webhook, cursor: Cursor) -> None:
    """Set the place of the webhook's next event. The caller must save the row."""
    webhook.cursor_epoch, webhook.cursor_xid = cursor.epoch, str(cursor.xid)
    webhook.cursor_id, webhook.cursor_place = cursor.id, cursor.place


@transaction.atomic
def store(served: Webhook, results: Results, *, ends: bool) -> Webhook | None:
    """Store results, and renew the lease, or end it if `ends` is true.

    Return the stored webhook, or None if the lease was lost. `served` is the webhook as the dispatcher read it. If an
    admin has moved the cursor since then, the admin's cursor stays. If an admin has changed the webhook in any way
    since then, a failure in the results has no effect.
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
    """Pause a webhook and append the event. The caller must save the row.

    `by` is `admin` or `dispatcher`. `why` is cut after 300 characters.
    """
    webhook.paused, webhook.why = True, why[:300]
    data = {"webhook_id": str(webhook.id), "why": webhook.why, "by": by}
    events.append(Event(EventType.WEBHOOK_PAUSED, data=data))
