"""The log line and the metrics of each push."""

from collections.abc import Callable
from typing import Any

import structlog
from prometheus_client import Counter, Histogram

from commands.models import FCM_ERRORS, AttemptOutcome
from commands.push.outbox import Sent

log = structlog.get_logger()

PUSHES = Counter("nexmdm_pushes", "Pushes sent to FCM, by outcome and code.", ["outcome", "http_status", "fcm_error"])
PUSH_SECONDS = Histogram(
    "nexmdm_push_seconds",
    "Time from the claim of a push to FCM's answer.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10),
)


def log_push(sent: Sent) -> None:
    """Write the log line of a push, and count the push in the metrics."""
    code = sent.fcm_error if not sent.fcm_error or sent.fcm_error in FCM_ERRORS else "other"
    PUSHES.labels(sent.outcome.value, str(sent.http_status or ""), code).inc()
    if sent.latency_ms is not None:
        PUSH_SECONDS.observe(sent.latency_ms / 1000)
    level: Callable[..., Any] = (
        log.error if sent.outcome in (AttemptOutcome.REJECTED, AttemptOutcome.BLOCKED) else log.info
    )
    level(
        "command.sent",
        request_id=sent.claimed.content.fields["request_id"],
        device_id=sent.claimed.recipient.device_id,
        attempt=sent.claimed.number,
        outcome=sent.outcome.value,
        http_status=sent.http_status,
        fcm_error=sent.fcm_error or None,
        message_id=sent.message_id or None,
        latency_ms=sent.latency_ms,
        detail=sent.detail or None,
    )
