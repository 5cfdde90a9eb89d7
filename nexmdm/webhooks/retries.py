"""What follows from an attempt: the next event, another attempt later, or a pause."""

import random
from datetime import datetime, timedelta
from typing import Final

from nexmdm.models import Webhook

LONGEST_WAIT_SECONDS: Final = 3600
"""The longest time between two attempts: it doubles from 2 s on, minus up to a fifth, so that retries spread out."""

GIVES_UP_AFTER: Final = timedelta(hours=72)
"""How long after the first failed attempt a failure pauses the webhook."""

_MOST_DOUBLINGS: Final = 12


def note_delivered(webhook: Webhook, now: datetime) -> None:
    """Note that the receiver acknowledged an event, or that an admin began anew."""
    webhook.tries, webhook.failing_since, webhook.next_attempt_at = 0, None, now


def note_failed(webhook: Webhook, now: datetime, reason: str) -> str:
    """Note a failed attempt. Return why the webhook must be paused now; empty if it is not to be paused."""
    webhook.tries += 1
    webhook.failing_since = webhook.failing_since or now
    longest = min(LONGEST_WAIT_SECONDS, 2 ** min(webhook.tries, _MOST_DOUBLINGS))
    webhook.next_attempt_at = now + timedelta(seconds=longest * random.uniform(0.8, 1))
    if now - webhook.failing_since < GIVES_UP_AFTER:
        return ""
    hours = GIVES_UP_AFTER // timedelta(hours=1)
    return f"No attempt of the last {hours} hours was acknowledged; the last one: {reason}"
