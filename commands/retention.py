"""Retention: delete commands that ended long ago, in small batches. Other work does not wait for a batch.

Each call of prune() or trim() is a short transaction. prune() deletes deliveries that have few rows, together with
these rows. trim() deletes reports and attempts of deliveries that have many rows. Therefore no statement takes long,
and a delivery with a million reports does not delay other deliveries. While a delivery is trimmed, its remaining rows
can still be read.
"""

from datetime import timedelta
from typing import Any, Final

from django.db import transaction
from django.db.models import Exists, OuterRef

from commands.models import Command, Delivery
from nexmdm.common import database

FEW: Final = 5
"""prune() deletes a delivery only if it has at most this number of reports, and at most this number of attempts.

Most deliveries have fewer reports and attempts. prune() deletes 2,000 such deliveries within a second.
"""

SMALL: Final = 2000
"""prune() deletes a delivery only if the stored output of each report has at most this number of bytes.

PostgreSQL stores larger outputs in a separate table. A deletion from this table takes long.
"""

ROWS: Final = 10_000
BYTES: Final = 8 * 1024 * 1024
"""ROWS limits how many reports, and how many attempts, one call of trim() deletes. BYTES limits the size of the
outputs.

A call that reaches these limits takes some tenths of a second.
"""

# The planner does not know that a delivery has just got a million rows. Therefore these settings allow only one plan:
# find rows by the index of their delivery, and read deliveries in the order of the index. OFFSET 0 in a subquery
# prevents a hash of the whole table.
_BY_INDEX: Final = tuple(
    f"SET LOCAL enable_{way} = off" for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin", "sort")
)

_HAS_MUCH: Final = """(
    EXISTS (SELECT FROM commands_report WHERE delivery_id = delivery.id OFFSET %(few)s)
    OR EXISTS (SELECT FROM commands_attempt WHERE delivery_id = delivery.id OFFSET %(few)s)
    OR EXISTS (
        SELECT FROM commands_report WHERE delivery_id = delivery.id AND pg_column_size(output) > %(small)s OFFSET 0
    )
)"""

# Delete the deliveries of a command only after the end of the command: without the deleted deliveries, the remaining
# deliveries would show a wrong state.
_OLD: Final = """
    old AS MATERIALIZED (
        SELECT id FROM commands_command WHERE finished_at < now() - %(kept)s ORDER BY finished_at LIMIT %(limit)s
    )
"""
# A locked row is left for the next batch. Take the locks first, in a separate statement: the deletion must include the
# rows that earlier owners of the locks added.
_HOLD: Final = f"""
    WITH {_OLD}
    SELECT delivery.id FROM old JOIN commands_delivery delivery ON delivery.command_id = old.id
    WHERE NOT {_HAS_MUCH}
    LIMIT %(limit)s
    FOR UPDATE OF delivery SKIP LOCKED
"""  # noqa: S608  (constants of this module; values are parameters)
_PRUNE: Final = """
    WITH reports AS (
        DELETE FROM commands_report WHERE delivery_id = ANY(%(ids)s)
    ), attempts AS (
        DELETE FROM commands_attempt WHERE delivery_id = ANY(%(ids)s)
    )
    DELETE FROM commands_delivery WHERE id = ANY(%(ids)s)
    RETURNING command_id
"""

# Search among the oldest deliveries. prune() deletes deliveries with few rows. In the end, the oldest deliveries are
# deliveries with many rows.
_TRIM: Final = f"""
    WITH {_OLD}, oldest AS MATERIALIZED (
        SELECT delivery.id FROM old JOIN commands_delivery delivery ON delivery.command_id = old.id LIMIT %(limit)s
    ), large AS MATERIALIZED (
        SELECT id FROM commands_delivery delivery
        WHERE id IN (SELECT id FROM oldest) AND {_HAS_MUCH}
        FOR UPDATE SKIP LOCKED
    ), picked AS MATERIALIZED (
        SELECT report.id, report.bytes FROM large CROSS JOIN LATERAL (
            SELECT id, COALESCE(pg_column_size(output), 0) AS bytes
            FROM commands_report WHERE delivery_id = large.id LIMIT %(rows)s
        ) report LIMIT %(rows)s
    ), sized AS (
        SELECT id, sum(bytes) OVER (ORDER BY id) - bytes AS bytes_before FROM picked
    ), reports AS (
        DELETE FROM commands_report WHERE id = ANY(ARRAY(SELECT id FROM sized WHERE bytes_before < %(bytes)s))
    ), attempts AS (
        DELETE FROM commands_attempt WHERE id = ANY(ARRAY(
            SELECT attempt.id FROM large CROSS JOIN LATERAL (
                SELECT id FROM commands_attempt WHERE delivery_id = large.id LIMIT %(rows)s
            ) attempt LIMIT %(rows)s
        ))
    )
    SELECT count(*) FROM large
"""  # noqa: S608


@transaction.atomic
def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` deliveries of commands that ended more than `kept` ago. Return the number of deliveries.

    The reports and attempts of the deliveries are deleted too. This function leaves out deliveries that have many or
    large reports or attempts. trim() handles these deliveries first. A command is deleted together with its last
    delivery. A lock lets only one call run at a time. Without the lock, two calls would not see each other's deletions,
    and would both keep the command.
    """
    database.advisory_lock("retention", "deliveries")
    *_, held = database.execute_batch(*_BY_INDEX, _HOLD, parameters=_bounds(kept, limit))
    ids = [delivery_id for (delivery_id,) in held]
    emptied = {command_id for (command_id,) in database.rows(_PRUNE, {"ids": ids})}
    with_deliveries = Exists(Delivery.objects.filter(command_id=OuterRef("id")))
    Command.objects.filter(~with_deliveries, id__in=emptied).delete()
    return len(ids)


def trim(kept: timedelta, limit: int) -> int:
    """Delete reports and attempts of commands that ended more than `kept` ago, up to the limits ROWS and BYTES.

    Only the oldest `limit` deliveries are read. Return how many of these deliveries had many or large rows. If the
    result is 0, nothing is left to trim.
    """
    *_, ((large,),) = database.execute_batch(*_BY_INDEX, _TRIM, parameters=_bounds(kept, limit))
    return int(large)


def _bounds(kept: timedelta, limit: int) -> dict[str, Any]:
    return {"kept": kept, "limit": limit, "few": FEW, "small": SMALL, "rows": ROWS, "bytes": BYTES}
