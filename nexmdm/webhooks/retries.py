"""What follows an attempt: the next event, another attempt later, or a pause."""

import random
from datetime import datetime, timedelta
from typing import Final

from nexmdm.models import Webhook

LONGEST_WAIT_SECONDS: Final = 3600
"""The longest time between two attempts. The first wait is 2 s, and each further wait is twice as long as the previous.
Up to a fifth of each wait is subtracted at random, so that retries spread out."""

GIVES_UP_AFTER: Final = timedelta(hours=72)
"""A failure pauses the webhook if this time has passed since the first failed attempt."""

_MOST_DOUBLINGS: Final = 12


def note_delivered(webhook: Webhook, now: datetime) -> None:
    """Note that an event was acknowledged, or that an admin resumed or replayed the webhook or changed its URL."""
    webhook.tries, webhook.failing_since, webhook.next_attempt_at = 0, None, now


def note_failed(webhook: Webhook, now: datetime, reason: str) -> str:
    """Note a failed attempt. Return why the webhook must be paused now; empty if it must not be paused."""
    webhook.tries += 1
    webhook.failing_since = webhook.failing_since or now
    longest = min(LONGEST_WAIT_SECONDS, 2 ** min(webhook.tries, _MOST_DOUBLINGS))
    webhook.next_attempt_at = now + timedelta(seconds=longest * random.uniform(0.8, 1))
    if now - webhook.failing_since < GIVES_UP_AFTER:
        return ""
    hours = GIVES_UP_AFTER // timedelta(hours=1)
    return f"The receiver acknowledged no attempt in the last {hours} hours. The last attempt failed: {reason}"
