"""SQL statements that check the tokens of many heartbeats and store what the heartbeats report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from devices import tokens
from devices.credentials import VERDICT
from devices.presence import service_time, spans
from devices.push_targets import REGISTERED_LATER, PushTarget


@dataclass(slots=True)
class HeartbeatRecord:
    """One heartbeat with its token. A field that is None was not sent: the stored value stays.

    `push_target_sent` is true if the phone sent a push target or a null. The statements of this module only compare
    `push_target` with the stored push target. They do not write it.
    """

    token: tokens.Token
    status: Mapping[str, Any] | None = None
    agent_version: str | None = None
    push_target_sent: bool = False
    push_target: PushTarget | None = None

    def merge(self, later: "HeartbeatRecord") -> bool:
        """Merge a later heartbeat with the same token into this heartbeat. Always return True.

        Each field that `later` has replaces the earlier value.
        """
        self.status = self.status if later.status is None else later.status
        self.agent_version = self.agent_version if later.agent_version is None else later.agent_version
        if later.push_target_sent:
            self.push_target_sent, self.push_target = True, later.push_target
        return True

    def log_fields(self) -> dict[str, str]:
        """Return the device id, for a log line."""
        return {"device_id": str(self.token.id)}

    def is_wanted(self) -> bool:
        """Return True: a heartbeat is recorded even if its client has disconnected."""
        return True


@dataclass(frozen=True, slots=True)
class HeartbeatResult:
    """The result of one heartbeat: the verdict on its token, and whether its push target must be written."""

    verdict: str
    push_target_changed: bool


GOOD_RESULT: Final = HeartbeatResult("good", push_target_changed=False)

# One JSON text contains the batch: psycopg would quote seven arrays value by value, in Python. `judged` is read several
# times, so PostgreSQL computes it once.
_JUDGED: Final = f"""
    judged AS (
        SELECT
            asked.position, asked.device_id, asked.digest, asked.status, asked.agent_version,
            CASE WHEN device.id IS NULL THEN 'wrong' ELSE {VERDICT} END AS verdict,
            device.token_used_at IS NULL AS first_use,
            asked.push_target_sent AND (
                asked.push_token IS DISTINCT FROM device.push_token
                OR (asked.push_kind, device.push_kind) IN (('fid', 'token'), ('token', 'fid'))
                OR ({REGISTERED_LATER})
            ) AS push_target_changed
        FROM jsonb_to_recordset(%(beats)s::jsonb) AS asked (
            position int, device_id uuid, digest bytea, status jsonb,
            agent_version text, push_target_sent boolean, push_token text, push_kind text,
            push_registered_at timestamptz
        )
        LEFT JOIN devices_device device ON device.id = asked.device_id
    )"""  # noqa: S608  (constants of our modules; values are parameters)

# `last_seen_at` is the database's time, and never moves back.
_READINGS: Final = """
    last_seen_at = GREATEST(presence.last_seen_at, now()),
    last_status = COALESCE({sent}.status, presence.last_status),
    agent_version = COALESCE({sent}.agent_version, presence.agent_version)"""

# RECORD writes only the table of presence, because each flush plans and runs this statement. It records heartbeats of
# devices that are certainly online and whose token was used before. record_others() records all other good heartbeats.
# Do not compare `last_seen_at` itself: the planner would read the statistics of this column. The second column has only
# results that are not plain `good`, so that the answer is short. An unknown device gets the verdict `wrong`. The last
# column is NULL if all good heartbeats are recorded. If some are not, it has the positions of the recorded heartbeats.
RECORD: Final = f"""
    WITH {_JUDGED}, seen AS (
        UPDATE devices_presence presence
        SET {_READINGS.format(sent="judged")}
        FROM judged
        WHERE judged.verdict = 'good' AND NOT judged.first_use AND presence.device_id = judged.device_id
            AND now() - presence.last_seen_at < {service_time.CERTAINLY_ONLINE_FOR}
            AND presence.online_from IS NOT NULL
        RETURNING position
    )
    SELECT now(), json_agg(json_build_array(position, verdict, push_target_changed))
        FILTER (WHERE verdict <> 'good' OR push_target_changed)::text,
        CASE WHEN (SELECT count(*) FROM seen) < count(*) FILTER (WHERE verdict = 'good')
            THEN (SELECT COALESCE(json_agg(position), '[]') FROM seen)::text
        END
    FROM judged
"""  # noqa: S608  (constants of our modules; values are parameters)


def record_others() -> str:
    """Return the statement that records the heartbeats which RECORD has not recorded.

    This statement also writes spans, events and first uses of tokens. Run spans.LOCK and then this statement in one
    transaction. Because it begins after spans.LOCK has the locks, it sees the changes of transactions that had these
    locks before.
    """
    return f"""
        WITH {_JUDGED}, before AS MATERIALIZED (
            SELECT judged.status, judged.agent_version, presence.device_id, presence.last_seen_at, presence.online_from,
                {spans.was_online("presence")} AS was_online
            FROM judged JOIN devices_presence presence USING (device_id) WHERE judged.verdict = 'good'
        ), seen AS (
            UPDATE devices_presence presence
            SET {_READINGS.format(sent="before")},
                online_from = CASE
                    WHEN before.was_online THEN COALESCE(before.online_from, before.last_seen_at) ELSE now()
                END
            FROM before WHERE presence.device_id = before.device_id
        ), first_used AS (
            UPDATE devices_device device
            SET token_used_at = now()
            FROM judged
            WHERE judged.verdict = 'good' AND judged.first_use AND device.id = judged.device_id
                AND device.token_digest = judged.digest
        ), {spans.flips("before")}
        SELECT now(), json_agg(json_build_array(position, verdict, push_target_changed))
            FILTER (WHERE verdict <> 'good' OR push_target_changed)::text
        FROM judged
    """  # noqa: S608  (SQL of our modules; values are parameters)


def query_params(records: Sequence[HeartbeatRecord]) -> dict[str, Any]:
    """Return the parameters of RECORD and record_others() for these heartbeats.

    The records must be sorted by device id, so that parallel batches lock rows in the same order. No two records may
    have the same token.
    """
    key = tokens.digest_keys()[0]
    rows = [
        {
            "position": position,
            "device_id": record.token.id,
            "digest": "\\x" + tokens.digest(record.token.text, key.value).hex(),
            "status": record.status,
            "agent_version": record.agent_version,
            **_push_columns(record),
        }
        for position, record in enumerate(records)
    ]
    beats = orjson.dumps(rows).decode()
    return {"digest_key": key.id, "beats": beats, **service_time.certainly_online_params()}


def _push_columns(record: HeartbeatRecord) -> Mapping[str, Any]:
    if not record.push_target_sent:
        return {}
    if record.push_target is None:
        return {"push_target_sent": True}
    kind, value, registered_at = record.push_target
    return {"push_target_sent": True, "push_token": value, "push_kind": kind, "push_registered_at": registered_at}


def parse_results(count: int, exceptions: str | None) -> list[HeartbeatResult]:
    """Return the results of `count` heartbeats. `exceptions` is a column of RECORD. It lists all results that are not
    `good`, and all results whose push target must be written.
    """
    outcomes = [GOOD_RESULT] * count
    for position, verdict, push_target_changed in orjson.loads(exceptions or "[]"):
        outcomes[position] = HeartbeatResult(verdict, push_target_changed)
    return outcomes


def left_out(results: Sequence[HeartbeatResult], recorded: str | None) -> list[int]:
    """Return the positions of the good heartbeats that the statement RECORD has not recorded. `recorded` is the last
    column of the row that RECORD returned.
    """
    if recorded is None:
        return []
    done = set(orjson.loads(recorded))
    return [place for place, one in enumerate(results) if one.verdict == "good" and place not in done]
