"""The states of webhooks: figures about all webhooks together, and the reason for the state of one webhook."""

from collections.abc import Sequence
from typing import Final

from nexmdm.common import database
from nexmdm.common.types import rfc3339
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
    """Return `ok`, or the numbers of paused and of failing webhooks, such as `1 paused, 2 failing`."""
    _, failing, paused, _ = figures()
    counts = ((paused, "paused"), (failing, "failing"))
    return ", ".join(f"{count:.0f} {state}" for count, state in counts if count) or "ok"


def figures() -> Sequence[float]:
    """Return the number of webhooks in each of STATES, and the seconds for which the oldest unsent event has waited.

    Events of paused webhooks do not count as unsent.
    """
    *counts, seconds = database.row(_FIGURES)
    return (*counts, float(seconds))


def why(webhook: Webhook) -> str | None:
    """Return the reason why a webhook is paused, or that its receiver fails; None if neither is true."""
    if webhook.paused or webhook.failing_since is None:
        return webhook.why or None
    since, next_at = rfc3339(webhook.failing_since), rfc3339(webhook.next_attempt_at)
    return f"The receiver has accepted no event since {since}. The next attempt is due at {next_at}."
