"""The queue of open commands: offer them to phones, cancel them, expire them. (commands/issuing.py issues commands.)

Each function except expire() runs in the transaction of its caller. All times are times of the database.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import transaction
from django.db.models import F, OuterRef, Subquery, Value
from django.db.models.functions import Now

from commands import envelope
from commands.models import Command, Delivery, DeliveryState, DeviceWas, Withdrawal
from devices.models import Presence
from nexmdm.common import database
from nexmdm.common.domain_error import DomainError
from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import EventType

CHANNEL: Final = "nexmdm_dispatch"
"""The NOTIFY channel that wakes the dispatchers when a push is due."""

OFFER_LIMIT: Final = 20


class UnknownCommand(DomainError):
    detail = "There is no command with this request_id."


def wake() -> None:
    """Wake the dispatchers when the transaction commits."""
    database.execute(f"NOTIFY {CHANNEL}")


@dataclass(frozen=True, slots=True)
class Offer:
    """The open commands in the answer to a heartbeat, as envelopes.

    If `has_more` is True, the device has further pending commands.
    """

    commands: list[dict[str, str]]
    has_more: bool


NO_OFFER: Final = Offer([], has_more=False)

# Read one row more than the offer can contain: this row shows that there are more commands. Pending deliveries come
# first, oldest first. Then come the deliveries that the device has reported on, oldest last report first. The index
# delivery_open_by_device finds the few open rows of the device.
OFFER: Final = """
    SELECT delivery.device_id, device.generation, device.command_key_id, delivery.state,
        command.id, command.action, command.params, command.issued_at, command.expires_at
    FROM unnest(%(device_ids)s::uuid[]) AS asked (device_id)
    CROSS JOIN LATERAL (
        SELECT device_id, command_id, state, reported_at, id
        FROM commands_delivery
        WHERE device_id = asked.device_id AND state IN ('pending', 'received') AND open_until > now()
        ORDER BY state <> 'pending', CASE WHEN state <> 'pending' THEN reported_at END, id
        LIMIT %(limit)s
    ) delivery
    JOIN commands_command command ON command.id = delivery.command_id
    JOIN devices_device device ON device.id = delivery.device_id
    ORDER BY delivery.device_id, delivery.state <> 'pending',
        CASE WHEN delivery.state <> 'pending' THEN delivery.reported_at END, delivery.id
"""


def offer_params(device_ids: Iterable[UUID]) -> dict[str, Any]:
    """Return the parameters of the query OFFER for these devices."""
    # Use each id once: OFFER would return each command of a repeated device twice.
    return {"device_ids": f"{{{','.join(map(str, dict.fromkeys(device_ids)))}}}", "limit": OFFER_LIMIT + 1}


def offers(rows: Iterable[Any]) -> dict[UUID, Offer]:
    """Return the offer of each device, from the rows of the query OFFER. A device without open commands is left out."""
    found: dict[UUID, Offer] = {}
    for device_id, generation, key_id, state, *content in rows:
        offer = found.setdefault(device_id, Offer([], has_more=False))
        if len(offer.commands) < OFFER_LIMIT:
            to = envelope.Recipient(str(device_id), generation, key_id)
            offer.commands.append(envelope.seal(envelope.Content(*content), to))
        elif state == DeliveryState.PENDING:
            found[device_id] = Offer(offer.commands, has_more=True)
    return found


SETTLED: Final = (
    EventType.DELIVERY_SETTLED,
    "command_id",
    "jsonb_build_object('state', state, 'withdrawn_by', withdrawn_by, 'result', NULL, 'late', false)",
)
"""The arguments of append_for_devices() for the events of deliveries that were settled without a report."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The result of a cancellation, as numbers of deliveries.

    - `withdrawn`: the deliveries that the cancellation withdrew.
    - `already_settled`: the deliveries that were settled before the cancellation.
    - `may_still_run`: the withdrawn deliveries whose phone may already have the command.
    """

    withdrawn: int
    already_settled: int
    may_still_run: int


# Take the locks first, in separate statements: the next statement must see the heartbeats and attempts that earlier
# owners of the locks wrote. `which` is a condition on deliveries. A revocation locks its device before the presence. A
# heartbeat with the first use of a token locks the device after the presence. If the revocation and the heartbeat
# deadlock, both are tried again.
_HOLD_PRESENCE: Final = """
    SELECT count(*) FROM (
        SELECT FROM devices_presence
        WHERE device_id IN (
            SELECT device_id FROM commands_delivery delivery
            WHERE {which} AND delivery.state IN ('pending', 'received') AND delivery.open_until > now()
        )
        ORDER BY device_id FOR NO KEY UPDATE
    ) held
"""
_HOLD_OPEN: Final = """
    SELECT count(*) FROM (
        SELECT FROM commands_delivery delivery
        WHERE {which} AND delivery.state IN ('pending', 'received') AND delivery.open_until > now()
        ORDER BY delivery.id FOR NO KEY UPDATE
    ) held
"""

# FCM cannot recall a push. A phone that has reported, or has sent a heartbeat since the issue, may have the command.
# While a device is revoked, the result of this condition does not change.
_MAY_STILL_RUN: Final = """
    judged.received_at IS NOT NULL
    OR EXISTS (
        SELECT FROM commands_attempt attempt
        WHERE attempt.delivery_id = judged.id AND attempt.outcome IN ('accepted', 'unknown', 'in_flight')
    )
    OR EXISTS (
        SELECT FROM devices_presence presence
        WHERE presence.device_id = judged.device_id AND presence.last_seen_at >= judged.issued_at
    )
"""
_JUDGED: Final = """
    SELECT delivery.id, delivery.device_id, delivery.received_at, delivery.command_id, command.action,
        command.issued_at, 'cancelled' AS state, %(by)s::text AS withdrawn_by
    FROM commands_delivery delivery JOIN commands_command command ON command.id = delivery.command_id
"""
_WITHDRAW: Final = f"""
    WITH judged AS (
        {_JUDGED}
        WHERE {{which}} AND delivery.state IN ('pending', 'received') AND delivery.open_until > now()
    ), withdrawn AS (
        UPDATE commands_delivery delivery
        SET state = 'cancelled', withdrawn_by = %(by)s, device_was = %(device_was)s,
            settled_at = statement_timestamp(), next_attempt_at = NULL,
            device_seen_at = (SELECT last_seen_at FROM devices_presence WHERE device_id = delivery.device_id)
        FROM judged WHERE delivery.id = judged.id
    ), events AS (
        {events.append_for_devices("judged", *SETTLED)}
    )
    SELECT {{answer}} FROM (SELECT command_id, action, {_MAY_STILL_RUN} AS may_still_run FROM judged) AS judged
"""  # noqa: S608  (constants of this module; values are parameters)
_WITHDRAWN_SINCE: Final = f"""
    WITH judged AS (
        {_JUDGED}
        WHERE delivery.device_id = %(id)s AND delivery.withdrawn_by = %(by)s AND delivery.settled_at >= %(since)s
    )
    SELECT command_id, action, {_MAY_STILL_RUN} FROM judged
"""  # noqa: S608


def cancel(command_id: UUID) -> Cancelled:
    """Cancel the open deliveries of a command for an admin. Raises UnknownCommand."""
    command = Command.objects.filter(id=command_id).first()
    if command is None:
        raise UnknownCommand
    ((withdrawn, may_still_run),) = _withdraw(
        "delivery.command_id = %(id)s", command_id, Withdrawal.ADMIN, "count(*), count(*) FILTER (WHERE may_still_run)"
    )
    if withdrawn:
        Command.objects.filter(id=command_id, cancelled_at=None).update(cancelled_at=Now())
    return Cancelled(withdrawn, command.device_count - withdrawn, may_still_run)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A command that was withdrawn from a device. `may_still_run`: the phone may already have the command."""

    request_id: UUID
    action: str
    may_still_run: bool


def cancel_all_of(device_id: UUID, by: Withdrawal, device_was: DeviceWas | None = None) -> list[Withdrawn]:
    """Cancel the open deliveries of a device, and return their commands, oldest first.

    `by` is the cause. `device_was` is stored in each delivery.
    """
    answer = "command_id, action, may_still_run"
    return _oldest_first(_withdraw("delivery.device_id = %(id)s", device_id, by, answer, device_was))


def withdrawn_since(device_id: UUID, revoked_at: datetime) -> list[Withdrawn]:
    """Return the commands that a revocation withdrew from a device, oldest first. `revoked_at` is the time of the
    revocation.
    """
    parameters = {"id": device_id, "since": revoked_at, "by": Withdrawal.REVOCATION}
    return _oldest_first(database.rows(_WITHDRAWN_SINCE, parameters))


def _oldest_first(rows: Iterable[Any]) -> list[Withdrawn]:
    return sorted((Withdrawn(*row) for row in rows), key=lambda one: one.request_id)


def _withdraw(which: str, owner_id: UUID, by: Withdrawal, answer: str, device_was: DeviceWas | None = None) -> Any:
    parameters = {"id": owner_id, "by": by, "device_was": device_was}
    for hold in (_HOLD_PRESENCE, _HOLD_OPEN):
        database.row(hold.format(which=which), parameters)
    return database.rows(_WITHDRAW.format(which=which, answer=answer), parameters)


EXPIRED: Final = {
    "state": DeliveryState.EXPIRED,
    "settled_at": F("open_until"),
    "next_attempt_at": None,
    "device_seen_at": Subquery(Presence.objects.filter(device=OuterRef("device_id")).values("last_seen_at")),
    "device_was": Subquery(
        Presence.objects.filter(device=OuterRef("device_id"), last_seen_at=None).values(was=Value(DeviceWas.NEVER_SEEN))
    ),
}
"""The column values that mark a delivery as expired, for update(). `settled_at` is the delivery's `open_until`."""


_EXPIRED_EVENTS: Final = events.append_for_devices(
    "(SELECT * FROM commands_delivery WHERE id = ANY(%(ids)s)) expired", *SETTLED
)


@transaction.atomic
def expire(limit: int) -> list[UUID]:
    """Mark up to `limit` overdue deliveries as expired, in a separate transaction. Locked deliveries are skipped.

    Return the command of each marked delivery. A command may appear several times.
    """
    overdue = Delivery.objects.overdue().order_by("open_until").select_for_update(skip_locked=True, no_key=True)
    found = list(overdue.values_list("id", "command_id")[:limit])
    ids = [delivery_id for delivery_id, _ in found]
    Delivery.objects.filter(id__in=ids).update(**EXPIRED)
    database.execute(_EXPIRED_EVENTS, {"ids": ids})
    return [command_id for _, command_id in found]
