"""Reads of commands, with their state, outcome and counts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any, Final
from uuid import UUID

from django.db.models import Exists, OuterRef, QuerySet

from commands import standing
from commands.models import (
    Command,
    CommandOutcome,
    CommandState,
    Delivery,
    DeliveryState,
)
from commands.push_now import PUSH_NOW_SQL
from commands.queue import UnknownCommand
from commands.schemas import (
    CommandDetail,
    CommandPage,
    CommandQuery,
    Counts,
    ListedCommand,
    PushCounts,
)
from nexmdm.common import database, pagination

_HAS_LATE: Final = """EXISTS (
    SELECT FROM commands_report report
    WHERE report.delivery_id = delivery.id AND report.late AND NOT report.duplicate
        AND report.status IN ('succeeded', 'failed')
)"""

# `current` is the present state, whether the delivery is marked as expired or not.
_COMMAND_STATUSES: Final = f"""
    SELECT command.id, command.cancelled_at, command.finished_at, command.outcome, counted.*
    FROM commands_command command, LATERAL (
        SELECT
            count(*) FILTER (WHERE current = 'pending'), count(*) FILTER (WHERE current = 'received'),
            count(*) FILTER (WHERE current = 'succeeded'), count(*) FILTER (WHERE current = 'failed'),
            count(*) FILTER (WHERE current = 'expired'), count(*) FILTER (WHERE current = 'cancelled'),
            count(*) FILTER (WHERE current IN ('expired', 'cancelled') AND {_HAS_LATE}),
            count(*) FILTER (WHERE push_now = 'waiting'), count(*) FILTER (WHERE push_now = 'accepted'),
            count(*) FILTER (WHERE push_now = 'retrying'), count(*) FILTER (WHERE push_now = 'undeliverable'),
            count(*) FILTER (WHERE push_now = 'superseded'), count(*) FILTER (WHERE push_now = 'no_push_token'),
            max(COALESCE(settled_at, open_until))
        FROM (
            SELECT *,
                CASE WHEN state IN ('pending', 'received') AND open_until <= now() THEN 'expired' ELSE state END
                    AS current,
                {PUSH_NOW_SQL} AS push_now
            FROM commands_delivery WHERE command_id = command.id
        ) delivery
    ) counted
    WHERE command.id = ANY(%s)
"""  # noqa: S608  (a constant of ours; values are parameters)

# Each delivery with a late report is marked as settled: the first report on an overdue delivery marks the delivery.
_RESULTS: Final = f"""
    SELECT
        delivery.command_id, count(*) FILTER (WHERE delivery.state = 'succeeded'),
        count(*) FILTER (WHERE delivery.state IN ('expired', 'cancelled') AND {_HAS_LATE})
    FROM commands_delivery delivery
    WHERE delivery.command_id = ANY(%s)
    GROUP BY delivery.command_id
"""  # noqa: S608  (a constant of ours; values are parameters)

MOST_COUNTED: Final = 50_000
"""The largest number of deliveries that a list of commands reads for its counts. The read takes up to 0.2 s.

The commands with the fewest deliveries are counted first.
"""

DELIVERIES_PER_QUERY: Final = 200_000
"""The largest number of deliveries that one query counts. A command with more deliveries is counted by a separate
query.
"""


@dataclass(frozen=True, slots=True)
class CommandStatus:
    """The state and the outcome of a command. `counts` and `push` count its deliveries by state and by push state."""

    state: CommandState
    outcome: CommandOutcome | None
    completed_at: datetime | None
    counts: Counts
    push: PushCounts


def is_open(request_id: UUID) -> bool:
    """Return whether a command has an open delivery. Raises UnknownCommand."""
    if not Command.objects.filter(id=request_id).exists():
        raise UnknownCommand
    return Delivery.objects.open().filter(command_id=request_id).exists()


def command_detail(request_id: UUID) -> CommandDetail:
    """Return a command with its counts. Raises UnknownCommand."""
    row = Command.objects.filter(id=request_id).first()
    status = _command_statuses([request_id]).get(request_id)
    if row is None or status is None:
        raise UnknownCommand
    return CommandDetail(
        **_command_fields(row, status.state, status.outcome),
        completed_at=status.completed_at,
        cancelled_at=row.cancelled_at,
        counts=status.counts,
        push=status.push,
    )


def command_statuses(sizes: Mapping[UUID, int]) -> dict[UUID, CommandStatus]:
    """Return the status of each command, by request id. `sizes` contains the number of devices of each command.

    A command that does not exist is left out. Each query counts at most DELIVERIES_PER_QUERY deliveries.
    """
    found: dict[UUID, CommandStatus] = {}
    batch: list[UUID] = []
    total = 0
    for request_id, size in sizes.items():
        if batch and total + size > DELIVERIES_PER_QUERY:
            found |= _command_statuses(batch)
            batch, total = [], 0
        batch.append(request_id)
        total += size
    return found | _command_statuses(batch)


def _command_statuses(request_ids: list[UUID]) -> dict[UUID, CommandStatus]:
    return {request_id: _command_status(*row) for request_id, *row in database.rows(_COMMAND_STATUSES, [request_ids])}


def _command_status(
    cancelled_at: datetime | None, finished_at: datetime | None, ended: str | None, *counted: Any
) -> CommandStatus:
    *numbers, last_settled = counted
    counts = Counts(**dict(zip(Counts.model_fields, numbers[:7], strict=True)))
    push = PushCounts(**dict(zip(PushCounts.model_fields, numbers[7:], strict=True)))
    was_cancelled = cancelled_at is not None
    if ended is not None:
        outcome = CommandOutcome(ended)
        state = standing.of_outcome(outcome, was_cancelled=was_cancelled)
        return CommandStatus(state, outcome, finished_at, counts, push)
    states = [state for state in DeliveryState if getattr(counts, state)]
    state, derived = standing.of_states(states, was_cancelled=was_cancelled)
    return CommandStatus(state, derived, None if derived is None else last_settled, counts, push)


def command_page(query: CommandQuery) -> CommandPage:
    """Return a page of commands, newest first."""
    rows: QuerySet[Any] = Command.objects.annotate(**standing.STANDING)
    if query.action is not None:
        rows = rows.filter(action=query.action)
    if query.device_id is not None:
        rows = rows.filter(Exists(Delivery.objects.filter(command_id=OuterRef("id"), device_id=query.device_id)))
    if query.since is not None:
        rows = rows.filter(issued_at__gte=query.since)
    if query.until is not None:
        rows = rows.filter(issued_at__lt=query.until)
    if query.state is not None:
        rows = rows.filter(standing.state_conditions()[query.state])
    if query.outcome is not None:
        rows = rows.filter(standing.outcome_conditions()[query.outcome])
    found, next_cursor = pagination.paginate(rows, query, UUID)
    stands = {row.id: standing.of(row) for row in found}
    results = _results({row.id: row.device_count for row in found}, stands)
    items = [_listed(row, stands[row.id], *results.get(row.id, (None, None))) for row in found]
    return CommandPage(items=items, next_cursor=next_cursor)


def _results(sizes: Mapping[UUID, int], stands: Mapping[UUID, standing.Standing]) -> dict[UUID, tuple[int, int]]:
    """Return, by request id, the number of successes and the number of late results.

    Commands with too many deliveries are left out. If a command succeeded, its number of successes is its number of
    devices, and its deliveries are not read.
    """
    whole = {one: (size, 0) for one, size in sizes.items() if stands[one][1] == CommandOutcome.SUCCEEDED}
    narrowest_first = sorted((size, request_id) for request_id, size in sizes.items() if request_id not in whole)
    totals = accumulate(size for size, _ in narrowest_first)
    few = [one for (_, one), total in zip(narrowest_first, totals, strict=True) if total <= MOST_COUNTED]
    counted = database.rows(_RESULTS, [few]) if few else []
    none: dict[UUID, tuple[int, int]] = dict.fromkeys(few, (0, 0))
    return whole | none | {request_id: (succeeded, late) for request_id, succeeded, late in counted}


def _listed(row: Command, stands: standing.Standing, succeeded: int | None, late: int | None) -> ListedCommand:
    state, outcome = stands
    shown_late = None if outcome is None else late
    return ListedCommand(**_command_fields(row, state, outcome), succeeded=succeeded, late=shown_late)


def _command_fields(row: Command, state: CommandState, outcome: CommandOutcome | None) -> dict[str, Any]:
    same = ("action", "target", "priority", "note", "issued_by", "issued_at", "expires_at", "device_count")
    fields = {name: getattr(row, name) for name in same}
    return fields | {"request_id": row.id, "params": json.loads(row.params), "state": state, "outcome": outcome}
