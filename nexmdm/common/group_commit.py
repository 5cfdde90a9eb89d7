"""Group commit: items join a batch. A batch is flushed as soon as the flush before it has ended.

In an idle process, an item is flushed immediately. In a busy process, a batch fills while the flush before it runs. One
flush is one transaction. The outcome of an item is returned after the commit.
"""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, Generic, Protocol, Self, TypeVar

import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import DataError, IntegrityError, InterfaceError, OperationalError, connection

from nexmdm.common import database
from nexmdm.common.domain_error import DomainError
from nexmdm.common.overload.connection_turns import RESERVED_CONNECTIONS
from nexmdm.common.postgresql import deadline
from nexmdm.common.postgresql.errors import Meaning, meaning_of

log = structlog.get_logger()

BUSY_SECONDS: Final = 1
"""A process is busy if a flush begins within this time (in seconds) after the last flush. A busy process keeps its
connection.
"""

HAS_OWN_THREAD = True
"""Whether each group commit has a separate thread, so that no group commit waits for another group commit.

Tests that run in one transaction need one thread for everything, and set this to False.
"""

_EXPECTED_PER_SECOND: Final = 1000.0
_REMEMBERED_FLUSHES: Final = 20
_SHORTEST_SECONDS: Final = 0.001


MOST_SPREAD_SECONDS: Final = 60
"""The longest time in seconds after which a client is asked to send a refused item again."""


class Overloaded(DomainError):
    detail = "Too many requests are waiting. Try again after the number of seconds in Retry-After."

    def __init__(self, retry_after_seconds: int = 1) -> None:
        super().__init__()
        self.retry_after_seconds = retry_after_seconds


class Draining(DomainError):
    detail = "This server process is stopping. Send the request again. Another process will answer."


class ClientLeft(DomainError):
    detail = "The client closed its connection while its request waited. Nothing was recorded."


class Batchable(Protocol):
    """An item that can wait in a batch."""

    def merge(self, later: Self) -> bool:
        """Merge a later item with the same key into this item. Return False if the later item must be recorded
        separately.
        """

    def log_fields(self) -> dict[str, str]:
        """Return the fields that identify the item in a log line. The fields must contain no secret."""

    def is_wanted(self) -> bool:
        """Return whether a client still waits for this item. An item that no client waits for is not recorded."""


Item = TypeVar("Item", bound=Batchable)
Outcome = TypeVar("Outcome")
R = TypeVar("R")


@dataclass(slots=True)
class _Waiting(Generic[Item, Outcome]):
    """An item of the next batch, and the futures of the callers that wait for it. A merged item has several callers."""

    item: Item
    futures: list[asyncio.Future[Outcome | Exception]]
    since: float
    """When the item came, in monotonic time."""

    later: "deque[_Waiting[Item, Outcome]] | None" = None
    """Later items with the same key. Each of them is recorded in a later batch."""


class GroupCommit(Generic[Item, Outcome]):
    """Collects items in batches, and flushes one batch after the other. It belongs to one event loop.

    - `flush` records a batch, in a thread. It gets items sorted by key, and at most one item for each key. It returns
      one outcome or error for each item. If a deadlock ends `flush`, `flush` is called again. If PostgreSQL refuses the
      data of a batch, `flush` is called for each item alone.
    - `flushed` is called on the event loop after each flush, with the outcomes and the seconds that the flush took.
    - `batch_size` is the largest number of items in a batch.
    - `waiting_limit`: if this number of items wait, further items are refused.
    - `longest_wait_seconds` is another limit. A further item is refused if more than one batch waits, and the first
      item has waited for longer than this time.

    Items with the same key are recorded in the order in which they came.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Sequence[Outcome | Exception]],
        flushed: Callable[[Sequence[Outcome | Exception], float], None],
        *,
        batch_size: int,
        waiting_limit: int,
        longest_wait_seconds: float = math.inf,
    ) -> None:
        self._flush_items = flush
        self._flushed = flushed
        self._batch_size = batch_size
        self._waiting_limit = waiting_limit
        self._longest_wait_seconds = longest_wait_seconds
        self._filling: dict[str, _Waiting[Item, Outcome]] = {}
        self._waiting = 0
        self._flushers: dict[int, asyncio.Task[None]] = {}
        """The tasks that flush. The key of a task is a number of items. The task takes a batch only if at least this
        number of items wait.
        """

        self._draining = False
        self._flushed_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, "group-commit") if HAS_OWN_THREAD else None
        self._refused = 0.0
        self._per_second = _EXPECTED_PER_SECOND

    async def submit(self, key: str, item: Item) -> Outcome | Exception:
        """Record an item. After the commit, return its outcome or its error. Raises Overloaded, Draining.

        The error is ClientLeft if the client of the item has left. The error is returned and not raised, because raised
        errors make work for the garbage collector.
        """
        if self._draining:
            raise Draining
        if (seconds := self.seconds_if_full()) is not None:
            raise Overloaded(seconds)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome | Exception] = loop.create_future()
        self._add(key, item, future)
        self._waiting += 1
        self._start_flusher(1)
        # If the next batch is full, a second task gives it to the thread now, and does not wait for a busy loop.
        self._start_flusher(self._batch_size)
        return await future

    def seconds_if_full(self) -> int | None:
        """Return None if the queue has room for an item. If the queue has no room, return the seconds after which to
        try again.
        """
        return self._when_to_come_again() if self._is_full() else None

    def _is_full(self) -> bool:
        if self._waiting >= self._waiting_limit:
            return True
        if len(self._filling) <= self._batch_size:
            return False
        first = next(iter(self._filling.values()))
        return time.monotonic() - first.since > self._longest_wait_seconds

    def _start_flusher(self, least: int) -> None:
        if len(self._filling) >= least and least not in self._flushers:
            # Use a new context: the flusher must not keep the context of the first request.
            task = asyncio.get_running_loop().create_task(self._flush_while_waiting(least), context=Context())
            self._flushers[least] = task

    def _when_to_come_again(self) -> int:
        self._refused += 1
        all_of_them = (self._waiting + self._refused) / self._per_second
        return random.randint(1, max(2, min(MOST_SPREAD_SECONDS, math.ceil(all_of_them))))

    def _add(self, key: str, item: Item, future: asyncio.Future[Outcome | Exception]) -> None:
        first = self._filling.get(key)
        if first is None:
            self._filling[key] = _Waiting(item, [future], time.monotonic())
            return
        last = first.later[-1] if first.later else first
        if last.item.merge(item):
            last.futures.append(future)
            return
        if first.later is None:
            first.later = deque()
        first.later.append(_Waiting(item, [future], time.monotonic()))

    async def drain(self) -> None:
        """Accept no more items. Return when all accepted items have their outcomes."""
        self._draining = True
        await asyncio.gather(*self._flushers.values())
        await self._in_thread(database.release_connections)
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    async def _flush_while_waiting(self, least: int) -> None:
        try:
            while len(self._filling) >= least:
                if batch := self._take():
                    await self._flush(batch, min(waiting.since for waiting in batch) + database.WAIT_SECONDS)
        finally:
            del self._flushers[least]

    def _take(self) -> list[_Waiting[Item, Outcome]]:
        batch = []
        for key in sorted(islice(self._filling, self._batch_size)):
            waiting = self._filling.pop(key)
            if waiting.later:
                following = waiting.later.popleft()
                following.later = waiting.later
                self._filling[key] = following
            if waiting.item.is_wanted():
                batch.append(waiting)
            else:
                self._answer(waiting, ClientLeft())
        return batch

    async def _flush(self, batch: list[_Waiting[Item, Outcome]], ends_at: float) -> None:
        outcomes: Sequence[Outcome | Exception]
        seconds = _SHORTEST_SECONDS
        try:
            items = [waiting.item for waiting in batch]
            outcomes, seconds = await self._in_thread(partial(database.work_until, ends_at, self._timed_work, items))
        except Exception as error:  # noqa: BLE001  (no caller may wait for ever: all of the batch get the error)
            outcomes = [error] * len(batch)
            if meaning_of(error) is Meaning.UNAVAILABLE:
                self._answer_waiting(error)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            self._answer(waiting, outcome)
        self._flushed(outcomes, seconds)
        self._refused = max(0.0, self._refused - len(batch))
        self._per_second += (len(batch) / max(seconds, _SHORTEST_SECONDS) - self._per_second) / _REMEMBERED_FLUSHES

    async def _in_thread(self, work: Callable[[], R]) -> R:
        if self._thread is None:
            return await sync_to_async(work)()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _timed_work(self, items: Sequence[Item]) -> tuple[Sequence[Outcome | Exception], float]:
        started = time.perf_counter()
        return self._work(items), time.perf_counter() - started

    def _work(self, items: Sequence[Item]) -> Sequence[Outcome | Exception]:
        # The network may have dropped an idle connection silently, so the pool checks each connection before its use.
        # This check is expensive, so a busy process keeps its connection for the next flush.
        if time.monotonic() - self._flushed_at > BUSY_SECONDS:
            database.release_connections()
        kept = connection.connection is not None
        busy = False
        try:
            outcomes = self._flush_or_each(items)
            busy = time.monotonic() - self._flushed_at < BUSY_SECONDS
        except (OperationalError, InterfaceError):
            if not kept or database.is_connected() or deadline.seconds_left() == 0:
                raise
            # The kept connection was broken. It does no harm to record the items twice.
            database.release_connections()
            outcomes = self._flush_or_each(items)
        finally:
            self._flushed_at = time.monotonic()
            # In a very small pool, other work would wait for a kept connection.
            if not busy or settings.DATABASE_POOL_SIZE <= RESERVED_CONNECTIONS:
                database.release_connections()
        return outcomes

    def _flush_or_each(self, items: Sequence[Item]) -> Sequence[Outcome | Exception]:
        try:
            return database.retry_on_deadlock(partial(self._flush_items, items))
        except (DataError, IntegrityError) as error:
            if len(items) == 1:
                log.error("group_commit.unrecordable", error=type(error).__name__, **items[0].log_fields())
                return [error]
        return [outcome for item in items for outcome in self._flush_or_each([item])]

    def _answer_waiting(self, error: Exception) -> None:
        waiting, self._filling = self._filling, {}
        for first in waiting.values():
            for one in (first, *(first.later or ())):
                self._answer(one, error)

    def _answer(self, waiting: _Waiting[Item, Outcome], outcome: Outcome | Exception) -> None:
        self._waiting -= len(waiting.futures)
        for future in waiting.futures:
            if not future.done():
                future.set_result(outcome)
