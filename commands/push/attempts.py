"""Attempts: write FCM's answers, and set the next step of each push. Each function begins and commits transactions."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from django.db import DataError, IntegrityError, transaction
from django.db.models.functions import Now

from commands.models import Attempt, AttemptOutcome
from commands.push import outbox
from commands.push.outbox import LEASE, LEAST, ORPHANED, Claimed, Sent
from devices import push_targets
from devices.models import FAILING_FROM
from devices.push_targets import Death
from nexmdm.common import database

# Take the locks first, in separate statements: the next statement must see what earlier owners of the locks wrote.
# Devices are locked before deliveries, as in a revocation. A report locks the delivery first; after a deadlock, the
# report is tried again. A device is locked only if its row may change: its push token is dead, or its count of failures
# changes.
_HOLD_DEVICES: Final = """
    SELECT id::text FROM devices_device
    WHERE (id = ANY(%(failed)s::uuid[]) AND push_failures < %(failing_from)s)
        OR (id = ANY(%(accepted)s::uuid[]) AND push_failures > 0)
        OR md5(push_token) = ANY(ARRAY(SELECT md5(token) FROM unnest(%(dead)s::text[]) token))
    ORDER BY id FOR NO KEY UPDATE
"""
_HOLD: Final = """
    SELECT count(*) FROM (
        SELECT FROM commands_delivery WHERE id = ANY(%(delivery_ids)s) ORDER BY id FOR NO KEY UPDATE
    ) held
"""

# Only an open attempt with this number is closed. Therefore an answer after the end of the lease changes nothing. Each
# step passes on the columns that the next step needs. No two lists of the batch are joined, because the planner would
# join them row by row. If a push fails temporarily and its delivery was settled meanwhile, the push gets the state
# `retrying`, which readers show as superseded. Failures are counted in the order of the batch, which is the order in
# which the pushes ended. Failures are counted only for the present push token of the device. If `device_id` is NULL,
# nothing is counted.
_RECORD: Final = """
    WITH sent AS (
        SELECT * FROM unnest(
            %(delivery_ids)s::bigint[], %(numbers)s::int[], %(outcomes)s::text[], %(http_statuses)s::smallint[],
            %(fcm_errors)s::text[], %(message_ids)s::text[], %(latencies)s::int[], %(details)s::text[],
            %(retries)s::float8[], %(device_ids)s::uuid[], %(push_tokens)s::text[]
        ) WITH ORDINALITY AS sent (
            delivery_id, number, outcome, http_status, fcm_error, message_id, latency_ms, detail, retry_in,
            device_id, push_token, place
        )
    ), closed AS (
        UPDATE commands_attempt attempt
        SET outcome = sent.outcome, http_status = sent.http_status, fcm_error = sent.fcm_error,
            message_id = sent.message_id, latency_ms = sent.latency_ms, detail = sent.detail, finished_at = now()
        FROM sent
        WHERE attempt.delivery_id = sent.delivery_id AND attempt.number = sent.number AND attempt.finished_at IS NULL
        RETURNING sent.delivery_id, sent.number, sent.outcome, now() + sent.retry_in * interval '1 second' AS retry_at,
            sent.device_id, sent.push_token, sent.place,
            sent.outcome IN ('retry_later', 'unknown') OR (sent.outcome = 'blocked' AND sent.http_status IS NOT NULL)
                AS is_failure
    ), ended AS (
        SELECT device_id, push_token, count(*) AS pushes,
            array_position(array_agg(outcome = 'accepted' ORDER BY place DESC), true) - 1 AS since_accepted
        FROM closed WHERE device_id IS NOT NULL
        GROUP BY device_id, push_token
    ), counted AS (
        SELECT device.id, LEAST(COALESCE(since_accepted, push_failures + pushes), %(failing_from)s) AS push_failures
        FROM ended JOIN devices_device device ON device.id = device_id AND device.push_token = ended.push_token
    ), noted AS (
        UPDATE devices_device device SET push_failures = counted.push_failures
        FROM counted WHERE device.id = counted.id AND device.push_failures <> counted.push_failures
    ), ruled AS (
        SELECT delivery.id, closed.outcome, closed.is_failure,
            closed.outcome IN ('retry_later', 'unknown', 'blocked') AND delivery.state NOT IN ('pending', 'received')
                AS is_superseded, CASE
            WHEN delivery.state = 'pending' AND closed.retry_at < command.expires_at - %(least)s
                AND device.push_token IS NOT NULL AND device.push_token_dead_at IS NULL
                THEN closed.retry_at END AS again_at
        FROM closed
        JOIN commands_delivery delivery ON delivery.id = closed.delivery_id AND delivery.attempt_count = closed.number
        JOIN commands_command command ON command.id = delivery.command_id
        JOIN devices_device device ON device.id = delivery.device_id
    )
    UPDATE commands_delivery delivery
    SET failure_count = failure_count + ruled.is_failure::int,
        push_state = CASE
            WHEN ruled.outcome = 'accepted' THEN 'accepted'
            WHEN ruled.again_at IS NOT NULL OR ruled.is_superseded THEN 'retrying'
            ELSE 'undeliverable' END,
        next_attempt_at = ruled.again_at
    FROM ruled WHERE delivery.id = ruled.id
"""


def record_attempts(sent: Sequence[Sent]) -> None:
    """Close the attempts of these pushes. Set for each push whether and when the push is sent again.

    If the database refuses the batch, each answer is recorded in a separate transaction. If the database then refuses
    an answer, the attempt is closed as `unknown`, without the texts of the answer.
    """
    try:
        _record(sent)
    except (DataError, IntegrityError):
        for one in sent:
            _record_alone(one)


def _record_alone(one: Sent) -> None:
    try:
        _record([one])
    except (DataError, IntegrityError):
        _record(
            [one._replace(outcome=AttemptOutcome.UNKNOWN, fcm_error="", message_id="", detail="unrecordable answer")]
        )


@transaction.atomic
def _record(sent: Sequence[Sent]) -> None:
    dead = [one.claimed for one in sent if one.outcome == AttemptOutcome.TOKEN_DEAD]
    push_targets.take_turns([one.push_token for one in dead])
    held, _ = database.execute_batch(_HOLD_DEVICES, _HOLD, parameters=_locks(sent, dead))
    unreachable = push_targets.mark_dead(_deaths(dead))
    database.execute(_RECORD, _columns(sent, {device_id for (device_id,) in held}))
    outbox.stop_pushing(unreachable)


def _deaths(dead: Sequence[Claimed]) -> list[Death]:
    """Return the dead push tokens of these pushes, each with the start of its attempt."""
    if not dead:
        return []
    attempts = Attempt.objects.filter(delivery_id__in=[one.delivery_id for one in dead])
    started_at = {(id_, number): at for id_, number, at in attempts.values_list("delivery_id", "number", "started_at")}
    return [
        Death(one.push_kind, one.push_token, started_at[one.delivery_id, one.number])
        for one in dead
        if (one.delivery_id, one.number) in started_at
    ]


def _locks(sent: Sequence[Sent], dead: Sequence[Claimed]) -> dict[str, Any]:
    ended = [(one.claimed.recipient.device_id, one.outcome) for one in sent if not one.is_given_back]
    accepted = ",".join(device_id for device_id, outcome in ended if outcome == AttemptOutcome.ACCEPTED)
    failed = ",".join(device_id for device_id, outcome in ended if outcome != AttemptOutcome.ACCEPTED)
    # Each list is one text: psycopg would take longer to quote 500 ids than PostgreSQL to look them up.
    devices = {"accepted": f"{{{accepted}}}", "failed": f"{{{failed}}}", "dead": [one.push_token for one in dead]}
    return devices | {"delivery_ids": [one.claimed.delivery_id for one in sent], "failing_from": FAILING_FROM}


def _columns(sent: Sequence[Sent], held: Collection[str]) -> dict[str, Any]:
    """Return the parameters of _RECORD. Failures are counted only for the locked devices, whose ids are in `held`."""
    counted = [None if one.is_given_back or one.claimed.recipient.device_id not in held else one for one in sent]
    return {
        "delivery_ids": [one.claimed.delivery_id for one in sent],
        "numbers": [one.claimed.number for one in sent],
        "outcomes": [one.outcome for one in sent],
        "http_statuses": [one.http_status for one in sent],
        "fcm_errors": [one.fcm_error for one in sent],
        "message_ids": [one.message_id for one in sent],
        "latencies": [one.latency_ms for one in sent],
        "details": [one.detail for one in sent],
        "retries": [_retry_in_seconds(one) for one in sent],
        "device_ids": [one and one.claimed.recipient.device_id for one in counted],
        "push_tokens": [one and one.claimed.push_token for one in counted],
        "failing_from": FAILING_FROM,
        "least": LEAST,
    }


def _retry_in_seconds(one: Sent) -> float | None:
    # If the push token was dead, but the device has got another push token, the push is due immediately.
    return 0.0 if one.outcome == AttemptOutcome.TOKEN_DEAD else one.retry_in_seconds


def close_abandoned(limit: int) -> int:
    """Close up to `limit` attempts whose lease is over, as `unknown`. Return the number of attempts.

    No dispatcher will record these attempts any more. A claim closes the old attempt of its delivery, but a settled
    delivery is not claimed again.
    """
    in_flight = Attempt.objects.filter(outcome=AttemptOutcome.IN_FLIGHT)
    old = in_flight.filter(started_at__lt=Now() - LEASE).order_by("id").values_list("id", flat=True)
    closed = {"outcome": AttemptOutcome.UNKNOWN, "finished_at": Now(), "detail": ORPHANED}
    return in_flight.filter(id__in=list(old[:limit])).update(**closed)
