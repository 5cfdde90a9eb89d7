"""An outage of the database, as this process sees it: logged once with its reason, and once at its end."""

import threading
import time
from dataclasses import dataclass, field
from typing import Final

import structlog

log = structlog.get_logger()

CALM_SECONDS: Final = 5
"""The seconds after the last failure until an outage is over. (During an outage, some work may succeed: a full disk can
be read.)"""

HELD_OFF_SECONDS: Final = 0.5
"""The seconds after a failed attempt to connect in which no work waits for a connection, so that work fails quickly."""

VAGUE_SECONDS: Final = 6
"""The time that libpq may take to give a reason: as long as an attempt to connect (5 s)."""

_RECENT_SECONDS: Final = 10
_MOST_REASONS: Final = 8


@dataclass(slots=True)
class _Outage:
    begun_at: float
    failed_at: float
    failures: int = 0
    reasons: set[str] = field(default_factory=set)


class _Refusal:
    """The latest failed attempt to connect: the pool connects in another thread, and does not report the reason."""

    reason = ""
    at = float("-inf")
    held_off_until = float("-inf")


_lock: Final = threading.Lock()
_refusal: Final = _Refusal()
_present: list[_Outage] = []


def note_no_connection(reason: str) -> None:
    """Store why a connection could not be made."""
    _refusal.reason, _refusal.at = reason, time.monotonic()


def why_no_connection() -> str | None:
    """Return the reason of the latest failed attempt to connect, in one line."""
    if time.monotonic() - _refusal.at > _RECENT_SECONDS:
        return None
    return f"The database cannot be reached: {' '.join(_refusal.reason.split())}"


def note_connection() -> None:
    """Record that a connection was made: the stored reason no longer applies."""
    if _refusal.reason:
        _refusal.reason, _refusal.at = "", float("-inf")


def is_present() -> bool:
    """Return whether an outage is known."""
    return bool(_present)


def hold_off() -> None:
    """For HELD_OFF_SECONDS, make work fail immediately instead of waiting for a connection."""
    _refusal.held_off_until = time.monotonic() + HELD_OFF_SECONDS


def is_held_off() -> bool:
    """Return whether work must fail immediately instead of waiting for a connection."""
    return time.monotonic() < _refusal.held_off_until


def note_failure(reason: str, *, vague: bool = False) -> None:
    """Record that work on the database failed. Log a new reason, but a vague one only if no better one follows."""
    now = time.monotonic()
    with _lock:
        if not _present:
            _present.append(_Outage(now, now))
        outage = _present[0]
        outage.failed_at = now
        outage.failures += 1
        is_due = not vague or (not outage.reasons and now - outage.begun_at > VAGUE_SECONDS)
        is_new = is_due and reason not in outage.reasons and len(outage.reasons) < _MOST_REASONS
        if is_new:
            outage.reasons.add(reason)
    if is_new:
        log.error("database.unavailable", reason=reason)


def note_success() -> None:
    """Record that work on the database succeeded; this may be the end of an outage."""
    if not _present:
        return
    _refusal.held_off_until = float("-inf")
    now = time.monotonic()
    with _lock:
        if not _present or now - _present[0].failed_at < CALM_SECONDS:
            return
        outage = _present.pop()
    log.info("database.available", after_seconds=round(now - outage.begun_at, 1), failures=outage.failures)


def forget() -> None:
    """Delete the state, as after a start of the process."""
    with _lock:
        _present.clear()
    _refusal.reason, _refusal.at, _refusal.held_off_until = "", float("-inf"), float("-inf")
