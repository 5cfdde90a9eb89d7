"""Outages of the database, as this process sees them. The log contains each reason once, and one line at the end of the
outage.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Final

import structlog

log = structlog.get_logger()

CALM_SECONDS: Final = 5
"""An outage is over if no work has failed for this number of seconds. Some work may succeed during an outage. For
example, a server with a full disk can still read.
"""

HELD_OFF_SECONDS: Final = 0.5
"""For this number of seconds after hold_off(), no work waits for a connection. Work without a connection fails
immediately.
"""

VAGUE_SECONDS: Final = 6
"""A vague reason is logged only if no better reason came within this time. An attempt to connect takes up to 5 s."""

_RECENT_SECONDS: Final = 10
_MOST_REASONS: Final = 8


@dataclass(slots=True)
class _Outage:
    begun_at: float
    failed_at: float
    failures: int = 0
    reasons: set[str] = field(default_factory=set)


class _Refusal:
    """The latest failed attempt to connect. The pool connects in another thread, and does not report the reason."""

    reason = ""
    at = float("-inf")
    held_off_until = float("-inf")


_lock: Final = threading.Lock()
_refusal: Final = _Refusal()
_present: list[_Outage] = []


def note_no_connection(reason: str) -> None:
    """Store why an attempt to connect failed."""
    _refusal.reason, _refusal.at = reason, time.monotonic()


def why_no_connection() -> str | None:
    """Return why the latest attempt to connect failed, in one line; None if there was no failure in the last 10 s."""
    if time.monotonic() - _refusal.at > _RECENT_SECONDS:
        return None
    return f"The database cannot be reached: {' '.join(_refusal.reason.split())}"


def note_connection() -> None:
    """Note that an attempt to connect succeeded. The reason that note_no_connection() stored is deleted."""
    if _refusal.reason:
        _refusal.reason, _refusal.at = "", float("-inf")


def is_present() -> bool:
    """Return whether there is an outage now."""
    return bool(_present)


def hold_off() -> None:
    """For HELD_OFF_SECONDS, make work fail immediately instead of waiting for a connection."""
    _refusal.held_off_until = time.monotonic() + HELD_OFF_SECONDS


def is_held_off() -> bool:
    """Return whether work must fail immediately and not wait for a connection."""
    return time.monotonic() < _refusal.held_off_until


def note_failure(reason: str, *, vague: bool = False) -> None:
    """Note that work on the database failed, and log a new reason.

    Set `vague` if the reason does not name the cause. A vague reason is logged only if VAGUE_SECONDS have passed
    without a better reason.
    """
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
    """Note that work on the database succeeded. If CALM_SECONDS have passed since the last failure, the outage ends."""
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
    """Delete all state of this module."""
    with _lock:
        _present.clear()
    _refusal.reason, _refusal.at, _refusal.held_off_until = "", float("-inf"), float("-inf")
