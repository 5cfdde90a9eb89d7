"""The consequences of an attempt for its webhook: when the next attempt is due, or a pause."""

import random
from datetime import datetime, timedelta
from typing import Final

from nexmdm.models import Webhook

LONGEST_WAIT_SECONDS: Final = 3600
"""The longest time between two attempts. The first wait is 2 s. Each further wait is twice as long as the wait before
it. A random part of each wait, up to a fifth, is subtracted, so that retries spread out.
"""

GIVES_UP_AFTER: Final = timedelta(hours=72)
"""If all attempts of this time have failed, the next failed attempt pauses the webhook."""

_MOST_DOUBLINGS: Final = 12


def note_delivered(webhook: Webhook, now: datetime) -> None:
    """Forget the failures of a webhook: the next attempt is due now. The caller must save the row."""
    webhook.tries, webhook.failing_since, webhook.next_attempt_at = 0, None, now


def note_failed(webhook: Webhook, now: datetime, reason: str) -> str:
    """Note a failed attempt, and set when the next attempt is due. The caller must save the row.

    Return the reason to pause the webhook now, or an empty text.
    """
    webhook.tries += 1
    webhook.failing_since = webhook.failing_since or now
    longest = min(LONGEST_WAIT_SECONDS, 2 ** min(webhook.tries, _MOST_DOUBLINGS))
    webhook.next_attempt_at = now + timedelta(seconds=longest * random.uniform(0.8, 1))
    if now - webhook.failing_since < GIVES_UP_AFTER:
        return ""
    hours = GIVES_UP_AFTER // timedelta(hours=1)
    return f"The receiver acknowledged no attempt in the last {hours} hours. The last attempt failed: {reason}"
