"""How a command stands as a whole: its state and its outcome, derived from its deliveries here and nowhere else."""

from collections.abc import Collection
from typing import Final

from django.contrib.postgres.aggregates import BitOr
from django.db.models import Case, Exists, IntegerField, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Coalesce

from commands.models import OPEN, OVERDUE, CommandOutcome, CommandState, Delivery, DeliveryState

Standing = tuple[CommandState, CommandOutcome | None]

_SETTLED: Final = tuple(state for state in DeliveryState if state not in OPEN)
_REPORTED: Final = (DeliveryState.SUCCEEDED, DeliveryState.FAILED)
_BITS: Final = {state: 1 << number for number, state in enumerate(DeliveryState)}

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
"""Which states a command's deliveries have now, for annotate(); of_seen() reads it. One walk over its deliveries."""


def of_seen(seen: int, *, was_cancelled: bool) -> Standing:
    """Return how a command stands, by SEEN and by whether a cancellation withdrew something of it."""
    return of_states([state for state, bit in _BITS.items() if seen & bit], was_cancelled=was_cancelled)


def of_states(states: Collection[DeliveryState], *, was_cancelled: bool) -> Standing:
    """Return how a command stands, by the states that its deliveries have now."""
    if any(state in states for state in OPEN):
        return CommandState.OPEN, None
    return _state(states, was_cancelled=was_cancelled), _outcome(states)


def _state(states: Collection[DeliveryState], *, was_cancelled: bool) -> CommandState:
    if was_cancelled:
        return CommandState.CANCELLED
    if any(state in states for state in _REPORTED):
        return CommandState.COMPLETED
    return CommandState.EXPIRED if DeliveryState.EXPIRED in states else CommandState.CANCELLED


def _outcome(states: Collection[DeliveryState]) -> CommandOutcome:
    if DeliveryState.SUCCEEDED in states:
        return CommandOutcome.SUCCEEDED if len(states) == 1 else CommandOutcome.PARTIAL
    if DeliveryState.FAILED in states:
        return CommandOutcome.FAILED
    return CommandOutcome.EXPIRED if DeliveryState.EXPIRED in states else CommandOutcome.CANCELLED


def _has(*states: DeliveryState) -> Q:
    now = Q(state__in=states) | (OVERDUE if DeliveryState.EXPIRED in states else Q())
    return Q(Exists(Delivery.objects.filter(now, command=OuterRef("pk"))))


_OPEN: Final = Q(Exists(Delivery.objects.open().filter(command=OuterRef("pk"))))


def state_conditions() -> dict[str, Q]:
    """Return for each state which commands have it, for filter(): the same as of_states()."""
    reported, expired = _has(*_REPORTED), _has(DeliveryState.EXPIRED)
    settled = ~_OPEN & Q(cancelled_at=None)
    return {
        CommandState.OPEN: _OPEN,
        CommandState.COMPLETED: settled & reported,
        CommandState.EXPIRED: settled & expired & ~reported,
        CommandState.CANCELLED: ~_OPEN & (Q(cancelled_at__isnull=False) | (~reported & ~expired)),
    }


def outcome_conditions() -> dict[str, Q]:
    """Return for each outcome which commands have it, for filter(): the same as of_states()."""
    succeeded, failed, expired = (_has(state) for state in (*_REPORTED, DeliveryState.EXPIRED))
    others = _has(*(state for state in _SETTLED if state != DeliveryState.SUCCEEDED))
    return {
        CommandOutcome.SUCCEEDED: ~_OPEN & succeeded & ~others,
        CommandOutcome.PARTIAL: ~_OPEN & succeeded & others,
        CommandOutcome.FAILED: ~_OPEN & failed & ~succeeded,
        CommandOutcome.EXPIRED: ~_OPEN & expired & ~failed & ~succeeded,
        CommandOutcome.CANCELLED: ~_OPEN & ~succeeded & ~failed & ~expired,
    }
