"""The last refusal of each device, so that an admin can find out why a phone does not work."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import orjson

from nexmdm.common import database

PAUSE: Final = timedelta(minutes=1)
"""The shortest time between two writes of one device's row."""

# Rows are written in the order of their ids, so that concurrent writers lock them in one order. An older refusal must
# never replace a later refusal.
_WRITE: Final = """
    WITH asked AS (
        SELECT asked.device_id, now() - asked.age * interval '1 second' AS at, asked.route, asked.code
        FROM jsonb_to_recordset(%(refused)s::jsonb) AS asked (device_id uuid, age float8, route text, code text)
        JOIN devices_device device ON device.id = asked.device_id
    ), written AS (
        INSERT INTO devices_lastrefusal AS last (device_id, at, route, code, written_at)
        SELECT device_id, at, route, code, now() FROM asked ORDER BY device_id
        ON CONFLICT (device_id) DO UPDATE
            SET at = excluded.at, route = excluded.route, code = excluded.code, written_at = excluded.written_at
            WHERE last.at < excluded.at AND last.written_at <= now() - %(pause)s
        RETURNING device_id
    )
    SELECT asked.device_id FROM asked JOIN devices_lastrefusal last ON last.device_id = asked.device_id
    WHERE last.at < asked.at AND asked.device_id NOT IN (SELECT device_id FROM written)
"""


@dataclass(frozen=True, slots=True)
class LastRefused:
    """A refusal to be stored. `age` is the time in seconds since the refusal."""

    device_id: UUID
    age: float
    route: str
    code: str


def write(refused: Iterable[LastRefused]) -> list[UUID]:
    """Store last refusals, at most one for each device. The function runs one statement.

    Returns the devices whose row was written less than PAUSE ago. The caller must write their refusals again after
    PAUSE.
    """
    rows = [asdict(one) for one in refused]
    held_back = database.rows(_WRITE, {"refused": orjson.dumps(rows).decode(), "pause": PAUSE})
    return [device_id for (device_id,) in held_back]
