"""Retention: what settled long ago leaves, a small batch at a time, so that nobody waits for it.

Two kinds of steps, each a short transaction: prune() deletes deliveries that have few rows, together with these; trim()
takes rows away from those that have many, until they have few. So no statement is long, and a delivery with a million
reports keeps no other from leaving. While it is trimmed, the rest of its rows can still be read.
"""

from datetime import timedelta
from typing import Final

from django.db import transaction
from django.db.models import Exists, OuterRef

from commands.models import Command, Delivery
from devices import database

FEW: Final = 5
"""Reports, and attempts, of a delivery that leaves as a whole. Most have fewer; 2,000 such leave within a second."""

ROWS: Final = 10_000
"""Reports, and attempts, that trim() deletes at once: with outputs of 16 KiB, that takes half a second."""

_HAS_MANY: Final = """(
    EXISTS (SELECT FROM commands_report WHERE delivery_id = delivery.id OFFSET %(few)s)
    OR EXISTS (SELECT FROM commands_attempt WHERE delivery_id = delivery.id OFFSET %(few)s)
)"""

# The oldest come from delivery_settled. A row that is locked is left for the next batch. The locks come first, in a
# statement of their own: what is deleted then includes what their holders before have added.
_HOLD: Final = f"""
    SELECT id FROM commands_delivery delivery
    WHERE settled_at < now() - %(kept)s AND NOT {_HAS_MANY}
    ORDER BY settled_at LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
"""  # noqa: S608  (a constant of this module; values are parameters)
_PRUNE: Final = """
    WITH reports AS (
        DELETE FROM commands_report WHERE delivery_id = ANY(%(ids)s)
    ), attempts AS (
        DELETE FROM commands_attempt WHERE delivery_id = ANY(%(ids)s)
    )
    DELETE FROM commands_delivery WHERE id = ANY(%(ids)s)
    RETURNING command_id
"""

# Looked for among the oldest: since those with few rows leave, these are in the end the ones with many. Each LIMIT
# within a LATERAL leaves the planner no choice but to find the rows by their delivery.
_TRIM: Final = f"""
    WITH oldest AS MATERIALIZED (
        SELECT id FROM commands_delivery WHERE settled_at < now() - %(kept)s ORDER BY settled_at LIMIT %(limit)s
    ), many AS MATERIALIZED (
        SELECT id FROM commands_delivery delivery
        WHERE id IN (SELECT id FROM oldest) AND {_HAS_MANY}
        FOR UPDATE SKIP LOCKED
    ), reports AS (
        DELETE FROM commands_report WHERE id IN (
            SELECT report.id FROM many CROSS JOIN LATERAL (
                SELECT id FROM commands_report WHERE delivery_id = many.id LIMIT %(rows)s
            ) report LIMIT %(rows)s
        ) RETURNING id
    ), attempts AS (
        DELETE FROM commands_attempt WHERE id IN (
            SELECT attempt.id FROM many CROSS JOIN LATERAL (
                SELECT id FROM commands_attempt WHERE delivery_id = many.id LIMIT %(rows)s
            ) attempt LIMIT %(rows)s
        ) RETURNING id
    )
    SELECT GREATEST((SELECT count(*) FROM reports), (SELECT count(*) FROM attempts))
"""  # noqa: S608


@transaction.atomic
def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` deliveries that settled before `kept` ago, with their attempts and reports; return how many.

    Those with more than FEW of either wait for trim(). A command goes with its last delivery. Who prunes takes turns:
    two that each delete a part of a command's deliveries would each see the other's part still there, and leave the
    command for ever.
    """
    database.take_turns("retention", "deliveries")
    ids = [delivery_id for (delivery_id,) in database.rows(_HOLD, {"kept": kept, "limit": limit, "few": FEW})]
    emptied = {command_id for (command_id,) in database.rows(_PRUNE, {"ids": ids})}
    with_deliveries = Exists(Delivery.objects.filter(command_id=OuterRef("id")))
    Command.objects.filter(~with_deliveries, id__in=emptied).delete()
    return len(ids)


def trim(kept: timedelta, limit: int) -> int:
    """Take reports and attempts, up to ROWS of each, from deliveries that settled before `kept` ago and have many.

    Looks at the `limit` oldest. Returns how many rows left, of the kind of which there were more: ROWS if there may be
    further ones.
    """
    (deleted,) = database.row(_TRIM, {"kept": kept, "limit": limit, "few": FEW, "rows": ROWS})
    return int(deleted)
