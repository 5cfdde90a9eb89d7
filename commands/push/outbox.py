"""The outbox: the due pushes, and the claims of dispatchers.

A dispatcher handles a push in three steps. First, the dispatcher claims the push: a row records that the push will be
sent. Second, the dispatcher sends the push, without an open transaction. Third, the dispatcher records FCM's answer
(commands/push/attempts.py). A claim ends with its lease. If a dispatcher crashes, its claimed pushes become due again.
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
"""The time after a claim in which no other dispatcher may send the push.

One send takes at most 10 s. The lease is more than three times as long.
"""

LEAST: Final = timedelta(seconds=envelope.LEAST_TTL_SECONDS)
ORPHANED: Final = "the dispatcher stored no answer of FCM"


class Claimed(NamedTuple):
    """A push that only this dispatcher may send until the lease ends.

    `number` is the number of the attempt. `failures` is the number of earlier failures, for the backoff.
    """

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
    """The end of a claimed push. If `retry_in_seconds` is None, no further push is due.

    `is_given_back`: the push was not sent, which does not count as a failure.
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


# Just after a command to a hundred thousand devices, the planner has no statistics of the new rows. Therefore the
# statement allows only one plan. Rows are read from the index delivery_push_due, in its order, up to the limit. With
# another plan, each claim would sort all due rows. Attempts are found by the index of their delivery. The condition is
# `finished_at IS NULL`, because the planner could choose another index for `in_flight`. A picked push that must not be
# sent waits until the lease ends, and blocks no other push. If an attempt is still open when its delivery becomes due
# again, its dispatcher died. The attempt is closed as unknown, because its outcome was lost with the dispatcher.
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
    """Claim up to `limit` due pushes in one short transaction, and open an attempt for each push.

    During the lease, no other dispatcher can claim a push. Deliveries whose ids are in `passed_over` are left out.
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


# The conditions are the conditions of the claim. The pushes were claimed some time ago.
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
    """Remove the pushes of these devices from the outbox. Call this function if the devices have no live push token.

    The devices get their commands with heartbeats.
    """
    waiting = Delivery.objects.filter(device_id__in=device_ids, next_attempt_at__isnull=False)
    waiting.filter(attempt_count=0).update(push_state=PushState.NO_PUSH_TOKEN, next_attempt_at=None)
    waiting.filter(attempt_count__gt=0).update(push_state=PushState.UNDELIVERABLE, next_attempt_at=None)


def resume_pushing(device_id: UUID) -> int:
    """Make the open pushes of a device due, and return their number. Call this function when the device gets a push
    token.

    A push that is being sent becomes due when its lease ends.
    """
    stuck = Q(push_state__in=(PushState.NO_PUSH_TOKEN, PushState.UNDELIVERABLE, PushState.RETRYING))
    waiting = Delivery.objects.open().filter(stuck, device_id=device_id, state=DeliveryState.PENDING)
    under_way = Attempt.objects.filter(delivery_id=OuterRef("id"), outcome=AttemptOutcome.IN_FLIGHT)
    lease = Subquery(under_way.values(until=F("started_at") + LEASE))
    resumed = waiting.update(push_state=PushState.WAITING, next_attempt_at=Greatest(Now(), lease), failure_count=0)
    if resumed:
        queue.wake()
    return resumed


def set_push_target(device_id: UUID, target: PushTarget | None) -> None:
    """Set or remove the push target of a device, and update which pushes of the device are due.

    If other devices had this push target, the other devices lose the push target, and no push is due for them. Runs in
    the transaction of its caller.
    """
    assigned = push_targets.assign(device_id, target)
    stop_pushing(assigned.taken_from)
    if not assigned.is_changed:
        return
    if Device.objects.reachable_by_push().filter(id=device_id).exists():
        resume_pushing(device_id)
    else:
        stop_pushing([device_id])


def settle_shared_push_tokens(limit: int) -> int:
    """Find up to `limit` installations that several devices share, and leave each installation to one device. Of the
    devices that are not revoked, the device that was seen last keeps the installation. The other devices lose their
    push tokens. Return the number of installations. Only earlier versions of NexMDM let devices share an installation.
    """
    shared = push_targets.shared_installations(limit)
    for owner_digest in shared:
        with transaction.atomic():
            losing = push_targets.leave_to_the_last_seen(owner_digest)
            stop_pushing(losing)
        log.warning("push_token.taken", device_ids=[str(device_id) for device_id in losing])
    return len(shared)
