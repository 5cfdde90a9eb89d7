"""Retention: what settled long ago leaves, a small batch at a time, so that nobody waits for it."""

from datetime import timedelta
from typing import Final

from django.db import transaction
from django.db.models import Exists, OuterRef

from commands.models import Command, Delivery
from devices import database

# The oldest come from delivery_settled. A row that somebody holds is left for the next batch.
_PRUNE: Final = """
    WITH old AS (
        SELECT id FROM commands_delivery
        WHERE settled_at < now() - %(kept)s
        ORDER BY settled_at LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ), reports AS (
        DELETE FROM commands_report USING old WHERE delivery_id = old.id
    ), attempts AS (
        DELETE FROM commands_attempt USING old WHERE delivery_id = old.id
    )
    DELETE FROM commands_delivery delivery USING old WHERE delivery.id = old.id
    RETURNING delivery.command_id
"""


@transaction.atomic
def prune(kept: timedelta, limit: int) -> int:
    """Delete up to `limit` deliveries that settled before `kept` ago, with their attempts and reports; return how many.

    A command goes with its last delivery. Who prunes takes turns: two that each delete a part of a command's
    deliveries would each see the other's part still there, and leave the command for ever.
    """
    database.take_turns("retention", "deliveries")
    emptied = [command_id for (command_id,) in database.rows(_PRUNE, {"kept": kept, "limit": limit})]
    with_deliveries = Exists(Delivery.objects.filter(command_id=OuterRef("id")))
    Command.objects.filter(~with_deliveries, id__in=set(emptied)).delete()
    return len(emptied)
