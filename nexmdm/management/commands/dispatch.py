"""The command `manage.py dispatch`, which runs a dispatcher.

A dispatcher sends due pushes, sends events to webhooks, and runs the periodic tasks. Any number of dispatchers may run
at the same time.
"""

import asyncio
import signal
from argparse import ArgumentParser
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

import structlog
import uvloop
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import Error
from prometheus_client import start_http_server

from commands import finishing, retention
from commands.push import attempts, fcm, outbox
from commands.push.dispatcher import SLOTS, Dispatcher
from commands.push.periodic import PeriodicTask
from devices import credentials, push_targets
from devices.identity import comparison_keys
from devices.presence import spans
from nexmdm.audit import chain, entries
from nexmdm.auth import rate_limit_windows, stored_answers
from nexmdm.common import gc_tuning
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.overload.gates import GateFull
from nexmdm.config import checks
from nexmdm.events import epochs, feed
from nexmdm.monitoring import dispatcher_status, metrics, push_health
from nexmdm.standalone import parent_watch
from nexmdm.webhooks import attempts as webhook_attempts
from nexmdm.webhooks.lane import Lane

log = structlog.get_logger()

SWEEP_BATCH = 5000
RETENTION_BATCH = 2000
AUDIT_WITNESS_EVERY_SECONDS = 3600
"""The time between two witnesses in the log, in seconds. A witness is the id and the hash of the newest audit entry.

If an entry is changed before the next witness is logged, the log does not reveal the change."""
SHARED_BATCH = 1000
HOURS_BATCH = 24
COLLECT_AFTER = 100_000
"""The number of new objects that starts a garbage collection.

The number is high, because one claim of 500 pushes creates thousands of objects.
"""


class Command(BaseCommand):
    """Run a dispatcher until SIGTERM or SIGINT. Before it ends, the dispatcher finishes the pushes in progress."""

    help = "Send due pushes through Firebase Cloud Messaging and events to webhooks, expire commands, delete old rows."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics on this port of 127.0.0.1")

        parser.add_argument(
            "--once",
            action="store_true",
            help="send the pushes and the events for webhooks that are due now, run each periodic task once, and exit",
        )

    def handle(self, *_: object, metrics_port: int | None, once: bool, **__: Any) -> None:
        """Check the database connections, and run the dispatcher."""
        checks.refuse(checks.connections())
        if metrics_port is not None:
            start_http_server(metrics_port, addr="127.0.0.1")
        uvloop.run(_run(once=once))


async def _run(*, once: bool) -> None:
    async with AsyncExitStack() as stack:
        sender = None
        if settings.FIREBASE_SERVICE_ACCOUNT is not None:
            sender = await stack.enter_async_context(
                fcm.Sender(settings.FIREBASE_SERVICE_ACCOUNT, settings.FCM_BASE_URL, connections=SLOTS)
            )
        periodic_tasks: list[PeriodicTask] = []
        dispatcher = Dispatcher(sender, per_second=settings.FCM_MAX_PER_SECOND, periodic_tasks=periodic_tasks)
        periodic_tasks += _periodic_tasks(dispatcher)
        lane = Lane()
        if once:
            await dispatcher.run_once()
            await lane.run_once()
            return

        def stop() -> None:
            dispatcher.stop()
            lane.stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        parent_watch.watch()
        gc_tuning.freeze_startup_objects(COLLECT_AFTER)
        log.info("dispatch.started", name=dispatcher_status.NAME, push="ok" if sender else "unconfigured")
        await asyncio.gather(dispatcher.run(), lane.run())
        # If the database is not available, the other processes notice 8 s later that this dispatcher has stopped.
        with suppress(Error, GateFull):
            await run_in_db_thread(dispatcher_status.leave)
    log.info("dispatch.stopped", name=dispatcher_status.NAME)


def _periodic_tasks(dispatcher: Dispatcher) -> list[PeriodicTask]:
    kept = timedelta(days=settings.RETENTION_DAYS)
    events_kept = timedelta(days=settings.EVENT_RETENTION_DAYS)

    def seen() -> None:
        others = dispatcher_status.note_seen(dispatcher.circuit)
        dispatcher.pace.per_second = settings.FCM_MAX_PER_SECOND / others
        metrics.note_memory("dispatch")

    return [
        PeriodicTask("seen", dispatcher_status.SEEN_EVERY_SECONDS, seen),
        PeriodicTask("expire", 1, lambda: finishing.expire(SWEEP_BATCH), SWEEP_BATCH),
        PeriodicTask("ends of commands", 1.5, lambda: finishing.finish_recent(SWEEP_BATCH), SWEEP_BATCH),
        PeriodicTask("ends of older commands", 60, lambda: finishing.finish(SWEEP_BATCH), SWEEP_BATCH),
        PeriodicTask("ends of presence", 10, lambda: spans.end_silent(SWEEP_BATCH), SWEEP_BATCH),
        PeriodicTask("abandoned attempts", 10, lambda: attempts.close_abandoned(SWEEP_BATCH), SWEEP_BATCH),
        PeriodicTask("comparison keys", 10, lambda: comparison_keys.fill(RETENTION_BATCH), RETENTION_BATCH),
        PeriodicTask("shared push tokens", 3600, lambda: outbox.settle_shared_push_tokens(SHARED_BATCH), SHARED_BATCH),
        PeriodicTask("unused credentials", 60, credentials.forget_unused_next),
        PeriodicTask("stored answers", 60, stored_answers.forget_old_answers),
        PeriodicTask("counters", 60, rate_limit_windows.forget_expired),
        PeriodicTask("retention of deliveries", 10, lambda: retention.prune(kept, RETENTION_BATCH), RETENTION_BATCH),
        PeriodicTask("retention of long histories", 10, lambda: retention.trim(kept, RETENTION_BATCH), 1),
        PeriodicTask(
            "retention of dead push tokens", 60, lambda: push_targets.prune(kept, RETENTION_BATCH), RETENTION_BATCH
        ),
        PeriodicTask("restored events", 10, epochs.move, epochs.BATCH),
        PeriodicTask("retention of events", 10, lambda: feed.prune(events_kept, RETENTION_BATCH), RETENTION_BATCH),
        PeriodicTask(
            "retention of webhooks' attempts",
            10,
            lambda: webhook_attempts.prune(events_kept, RETENTION_BATCH),
            RETENTION_BATCH,
        ),
        PeriodicTask("retention of presence", 60, lambda: spans.prune(events_kept, RETENTION_BATCH), RETENTION_BATCH),
        PeriodicTask("push health", 60, lambda: push_health.count_hours(HOURS_BATCH), HOURS_BATCH),
        PeriodicTask("retention of push health", 60, lambda: push_health.prune(kept, RETENTION_BATCH), RETENTION_BATCH),
        PeriodicTask("witness of the audit", AUDIT_WITNESS_EVERY_SECONDS, _log_audit_witness),
        PeriodicTask("retention of the audit", 10, lambda: entries.prune(kept, RETENTION_BATCH), RETENTION_BATCH),
    ]


def _log_audit_witness() -> None:
    if (place := chain.newest()) is not None:
        log.info("audit.witness", witness=str(place))
