"""Check-in: record a heartbeat and create its answer. The endpoint and the fast path both call check_in().

Heartbeats are recorded by group commit (nexmdm/common/group_commit.py). One flush is one transaction for many phones.
Each answer is sent after the commit of its flush.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

import orjson
import structlog
from asgiref.sync import ThreadSensitiveContext
from django.conf import settings
from django.db import transaction
from prometheus_client import Counter as CounterMetric
from prometheus_client import Histogram

from commands import queue
from commands.push import outbox
from commands.queue import NO_OFFER, Offer
from devices import credentials, heartbeats, token_check, tokens
from devices.credentials import InvalidToken, NeedsFullCheck, Verdict
from devices.heartbeats import HeartbeatRecord, HeartbeatResult
from devices.presence import spans
from devices.push_targets import PushTarget
from devices.schemas import Heartbeat
from nexmdm.common import addresses, database
from nexmdm.common.database import run_for_phone
from nexmdm.common.group_commit import GroupCommit
from nexmdm.common.overload.per_loop import PerLoop
from nexmdm.common.tolerance import field_warnings
from nexmdm.common.tolerance.repair import Note
from nexmdm.common.types import rfc3339

INTERVAL_SPREAD: Final = 10
"""The time to the next heartbeat is random: at most a tenth (1 / INTERVAL_SPREAD) below or above the interval."""

log = structlog.get_logger()

BATCH: Final = 500
WAITING_LIMIT: Final = 5000

HEARTBEATS = CounterMetric(
    "nexmdm_heartbeats", "Heartbeats in flushes, by the result of the check of the device token.", ["verdict"]
)
FLUSH_SIZE = Histogram(
    "nexmdm_flush_heartbeats", "Heartbeats in one flush.", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
)
FLUSH_SECONDS = Histogram(
    "nexmdm_flush_seconds", "Time of one flush.", buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
)


def verdicts() -> Counter[str]:
    """Return how many heartbeats this process has recorded since its start, for each verdict on a token."""
    samples = (sample for family in HEARTBEATS.collect() for sample in family.samples)
    return Counter({one.labels["verdict"]: int(one.value) for one in samples if one.name.endswith("_total")})


@dataclass(frozen=True, slots=True)
class CheckedIn:
    """The result of a heartbeat with a good token.

    - `server_time` is the time of the database.
    - `push_target_changed` is true if the caller must write `push_target`.

    Waiting heartbeats with the same token are merged, and share one result. So all their callers write the same push
    target.
    """

    offer: Offer
    server_time: str
    push_target_changed: bool
    push_target: PushTarget | None


Outcome = CheckedIn | Exception


def unwrap(outcome: Outcome) -> CheckedIn:
    """Return the result of a heartbeat, or raise the error that `outcome` is."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def flush(records: Sequence[HeartbeatRecord]) -> list[Outcome]:
    """Record a batch of heartbeats. Return one outcome for each record: a result with the open commands, or an error.

    The records must be sorted by device id. No two records may have the same token. A record whose token is not good
    has an error as its outcome. The function uses one transaction. It uses a second transaction for devices that may
    have been offline and for tokens that were not used before.
    """
    ((at, exceptions, recorded),), open_rows = database.execute_batch(
        heartbeats.RECORD, queue.OFFER, parameters=_query_params(records)
    )
    results = heartbeats.parse_results(len(records), exceptions)
    outcomes = _outcomes(records, results, open_rows, at)
    if left_out := heartbeats.left_out(results, recorded):
        others = _flush_others([records[place] for place in left_out])
        for place, outcome in zip(left_out, others, strict=True):
            outcomes[place] = outcome
    return outcomes


def _flush_others(records: Sequence[HeartbeatRecord]) -> list[Outcome]:
    # Keep both statements in one transaction: code that withdraws a command locks the presence row, and then finds out
    # whether the phone has got the command.
    _, ((at, exceptions),), open_rows = database.execute_batch(
        spans.LOCK, heartbeats.record_others(), queue.OFFER, parameters=_query_params(records)
    )
    return _outcomes(records, heartbeats.parse_results(len(records), exceptions), open_rows, at)


def _query_params(records: Sequence[HeartbeatRecord]) -> dict[str, Any]:
    return heartbeats.query_params(records) | queue.offer_params(record.token.id for record in records)


def _outcomes(
    records: Sequence[HeartbeatRecord], results: Sequence[HeartbeatResult], open_rows: Sequence[Any], at: datetime
) -> list[Outcome]:
    if open_rows:
        good = {record.token.id for record, one in zip(records, results, strict=True) if one.verdict == Verdict.GOOD}
        open_rows = [row for row in open_rows if row[0] in good]
    server_time, offers = rfc3339(at), queue.offers(open_rows)
    return [
        _outcome(record, one, offers.get(record.token.id, NO_OFFER), server_time)
        for record, one in zip(records, results, strict=True)
    ]


def _outcome(record: HeartbeatRecord, result: HeartbeatResult, offer: Offer, server_time: str) -> Outcome:
    # Do not raise the error here: its traceback would reference this frame, and this frame references the error. Such
    # a cycle keeps both in memory.
    error = None if result is heartbeats.GOOD_RESULT else credentials.error_of(result.verdict)
    return error or CheckedIn(offer, server_time, result.push_target_changed, record.push_target)


def build_record(token: tokens.Token, fields: Heartbeat) -> HeartbeatRecord:
    """Return the record of a heartbeat."""
    return HeartbeatRecord(
        token,
        status=fields.status,
        agent_version=fields.agent_version,
        push_target_sent=fields.sends_push_target,
        push_target=fields.sent_push_target(),
    )


@transaction.atomic
def _change_push_target(token: tokens.Token, target: PushTarget | None) -> None:
    outbox.set_push_target(token.id, target)
    # The device row is locked now. If the device was revoked or enrolled again since its heartbeat, undo the change.
    credentials.authenticate(token)


async def _answer(
    token: tokens.Token, checked_in: CheckedIn, notes: Sequence[Note], client: str, began_at: float
) -> bytes:
    if checked_in.push_target_changed:
        database.begin_request(addresses.counting_key(client), began_at)
        change = partial(_change_push_target, token, checked_in.push_target)
        async with ThreadSensitiveContext():
            await token_check.with_token_check(token, lambda: run_for_phone(database.retry_on_deadlock, change))
    write = log.info if settings.HEARTBEAT_LOG == "each" else log.debug
    write("heartbeat.upsert", device_id=str(token.id), commands=len(checked_in.offer.commands))
    interval: int = settings.HEARTBEAT_INTERVAL_SECONDS
    spread = interval // INTERVAL_SPREAD
    answered = {
        "server_time": checked_in.server_time,
        "next_heartbeat_seconds": random.randint(interval - spread, interval + spread),
        "commands": checked_in.offer.commands,
        "has_more": checked_in.offer.has_more,
    }
    if notes:
        field_warnings.record("/v1/heartbeat", token.id, notes)
        answered["warnings"] = [warning.model_dump() for warning in field_warnings.shown(notes)]
    return orjson.dumps(answered)


_VERDICTS: Final[dict[type, str]] = {CheckedIn: "good", NeedsFullCheck: "Unsettled"}
"""The metric label for each type of outcome. The label of any other type is the name of the type."""


def _flushed(outcomes: Sequence[Outcome], seconds: float) -> None:
    FLUSH_SECONDS.observe(seconds)
    FLUSH_SIZE.observe(len(outcomes))
    for kind, count in Counter(map(type, outcomes)).items():
        HEARTBEATS.labels(_VERDICTS.get(kind, kind.__name__)).inc(count)


Batcher = GroupCommit[HeartbeatRecord, CheckedIn]
_batchers: Final = PerLoop(lambda: Batcher(flush, _flushed, batch_size=BATCH, waiting_limit=WAITING_LIMIT))


def batcher() -> Batcher:
    """Return the group commit for heartbeats on the running event loop."""
    return _batchers.get()


async def submit(record: HeartbeatRecord) -> Outcome:
    """Record a heartbeat. After the commit, return its result or its error. Raises Overloaded, Draining."""
    # GroupCommit sorts by this key. A sort by token is also a sort by device id: the token begins with the id, in a
    # fixed number of digits, and the digits sort in the order of their values.
    return await batcher().submit(record.token.text, record)


async def check_in(token: tokens.Token, fields: Heartbeat, notes: Sequence[Note], client: str) -> bytes | InvalidToken:
    """Record a heartbeat. After the commit, return its answer as JSON. For an invalid token, return InvalidToken.

    InvalidToken is returned and not raised, because raised errors make work for the garbage collector. With many
    invalid tokens, this work is considerable. `notes` lists the fields of the body that were repaired or dropped.
    `client` is the network address of the phone. Each address has its own limit on database work. Raises DeviceRevoked,
    GateFull, Overloaded, Draining, and the errors of the database.
    """
    began_at = time.monotonic()
    outcome = await submit(build_record(token, fields))
    if isinstance(outcome, NeedsFullCheck):
        database.begin_request(addresses.counting_key(client), began_at)
        async with ThreadSensitiveContext():
            await token_check.check_fully(token)
        outcome = await submit(build_record(token, fields))
        outcome = InvalidToken() if isinstance(outcome, NeedsFullCheck) else outcome
    if isinstance(outcome, InvalidToken):
        return outcome
    return await _answer(token, unwrap(outcome), notes, client, began_at)
