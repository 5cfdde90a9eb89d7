"""The state and the outcome of a command. Only this module derives the state and the outcome from the deliveries.

After the end of a command, finishing.py stores the outcome. Until the outcome is stored, each read derives it.
"""

from collections.abc import Collection
from functools import reduce
from operator import or_
from typing import Any, Final

from django.contrib.postgres.aggregates import BitOr
from django.db.models import Case, Exists, IntegerField, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Coalesce

from commands.models import OPEN, OVERDUE, CommandOutcome, CommandState, Delivery, DeliveryState

Standing = tuple[CommandState, CommandOutcome | None]

_SETTLED: Final = tuple(state for state in DeliveryState if state not in OPEN)
_REPORTED: Final = (DeliveryState.SUCCEEDED, DeliveryState.FAILED)
_BITS: Final = {state: 1 << number for number, state in enumerate(DeliveryState)}

_STATES: Final = {
    CommandOutcome.SUCCEEDED: CommandState.COMPLETED,
    CommandOutcome.PARTIAL: CommandState.COMPLETED,
    CommandOutcome.FAILED: CommandState.COMPLETED,
    CommandOutcome.EXPIRED: CommandState.EXPIRED,
    CommandOutcome.CANCELLED: CommandState.CANCELLED,
}
"""The state of a command that ended, by its outcome, if no admin cancelled the command."""

_BIT: Final = Case(
    When(OVERDUE, then=_BITS[DeliveryState.EXPIRED]),
    *(When(state=state, then=Value(bit)) for state, bit in _BITS.items()),
    output_field=IntegerField(),
)

SEEN: Final = Coalesce(
    Subquery(
        Delivery.objects.filter(command=OuterRef("pk"))
        .order_by()
        .values("command")
        .annotate(seen=BitOr(_BIT))
        .values("seen")
    ),
    0,
)
"""For annotate(): the present states of a command's deliveries, as bits for of_seen().

The database reads all deliveries of the command.
"""


STANDING: Final = {
    "seen": Case(When(finished_at__isnull=False, then=0), default=SEEN, output_field=IntegerField()),
}
"""For annotate(): the value that of() reads from a command. If the end of the command is stored, no delivery is read.
"""


def of(command: Any) -> Standing:
    """Return the state and the outcome of a command. The command must be annotated with STANDING."""
    was_cancelled = command.cancelled_at is not None
    if command.finished_at is None:
        return of_seen(command.seen, was_cancelled=was_cancelled)
    outcome = CommandOutcome(command.outcome)
    return of_outcome(outcome, was_cancelled=was_cancelled), outcome


def of_outcome(outcome: CommandOutcome, *, was_cancelled: bool) -> CommandState:
    """Return the state of a command that ended. `was_cancelled`: an admin's cancellation withdrew deliveries."""
    return CommandState.CANCELLED if was_cancelled else _STATES[outcome]


def of_seen(seen: int, *, was_cancelled: bool) -> Standing:
    """Return the state and the outcome of a command. `seen` is the command's value of the annotation SEEN.
    `was_cancelled`: an admin's cancellation withdrew deliveries.
    """
    return of_states([state for state, bit in _BITS.items() if seen & bit], was_cancelled=was_cancelled)


def of_states(states: Collection[DeliveryState], *, was_cancelled: bool) -> Standing:
    """Return the state and the outcome of a command from the present states of its deliveries.

    `was_cancelled`: an admin's cancellation withdrew deliveries.
    """
    if any(state in states for state in OPEN):
        return CommandState.OPEN, None
    outcome = _outcome(states)
    return of_outcome(outcome, was_cancelled=was_cancelled), outcome


def _outcome(states: Collection[DeliveryState]) -> CommandOutcome:
    if DeliveryState.SUCCEEDED in states:
        return CommandOutcome.SUCCEEDED if len(states) == 1 else CommandOutcome.PARTIAL
    if DeliveryState.FAILED in states:
        return CommandOutcome.FAILED
    return CommandOutcome.EXPIRED if DeliveryState.EXPIRED in states else CommandOutcome.CANCELLED


def _has(*states: DeliveryState) -> Q:
    now = Q(state__in=states) | (OVERDUE if DeliveryState.EXPIRED in states else Q())
    return Q(Exists(Delivery.objects.filter(now, command=OuterRef("pk"))))


_OPEN: Final = Q(finished_at=None) & Q(Exists(Delivery.objects.open().filter(command=OuterRef("pk"))))


def state_conditions() -> dict[str, Q]:
    """Return one condition for each state of a command, for use in filter().

    A condition selects the commands for which of() returns the state.
    """
    by_outcome = outcome_conditions()
    was_cancelled = Q(cancelled_at__isnull=False)
    not_cancelled = {
        state: reduce(or_, (by_outcome[outcome] for outcome, one in _STATES.items() if one == state))
        for state in (CommandState.COMPLETED, CommandState.EXPIRED, CommandState.CANCELLED)
    }
    return {
        CommandState.OPEN: _OPEN,
        CommandState.COMPLETED: Q(cancelled_at=None) & not_cancelled[CommandState.COMPLETED],
        CommandState.EXPIRED: Q(cancelled_at=None) & not_cancelled[CommandState.EXPIRED],
        CommandState.CANCELLED: (was_cancelled & ~_OPEN) | not_cancelled[CommandState.CANCELLED],
    }


def outcome_conditions() -> dict[str, Q]:
    """Return one condition for each outcome of a command, for use in filter().

    A condition selects the commands for which of() returns the outcome.
    """
    succeeded, failed, expired = (_has(state) for state in (*_REPORTED, DeliveryState.EXPIRED))
    others = _has(*(state for state in _SETTLED if state != DeliveryState.SUCCEEDED))
    derived = {
        CommandOutcome.SUCCEEDED: succeeded & ~others,
        CommandOutcome.PARTIAL: succeeded & others,
        CommandOutcome.FAILED: failed & ~succeeded,
        CommandOutcome.EXPIRED: expired & ~failed & ~succeeded,
        CommandOutcome.CANCELLED: ~succeeded & ~failed & ~expired,
    }
    over = Q(finished_at=None) & ~_OPEN
    return {
        outcome: Q(finished_at__isnull=False, outcome=outcome) | (over & condition)
        for outcome, condition in derived.items()
    }
