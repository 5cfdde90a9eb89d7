"""Issue commands. The audience of a command is the set of its devices, which is fixed when the command is issued.

Each function runs in the transaction of its caller. All times are times of the database.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
from uuid_utils.compat import uuid7

from commands import envelope, queue
from commands.models import Priority
from devices import audience
from devices.audience import DevicesBusy, EmptyAudience, Target, UnknownDevices
from nexmdm.common import database
from nexmdm.common.domain_error import DomainError
from nexmdm.common.event_feed import events
from nexmdm.common.event_feed.events import RFC3339


class AudienceChanged(DomainError):
    detail = "The number of devices in target differs from expect_count. No command was sent."


class PushPayloadTooLarge(DomainError):
    detail = "The command is larger than 4096 bytes, which is the limit of a push. Shorten the params."


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """The request for a command.

    `params` is the JSON text of the checked parameters. `target_as_given` is the target in the body of the request.
    `expires_in_seconds` is the time to begin.
    """

    action: str
    params: str
    target: Target
    target_as_given: dict[str, Any]
    issued_by: str
    expires_in_seconds: int
    priority: Priority = Priority.HIGH
    note: str = ""
    expect_count: int | None = None
    supersede: bool = False


@dataclass(frozen=True, slots=True)
class Issued:
    """The result of an issue. After a dry run, nothing was queued.

    `device_count` is the number of devices in the audience. `pushable` is the number of devices that get a push.
    """

    content: envelope.Content
    device_count: int
    pushable: int


Refusal = PushPayloadTooLarge | UnknownDevices | DevicesBusy | AudienceChanged

# Use one statement: the count, the superseded commands and the new deliveries must have the same audience. FOR SHARE
# leaves out a device that was revoked meanwhile. A later revocation waits for this transaction, and then cancels the
# new deliveries. Foreign keys are checked later.
_ISSUE: Final = """
    WITH asked AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(%(asked)s::jsonb) AS asked (
            position int, request_id uuid, action text, params text, priority text, target jsonb, note text,
            issued_by text, issued_at timestamptz, expires_at timestamptz
        )
    ), audience AS (
        {audience}
    ), counted AS (
        SELECT position, count(*) AS devices, count(*) FILTER (WHERE pushable) AS pushable
        FROM audience GROUP BY position
    ), issued AS (
        INSERT INTO commands_command
            (id, action, params, priority, target, note, issued_by, issued_at, expires_at, device_count)
        SELECT request_id, action, params, priority, target, note, issued_by, issued_at, expires_at, devices
        FROM asked JOIN counted USING (position) ORDER BY position
    ), queued AS (
        INSERT INTO commands_delivery
            (command_id, device_id, state, open_until, push_state, attempt_count, failure_count, next_attempt_at)
        SELECT request_id, id, 'pending', expires_at,
            CASE WHEN pushable THEN 'waiting' ELSE 'no_push_token' END, 0, 0, CASE WHEN pushable THEN now() END
        FROM audience JOIN asked USING (position) ORDER BY position, id
    ), events AS (
        INSERT INTO nexmdm_event (type, request_id, data)
        SELECT 'command.issued', request_id, jsonb_build_object(
            'action', action, 'device_count', devices, 'issued_by', issued_by,
            'expires_at', to_char(expires_at AT TIME ZONE 'UTC', {rfc3339})
        )
        FROM asked JOIN counted USING (position) ORDER BY position
    ){superseding}
    SELECT position, devices, pushable, CASE WHEN pushable > 0 THEN pg_notify('{channel}', '') END FROM counted
"""
_SUPERSEDING: Final = f""", older AS (
        SELECT delivery.id, delivery.device_id, delivery.command_id, 'cancelled' AS state, 'superseded' AS withdrawn_by
        FROM commands_delivery delivery
        JOIN audience ON audience.id = delivery.device_id
        JOIN asked USING (position)
        JOIN commands_command command ON command.id = delivery.command_id
        WHERE delivery.state IN ('pending', 'received') AND delivery.open_until > now()
            AND command.action = asked.action
        ORDER BY delivery.id FOR NO KEY UPDATE OF delivery
    ), superseded AS (
        UPDATE commands_delivery delivery
        SET state = 'cancelled', withdrawn_by = 'superseded', settled_at = now(), next_attempt_at = NULL,
            device_seen_at = (SELECT last_seen_at FROM devices_presence WHERE device_id = delivery.device_id)
        FROM older WHERE delivery.id = older.id
    ), older_events AS (
        {events.append_for_devices("older", *queue.SETTLED)}
    )
"""  # noqa: S608  (constants of our modules)
_PUSHABLE: Final = "device.push_token IS NOT NULL AND device.push_token_dead_at IS NULL"
_MEANT: Final = f"""
    SELECT 0 AS position, device.id, {_PUSHABLE} AS pushable
    FROM devices_device device WHERE {{where}} ORDER BY device.id FOR SHARE
"""  # noqa: S608  (constants of our modules; values are parameters)
_NAMED: Final = f"""
    SELECT named.position, device.id, {_PUSHABLE} AS pushable
    FROM jsonb_to_recordset(%(named)s::jsonb) AS named (position int, id uuid)
    JOIN devices_device device ON device.id = named.id AND device.revoked_at IS NULL
    ORDER BY device.id FOR SHARE OF device
"""  # noqa: S608  (as above)
_COUNT: Final = f"SELECT count(*), count(*) FILTER (WHERE {_PUSHABLE}) FROM devices_device device WHERE {{where}}"  # noqa: S608  (as above)


def issue(request: CommandRequest, *, dry_run: bool = False) -> Issued:
    """Issue a command to its audience: the devices of its target. The commit wakes the dispatchers. In a dry run, only
    count these devices.

    Raises UnknownDevices, PushPayloadTooLarge, EmptyAudience or AudienceChanged. After an error, the caller must roll
    back its transaction: when AudienceChanged is raised, the command is already written.
    """
    now, target = audience.lock_named(request.target)
    content = _content(request, now)
    if envelope.size(content) > envelope.FCM_PAYLOAD_LIMIT:
        raise PushPayloadTooLarge
    where, parameters = target.where()
    if dry_run:
        device_count, pushable = database.row(_COUNT.format(where=where), parameters)
    else:
        found = _write([(request, content)], _MEANT.format(where=where), parameters, supersede=request.supersede)
        device_count, pushable = found.get(0, (0, 0))
    if device_count == 0:
        raise EmptyAudience
    if request.expect_count not in (None, device_count):
        raise _audience_changed(device_count, request.expect_count)
    return Issued(content, device_count, pushable)


def issue_together(requests: Sequence[CommandRequest]) -> list[Issued | Refusal]:
    """Issue commands whose targets name few devices by id. No command may have `supersede`.

    Return for each command its Issued or its error, in the order of `requests`. If one command has an error, the
    remaining commands are still issued. The error is DevicesBusy if the command would have to wait for another
    transaction.
    """
    now, unknown = audience.lock_free_named([request.target for request in requests])
    contents = [_content(request, now) for request in requests]
    outcomes: list[Any] = [_refusal(*one) for one in zip(requests, contents, unknown, strict=True)]
    good = [position for position, refused in enumerate(outcomes) if refused is None]
    if not good:
        return outcomes
    named = [{"position": place, "id": key} for place, at in enumerate(good) for key in requests[at].target.device_ids]
    parameters = {"named": orjson.dumps(named).decode()}
    written = _write([(requests[at], contents[at]) for at in good], _NAMED, parameters, supersede=False)
    for place, at in enumerate(good):
        outcomes[at] = Issued(contents[at], *written[place])
    return outcomes


def _content(request: CommandRequest, now: datetime) -> envelope.Content:
    """Return the content of a command that is issued at `now`.

    Both times are whole seconds. `issued_at` is rounded down. `expires_at` is rounded up, so that no command expires
    early.
    """
    issued_at = now.replace(microsecond=0)
    expires_at = issued_at + timedelta(seconds=request.expires_in_seconds + (now.microsecond > 0))
    return envelope.Content(uuid7(), request.action, request.params, issued_at, expires_at)


def _refusal(
    request: CommandRequest, content: envelope.Content, unknown: UnknownDevices | DevicesBusy | None
) -> Refusal | None:
    if unknown is not None:
        return unknown
    if envelope.size(content) > envelope.FCM_PAYLOAD_LIMIT:
        return PushPayloadTooLarge()
    device_count = len(set(request.target.device_ids))
    if request.expect_count not in (None, device_count):
        return _audience_changed(device_count, request.expect_count)
    return None


def _audience_changed(device_count: int, expected: int | None) -> AudienceChanged:
    devices = "1 device" if device_count == 1 else f"{device_count} devices"
    return AudienceChanged(f"The target contains {devices}, but expect_count is {expected}. No command was sent.")


def _write(
    commands: Sequence[tuple[CommandRequest, envelope.Content]],
    members: str,
    parameters: dict[str, Any],
    *,
    supersede: bool,
) -> dict[int, tuple[int, int]]:
    """Write commands and their deliveries. `members` is the SQL that selects the audience. Return the number of
    deliveries and the number of pushes of each command. The key of the result is the position of the command in
    `commands`.
    """
    asked = [
        {
            "position": position,
            "request_id": content.request_id,
            "action": request.action,
            "params": request.params,
            "priority": request.priority,
            "target": request.target_as_given,
            "note": request.note,
            "issued_by": request.issued_by,
            "issued_at": content.issued_at,
            "expires_at": content.expires_at,
        }
        for position, (request, content) in enumerate(commands)
    ]
    superseding = _SUPERSEDING if supersede else ""
    statement = _ISSUE.format(audience=members, superseding=superseding, channel=queue.CHANNEL, rfc3339=RFC3339)
    found = database.rows(statement, parameters | {"asked": orjson.dumps(asked).decode()})
    return {position: (device_count, pushable) for position, device_count, pushable, _ in found}
