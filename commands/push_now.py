"""The state of a push in the API: the stored state, or `superseded`. Only this module derives `superseded`.

A push is superseded if its delivery was settled while the push was waiting or retrying. An overdue delivery counts as
settled.
"""

from typing import Final

from django.db.models import Case, CharField, F, Q, Value, When
from django.db.models.functions import Now

from commands.models import OPEN, PushNow, PushState

_NOT_OVER: Final = (PushState.WAITING, PushState.RETRYING)

_SUPERSEDED: Final = Q(push_state__in=_NOT_OVER) & (~Q(state__in=OPEN) | Q(open_until__lte=Now()))

PUSH_NOW: Final = Case(
    When(_SUPERSEDED, then=Value(PushNow.SUPERSEDED.value)), default=F("push_state"), output_field=CharField()
)
"""The state of a delivery's push in the API, for annotate()."""


def _words(states: tuple[str, ...]) -> str:
    return ", ".join(f"'{state}'" for state in states)


PUSH_NOW_SQL: Final = f"""
    CASE
        WHEN push_state IN ({_words(_NOT_OVER)}) AND NOT (state IN ({_words(OPEN)}) AND open_until > now())
            THEN '{PushNow.SUPERSEDED}'
        ELSE push_state
    END"""
"""PUSH_NOW in SQL, for a row of commands_delivery."""


def conditions() -> dict[str, Q]:
    """Return one condition for each state of a push in the API, for use in filter().

    A condition selects the deliveries whose push has this state.
    """
    stored = {state.value: Q(push_state=state) & ~_SUPERSEDED for state in PushState}
    return {state: stored.get(state, _SUPERSEDED) for state in PushNow.values}
