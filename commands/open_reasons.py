"""Why a delivery is still open, in one plain sentence."""

from datetime import datetime, timedelta
from typing import Final

from commands.models import OPEN, Delivery, Push, ReportStatus, State

SILENT_AFTER: Final = timedelta(minutes=10)


def current_state(row: Delivery) -> State:
    """Return the state as of the database's time at the read of this row (annotated `overdue`)."""
    overdue = getattr(row, "overdue", False)
    return State.EXPIRED if overdue and row.state in OPEN else State(row.state)


def why_open(row: Delivery, now: datetime) -> str | None:
    """Return one plain sentence on what an open delivery waits for; None when it is settled."""
    if current_state(row) not in OPEN:
        return None
    reasons = [*_what_the_phone_said(row), *_silence(row, now), *_push_trouble(row)]
    sentence = "; ".join(reasons) or "waiting for the phone to answer"
    return f"{sentence[0].upper()}{sentence[1:]}."


def _what_the_phone_said(row: Delivery) -> list[str]:
    reports = list(row.reports.all())
    if not reports:
        return []
    last = max(reports, key=lambda report: report.id)
    if last.status != ReportStatus.DEFERRED:
        return [f"the phone says {last.status}"]
    return [f"deferred {_times(sum(report.status == ReportStatus.DEFERRED for report in reports))}"]


def _silence(row: Delivery, now: datetime) -> list[str]:
    seen = row.device.presence.last_seen_at
    if seen is None:
        return ["the device has never sent a heartbeat"]
    return [f"silent for {_span(now - seen)}"] if now - seen >= SILENT_AFTER else []


def _push_trouble(row: Delivery) -> list[str]:
    if row.device.push_token is None:
        pending = row.state == State.PENDING
        return ["no push token, so it goes with the next heartbeat" if pending else "no push token"]
    if row.device.push_token_dead_at is not None:
        return ["push token dead"]
    if row.push_state == Push.UNDELIVERABLE:
        return ["FCM refused the push"]
    if row.push_state == Push.RETRYING:
        return [f"push failed {_times(row.attempt_count)}, it is tried again"]
    return []


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _span(length: timedelta) -> str:
    minutes = int(length.total_seconds() // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h" if hours < 48 else f"{hours // 24} days"
