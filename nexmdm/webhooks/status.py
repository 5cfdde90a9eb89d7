"""Figures about all webhooks together, for readiness, metrics and the admin site."""

from collections.abc import Sequence
from typing import Final

from nexmdm.common import database
from nexmdm.models import Webhook

STATES: Final = ("ok", "failing", "paused")

_FIGURES: Final = """
    SELECT
        count(*) FILTER (WHERE NOT paused AND failing_since IS NULL),
        count(*) FILTER (WHERE NOT paused AND failing_since IS NOT NULL),
        count(*) FILTER (WHERE paused),
        COALESCE(GREATEST(extract(epoch FROM now() - min(next.at) FILTER (WHERE NOT paused)), 0), 0)
    FROM nexmdm_webhook webhook LEFT JOIN LATERAL (
        SELECT at FROM nexmdm_event WHERE (xid, id) >= (cursor_xid, cursor_id) ORDER BY xid, id LIMIT 1
    ) next ON true
"""


def readiness() -> str:
    """Return `ok`, or a text with the number of paused webhooks."""
    paused = Webhook.objects.filter(paused=True).count()
    return f"{paused} paused" if paused else "ok"


def figures() -> Sequence[float]:
    """Return the number of webhooks in each of STATES, and the seconds for which the oldest unsent event has waited.

    Events of paused webhooks do not count as unsent.
    """
    *counts, seconds = database.row(_FIGURES)
    return (*counts, float(seconds))
