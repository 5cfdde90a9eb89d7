"""The lane for webhooks in a dispatcher. It sends to many receivers at the same time, and to each receiver in order.

The lane has a separate thread for its database work. While it waits for a receiver, it uses no database connection. So
no push and no other webhook waits for a receiver that hangs.
"""

import asyncio
import time
from contextlib import suppress
from typing import Final

import structlog
from asgiref.sync import ThreadSensitiveContext
from prometheus_client import Counter

from nexmdm.common import database
from nexmdm.common.postgresql.errors import Meaning, meaning_of, safe_message
from nexmdm.models import Webhook
from nexmdm.webhooks import leases
from nexmdm.webhooks.leases import Results
from nexmdm.webhooks.receivers import Receivers
from nexmdm.webhooks.run import Run

log = structlog.get_logger()

SLOTS: Final = 400
"""The largest number of webhooks that are served at the same time. During the wait for a receiver, a webhook needs only
a socket.
"""

FAILING_SLOTS: Final = SLOTS // 2
"""The largest number of failing webhooks that are served at the same time. A webhook is failing if its last attempt
failed. If many receivers hang, enough slots stay free for all other webhooks.
"""

FAILING_PER_LOOK: Final = 25
"""The largest number of failing webhooks that the lane takes in one look. All webhooks share the lane's thread. While
this thread reads the events of many failing webhooks, all remaining webhooks wait.
"""

POLL_SECONDS: Final = 0.3
"""The time between two looks for webhooks that have something to send."""

AFTER_FAILURE_SECONDS: Final = 1.0
"""The time in seconds between a look that failed and the next look."""

GRACE_SECONDS: Final = 2.0
"""The time in seconds that requests in progress may take when the dispatcher stops. A request that takes longer is cut
off. Its event is sent again by another dispatcher, or after the next start.
"""


OUTCOMES: Final = ("delivered", "refused", "no_response")
ATTEMPTS: Final = Counter("nexmdm_webhook_attempts", "Attempts to send an event to a webhook.", ["outcome"])
for _outcome in OUTCOMES:
    ATTEMPTS.labels(_outcome)  # With this call, the metric is 0 and not absent before the first attempt.

_in_thread: Final = database.run_in_db_thread_ungated


class Lane:
    """The lane of one dispatcher. Create it and use it on one event loop."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._cut_off: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receivers = Receivers()
        self._served: dict[asyncio.Task[None], Run] = {}

    def stop(self) -> None:
        """Begin no more requests. run() returns after requests in progress have ended and their results are stored."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve webhooks until stop() is called."""
        async with ThreadSensitiveContext():
            while not self._stopping.is_set():
                await self._pause(await self._look())
                self._receivers.close_idle()
            await self._end()

    async def run_once(self) -> None:
        """Serve each webhook that has something to send now, until an attempt fails or all its events are sent."""
        async with ThreadSensitiveContext():
            while await self._begin():
                await asyncio.wait(self._served)
            await self._end()

    async def _look(self) -> float:
        try:
            await self._begin()
        except Exception as error:  # noqa: BLE001  (whatever fails in a look, the lane continues)
            _log_failure(error)
            return AFTER_FAILURE_SECONDS
        return POLL_SECONDS

    async def _begin(self) -> bool:
        room = SLOTS - len(self._served)
        claimed_at = time.monotonic()
        failing = sum(run.webhook.failing_since is not None for run in self._served.values())
        failing_room = min(FAILING_PER_LOOK, max(0, FAILING_SLOTS - failing))
        claimed = await _in_thread(leases.claim, room, failing_room) if room else []
        for webhook in claimed:
            run = Run(webhook, self._receivers, self._stopping, self._cut_off)
            task = asyncio.create_task(self._serve(run, claimed_at), name="webhook")
            self._served[task] = run
            task.add_done_callback(self._served.pop)
        return bool(claimed)

    async def _serve(self, run: Run, renewed_at: float) -> None:
        try:
            while (next_renewed_at := await self._serve_page(run, renewed_at)) is not None:
                renewed_at = next_renewed_at
        except Exception as error:  # noqa: BLE001  (the lease ends by itself; then the webhook is served again)
            _log_failure(error, webhook_id=str(run.webhook.id))

    async def _serve_page(self, run: Run, renewed_at: float) -> float | None:
        """Send one page and store the results. Return the time at which the lease was renewed (monotonic time), or None
        if the run has ended.
        """
        page = await _in_thread(run.read)
        results, was_sent = await run.send(page, renewed_at)
        is_done = (page.is_last and was_sent) or bool(results.failure or results.obstacle)
        ends = is_done or self._stopping.is_set() or len(self._served) >= SLOTS
        stored_at = time.monotonic()
        stored = await _in_thread(leases.store, run.webhook, results, ends=ends)
        _log_attempts(run.webhook, results, stored)
        if stored is None or ends:
            return None
        run.webhook = stored
        return stored_at

    async def _end(self) -> None:
        if self._served:
            await asyncio.wait(self._served, timeout=GRACE_SECONDS)
        self._cut_off.set_result(None)
        if self._served:
            await asyncio.wait(self._served)
        self._receivers.close()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def _log_attempts(served: Webhook, results: Results, stored: Webhook | None) -> None:
    webhook_id = str(served.id)
    for one in results.attempts:
        outcome = "delivered" if one.is_delivered else "refused" if one.http_status else "no_response"
        ATTEMPTS.labels(outcome).inc()
        log.info(
            "webhook.attempt",
            webhook_id=webhook_id,
            event_id=one.event_id,
            type=one.type,
            outcome=outcome,
            http_status=one.http_status,
            latency_ms=one.latency_ms,
            detail=one.error,
        )
    if stored is None:
        log.warning("webhook.lease_lost", webhook_id=webhook_id)
    elif stored.paused and not served.paused and stored.revision == served.revision:
        log.warning("webhook.paused", webhook_id=webhook_id, reason=stored.why)


def _log_failure(error: Exception, **fields: str) -> None:
    if meaning_of(error) is not Meaning.UNAVAILABLE:
        log.error("webhooks.failed", error=type(error).__name__, detail=safe_message(error)[:200], **fields)
