"""The transactional outbox: due pushes, and claims.

Each function is one short transaction. A push is claimed (a row records that it will be sent), sent without an open
transaction, and recorded (commands/push/attempts.py). A claim is a lease: a push that a crashed dispatcher had claimed
becomes due again.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import F, OuterRef, Q, Subquery
from django.db.models.functions import Greatest, Now

from commands import envelope, queue
from commands.models import Attempt, AttemptOutcome, Delivery, DeliveryState, PushState
from devices import push_targets
from devices.models import Device
from devices.push_targets import PushTarget
from nexmdm.common import database

log = structlog.get_logger()

LEASE: Final = timedelta(seconds=45)
"""How long a claimed push belongs to its dispatcher, in seconds: more than three times the 10 s that one send may take.
"""

LEAST: Final = timedelta(seconds=envelope.LEAST_TTL_SECONDS)
ORPHANED: Final = "the dispatcher stored no answer of FCM"


class Claimed(NamedTuple):
    """A push that only this dispatcher may send, until the lease ends."""

    delivery_id: int
    number: int
    failures: int
    push_kind: str
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
# allows only one plan. Rows are picked only from delivery_push_due, in its order, up to the limit; otherwise each claim
# would sort all due rows. Attempts are found by the index of their delivery. So the condition is `finished_at IS NULL`:
# for `in_flight`, the planner could choose another index. A picked push that must not be sent waits until the lease
# ends, and blocks no other push. If an attempt is still open when its delivery becomes due again, its dispatcher died.
# It is closed as unknown, because its outcome was lost with that dispatcher.
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
        SELECT picked.id, picked.number, picked.failure_count, device.push_kind, device.push_token,
            command.priority,
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
    SELECT id, number, failure_count, push_kind, push_token, priority, extract(epoch FROM expires_at - now())::float8,
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
            delivery_id, number, failures, push_kind, push_token, priority,
            contents.get(content[0]) or contents.setdefault(content[0], envelope.Content(*content)),
            envelope.Recipient(device_id, generation, key_id), seconds_left,
        )
        for delivery_id, number, failures, push_kind, push_token, priority, seconds_left,
            device_id, generation, key_id, *content in rows
    ]  # fmt: skip


# The same conditions as in the claim, for pushes that were claimed a while ago.
_WANTED: Final = """
    SELECT delivery.id
    FROM unnest(
        %(delivery_ids)s::bigint[], %(numbers)s::int[], %(push_kinds)s::text[], %(push_tokens)s::text[],
        %(generations)s::int[]
    ) AS claimed (delivery_id, number, push_kind, push_token, generation)
    JOIN commands_delivery delivery ON delivery.id = claimed.delivery_id AND delivery.attempt_count = claimed.number
    JOIN commands_command command ON command.id = delivery.command_id
    JOIN devices_device device ON device.id = delivery.device_id AND device.push_token = claimed.push_token
        AND device.push_kind = claimed.push_kind AND device.generation = claimed.generation
    WHERE delivery.state = 'pending' AND command.expires_at - %(least)s > now()
        AND device.revoked_at IS NULL AND device.push_token_dead_at IS NULL
"""


def wanted(claimed: Sequence[Claimed]) -> set[int]:
    """Return the `delivery_id` of each claimed push that may still be sent."""
    columns = {
        "delivery_ids": [one.delivery_id for one in claimed],
        "numbers": [one.number for one in claimed],
        "push_kinds": [one.push_kind for one in claimed],
        "push_tokens": [one.push_token for one in claimed],
        "generations": [one.recipient.generation for one in claimed],
        "least": LEAST,
    }
    return {delivery_id for (delivery_id,) in database.rows(_WANTED, columns)}


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


def set_push_target(device_id: UUID, target: PushTarget | None) -> None:
    """Set or remove the push target of a device, and update which of its pushes are due. Runs in a transaction."""
    assigned = push_targets.assign(device_id, target)
    stop_pushing(assigned.taken_from)
    if not assigned.is_changed:
        return
    if Device.objects.reachable_by_push().filter(id=device_id).exists():
        resume_pushing(device_id)
    else:
        stop_pushing([device_id])


def settle_shared_push_tokens(limit: int) -> int:
    """Find up to `limit` app installations that several devices share, and leave each to one of its devices.

    That device is the one that was seen last, of those not revoked. The others lose their push tokens. Return the
    number of these installations. Only earlier versions let devices share an installation.
    """
    shared = push_targets.shared_installations(limit)
    for owner_digest in shared:
        with transaction.atomic():
            losing = push_targets.leave_to_the_last_seen(owner_digest)
            stop_pushing(losing)
        log.warning("push_token.taken", device_ids=[str(device_id) for device_id in losing])
    return len(shared)
