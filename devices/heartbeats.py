"""Heartbeats: many phones' news in one statement, which also decides whose token is good."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from devices import database, tokens
from devices.credentials import VERDICT


@dataclass(slots=True)
class Beat:
    """One heartbeat: who claims to send it, and what it says. None means "not sent: keep the earlier value".

    `status` is JSON text. `push_token` is only compared here; `push_token_sent` tells an explicit null from silence.
    """

    token: tokens.Token
    status: str | None = None
    agent_version: str | None = None
    push_token_sent: bool = False
    push_token: str | None = None

    def merge(self, later: "Beat") -> None:
        """Take over what a later heartbeat with the same token says: the later one wins, field by field."""
        self.status = self.status if later.status is None else later.status
        self.agent_version = self.agent_version if later.agent_version is None else later.agent_version
        if later.push_token_sent:
            self.push_token_sent, self.push_token = True, later.push_token


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of one heartbeat: the verdict on its token, whether its push token is new, and when it came."""

    verdict: str
    push_token_changed: bool
    at: datetime


# `judged` is read four times, so PostgreSQL computes it once. `token_used_at` is written at a token's first use only.
# A JOIN on the key keeps an unknown device out without telling it from a wrong token.
_RECORD: Final = f"""
    WITH asked AS (
        SELECT * FROM unnest(
            %(positions)s::int[], %(device_ids)s::uuid[], %(digests)s::bytea[], %(statuses)s::jsonb[],
            %(agent_versions)s::text[], %(push_tokens_sent)s::boolean[], %(push_tokens)s::text[]
        ) AS asked (position, device_id, digest, status, agent_version, push_token_sent, push_token)
    ), judged AS (
        SELECT
            asked.position, asked.device_id, asked.digest, asked.status, asked.agent_version, {VERDICT} AS verdict,
            device.token_used_at IS NULL AS first_use,
            asked.push_token_sent AND asked.push_token IS DISTINCT FROM device.push_token AS push_token_changed
        FROM asked JOIN devices_device device ON device.id = asked.device_id
    ), seen AS (
        UPDATE devices_presence presence
        SET last_seen_at = GREATEST(presence.last_seen_at, now()),
            last_status = COALESCE(judged.status, presence.last_status),
            agent_version = COALESCE(judged.agent_version, presence.agent_version)
        FROM judged
        WHERE judged.verdict = 'good' AND presence.device_id = judged.device_id
    ), first_used AS (
        UPDATE devices_device device
        SET token_used_at = now()
        FROM judged
        WHERE judged.verdict = 'good' AND judged.first_use AND device.id = judged.device_id
            AND device.token_digest = judged.digest
    )
    SELECT position, verdict, push_token_changed, CASE WHEN row_number() OVER () = 1 THEN now() END FROM judged
"""  # noqa: S608  (constants of our modules; values are parameters)


def record(beats: Sequence[Beat]) -> list[Heard | None]:
    """Record heartbeats and judge their tokens; return a row for each, None for an unknown device.

    Give them sorted by device id, so that batches running side by side lock rows in one order, and no two with the
    same token. `last_seen_at` is the database's time and never moves back.
    """
    key = tokens.digest_keys()[0]
    columns: dict[str, object] = {
        "digest_key": key.id,
        "positions": list(range(len(beats))),
        "device_ids": [beat.token.id for beat in beats],
        "digests": [tokens.digest(beat.token.text, key.value) for beat in beats],
        "statuses": [beat.status for beat in beats],
        "agent_versions": [beat.agent_version for beat in beats],
        "push_tokens_sent": [beat.push_token_sent for beat in beats],
        "push_tokens": [beat.push_token for beat in beats],
    }
    heard: list[Heard | None] = [None] * len(beats)
    rows = database.rows(_RECORD, columns)
    # The first row alone carries the time, which is one and the same: to read one for each is a twentieth of a flush.
    at: Any = rows[0][3] if rows else None
    for position, verdict, push_token_changed, _ in rows:
        heard[position] = Heard(verdict, push_token_changed, at)
    return heard
