"""The reports of phones: check and store many reports in one statement. All times are times of the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from commands import actions, queue
from commands.models import OPEN, Delivery, DeliveryChannel, DeliveryState, DeviceWas, Report, ReportStatus, Withdrawal
from devices import credentials, enrollment, tokens
from devices.credentials import VERDICT
from nexmdm.common import database
from nexmdm.common.domain_error import DomainError
from nexmdm.common.event_feed.events import RFC3339

log = structlog.get_logger()

KEPT: Final = 100
"""The number of reports of one delivery that are stored. After this number, only the result or the late result is
stored.

An ordinary phone sends only a few reports. A phone that reports without end must not fill the database.
"""

EXTRA_TIME: Final = timedelta(hours=1)
"""If a phone has reported `received` or `running`, it may send its final report within this time after the expiry."""


LAST_WORD_TIME: Final = timedelta(hours=24)
"""The time in which a phone may repeat the report that retired its device. The answer to this report may have been
lost.
"""


class UnknownRequest(DomainError):
    detail = "The server has no command with this request_id for this device."


class MayRetire(Exception):
    """The report may retire its device. Record the report by record_report(), in a separate transaction."""


@dataclass(frozen=True, slots=True)
class ReportInput:
    """One report of a phone.

    `finished_at` is a time of the phone's clock. `push` is the FCM message as the phone got it (schemas.PushArrival).
    """

    status: ReportStatus
    message: str = ""
    output: dict[str, Any] | None = None
    finished_at: datetime | None = None
    via: DeliveryChannel | None = None
    push: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ReportResult:
    """The result of a report.

    - `state`: the state of the delivery after the report.
    - `duplicate`: a final report came before this report.
    - `late`: this final report came after expiry or cancellation.
    - `kept`: the report is stored.
    """

    state: DeliveryState
    duplicate: bool
    late: bool
    kept: bool


@dataclass(frozen=True, slots=True)
class ReportRecord:
    """One report with its request id, and the token that the phone sent with the report."""

    token: tokens.Token
    request_id: UUID
    report: ReportInput


Outcome = ReportResult | Exception

_ASKED: Final = """
    jsonb_to_recordset(%(reports)s::jsonb) AS asked (
        position int, device_id uuid, request_id uuid, digest bytea, status text, message text, output jsonb, via text,
        finished_at timestamptz, push jsonb
    )"""
_JUDGED: Final = f"CASE WHEN device.id IS NULL THEN 'wrong' WHEN %(is_known)s THEN 'good' ELSE {VERDICT} END"

# Take the locks first, in a separate statement: the next statement must see what earlier owners of the locks wrote.
_HOLD: Final = f"""
    SELECT count(*) FROM (
        SELECT FROM {_ASKED}
        JOIN devices_device device ON device.id = asked.device_id
        JOIN commands_delivery delivery
            ON delivery.command_id = asked.request_id AND delivery.device_id = asked.device_id
        WHERE {_JUDGED} = 'good'
        ORDER BY delivery.id FOR NO KEY UPDATE OF delivery
    ) held
"""  # noqa: S608  (constants of our modules; values are parameters)

# The steps: `judged` checks the token. `found` reads the state of the delivery (`was`); an overdue delivery counts as
# expired. `taken` computes the result of the report. The last steps write the result. MATERIALIZED computes each step
# once. If a report is not final and equals the last report, only the count of the last report increases (`repeats`).
# `is_apart`: the report may retire the device, and is not recorded here. A report on an overdue delivery stores the
# device's last heartbeat, as queue.EXPIRED does.
_TAKE: Final = f"""
    WITH judged AS MATERIALIZED (
        SELECT asked.*, {_JUDGED} AS verdict, device.token_used_at IS NULL AS first_use
        FROM {_ASKED} LEFT JOIN devices_device device ON device.id = asked.device_id
    ), found AS MATERIALIZED (
        SELECT judged.*, delivery.id AS delivery_id, delivery.open_until, delivery.delivered_via, delivery.push_arrival,
            command.expires_at + %(extra_time)s AS longer, judged.status IN ('succeeded', 'failed') AS is_final,
            delivery.state IN ('pending', 'received') AND delivery.open_until <= statement_timestamp() AS is_overdue,
            CASE WHEN delivery.state IN ('pending', 'received') AND delivery.open_until <= statement_timestamp()
                THEN 'expired' ELSE delivery.state END AS was,
            NOT %(is_known)s AND judged.status = 'succeeded' AND command.action = ANY(%(retiring)s) AS is_apart
        FROM judged
        JOIN commands_delivery delivery
            ON delivery.command_id = judged.request_id AND delivery.device_id = judged.device_id
        JOIN commands_command command ON command.id = delivery.command_id
        WHERE judged.verdict = 'good'
    ), taken AS MATERIALIZED (
        SELECT found.*, stands.*,
            found.is_final AND found.was IN ('expired', 'cancelled') AS late,
            CASE WHEN NOT stands.is_open THEN found.was WHEN found.is_final THEN found.status ELSE 'received' END
                AS becomes,
            last.repeats,
            last.repeats IS NOT NULL OR (found.is_final AND NOT stands.duplicate) OR NOT EXISTS (
                SELECT FROM commands_report WHERE delivery_id = found.delivery_id OFFSET %(kept)s - 1 LIMIT 1
            ) AS keeps
        FROM found
        CROSS JOIN LATERAL (
            SELECT found.was IN ('pending', 'received') AS is_open, CASE
                WHEN found.was IN ('expired', 'cancelled') THEN EXISTS (
                    SELECT FROM commands_report WHERE delivery_id = found.delivery_id
                        AND status IN ('succeeded', 'failed') AND NOT duplicate
                )
                ELSE found.was IN ('succeeded', 'failed') END AS duplicate
        ) stands
        LEFT JOIN LATERAL (
            SELECT CASE WHEN NOT found.is_final AND report.duplicate = stands.duplicate
                AND (report.status, report.message, report.output, report.via, report.device_finished_at)
                    IS NOT DISTINCT FROM (found.status, found.message, found.output, found.via, found.finished_at)
                THEN report.id END AS repeats
            FROM commands_report report WHERE report.delivery_id = found.delivery_id ORDER BY report.id DESC LIMIT 1
        ) last ON true
        WHERE NOT found.is_apart
    ), repeated AS (
        UPDATE commands_report report
        SET repeat_count = report.repeat_count + 1, last_repeated_at = statement_timestamp()
        FROM taken WHERE report.id = taken.repeats
    ), added AS (
        INSERT INTO commands_report (delivery_id, status, message, output, via, device_finished_at, late, duplicate)
        SELECT delivery_id, status, message, output, via, finished_at, late, duplicate
        FROM taken WHERE keeps AND repeats IS NULL
    ), written AS (
        UPDATE commands_delivery delivery
        SET state = taken.becomes,
            received_at = CASE WHEN taken.is_open THEN COALESCE(delivery.received_at, statement_timestamp())
                ELSE delivery.received_at END,
            reported_at = CASE WHEN taken.is_open THEN statement_timestamp() ELSE delivery.reported_at END,
            settled_at = CASE WHEN taken.is_overdue THEN taken.open_until
                WHEN taken.is_open AND taken.is_final THEN statement_timestamp() ELSE delivery.settled_at END,
            open_until = CASE WHEN taken.is_open AND NOT taken.is_final AND taken.status <> 'deferred'
                THEN GREATEST(taken.open_until, taken.longer) ELSE delivery.open_until END,
            next_attempt_at = CASE WHEN taken.is_open OR taken.is_overdue THEN NULL ELSE delivery.next_attempt_at END,
            delivered_via = COALESCE(delivery.delivered_via, taken.via),
            push_arrival = COALESCE(delivery.push_arrival, taken.push),
            device_seen_at = CASE WHEN taken.is_overdue
                THEN (SELECT last_seen_at FROM devices_presence WHERE device_id = taken.device_id)
                ELSE delivery.device_seen_at END,
            device_was = CASE WHEN taken.is_overdue AND EXISTS (
                SELECT FROM devices_presence WHERE device_id = taken.device_id AND last_seen_at IS NULL
            ) THEN 'never_seen' ELSE delivery.device_was END,
            reports_not_kept = delivery.reports_not_kept + (NOT taken.keeps)::int
        FROM taken
        WHERE delivery.id = taken.delivery_id AND (
            taken.is_open OR taken.is_overdue OR NOT taken.keeps
            OR (taken.via IS NOT NULL AND taken.delivered_via IS NULL)
            OR (taken.push IS NOT NULL AND taken.push_arrival IS NULL)
        )
    ), events AS (
        INSERT INTO nexmdm_event (type, device_ids, request_id, data)
        SELECT event.type, ARRAY[taken.device_id], taken.request_id, event.data
        FROM taken CROSS JOIN LATERAL (
            SELECT 1 AS step, 'delivery.received' AS type, jsonb_build_object('via', taken.via) AS data
            WHERE taken.was = 'pending' AND taken.becomes = 'received'
            UNION ALL
            SELECT 2, 'delivery.settled', jsonb_build_object(
                'state', 'expired', 'withdrawn_by', NULL, 'result', NULL, 'late', false
            )
            WHERE taken.is_overdue
            UNION ALL
            SELECT 3, 'delivery.settled', jsonb_build_object(
                'state', taken.becomes, 'withdrawn_by', NULL, 'late', taken.late, 'result', jsonb_build_object(
                    'status', taken.status, 'message', taken.message, 'output', taken.output,
                    'finished_at', to_char(taken.finished_at AT TIME ZONE 'UTC', {RFC3339}),
                    'reported_at', to_char(statement_timestamp() AT TIME ZONE 'UTC', {RFC3339})
                )
            )
            WHERE taken.is_final AND NOT taken.duplicate
        ) event
        ORDER BY taken.position, event.step
    ), first_used AS (
        UPDATE devices_device device
        SET token_used_at = statement_timestamp()
        FROM judged
        WHERE judged.verdict = 'good' AND judged.first_use AND NOT %(is_known)s AND device.id = judged.device_id
            AND device.token_digest = judged.digest
    )
    SELECT json_agg(json_build_array(
        position, judged.verdict, found.delivery_id IS NOT NULL, found.is_apart,
        taken.becomes, taken.duplicate, taken.late, taken.keeps
    ))::text
    FROM judged LEFT JOIN found USING (position) LEFT JOIN taken USING (position)
"""  # noqa: S608


def record(records: Sequence[ReportRecord]) -> list[Outcome]:
    """Record reports in one transaction, at most one report for each delivery. Return for each report its result or its
    error.

    The first final report settles a delivery. Any report after a final report is a duplicate, and changes nothing. A
    final report after expiry or cancellation is late, and does not change the state. At most KEPT reports of a delivery
    are stored. Further reports are only counted, except the first final report.

    The errors are UnknownRequest, MayRetire, and the errors of the token: InvalidToken, DeviceRevoked, NeedsFullCheck.
    """
    *_, ((answer,),) = database.execute_batch(_HOLD, _TAKE, parameters=_parameters(records, is_known=False))
    outcomes: list[Outcome] = [UnknownRequest()] * len(records)
    for position, *judged in orjson.loads(answer or "[]"):
        outcomes[position] = _outcome(*judged)
    return outcomes


def _parameters(records: Sequence[ReportRecord], *, is_known: bool) -> dict[str, Any]:
    key = tokens.digest_keys()[0]
    rows = [
        {
            "position": position,
            "device_id": record.token.id,
            "request_id": record.request_id,
            "digest": "" if is_known else "\\x" + tokens.digest(record.token.text, key.value).hex(),
            "status": record.report.status,
            "message": record.report.message,
            "output": record.report.output,
            "via": record.report.via,
            "finished_at": record.report.finished_at,
            "push": record.report.push,
        }
        for position, record in enumerate(records)
    ]
    return {
        "digest_key": key.id,
        "is_known": is_known,
        "reports": orjson.dumps(rows).decode(),
        "extra_time": EXTRA_TIME,
        "kept": KEPT,
        "retiring": list(actions.RETIRING),
    }


def _outcome(verdict: str, is_known: bool, is_apart: bool | None, state: str, *flags: bool) -> Outcome:
    error = credentials.error_of(verdict)
    if error is not None:
        return error
    if not is_known:
        return UnknownRequest()
    return MayRetire() if is_apart else ReportResult(DeliveryState(state), *flags)


def record_report(device_id: UUID, request_id: UUID, report: ReportInput) -> ReportResult:
    """Record a report of a device whose token was valid, by the rules of record(). A successful `wipe` retires the
    device.

    Runs in the transaction of its caller. Raises UnknownRequest.
    """
    locked = Delivery.objects.select_for_update(no_key=True, of=("self",)).annotate(
        overdue=Q(open_until__lte=Now()), action=F("command__action")
    )
    delivery = locked.filter(command_id=request_id, device_id=device_id).first()
    if delivery is None:
        raise UnknownRequest
    one = ReportRecord(tokens.Token(device_id, ""), request_id, report)
    (answer,) = database.row(_TAKE, _parameters([one], is_known=True))
    outcome = _outcome(*orjson.loads(answer)[0][1:])
    if isinstance(outcome, Exception):
        raise outcome
    if report.status == ReportStatus.SUCCEEDED:
        _retire_if_wiped(delivery)
    return outcome


def _retire_if_wiped(delivery: Any) -> None:
    """Retire the device if the success of its wipe is stored. If the device was enrolled again since the wipe, do
    nothing.

    `delivery` has the values from before the report. A repeated report retires the device too. The reason: a worker of
    the previous version of NexMDM may have recorded the first report without retiring the device.
    """
    if delivery.action not in actions.RETIRING:
        return
    succeeded = Report.objects.filter(delivery=delivery.id, status=ReportStatus.SUCCEEDED, duplicate=False).exists()
    if not succeeded or delivery.withdrawn_by == Withdrawal.ENROLLMENT:
        return
    device_id = delivery.device_id
    was_open = delivery.state in OPEN and not delivery.overdue
    settled_at = None if was_open else delivery.settled_at or delivery.open_until
    if enrollment.retire_wiped(device_id, settled_at):
        queue.cancel_all_of(device_id, Withdrawal.REVOCATION, DeviceWas.RETIRED)
        transaction.on_commit(lambda: log.info("device.retired", device_id=str(device_id), by=delivery.action))


def is_last_word(device_id: UUID, request_id: UUID, report: ReportInput) -> bool:
    """Return whether a report repeats the success that retired its device. The old token may send only this report.

    If the device was enrolled again after the wipe, the wipe did not retire the device. In this case, return False.
    """
    return (
        report.status == ReportStatus.SUCCEEDED
        and Report.objects.filter(
            delivery__command=request_id,
            delivery__device=device_id,
            delivery__command__action__in=actions.RETIRING,
            delivery__device__retired_at__gt=Now() - LAST_WORD_TIME,
            delivery__settled_at__gt=F("delivery__device__enrolled_at"),
            status=ReportStatus.SUCCEEDED,
            duplicate=False,
        )
        .exclude(delivery__withdrawn_by=Withdrawal.ENROLLMENT)
        .exists()
    )
