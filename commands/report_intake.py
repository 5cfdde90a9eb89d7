"""The intake of reports: take() records a report, and returns the answer.

The Ninja endpoint (phone_api.py) and the fast path (nexmdm/http/fast_path.py) call take(). Reports are recorded by
group commit (nexmdm/common/group_commit.py). Reports and heartbeats are in separate batches. A batch of reports takes
longer, because the batch locks deliveries and writes several rows for each report. A heartbeat must not wait for a
batch of reports.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from asgiref.sync import ThreadSensitiveContext
from django.db import DataError, IntegrityError, transaction
from prometheus_client import Counter, Histogram

from commands import report_limit, reports
from commands.reports import MayRetire, Outcome, ReportInput, ReportRecord, ReportResult, UnknownRequest
from commands.schemas import ActionResult
from devices import credentials, token_check, tokens
from devices.credentials import DeviceRevoked, InvalidToken, NeedsFullCheck
from nexmdm.common import addresses, database
from nexmdm.common.database import run_for_phone
from nexmdm.common.group_commit import GroupCommit
from nexmdm.common.overload.per_loop import PerLoop
from nexmdm.common.tolerance import field_warnings
from nexmdm.common.tolerance.repair import Note

log = structlog.get_logger()

BATCH: Final = 500
WAITING_LIMIT: Final = 5000
LONGEST_WAIT_SECONDS: Final = 1.0
"""If the first waiting report has waited longer than this time (in seconds), a further report is refused.

This rule applies only while more than one batch waits. The time until a busy event loop reads a report does not count.
"""

RESULTS = Counter("nexmdm_action_results", "Reports of phones, by status.", ["status"])
NOT_KEPT = Counter(
    "nexmdm_reports_not_kept",
    "Reports that were counted but not stored, because the delivery already had 100 reports.",
)
FLUSH_SIZE = Histogram("nexmdm_flush_reports", "Reports in one flush.", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500))
FLUSH_SECONDS = Histogram(
    "nexmdm_report_flush_seconds",
    "Time of one flush of reports.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class _Waiting(ReportRecord):
    """A report that waits for its batch. `is_waited_for` returns whether the phone still waits for the answer."""

    is_waited_for: Callable[[], bool] = _always

    def merge(self, later: "_Waiting") -> bool:  # noqa: ARG002
        """Return False: each report is recorded separately, in the order in which the reports came."""
        return False

    def log_fields(self) -> dict[str, str]:
        return {"device_id": str(self.token.id), "request_id": str(self.request_id)}

    def is_wanted(self) -> bool:
        return self.is_waited_for()


def _flush(records: Sequence[ReportRecord]) -> list[Outcome]:
    return reports.record(records)


def _flushed(outcomes: Sequence[Outcome], seconds: float) -> None:
    FLUSH_SECONDS.observe(seconds)
    FLUSH_SIZE.observe(len(outcomes))


Batcher = GroupCommit[_Waiting, ReportResult]
_batchers: Final = PerLoop(
    lambda: Batcher(
        _flush,
        _flushed,
        batch_size=BATCH,
        waiting_limit=WAITING_LIMIT,
        longest_wait_seconds=LONGEST_WAIT_SECONDS,
    )
)


def batcher() -> Batcher:
    """Return the group commit that records reports on the running event loop."""
    return _batchers.get()


def _arrival(body: ActionResult) -> dict[str, Any] | None:
    return {name: value for name, value in (body.push or {}).items() if value is not None} or None


async def take(
    token: tokens.Token,
    body: ActionResult,
    notes: Sequence[Note],
    client: str,
    is_waited_for: Callable[[], bool] = _always,
) -> bytes | InvalidToken:
    """Record a report, and return the answer as JSON after the commit. If the token is not valid, return InvalidToken.

    InvalidToken is returned, not raised, because each raised error makes work for the garbage collector. `notes` lists
    the fields of the body that were repaired or dropped. `client` is the network address of the phone, for the limits
    on expensive work. `is_waited_for` returns whether the phone still waits. If the phone does not wait any more when
    the batch begins, the report is not recorded. Raises TooManyReports, UnknownRequest, DeviceRevoked, GateFull,
    Overloaded, Draining, ClientLeft, and the errors of the database.
    """
    began_at = time.monotonic()
    report_limit.reports.check(token.id)
    report = ReportInput(body.status, body.message or "", body.output, body.finished_at, body.via, _arrival(body))
    outcome = await _record(_Waiting(token, body.request_id, report, is_waited_for), client, began_at)
    if isinstance(outcome, InvalidToken):
        return outcome
    result = unwrap(outcome)
    RESULTS.labels(report.status.value).inc()
    if not result.kept:
        NOT_KEPT.inc()
    field_warnings.record("/v1/action-result", token.id, notes)
    log.info(
        "action_result.ingested",
        device_id=str(token.id),
        request_id=str(body.request_id),
        status=report.status.value,
        state=result.state.value,
        duplicate=result.duplicate,
        late=result.late,
    )
    answer = {"request_id": body.request_id, "state": result.state, "duplicate": result.duplicate, "late": result.late}
    if notes:
        answer["warnings"] = [warning.model_dump() for warning in field_warnings.shown(notes)]
    return orjson.dumps(answer)


def unwrap(outcome: Outcome) -> ReportResult:
    """Return the result of a report, or raise its error."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def _record(record: _Waiting, client: str, began_at: float) -> Outcome:
    """Record a report in a batch. If a batch cannot record the report, record it in a separate transaction."""
    if not report_limit.reports.reserve(record.token):
        return await _record_apart(record, client, began_at)
    is_proved = False
    try:
        outcome = await _submit(record, client, began_at)
        is_proved = isinstance(outcome, ReportResult | UnknownRequest | DataError | IntegrityError)
    finally:
        report_limit.reports.settle(record.token, is_proved=is_proved)
    if isinstance(outcome, MayRetire | DeviceRevoked):
        return await _record_apart(record, client, began_at)
    return outcome


async def _submit(record: _Waiting, client: str, began_at: float) -> Outcome:
    key = f"{record.request_id.int:032x}{record.token.id.int:032x}"
    outcome = await batcher().submit(key, record)
    if isinstance(outcome, NeedsFullCheck):
        database.begin_request(addresses.counting_key(client), began_at)
        async with ThreadSensitiveContext():
            await token_check.check_fully(record.token)
        outcome = await batcher().submit(key, record)
    return InvalidToken() if isinstance(outcome, NeedsFullCheck) else outcome


async def _record_apart(record: ReportRecord, client: str, began_at: float) -> ReportResult:
    """Record a report in a separate transaction. Call this function if the report may retire its device. Call it also
    if the report must be added to the count that all processes share.
    """
    database.begin_request(addresses.counting_key(client), began_at)
    async with ThreadSensitiveContext():
        return await token_check.with_token_check(record.token, lambda: run_for_phone(_take_apart, record))


def _take_apart(record: ReportRecord) -> ReportResult:
    # Count the report before the transaction: a report that the transaction refuses counts too.
    device_id = _reporting_device(record)
    report_limit.reports.admit(device_id)
    return database.retry_on_deadlock(lambda: _record_report(device_id, record))


@transaction.atomic
def _record_report(device_id: UUID, record: ReportRecord) -> ReportResult:
    result = reports.record_report(device_id, record.request_id, record.report)
    # The delivery is locked now. If the device was revoked or enrolled again since the first check, this check raises
    # an error, and the transaction is rolled back.
    _reporting_device(record)
    return result


def _reporting_device(record: ReportRecord) -> UUID:
    token = record.token
    try:
        return credentials.authenticate(token)
    except DeviceRevoked:
        if reports.is_last_word(token.id, record.request_id, record.report):
            return token.id
        raise
