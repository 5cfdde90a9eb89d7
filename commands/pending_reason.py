"""Why a delivery is still open, or was settled without the phone's final report, in one plain sentence."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from django.conf import settings
from django.db.models import Case, Count, F, OuterRef, Q, QuerySet, Subquery, Sum, When
from django.db.models.functions import Coalesce, Now

from commands.models import (
    FINAL,
    OPEN,
    Attempt,
    AttemptOutcome,
    Delivery,
    DeliveryState,
    PushState,
    Report,
    ReportStatus,
    Withdrawal,
)
from commands.push_now import PUSH_NOW
from nexmdm.common.types import rfc3339

SILENT_AFTER: Final = timedelta(minutes=10)

_FAILED: Final = Q(
    outcome__in=(AttemptOutcome.RETRY_LATER, AttemptOutcome.REJECTED, AttemptOutcome.TOKEN_DEAD, AttemptOutcome.UNKNOWN)
) | Q(outcome=AttemptOutcome.BLOCKED, http_status__isnull=False)
"""Pushes that left in vain: neither those that were given back unsent, nor one that is in flight."""


def _number_of(rows: QuerySet[Any], number: Any) -> Coalesce:
    of_delivery = rows.filter(delivery=OuterRef("pk")).order_by().values("delivery")
    return Coalesce(Subquery(of_delivery.annotate(number_of=number).values("number_of")), 0)


def _last(rows: QuerySet[Any], field: str) -> Subquery:
    return Subquery(rows.filter(delivery=OuterRef("pk")).values(field)[:1])


_LAST_WORD: Final = _last(Report.objects.order_by("-id"), "status")
_LAST_WORD_IN_TIME: Final = _last(
    Report.objects.exclude(status__in=FINAL).filter(reported_at__lte=OuterRef("open_until")).order_by("-id"), "status"
)
_DEFERRALS: Final = _number_of(Report.objects.filter(status=ReportStatus.DEFERRED), Sum(F("repeat_count") + 1))

AS_OF_NOW: Final = {
    "now": Now(),
    "overdue": Q(open_until__lte=Now()),
    "due": Q(next_attempt_at__lte=Now()),
    "push_now": PUSH_NOW,
    "last_push": _last(Attempt.objects.order_by("-number"), "outcome"),
    "failed_pushes": _number_of(Attempt.objects.filter(_FAILED), Count("*")),
    "last_word": _LAST_WORD,
    "last_word_in_time": _LAST_WORD_IN_TIME,
    # Counted only where the sentence has it: this reads every report of a delivery.
    "deferrals": Case(When(last_word=ReportStatus.DEFERRED, then=_DEFERRALS), default=0),
}
"""What is derived of a delivery beside its fields, for annotate(): all as of one moment. All functions here need it."""


def current_state(row: Delivery) -> DeliveryState:
    """Return the state as of the database's time at the read of this row (annotated `overdue`)."""
    overdue = getattr(row, "overdue", False)
    return DeliveryState.EXPIRED if overdue and row.state in OPEN else DeliveryState(row.state)


def why_open(row: Any) -> str | None:
    """Return one plain sentence on what an open delivery (annotated AS_OF_NOW) waits for; None when it is settled."""
    if current_state(row) not in OPEN:
        return None
    reasons = [*_reports_of_the_phone(row), *_silence(row), *_push_trouble(row)]
    return _sentence(reasons or ["waiting for the phone to answer"])


def why_unfinished(row: Any) -> str | None:
    """Return one plain sentence on why a delivery (annotated AS_OF_NOW) ended without the phone's final report in time.

    None while it is open, and if the phone gave one. What the device does later changes nothing in it.
    """
    state = current_state(row)
    if state == DeliveryState.CANCELLED:
        return _sentence([Withdrawal(row.withdrawn_by).label]) if row.withdrawn_by else None
    if state != DeliveryState.EXPIRED:
        return None
    if row.last_word_in_time is not None:
        return _sentence([f"the phone reported {row.last_word_in_time}, and nothing final in time"])
    return _sentence([_last_sign(row), _what_the_push_came_to(row)])


def _sentence(reasons: Sequence[str]) -> str:
    text = "; ".join(reasons)
    return f"{text[0].upper()}{text[1:]}."


def _last_sign(row: Any) -> str:
    """Tell when the device was heard from: as kept at the expiry, else as it is known now."""
    seen = row.device_seen_at or row.device.presence.last_seen_at
    if seen is None:
        return "the device had never sent a heartbeat"
    if seen > row.open_until:
        return "no heartbeat from before the end of its time is known"
    at = rfc3339(seen.replace(microsecond=0))
    if seen < row.command.issued_at:
        return f"offline since {at}"
    return f"heard from at {at}, and it did not answer in time"


def _what_the_push_came_to(row: Any) -> str:
    if row.push_state == PushState.NO_PUSH_TOKEN:
        return "it had no live push token"
    if row.push_state == PushState.ACCEPTED:
        return "FCM took the push"
    if row.last_push == AttemptOutcome.REJECTED:
        return "FCM refused the push"
    if row.last_push in (AttemptOutcome.IN_FLIGHT, AttemptOutcome.UNKNOWN):
        return "a push left, and its answer is not known"
    return f"push failed {_times(row.failed_pushes)}" if row.failed_pushes else "no push left"


def _reports_of_the_phone(row: Any) -> list[str]:
    if row.last_word is None:
        return []
    deferred = row.last_word == ReportStatus.DEFERRED
    return [f"deferred {_times(row.deferrals)}" if deferred else f"the phone says {row.last_word}"]


def _silence(row: Any) -> list[str]:
    seen = row.device.presence.last_seen_at
    if seen is None:
        return ["the device has never sent a heartbeat"]
    return [f"silent for {_span(row.now - seen)}"] if row.now - seen >= SILENT_AFTER else []


def _push_trouble(row: Any) -> list[str]:
    if row.device.push_token is None:
        pending = row.state == DeliveryState.PENDING
        return ["no push token, so it goes with the next heartbeat" if pending else "no push token"]
    if row.device.push_token_dead_at is not None:
        return ["push token dead"]
    if row.state != DeliveryState.PENDING:
        return []
    if row.push_state == PushState.UNDELIVERABLE:
        return [_why_no_further_push(row)]
    return [_what_the_push_waits_for(row)] if row.push_state in (PushState.WAITING, PushState.RETRYING) else []


def _why_no_further_push(row: Any) -> str:
    if row.last_push == AttemptOutcome.REJECTED:
        return "FCM refused the push"
    if row.failed_pushes:
        return f"push failed {_times(row.failed_pushes)}, and no further one fits before the expiry"
    return "no push fits before the expiry any more"


def _what_the_push_waits_for(row: Any) -> str:
    in_flight = row.last_push == AttemptOutcome.IN_FLIGHT
    # Due while it is in flight: its dispatcher died, and with the next claim it will count as unknown.
    failures = row.failed_pushes + (in_flight and row.due)
    if in_flight and not row.due:
        stands = "is under way"
    elif row.due or not failures or row.last_push == AttemptOutcome.BLOCKED:
        stands = "has not left yet"
    else:
        return f"push failed {_times(failures)}, it is tried again"
    if failures:
        return f"push failed {_times(failures)}, the next one {stands}"
    if row.last_push is None and settings.FIREBASE_SERVICE_ACCOUNT is None:
        return "Firebase is not configured, so it goes with the next heartbeat"
    return f"the push {stands}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _span(length: timedelta) -> str:
    minutes = int(length.total_seconds() // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h" if hours < 48 else f"{hours // 24} days"
