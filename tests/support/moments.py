"""Time in tests without waiting: many events at the same moment, or all of them some time ago."""

import asyncio
import time
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

from asgiref.sync import async_to_sync, sync_to_async
from django.apps import apps
from django.db import connection, transaction
from django.db.models import DateTimeField, F

from nexmdm.common import database
from tests.support.actors import Admin, Answer, Client, encode

P = ParamSpec("P")
R = TypeVar("R")

STEPS_INTO_A_FLUSH = 5
"""After this number of turns of the event loop, a heartbeat's flush has begun."""


def in_one_batch(*calls: tuple[str, Any]) -> list[Answer]:
    """Send heartbeats (device token, body) from one running loop, so that one flush takes them all."""
    return _at_once("/v1/heartbeat", *calls)


def reports_in_one_batch(*calls: tuple[str, Any]) -> list[Answer]:
    """Send reports (device token, body) from one running loop, so that one flush takes the first of each delivery."""
    return _at_once("/v1/action-result", *calls)


def _at_once(path: str, *calls: tuple[str, Any]) -> list[Answer]:
    async def gathered() -> list[Answer]:
        return await asyncio.gather(*(_post(path, token, body) for token, body in calls))

    return async_to_sync(gathered)()


def signed_in_one_batch(admin: Admin, *calls: tuple[str, Any, str | None]) -> list[Answer]:
    """Send signed POSTs (target, body, idempotency key or None) from one running loop, so that they can share."""

    async def gathered() -> list[Answer]:
        return await asyncio.gather(*(_post_signed(admin, *call) for call in calls))

    return async_to_sync(gathered)()


async def _post_signed(admin: Admin, target: str, body: Any, key: str | None) -> Answer:
    raw = encode(body)
    return await Client().arequest("POST", target, raw, admin.headers("POST", target, raw, idempotency_key=key))


def in_batches(
    batches: Sequence[Sequence[tuple[str, Any]]], *, before_the_last: Callable[[], None]
) -> list[list[Answer]]:
    """Send batches of heartbeats one after the other from one running loop; do some work before the last one."""

    async def one_by_one() -> list[list[Answer]]:
        answers = []
        for number, calls in enumerate(batches, start=1):
            if number == len(batches):
                await sync_to_async(before_the_last)()
            answers.append(await asyncio.gather(*(_heartbeat(token, body) for token, body in calls)))
        return answers

    return async_to_sync(one_by_one)()


def one_after_the_other(*calls: tuple[str, Any]) -> list[Answer]:
    """Send heartbeats from one running loop, each while the previous one is in progress. So each has its own flush."""

    async def begun() -> list[Answer]:
        tasks = []
        for token, body in calls:
            tasks.append(asyncio.create_task(_heartbeat(token, body)))
            for _ in range(STEPS_INTO_A_FLUSH):
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    return async_to_sync(begun)()


async def _heartbeat(token: str, body: Any) -> Answer:
    return await _post("/v1/heartbeat", token, body)


async def _post(path: str, token: str, body: Any) -> Answer:
    return await Client().arequest("POST", path, body, {"Authorization": f"Bearer {token}"})


@contextmanager
def thread_hops() -> Iterator[list[str]]:
    """Collect the work that event loops pass to threads."""
    hops: list[str] = []
    handed = BaseEventLoop.run_in_executor

    def counted(loop: Any, executor: Any, work: Any, *args: Any) -> Any:
        hops.append(repr(work))
        return handed(loop, executor, work, *args)

    with patch.object(BaseEventLoop, "run_in_executor", counted):
        yield hops


def in_parallel(calls: Sequence[Callable[[], Answer]], *, all_wait_for: str) -> list[Answer]:
    """Make calls from as many threads, each with its own connection; return their answers in order.

    No call may write to the table `all_wait_for` before every call waits, either for this table or for another call. So
    each call has already read the rows by which it decides, unless something prevents such an early read.
    """
    with ThreadPoolExecutor(len(calls)) as threads:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f'LOCK TABLE "{all_wait_for}" IN SHARE MODE')
            answers = [threads.submit(releasing_connection, call) for call in calls]
            deadline = time.monotonic() + 5
            while waiting() < len(calls):
                assert time.monotonic() < deadline, f"{waiting()} of {len(calls)} calls wait"
        return [answer.result() for answer in answers]


def overtaken(first: Callable[[], object], then: Callable[[], R]) -> R:
    """Do one thing; before its transaction commits, do another thing in a thread with its own connection.

    The commit comes when the other thing waits for it, or is done without it. Returns the result of the other thing.
    """
    with ThreadPoolExecutor(1) as thread:
        with transaction.atomic():
            first()
            overtaking = thread.submit(releasing_connection, then)
            deadline = time.monotonic() + 5
            while not overtaking.done() and not waiting():
                assert time.monotonic() < deadline, "it neither waits nor ends"
        return overtaking.result()


def releasing_connection(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do some work in a thread of the test, and return its connection to the pool."""
    try:
        return work(*args, **kwargs)
    finally:
        database.release_connections()


def waiting() -> int:
    """Return how many connections wait for a lock."""
    with connection.cursor() as cursor:
        # pg_stat_activity cannot be used: a transaction sees only the state of its first read.
        cursor.execute("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
        (count,) = cursor.fetchone()
    return int(count)


def let_pass(**length: float) -> None:
    """Let time pass (`hours=1`): move all times of devices and commands in the database into the past."""
    for app in ("devices", "commands"):
        for model in apps.get_app_config(app).get_models():
            times = [field.name for field in model._meta.fields if isinstance(field, DateTimeField)]
            if times:
                model._default_manager.update(**{name: F(name) - timedelta(**length) for name in times})
