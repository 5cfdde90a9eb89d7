"""The dispatcher: it claims due pushes, sends them to FCM, and passes FCM's answers to the recorder.

While PostgreSQL is away, the dispatcher claims no pushes, and does not send the claimed pushes that wait. The recorder
keeps FCM's answers until the recorder can write them (recorder.py). Each outage is logged once, with its reason
(nexmdm/common/postgresql/outage.py).
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final, Protocol

import structlog
from django.db import Error
from prometheus_client import Counter

from commands import actions, envelope
from commands.models import AttemptOutcome
from commands.push import circuit_breaker, fcm, fcm_outcomes, outbox, periodic
from commands.push.batch import Batch
from commands.push.circuit_breaker import Circuit
from commands.push.listener import POLL_SECONDS, Listener
from commands.push.outbox import Claimed, Sent
from commands.push.periodic import PeriodicTask
from commands.push.rate import Pace
from commands.push.recorder import Recorder
from commands.push.send_log import log_push
from nexmdm.common import database
from nexmdm.common.postgresql.errors import Meaning, meaning_of, safe_message

log = structlog.get_logger()

SLOTS: Final = 500
"""The largest number of sends at the same time, and of connections to FCM.

If FCM answers after 150 ms, 500 slots allow 3,300 pushes a second.
"""

BATCH: Final = 500
OUTSTANDING: Final = SLOTS + 2 * BATCH
"""The largest number of pushes that are claimed and not answered yet: two batches more than there are slots.

With two more batches, no slot waits for a claim.
"""

LEAST_ROOM: Final = BATCH // 2
"""The dispatcher claims pushes only if there is room for at least this number of further pushes.

A claim takes the same time for one push as for many pushes.
"""

GATHER_SECONDS: Final = 0.02
"""The pause after a claim that found pushes, in seconds.

In the pause, slots become free, and the next claim takes a hundred pushes instead of ten.
"""

AFTER_FAILURE_SECONDS: Final = 1.0
"""The pause after a claim that failed, in seconds."""

LEAVES_WITHIN_SECONDS: Final = outbox.LEASE.total_seconds() - fcm.TIMEOUT_SECONDS - 5
"""For this time (in seconds) after a claim, the claimed push may be sent.

The rest of the lease is for FCM's answer (TIMEOUT_SECONDS) and for recording the answer (5 s).
"""
CIRCUIT_OPENED = Counter("nexmdm_circuit_opened", "How often a dispatcher's circuit has opened, by cause.", ["cause"])
for _cause in circuit_breaker.CAUSES:
    CIRCUIT_OPENED.labels(_cause.value)  # Before a circuit first opens, the metric is 0 and not absent.


class FcmSender(Protocol):
    """The part of the FCM client that the dispatcher uses."""

    async def send(self, push: fcm.FcmMessage) -> fcm.FcmResponse:
        """Send one message. Errors of FCM or of the network are returned, not raised. Raises NotSent if the push was
        too late.
        """


class Dispatcher:
    """One dispatcher. Any number of dispatchers may run, on any number of machines. Row locks coordinate the
    dispatchers.
    """

    def __init__(
        self, sender: FcmSender | None, *, per_second: float, periodic_tasks: Sequence[PeriodicTask] = ()
    ) -> None:
        """Create a dispatcher that sends at most `per_second` pushes a second through `sender`.

        If `sender` is None, push is not configured, and only the periodic tasks run.
        """
        self.circuit = Circuit()
        self.pace = Pace(per_second)
        self._sender = sender
        self._periodic_tasks = periodic_tasks
        self._stopping = asyncio.Event()
        self._awake = asyncio.Event()
        self._slots = asyncio.Semaphore(SLOTS)
        self._sends: set[asyncio.Task[None]] = set()
        self.recorder = Recorder(self._awake.set)
        self._listener = Listener(self._awake.set)

    def stop(self) -> None:
        """Stop claiming pushes, and let run() return.

        run() returns when all claimed pushes are sent or given back, and all of FCM's answers are recorded.
        """
        self._stopping.set()
        self._awake.set()

    async def run(self) -> None:
        """Dispatch pushes and repeat the periodic tasks until stop()."""
        side_tasks = [
            asyncio.create_task(periodic.repeat(periodic_task), name=periodic_task.name)
            for periodic_task in self._periodic_tasks
        ]
        if self._sender is None:
            await self._stopping.wait()
        else:
            side_tasks.append(asyncio.create_task(self._listener.run(), name="listen"))
            await self._dispatch_and_record()
        for task in side_tasks:
            task.cancel()
        await asyncio.gather(*side_tasks, return_exceptions=True)

    async def run_once(self) -> None:
        """Run each periodic task once, and send the due pushes that the rate and the circuit allow.

        Return when FCM's answers to these pushes are recorded.
        """
        for periodic_task in self._periodic_tasks:
            await database.run_chore(periodic_task.work)
        if self._sender is not None:
            await self._dispatch_and_record(once=True)

    async def _dispatch_and_record(self, *, once: bool = False) -> None:
        recording = asyncio.create_task(self.recorder.run(), name="record")
        await self._dispatch(once=once)
        self.stop()
        if self._sends:
            await asyncio.wait(self._sends)
        self.recorder.close()
        await recording

    async def dispatch_once(self) -> int:
        """Claim the due pushes that may be sent now, and start to send them. Return the number of pushes."""
        now = time.monotonic()
        permitted = self.circuit.permits(now)
        room = OUTSTANDING - len(self._sends)
        room = min(room, BATCH, self.pace.permits(now)) if room >= LEAST_ROOM else 0
        room = room if permitted is None else min(room, permitted)
        if room <= 0:
            return 0
        claimed = await self._claim(room)
        if claimed:
            self.circuit.claimed(now)
            self.pace.spend(len(claimed))
        batch = Batch(claimed, now, is_probe=permitted is not None)
        for one in claimed:
            task = asyncio.create_task(self._send(one, batch))
            self._sends.add(task)
            task.add_done_callback(self._sent)
        return len(claimed)

    async def _claim(self, room: int) -> list[Claimed]:
        passed_over = self.circuit.passed_over
        claimed = await database.run_in_db_thread_ungated(outbox.claim_due, room, passed_over)
        return claimed or (await database.run_in_db_thread_ungated(outbox.claim_due, room) if passed_over else [])

    async def _dispatch(self, *, once: bool) -> None:
        while not self._stopping.is_set():
            self._awake.clear()
            all_recorded = not self._sends and not self.recorder.waiting
            try:
                started = await self.dispatch_once()
            except Exception as error:  # noqa: BLE001  (the loop's edge: whatever happens, dispatching goes on)
                _log_failure(error)
                started = 0
                await self._pause(AFTER_FAILURE_SECONDS)
            if started:
                await asyncio.sleep(GATHER_SECONDS)
            elif self.circuit.state == circuit_breaker.CLOSED and (wait := self.pace.seconds_to_next()):
                await self._pause(min(wait, POLL_SECONDS))
            elif once and all_recorded:
                return
            else:
                await self._sleep_until_woken(self._listener.poll_seconds)

    async def _send(self, claimed: Claimed, batch: Batch) -> None:
        """Send a push when a slot is free. If the push must not be sent any more, call _give_back() instead."""
        async with self._slots:
            if self.circuit.state == circuit_breaker.OPEN and not batch.is_probe:
                self._give_back(
                    claimed, "the circuit opened while the push waited for its turn", fcm_outcomes.PROBE_SECONDS
                )
            elif self._stopping.is_set() and not batch.is_fresh:
                self._give_back(claimed, "the dispatcher stopped while the push waited for its turn")
            elif reason := await self._reason_to_stay(claimed, batch):
                self._give_back(claimed, reason)
            else:
                await self._send_now(claimed, batch.claimed_at)

    async def _reason_to_stay(self, claimed: Claimed, batch: Batch) -> str:
        try:
            is_wanted = await batch.take(claimed)
        except Error as error:
            _log_failure(error)
            return "the dispatcher could not check in the database whether the push is still needed"
        return "" if is_wanted else "the push was withdrawn while it waited for its turn"

    async def _send_now(self, claimed: Claimed, claimed_at: float) -> None:
        assert self._sender is not None
        data = envelope.seal(claimed.content, claimed.recipient)
        expires_at, leaves_before = claimed_at + claimed.seconds_left, claimed_at + LEAVES_WITHIN_SECONDS
        push = fcm.FcmMessage(
            claimed.push_kind, claimed.push_token, data, claimed.priority, expires_at, leaves_before,
            direct_boot=claimed.content.action in actions.DIRECT_BOOT,
        )  # fmt: skip
        try:
            answer = await self._sender.send(push)
        except fcm.NotSent as reason:
            self._give_back(claimed, str(reason))
        else:
            sent = self._decided(claimed, answer, expires_at - time.monotonic())
            log_push(sent)
            self.recorder.add(sent)

    def _give_back(self, claimed: Claimed, reason: str, retry_in_seconds: float = 0.0) -> None:
        """Close an attempt whose push was not sent. The attempt does not count as a failure.

        If the push is still needed, the push is due again after `retry_in_seconds`.
        """
        request_id, device_id = str(claimed.content.request_id), claimed.recipient.device_id
        log.info("command.not_sent", request_id=request_id, device_id=device_id, attempt=claimed.number, detail=reason)
        detail = f"not sent: {reason}"
        unsent = Sent(
            claimed, AttemptOutcome.BLOCKED, detail=detail, retry_in_seconds=retry_in_seconds, is_given_back=True
        )
        self.recorder.add(unsent)

    def _decided(self, claimed: Claimed, answer: fcm.FcmResponse, seconds_left: float) -> Sent:
        decision = fcm_outcomes.decide(answer, claimed.failures, seconds_left)
        detail = "; ".join(filter(None, (answer.fault, decision.advice)))
        if answer.http_status == HTTPStatus.TOO_MANY_REQUESTS:
            self.pace.slow_down(time.monotonic())
        message = f"FCM answered {answer.http_status} {answer.fcm_error}".strip() if answer.http_status else ""
        self._note(claimed, decision, ": ".join(filter(None, (message, detail))))
        return Sent(
            claimed,
            decision.outcome,
            answer.http_status,
            answer.fcm_error,
            answer.message_id,
            answer.latency_ms,
            detail,
            decision.retry_in_seconds,
        )

    def _note(self, claimed: Claimed, decision: fcm_outcomes.RetryDecision, reason: str) -> None:
        """Report the result of a send to the circuit. If the circuit opens or closes, write a log line."""
        device_id, delivery_id = claimed.recipient.device_id, claimed.delivery_id
        now = time.monotonic()
        if not self.circuit.note(decision.fault, reason, now, device_id=device_id, delivery_id=delivery_id):
            return
        level = log.info
        if self.circuit.state == circuit_breaker.OPEN:
            level = log.error
            CIRCUIT_OPENED.labels(self.circuit.cause.value).inc()
        level("push.circuit", state=self.circuit.state, cause=self.circuit.cause.value, reason=self.circuit.reason)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sends.discard(task)
        self._awake.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("dispatch.send_failed", error=type(error).__name__, detail=safe_message(error)[:200])

    async def _sleep_until_woken(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._awake.wait()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def _log_failure(error: Exception) -> None:
    if meaning_of(error) is not Meaning.UNAVAILABLE:
        log.error("dispatch.failed", error=type(error).__name__, detail=safe_message(error)[:200])
