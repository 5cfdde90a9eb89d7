"""A run: a dispatcher's task that serves one webhook. It reads pages of events and sends the events one after the
other.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from nexmdm.common import database
from nexmdm.events import feed
from nexmdm.events.cursor import Cursor, CursorExpired
from nexmdm.events.feed import Happening, Wanted
from nexmdm.models import Webhook
from nexmdm.version import VERSION
from nexmdm.webhooks import leases, messages, signatures
from nexmdm.webhooks.leases import LEASE, Attempted, Results
from nexmdm.webhooks.messages import Message
from nexmdm.webhooks.receivers import TIMEOUT_SECONDS, Receivers

PAGE: Final = 200
"""The largest number of events on one page."""

STORED_WITHIN_SECONDS: Final = 1.0
"""The time in seconds for which a run sends events. After this time, it stores its results, and reads the webhook and
the tags of devices again.
"""

BEGINS_WITHIN_SECONDS: Final = LEASE.total_seconds() - TIMEOUT_SECONDS - 5
"""The time in seconds after the renewal of a lease within which a request may begin. The rest of the lease is for the
answer, and 5 s for storing it.
"""

_UNSIGNED: Final = (
    "The webhook's secret was derived from a SECRET_KEY that is not configured any more. Rotate the webhook's "
    "secret, then resume the webhook."
)
_CURSOR_EXPIRED: Final = (
    "Events after the webhook's cursor were deleted, or the database was restored. Replay the webhook from a cursor "
    "whose events still exist, then resume the webhook."
)


class Page(NamedTuple):
    """Events to send, and the place after them.

    - `read_at` is when the page was read: by the database's clock, and in monotonic time.
    - `is_last` is true if no readable event follows.
    - `secrets` are the secrets that sign. They are empty if no secret is available.
    - `obstacle` is the reason why nothing can be sent until an admin acts, or empty.
    """

    read_at: tuple[datetime, float]
    events: Sequence[Happening]
    next_cursor: Cursor
    is_last: bool
    secrets: Sequence[bytes] = ()
    obstacle: str = ""

    @property
    def now(self) -> datetime:
        """The present time by the database's clock, computed from `read_at`."""
        moment, monotonic = self.read_at
        return moment + timedelta(seconds=time.monotonic() - monotonic)


class Run:
    """A webhook as it was last read, and the requests to its receiver."""

    def __init__(
        self, webhook: Webhook, receivers: Receivers, stopping: asyncio.Event, cut_off: "asyncio.Future[None]"
    ) -> None:
        """The caller must have the lease of `webhook`.

        After `stopping` is set, no request begins. When `cut_off` is done, a request in progress ends and does not
        count.
        """
        self.webhook = webhook
        self._receivers = receivers
        self._stopping = stopping
        self._cut_off = cut_off

    def read(self) -> Page:
        """Read the next page. The page has no events if the webhook is paused or waits for its next attempt."""
        webhook, place = self.webhook, leases.cursor_of(self.webhook)
        now = database.now()
        read_at = now, time.monotonic()
        previous = webhook.rotated_at is not None and now - webhook.rotated_at < signatures.PREVIOUS_SIGNS
        try:
            secrets = signatures.signing_secrets(webhook, previous=previous)
        except signatures.SecretLost:
            return Page(read_at, (), place, is_last=True, obstacle=_UNSIGNED)
        if webhook.paused or webhook.next_attempt_at > now:
            return Page(read_at, (), place, is_last=True, secrets=secrets)
        try:
            found = feed.read(place, Wanted(webhook.types, tags=webhook.tags), PAGE)
        except CursorExpired:
            return Page(read_at, (), place, is_last=True, secrets=secrets, obstacle=_CURSOR_EXPIRED)
        is_last = found.caught_up or found.next_cursor == place
        return Page(read_at, found.events, found.next_cursor, is_last, secrets)

    async def send(self, page: Page, renewed_at: float) -> tuple[Results, bool]:
        """Send the test that an admin asked for, then the events of the page, until an attempt fails.

        Return the results, and whether the whole page was sent. `renewed_at` is when the lease was renewed (monotonic
        time).
        """
        attempts: list[Attempted] = []
        place, failure, acknowledged = leases.cursor_of(self.webhook), "", False
        begins_until = renewed_at + BEGINS_WITHIN_SECONDS
        tested = time.monotonic() < begins_until and await self._send_test(page, attempts)
        until = min(time.monotonic() + STORED_WITHIN_SECONDS, begins_until)
        for event in page.events:
            if self._stopping.is_set() or time.monotonic() >= until:
                break
            attempted = await self._attempt(messages.of_event(event), page)
            if attempted is None:
                break
            attempts.append(attempted)
            if not attempted.is_delivered:
                failure = attempted.error or f"the receiver answered {attempted.http_status}"
                break
            place, acknowledged = event.next_cursor, True
        else:
            place = page.next_cursor
        results = Results(place, attempts, tested, acknowledged, failure, page.obstacle)
        return results, place == page.next_cursor

    async def _send_test(self, page: Page, attempts: list[Attempted]) -> bool:
        """Send the test if there is one, and add its attempt to `attempts`. Return whether it was sent."""
        if self.webhook.test_id is None or self._stopping.is_set():
            return False
        message = messages.of_test(self.webhook.test_id, self.webhook.id)
        attempted: Attempted | None = Attempted(message.id, message.type, page.now, None, page.obstacle, 0)
        if page.secrets:
            attempted = await self._attempt(message, page)
        if attempted is not None:
            attempts.append(attempted)
        return attempted is not None

    async def _attempt(self, message: Message, page: Page) -> Attempted | None:
        """Send a message. Return the attempt, or None if it was cut off."""
        at = page.now
        timestamp = int(at.timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"NexMDM/{VERSION}",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures.signature(page.secrets, message.id, timestamp, message.body),
        }
        sending = asyncio.ensure_future(self._receivers.post(self.webhook.id, self.webhook.url, headers, message.body))
        await asyncio.wait((sending, self._cut_off), return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            sending.cancel()
            await asyncio.wait((sending,))
            return None
        outcome = sending.result()
        return Attempted(message.id, message.type, at, *outcome)
