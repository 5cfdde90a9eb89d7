"""Retention of the attempts to send events. Attempts are kept no longer than events."""

from datetime import timedelta
from typing import Final

from nexmdm.common import database

KEPT: Final = 1000
"""The largest number of attempts of one webhook that are kept. The newest attempts are kept."""

_PRUNE: Final = """
    DELETE FROM nexmdm_webhookattempt WHERE id IN (
        SELECT attempt.id FROM nexmdm_webhook webhook CROSS JOIN LATERAL (
            SELECT id FROM nexmdm_webhookattempt attempt
            WHERE attempt.webhook_id = webhook.id AND (at < now() - %(kept)s OR id <= (
                SELECT id FROM nexmdm_webhookattempt WHERE webhook_id = webhook.id
                ORDER BY id DESC OFFSET %(most)s LIMIT 1
            ))
        ) attempt LIMIT %(limit)s
    )
"""


def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` attempts that are older than `kept`, or older than the newest KEPT attempts of their
    webhook.

    Return the number of deleted attempts.
    """
    return database.execute(_PRUNE, {"kept": kept, "most": KEPT, "limit": limit})
