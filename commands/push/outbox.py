"""The transactional outbox: due pushes, claims, and FCM's answers.

Each function is one short transaction. A push is claimed (a row records that it will be sent), sent without an open
transaction, and recorded. A claim is a lease: a push that a crashed dispatcher had claimed becomes due again.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog
from django.db import DataError, IntegrityError, transaction
from django.db.models import F, OuterRef, Q, Subquery
from django.db.models.functions import Greatest, Now

from commands import envelope, queue
from commands.models import Attempt, AttemptOutcome, Delivery, DeliveryState, PushState
from devices import push_targets
from devices.models import FAILING_FROM, Device
from nexmdm.common import database

log = structlog.get_logger()

LEASE: Final = timedelta(seconds=45)
"""How long a claimed push belongs to its dispatcher, in seconds: more than three times the 10 s that one send may take.
"""

LEAST: Final = timedelta(seconds=envelope.LEAST_TTL_SECONDS)
ORPHANED: Final = "the dispatcher did not record an answer"


class Claimed(NamedTuple):
    """A push that only this dispatcher may send, until the lease ends."""

    delivery_id: int
    number: int
    failures: int
    push_token: str
    priority: str
    content: envelope.Content
    recipient: envelope.Recipient
    seconds_left: float
    """The seconds from the claim to the command's `expires_at`."""


class Sent(NamedTuple):
    """The end of a claimed push.

    `retry_in_seconds` None: no further push is due. `is_given_back`: it was not sent, which is not a failure.
    """

    claimed: Claimed
    outcome: AttemptOutcome
    http_status: int | None = None
    fcm_error: str = ""
    message_id: str = ""
    latency_ms: int | None = None
    detail: str = ""
    retry_in_seconds: float | None = None
    is_given_back: bool = False


# Just after a command to a hundred thousand devices, the planner has no statistics of the new rows. So the statement
# leaves it no choice. Rows are picked only from delivery_push_due, in its order, up to the limit; otherwise each claim
# would sort all due rows. Attempts are found by their delivery: by `finished_at IS NULL`, because `in_flight` has
# another index. A picked push that must not be sent waits until the lease ends, and blocks no other push. If an attempt
# is still open when its delivery becomes due again, its dispatcher died. It is closed as unknown, because its outcome
# was lost with that dispatcher.
_IN_ORDER: Final = ("SET LOCAL enable_bitmapscan = off", "SET LOCAL enable_sort = off")
_CLAIM: Final = """
    WITH picked AS (
        SELECT id, command_id, device_id, attempt_count + 1 AS number, failure_count
        FROM commands_delivery
        WHERE next_attempt_at <= now() AND state = 'pending' AND open_until - now() > interval '0'
            AND id <> ALL(%(passed_over)s::bigint[])
        ORDER BY next_attempt_at
        LIMIT %(limit)s
        FOR NO KEY UPDATE SKIP LOCKED
    ), due AS (
        SELECT picked.id, picked.number, picked.failure_count, device.push_token, command.priority,
            command.id AS command_id, command.action, command.params, command.issued_at, command.expires_at,
            device.id AS device_id, device.generation, device.command_key_id,
            command.expires_at - %(least)s > now() AND device.revoked_at IS NULL
                AND device.push_token IS NOT NULL AND device.push_token_dead_at IS NULL AS may_leave
        FROM picked
        JOIN devices_device device ON device.id = picked.device_id
        JOIN commands_command command ON command.id = picked.command_id
    ), orphaned AS (
        UPDATE commands_attempt attempt
        SET outcome = 'unknown', finished_at = now(), detail = %(orphaned)s
        FROM due WHERE attempt.delivery_id = due.id AND attempt.finished_at IS NULL
    ), leased AS (
        UPDATE commands_delivery delivery
        SET next_attempt_at = now() + %(lease)s, attempt_count = attempt_count + due.may_leave::int
        FROM due WHERE delivery.id = due.id
    ), opened AS (
        INSERT INTO commands_attempt (delivery_id, number, outcome, fcm_error, message_id, detail, started_at)
        SELECT id, number, 'in_flight', '', '', '', now() FROM due WHERE may_leave
    )
    SELECT id, number, failure_count, push_token, priority, extract(epoch FROM expires_at - now())::float8,
        device_id::text, generation, command_key_id, command_id, action, params, issued_at, expires_at
    FROM due WHERE may_leave
"""


def claim_due(limit: int, passed_over: Sequence[int] = ()) -> list[Claimed]:
    """Claim up to `limit` due pushes, and open an attempt for each.

    No two dispatchers claim the same one. Deliveries whose ids are in `passed_over` are left out.
    """
    parameters = {
        "limit": limit, "passed_over": list(passed_over), "lease": LEASE, "least": LEAST, "orphaned": ORPHANED,
    }  # fmt: skip
    *_, rows = database.execute_batch(*_IN_ORDER, _CLAIM, parameters=parameters)
    contents: dict[UUID, envelope.Content] = {}
    return [
        Claimed(
            delivery_id, number, failures, push_token, priority,
            contents.get(content[0]) or contents.setdefault(content[0], envelope.Content(*content)),
            envelope.Recipient(device_id, generation, key_id), seconds_left,
        )
        for delivery_id, number, failures, push_token, priority, seconds_left,
            device_id, generation, key_id, *content in rows
    ]  # fmt: skip


# The same conditions as in the claim, for pushes that were claimed a while ago.
_WANTED: Final = """
    SELECT delivery.id
    FROM unnest(%(delivery_ids)s::bigint[], %(numbers)s::int[], %(push_tokens)s::text[], %(generations)s::int[])
        AS claimed (delivery_id, number, push_token, generation)
    JOIN commands_delivery delivery ON delivery.id = claimed.delivery_id AND delivery.attempt_count = claimed.number
    JOIN commands_command command ON command.id = delivery.command_id
    JOIN devices_device device ON device.id = delivery.device_id AND device.push_token = claimed.push_token
        AND device.generation = claimed.generation
    WHERE delivery.state = 'pending' AND command.expires_at - %(least)s > now()
        AND device.revoked_at IS NULL AND device.push_token_dead_at IS NULL
"""


def wanted(claimed: Sequence[Claimed]) -> set[int]:
    """Return the `delivery_id` of each claimed push that may still be sent."""
    columns = {
        "delivery_ids": [one.delivery_id for one in claimed],
        "numbers": [one.number for one in claimed],
        "push_tokens": [one.push_token for one in claimed],
        "generations": [one.recipient.generation for one in claimed],
        "least": LEAST,
    }
    return {delivery_id for (delivery_id,) in database.rows(_WANTED, columns)}


# The locks come first, in separate statements: the next statement must see what earlier owners of the locks wrote.
# Devices are locked before deliveries, as in a revocation. (Reports lock the delivery first: a deadlock is retried.)
# Only those devices are locked whose row may change: their push token is dead, or their count of failures changes.
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

# Only an open attempt with this number is closed, so an answer after the end of the lease changes nothing. Each step
# passes on the columns that the next one needs, so that no two lists of the batch are joined: the planner would join
# them row by row. A push with a temporary failure stays `retrying` if its delivery was settled meanwhile: it is shown
# as superseded. Failures are counted in the order of the batch, in which the pushes ended, and only for the push token
# that the device still has. `device_id` is NULL if nothing is counted.
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
    """Close the attempts of these pushes, and set the next step of each: done, a further push, or none.

    If the database refuses an answer, each is recorded alone, and one that still fails, without its texts.
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
    dead = {one.claimed.push_token for one in sent if one.outcome == AttemptOutcome.TOKEN_DEAD}
    push_targets.take_turns(dead)
    held, _ = database.execute_batch(_HOLD_DEVICES, _HOLD, parameters=_locks(sent, dead))
    unreachable = push_targets.mark_dead(dead)
    database.execute(_RECORD, _columns(sent, {device_id for (device_id,) in held}))
    stop_pushing(unreachable)


def _locks(sent: Sequence[Sent], dead: Collection[str]) -> dict[str, Any]:
    ended = [(one.claimed.recipient.device_id, one.outcome) for one in sent if not one.is_given_back]
    accepted = ",".join(device_id for device_id, outcome in ended if outcome == AttemptOutcome.ACCEPTED)
    failed = ",".join(device_id for device_id, outcome in ended if outcome != AttemptOutcome.ACCEPTED)
    # Each list is one text: psycopg would take longer to quote 500 ids than PostgreSQL to look them up.
    devices = {"accepted": f"{{{accepted}}}", "failed": f"{{{failed}}}", "dead": list(dead)}
    return devices | {"delivery_ids": [one.claimed.delivery_id for one in sent], "failing_from": FAILING_FROM}


def _columns(sent: Sequence[Sent], held: Collection[str]) -> dict[str, Any]:
    """Return the parameters of _RECORD. Failures are counted only for the devices in `held`, which are locked."""
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
    # After a dead push token, the push is due immediately if the device has another push token meanwhile.
    return 0.0 if one.outcome == AttemptOutcome.TOKEN_DEAD else one.retry_in_seconds


def stop_pushing(device_ids: Sequence[UUID]) -> None:
    """Make no push due for these devices, because they have no live push token any more.

    Heartbeats deliver their commands.
    """
    waiting = Delivery.objects.filter(device_id__in=device_ids, next_attempt_at__isnull=False)
    waiting.filter(attempt_count=0).update(push_state=PushState.NO_PUSH_TOKEN, next_attempt_at=None)
    waiting.filter(attempt_count__gt=0).update(push_state=PushState.UNDELIVERABLE, next_attempt_at=None)


def resume_pushing(device_id: UUID) -> int:
    """Make the open pushes of a device due, when it gets a push token; return their number. Leases in progress stay."""
    stuck = Q(push_state__in=(PushState.NO_PUSH_TOKEN, PushState.UNDELIVERABLE, PushState.RETRYING))
    waiting = Delivery.objects.open().filter(stuck, device_id=device_id, state=DeliveryState.PENDING)
    under_way = Attempt.objects.filter(delivery_id=OuterRef("id"), outcome=AttemptOutcome.IN_FLIGHT)
    lease = Subquery(under_way.values(until=F("started_at") + LEASE))
    resumed = waiting.update(push_state=PushState.WAITING, next_attempt_at=Greatest(Now(), lease), failure_count=0)
    if resumed:
        queue.wake()
    return resumed


def set_push_token(device_id: UUID, push_token: str | None) -> None:
    """Set or remove the push token of a device, and update which of its pushes are due. Runs in a transaction."""
    stop_pushing(push_targets.assign(device_id, push_token))
    if Device.objects.reachable_by_push().filter(id=device_id).exists():
        resume_pushing(device_id)
    else:
        stop_pushing([device_id])


def settle_shared_push_tokens(limit: int) -> int:
    """Leave each push token that several devices share to the device that was seen last, up to `limit` of them.

    Return their number. Earlier versions let devices share push tokens of one installation.
    """
    shared = push_targets.shared_installations(limit)
    for owner_digest in shared:
        with transaction.atomic():
            losing = push_targets.leave_to_the_last_seen(owner_digest)
            stop_pushing(losing)
        log.warning("push_token.taken", device_ids=[str(device_id) for device_id in losing])
    return len(shared)


def close_abandoned(limit: int) -> int:
    """Close as `unknown` up to `limit` attempts whose lease is over, and return their number.

    No dispatcher will record them any more. (A claim closes the old attempt of its delivery, but a delivery that was
    settled meanwhile is not claimed again.)
    """
    in_flight = Attempt.objects.filter(outcome=AttemptOutcome.IN_FLIGHT)
    old = in_flight.filter(started_at__lt=Now() - LEASE).order_by("id").values_list("id", flat=True)
    closed = {"outcome": AttemptOutcome.UNKNOWN, "finished_at": Now(), "detail": ORPHANED}
    return in_flight.filter(id__in=list(old[:limit])).update(**closed)
