"""Sentences for people: why a delivery is still open, or why a delivery ended without a final report in time."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from django.conf import settings
from django.db.models import Case, Count, F, OuterRef, Q, QuerySet, Subquery, Sum, When
from django.db.models.functions import Coalesce, Greatest, Now

from commands.models import (
    FINAL,
    OPEN,
    Attempt,
    AttemptOutcome,
    Delivery,
    DeliveryState,
    DeviceWas,
    PushState,
    Report,
    ReportStatus,
    Withdrawal,
)
from commands.push_now import PUSH_NOW
from devices.presence.service_time import OnlineAfter, OnlineUntil
from nexmdm.common.types import rfc3339

_MINUTE: Final = timedelta(minutes=1)
_LAST_SEEN: Final = "device__presence__last_seen_at"

QUOTED: Final = 100
"""The largest number of characters that a sentence quotes from a phone's message."""

_FAILED: Final = Q(
    outcome__in=(AttemptOutcome.RETRY_LATER, AttemptOutcome.REJECTED, AttemptOutcome.TOKEN_DEAD, AttemptOutcome.UNKNOWN)
) | Q(outcome=AttemptOutcome.BLOCKED, http_status__isnull=False)
"""The condition for attempts whose push was sent and failed.

A push in flight has not failed. A push that was not sent has not failed.
"""


def _number_of(rows: QuerySet[Any], number: Any) -> Coalesce:
    of_delivery = rows.filter(delivery=OuterRef("pk")).order_by().values("delivery")
    return Coalesce(Subquery(of_delivery.annotate(number_of=number).values("number_of")), 0)


def _last(rows: QuerySet[Any], field: str) -> Subquery:
    return Subquery(rows.filter(delivery=OuterRef("pk")).values(field)[:1])


_LAST_WORD: Final = _last(Report.objects.order_by("-id"), "status")
# A report came in time if it came before the end of the delivery. A cancellation waits for a report in progress. But
# the previous version of NexMDM could store a cancellation time before the time of this report.
_END: Final = Greatest(Coalesce(OuterRef("settled_at"), OuterRef("open_until")), OuterRef("reported_at"))
_IN_TIME: Final = Report.objects.exclude(status__in=FINAL).filter(reported_at__lte=_END).order_by("-id")
_DEFERRALS: Final = _number_of(Report.objects.filter(status=ReportStatus.DEFERRED), Sum(F("repeat_count") + 1))

AS_OF_NOW: Final = {
    "now": Now(),
    "online_after": OnlineAfter(),
    "was_online_until": OnlineUntil(Coalesce("device_seen_at", _LAST_SEEN)),
    "overdue": Q(open_until__lte=Now()),
    "due": Q(next_attempt_at__lte=Now()),
    "push_now": PUSH_NOW,
    "last_push": _last(Attempt.objects.order_by("-number"), "outcome"),
    "failed_pushes": _number_of(Attempt.objects.filter(_FAILED), Count("*")),
    "last_word": _LAST_WORD,
    "last_word_in_time": _last(_IN_TIME, "status"),
    "last_message_in_time": _last(_IN_TIME, "message"),
    # Count only if the sentence shows the number, because the count reads all reports of a delivery.
    "deferrals": Case(When(last_word=ReportStatus.DEFERRED, then=_DEFERRALS), default=0),
}
"""The values that why_open() and why_unfinished() read from a delivery, for annotate().

All times in these values are compared with the same moment.
"""


def current_state(row: Delivery) -> DeliveryState:
    """Return the state of a delivery at the time when the delivery was read, by the clock of the database.

    The delivery must have the annotation `overdue` of AS_OF_NOW. Without the annotation, the stored state is returned.
    """
    overdue = getattr(row, "overdue", False)
    return DeliveryState.EXPIRED if overdue and row.state in OPEN else DeliveryState(row.state)


def why_open(row: Any) -> str | None:
    """Return one sentence on what an open delivery waits for. If the delivery is settled, return None.

    The delivery must be annotated with AS_OF_NOW.
    """
    if current_state(row) not in OPEN:
        return None
    reasons = [*_reports_of_the_phone(row), *_silence(row), *_push_trouble(row)]
    return _sentence(reasons or ["waiting for the phone to answer"])


def why_unfinished(row: Any) -> str | None:
    """Return one sentence on why a delivery expired or was cancelled. Later events on the device do not change the
    sentence.

    Return None if the delivery is open, or if a final report came in time. Return None too if the cause of a
    cancellation is not known. The delivery must be annotated with AS_OF_NOW.
    """
    state = current_state(row)
    if state == DeliveryState.CANCELLED:
        by = withdrawn_by(row)
        return _sentence([by, *_what_had_come_of_it(row)]) if by else None
    if state != DeliveryState.EXPIRED:
        return None
    if row.last_word_in_time is not None:
        return _sentence([f"the phone reported {_last_word(row)}, but sent no final report in time"])
    return _sentence([_last_sign(row), _what_the_push_came_to(row)])


def withdrawn_by(row: Delivery) -> str | None:
    """Return the cause of a cancellation as a text. If the delivery was not cancelled, return None.

    If an earlier version of NexMDM cancelled the delivery, the cause may not be stored. In this case, return None too.
    """
    if row.withdrawn_by == Withdrawal.REVOCATION and row.device_was == DeviceWas.RETIRED:
        return "the device was retired"
    return Withdrawal(row.withdrawn_by).label if row.withdrawn_by else None


def _sentence(reasons: Sequence[str]) -> str:
    text = "; ".join(reasons)
    return f"{text[0].upper()}{text[1:]}."


def _last_word(row: Any) -> str:
    message = " ".join(row.last_message_in_time.split())
    quoted = message if len(message) <= QUOTED else f"{message[: QUOTED - 1]}…"
    return f'{row.last_word_in_time} ("{quoted}")' if quoted else str(row.last_word_in_time)


def _what_had_come_of_it(row: Any) -> list[str]:
    if row.last_word_in_time is not None:
        return [f"the phone had reported {_last_word(row)}"]
    was_offered = row.device_seen_at is not None and row.device_seen_at >= row.command.issued_at
    push = _what_a_push_came_to(row)
    return ["the phone may have got the command with a heartbeat"] * was_offered + ([push] if push else [])


def _last_sign(row: Any) -> str:
    """Return a text about the device's last heartbeat before the expiry.

    The time of this heartbeat is stored when the delivery is marked as expired. Until then, the time is read from the
    presence. The presence contains only the newest heartbeat. If the newest heartbeat came after the expiry, earlier
    heartbeats are not known.
    """
    seen = row.device_seen_at or row.device.presence.last_seen_at
    if seen is None or row.device_was == DeviceWas.NEVER_SEEN:
        return "the device had never sent a heartbeat"
    if seen > row.open_until:
        return "the phone reported nothing in time, and its last heartbeat before the expiry is not known"
    at = rfc3339(seen.replace(microsecond=0))
    if seen < row.command.issued_at:
        was_offline = row.open_until > row.was_online_until
        return f"offline since {at}" if was_offline else f"last heartbeat at {at}, before the command was issued"
    return f"last heartbeat at {at}, and the device did not answer in time"


def _what_the_push_came_to(row: Any) -> str:
    if row.push_state == PushState.NO_PUSH_TOKEN:
        return "the device had no live push token"
    return _what_a_push_came_to(row) or "no push was sent"


def _what_a_push_came_to(row: Any) -> str | None:
    """Return the result of the pushes that were sent, or None if no push was sent."""
    if row.push_state == PushState.ACCEPTED:
        return "FCM accepted the push"
    if row.last_push == AttemptOutcome.REJECTED:
        return "FCM refused the push"
    if row.last_push == AttemptOutcome.TOKEN_DEAD and row.push_state == PushState.UNDELIVERABLE:
        return "the push token was dead"
    if row.last_push in (AttemptOutcome.IN_FLIGHT, AttemptOutcome.UNKNOWN):
        return "a push was sent, and FCM's answer is not known"
    return f"push failed {_times(row.failed_pushes)}" if row.failed_pushes else None


def _reports_of_the_phone(row: Any) -> list[str]:
    if row.last_word is None:
        return []
    deferred = row.last_word == ReportStatus.DEFERRED
    return [
        f"the phone deferred the command {_times(row.deferrals)}" if deferred else f"the phone reported {row.last_word}"
    ]


def _silence(row: Any) -> list[str]:
    seen = row.device.presence.last_seen_at
    if seen is None:
        return ["the device has never sent a heartbeat"]
    silence = row.now - seen
    return (
        [f"the device has sent no heartbeat for {_span(silence)}"]
        if seen <= row.online_after and silence > _MINUTE
        else []
    )


def _push_trouble(row: Any) -> list[str]:
    if row.device.push_token is None:
        pending = row.state == DeliveryState.PENDING
        return [
            "the device has no push token, and the phone gets the command with its next heartbeat"
            if pending
            else "the device has no push token"
        ]
    if row.device.push_token_dead_at is not None:
        return ["the push token is dead"]
    if row.state != DeliveryState.PENDING:
        return []
    if row.push_state == PushState.UNDELIVERABLE:
        return [_why_no_further_push(row)]
    return [_what_the_push_waits_for(row)] if row.push_state in (PushState.WAITING, PushState.RETRYING) else []


def _why_no_further_push(row: Any) -> str:
    if row.last_push == AttemptOutcome.REJECTED:
        return "FCM refused the push"
    if row.failed_pushes:
        return f"push failed {_times(row.failed_pushes)}, and no time is left for another push before the expiry"
    return "no time is left for a push before the expiry"


def _what_the_push_waits_for(row: Any) -> str:
    in_flight = row.last_push == AttemptOutcome.IN_FLIGHT
    # If a push is due while its attempt is in flight, the dispatcher of that attempt died. The next claim will count
    # the attempt as unknown.
    failures = row.failed_pushes + (in_flight and row.due)
    if in_flight and not row.due:
        stands = "is being sent"
    elif row.due or not failures or row.last_push == AttemptOutcome.BLOCKED:
        stands = "is not sent yet"
    else:
        return f"push failed {_times(failures)}, and will be tried again"
    if failures:
        return f"push failed {_times(failures)}, and the next push {stands}"
    if row.last_push is None and settings.FIREBASE_SERVICE_ACCOUNT is None:
        return "Firebase is not configured, and the phone gets the command with its next heartbeat"
    return f"the push {stands}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _span(length: timedelta) -> str:
    minutes = int(length.total_seconds() // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h" if hours < 48 else f"{hours // 24} days"
