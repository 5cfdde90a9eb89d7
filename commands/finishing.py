"""Finishing stores the end of a command once, when all deliveries of the command are settled.

Settled deliveries do not change, and therefore the stored end does not change. With the stored end, a list quickly
finds commands by state and outcome. The stored end stays correct while retention deletes the deliveries. Until the end
is stored, standing.py derives the state at each read.
"""

from datetime import timedelta
from itertools import product
from typing import Any, Final

import structlog
from django.db import transaction
from django.db.models import Exists, Max, OuterRef, Q, Subquery
from django.db.models.functions import Now
from prometheus_client import Counter

from commands import queue, standing
from commands.actions import CATALOGUE
from commands.models import OPEN, Command, CommandOutcome, CommandState, Delivery
from nexmdm.common import database

log = structlog.get_logger()

FINISHED: Final = Counter("nexmdm_commands_finished", "Commands that have ended.", ["action", "outcome"])
for _name, _outcome in product(CATALOGUE, CommandOutcome):
    FINISHED.labels(_name, _outcome)  # The series is 0 before the first failure: an alert needs an increase.

LATELY: Final = timedelta(seconds=60)
"""The time that finish_recent() looks back.

The transaction that settles a delivery begins at `settled_at`, and may commit later.
"""

TOLD: Final = timedelta(days=7)
"""If a command ended longer ago than this time, its end is stored without a log line and without an event.

Such commands exist after an upgrade, because earlier versions of NexMDM stored no ends.
"""

_SETTLED: Final = ~Exists(Delivery.objects.filter(command=OuterRef("pk"), state__in=OPEN))
_LAST_SETTLED: Final = Subquery(
    Delivery.objects.filter(command=OuterRef("pk"))
    .order_by()
    .values("command")
    .annotate(last=Max("settled_at"))
    .values("last")
)
_WRITE: Final = """
    WITH ended AS (
        SELECT * FROM unnest(
            %(ids)s::uuid[], %(at)s::timestamptz[], %(states)s::text[], %(outcomes)s::text[], %(is_news)s::bool[]
        ) AS ended (id, at, state, outcome, is_news)
    ), written AS (
        UPDATE commands_command command SET finished_at = ended.at, outcome = ended.outcome
        FROM ended WHERE command.id = ended.id
    )
    INSERT INTO nexmdm_event (type, request_id, data)
    SELECT 'command.finished', id, jsonb_build_object(
        'action', command.action, 'state', ended.state, 'outcome', ended.outcome, 'device_count', command.device_count,
        'counts', counted.counts
    )
    FROM ended JOIN commands_command command USING (id)
    CROSS JOIN LATERAL (
        SELECT jsonb_build_object(
            'pending', 0, 'received', 0,
            'succeeded', count(*) FILTER (WHERE delivery.state = 'succeeded'),
            'failed', count(*) FILTER (WHERE delivery.state = 'failed'),
            'expired', count(*) FILTER (WHERE delivery.state = 'expired'),
            'cancelled', count(*) FILTER (WHERE delivery.state = 'cancelled'),
            'late', count(*) FILTER (WHERE delivery.state IN ('expired', 'cancelled') AND EXISTS (
                SELECT FROM commands_report report
                WHERE report.delivery_id = delivery.id AND report.late AND NOT report.duplicate
            ))
        ) AS counts
        FROM commands_delivery delivery WHERE delivery.command_id = ended.id
    ) counted
    WHERE ended.is_news ORDER BY id
"""


def finish_recent(limit: int) -> int:
    """Store the end of up to `limit` commands that ended within LATELY. Return the number of commands."""
    settled = Delivery.objects.filter(settled_at__gt=Now() - LATELY).order_by().values("command")
    return _finish(Q(pk__in=settled), limit)


def expire(limit: int) -> int:
    """Mark up to `limit` overdue deliveries as expired. Return the number of deliveries.

    While no dispatcher runs, nothing marks overdue deliveries. If a delivery is marked long after its expiry,
    finish_recent() does not find its command. Therefore this function also stores the end of these commands, in a
    second transaction.
    """
    command_ids = queue.expire(limit)
    if command_ids:
        _finish(Q(pk__in=set(command_ids), expires_at__lt=Now() - LATELY / 2), limit)
    return len(command_ids)


def finish(limit: int) -> int:
    """Store the end of up to `limit` commands that ended at any time. Return the number of commands."""
    return _finish(Q(), limit)


@transaction.atomic
def _finish(which: Q, limit: int) -> int:
    over: Any = Command.objects.filter(which, _SETTLED, finished_at=None).order_by("id")
    held = over.select_for_update(skip_locked=True, no_key=True, of=("self",))
    found = held.annotate(seen=standing.SEEN, last=_LAST_SETTLED, is_news=Q(last__gt=Now() - TOLD))
    ended = [(command, *_standing(command)) for command in found.only("action", "cancelled_at", "device_count")[:limit]]
    database.execute(
        _WRITE,
        {
            "ids": [command.id for command, _, _ in ended],
            "at": [command.last for command, _, _ in ended],
            "states": [state.value for _, state, _ in ended],
            "outcomes": [outcome.value for _, _, outcome in ended],
            "is_news": [bool(command.is_news) for command, _, _ in ended],
        },
    )
    transaction.on_commit(lambda: _count_and_log(ended))
    return len(ended)


def _standing(command: Any) -> tuple[CommandState, CommandOutcome]:
    state, outcome = standing.of_seen(command.seen, was_cancelled=command.cancelled_at is not None)
    assert outcome is not None, "no delivery of the command is open"
    return state, outcome


def _count_and_log(ended: list[tuple[Any, CommandState, CommandOutcome]]) -> None:
    for command, state, outcome in ended:
        if command.is_news:
            FINISHED.labels(command.action, outcome).inc()
            log.info(
                "command.finished",
                request_id=str(command.id),
                action=command.action,
                state=state,
                outcome=outcome,
                device_count=command.device_count,
            )
