"""Group commit: items join a batch, which is flushed as soon as the flush before it has ended.

An idle process flushes immediately; in a busy process, a batch fills while the flush before it runs. No timer is
necessary. One flush is one transaction, and every outcome is returned after its commit.
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
"""If a flush follows another one within this time (in seconds), a further flush is expected soon."""

HAS_OWN_THREAD = True
"""Whether each group commit has its own thread, so that no group commit waits for another.

(Tests that are one transaction must do everything in one thread.)
"""

_EXPECTED_PER_SECOND: Final = 1000.0
_REMEMBERED_FLUSHES: Final = 20
_SHORTEST_SECONDS: Final = 0.001


MOST_SPREAD_SECONDS: Final = 60
"""The longest time over which the repeats of refused items are spread."""


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
        """Merge a later item with the same key into this one; return False if it must be recorded separately."""

    def log_fields(self) -> dict[str, str]:
        """Return the fields that identify the item in a log line: nothing secret."""

    def is_wanted(self) -> bool:
        """Return whether a client still waits for this item; if not, the item is not recorded."""


Item = TypeVar("Item", bound=Batchable)
Outcome = TypeVar("Outcome")
R = TypeVar("R")


@dataclass(slots=True)
class _Waiting(Generic[Item, Outcome]):
    """One item of the next batch, and the callers that wait for it (several, if items were merged)."""

    item: Item
    futures: list[asyncio.Future[Outcome | Exception]]
    since: float
    """A time of time.monotonic()."""

    later: "deque[_Waiting[Item, Outcome]] | None" = None
    """Later items with the same key, each for a batch of its own."""


class GroupCommit(Generic[Item, Outcome]):
    """The next batch of one event loop, and the task that flushes it.

    `flush` runs in a thread. It gets items sorted by key, at most one for each key, and returns an outcome or an error
    for each item. `flush` is called again after a deadlock, and for each item alone if the data of one item does not
    fit the database. Items of one key are recorded in the order in which they came. `flushed` is called on the loop
    with the outcomes of a batch, and the seconds that its flush took.

    An item is refused if `waiting_limit` items wait. It is also refused if more than one batch waits, and the first
    item has waited for `longest_wait_seconds`, because the new item would wait as long.
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
        """The tasks that flush. The key is the least number of waiting items with which the task takes a batch."""

        self._draining = False
        self._flushed_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, "group-commit") if HAS_OWN_THREAD else None
        self._refused = 0.0
        self._per_second = _EXPECTED_PER_SECOND

    async def submit(self, key: str, item: Item) -> Outcome | Exception:
        """Record an item; return its outcome or its error after the commit (ClientLeft: its client has left).

        Raises Overloaded, Draining.

        The error is returned, not raised, because few callers need an exception, and each raised error makes work for
        the garbage collector.
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
        # So the thread gets its next batch, if that is full, without waiting for a turn of a busy loop.
        self._start_flusher(self._batch_size)
        return await future

    def seconds_if_full(self) -> int | None:
        """Return the seconds after which a client should try again; None if the queue has a place for its item."""
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
        """Return a random number of seconds.

        The maximum is the time in which all recently refused items can be recorded.
        """
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
        """Accept no more items; return when all accepted ones are answered."""
        self._draining = True
        await asyncio.gather(*self._flushers.values())
        await self._in_thread(database.release_connections)
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    async def _flush_while_waiting(self, least: int) -> None:
        """Flush batches while `least` items wait. Batches are flushed in the order in which they were formed."""
        try:
            while len(self._filling) >= least:
                if batch := self._take():
                    await self._flush(batch, min(waiting.since for waiting in batch) + database.WAIT_SECONDS)
        finally:
            del self._flushers[least]

    def _take(self) -> list[_Waiting[Item, Outcome]]:
        """Return the next batch: the first item of each key, except items whose client has left."""
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
        """Run a function on the database; the connection of the thread stays open."""
        if self._thread is None:
            return await sync_to_async(work)()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _timed_work(self, items: Sequence[Item]) -> tuple[Sequence[Outcome | Exception], float]:
        started = time.perf_counter()
        return self._work(items), time.perf_counter() - started

    def _work(self, items: Sequence[Item]) -> Sequence[Outcome | Exception]:
        """Flush in a thread. A busy process keeps the connection for the next flush: the pool's check is expensive.

        If the pool is so small that other work would wait for this connection, the connection is not kept. If a kept
        connection is broken, the items are flushed again over a new connection, which fails too if PostgreSQL has
        stopped. To record items twice does no harm. The network may have dropped an idle connection silently. So an
        idle connection goes back to the pool, which checks it.
        """
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
            database.release_connections()
            outcomes = self._flush_or_each(items)
        finally:
            self._flushed_at = time.monotonic()
            if not busy or settings.DATABASE_POOL_SIZE <= RESERVED_CONNECTIONS:
                database.release_connections()
        return outcomes

    def _flush_or_each(self, items: Sequence[Item]) -> Sequence[Outcome | Exception]:
        """Flush items.

        If PostgreSQL refuses the data of an item, flush each item alone, so that only this item fails.
        """
        try:
            return database.retry_on_deadlock(partial(self._flush_items, items))
        except (DataError, IntegrityError) as error:
            if len(items) == 1:
                log.error("group_commit.unrecordable", error=type(error).__name__, **items[0].log_fields())
                return [error]
        return [outcome for item in items for outcome in self._flush_or_each([item])]

    def _answer_waiting(self, error: Exception) -> None:
        """Return the error of this flush also to the callers of the next flush, because they have waited as long."""
        waiting, self._filling = self._filling, {}
        for first in waiting.values():
            for one in (first, *(first.later or ())):
                self._answer(one, error)

    def _answer(self, waiting: _Waiting[Item, Outcome], outcome: Outcome | Exception) -> None:
        self._waiting -= len(waiting.futures)
        for future in waiting.futures:
            if not future.done():
                future.set_result(outcome)
