"""Gates: limits on expensive work. A gate limits how many pieces of work run, how many pieces of work wait, and how
long a piece of work waits. Each piece of work has a key, such as the address of the client. A gate has limits for all
work, and lower limits for the work of one key. Use a gate only on an event loop.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import Counter as CounterMetric
from prometheus_client import Gauge

from nexmdm.common.domain_error import DomainError
from nexmdm.common.overload.per_loop import PerLoop

IN_USE: Final = Gauge("nexmdm_gate_in_use", "Work that a gate has let in.", ["gate"], multiprocess_mode="livesum")
WAITING: Final = Gauge("nexmdm_gate_waiting", "Work that waits at a gate.", ["gate"], multiprocess_mode="livesum")
REFUSED: Final = CounterMetric(
    "nexmdm_gate_refused", "Work that was refused: the gate was full, or the wait was too long.", ["gate"]
)


class GateFull(DomainError):
    detail = "Too many requests of this kind are running or waiting. Try again in a few seconds."


@dataclass(slots=True)
class _Waiter:
    key: Hashable
    admitted: asyncio.Future[None]


@dataclass(slots=True)
class _State:
    """The running and the waiting work of a gate on one event loop: numbers for each key, and the waiting work in
    order.
    """

    under_way: Counter[Hashable] = field(default_factory=Counter)
    waiting: Counter[Hashable] = field(default_factory=Counter)
    waiters: deque[_Waiter] = field(default_factory=deque)


class Gate:
    """Lets at most `at_once` pieces of work run. At most `waiting` further pieces wait. A piece that has waited for
    `seconds` is refused. Work above these limits is refused too.

    Of the work with one key, at most `at_once_per_key` pieces run and `waiting_per_key` pieces wait. Work of another
    key may overtake work whose key has reached its limit. `name` is the label of the gate in the metrics.
    """

    def __init__(
        self,
        name: str,
        *,
        at_once: int,
        waiting: int,
        seconds: float,
        waiting_per_key: int,
        at_once_per_key: int | None = None,
    ) -> None:
        self._at_once, self._at_once_per_key = at_once, at_once_per_key or at_once
        self._waiting, self._waiting_per_key = waiting, waiting_per_key
        self._seconds = seconds
        self._states = PerLoop(_State)
        self._in_use_metric, self._waiting_metric = IN_USE.labels(name), WAITING.labels(name)
        self._refused_metric = REFUSED.labels(name)

    @asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[bool]:
        """Run the block when the gate lets it in. The `as` value is True if the block had to wait. Raises GateFull."""
        waited = await self.enter(key)
        try:
            yield waited
        finally:
            self.leave(key)

    async def enter(self, key: Hashable, *, again: bool = False) -> bool:
        """Wait until the gate lets this work in. Return whether the work had to wait. Raises GateFull.

        The caller must call leave() afterwards. Set `again` for work that left the gate for a while and comes back:
        such work waits in front of all other work.
        """
        state = self._states.get()
        if self._has_room(state, key):
            self._admit(state, key)
            return False
        if not again:
            self.check(key)
        waiter = _Waiter(key, asyncio.get_running_loop().create_future())
        state.waiters.insert(0 if again else len(state.waiters), waiter)
        await self._wait(state, waiter)
        return True

    def check(self, key: Hashable) -> None:
        """Raise GateFull if the gate would refuse work with this key now."""
        state = self._states.get()
        if not self._has_room(state, key) and not self._may_wait(state, key):
            self._refused_metric.inc()
            raise GateFull

    def leave(self, key: Hashable) -> None:
        """End the turn of a piece of work, and let in the first waiting work that may run."""
        state = self._states.get()
        state.under_way[key] -= 1
        if not state.under_way[key]:
            del state.under_way[key]
        self._in_use_metric.dec()
        for waiter in state.waiters:
            if not waiter.admitted.done() and self._has_room(state, waiter.key):
                self._admit(state, waiter.key)
                waiter.admitted.set_result(None)
                return

    def _has_room(self, state: _State, key: Hashable) -> bool:
        return state.under_way.total() < self._at_once and state.under_way[key] < self._at_once_per_key

    def _may_wait(self, state: _State, key: Hashable) -> bool:
        return len(state.waiters) < self._waiting and state.waiting[key] < self._waiting_per_key

    def _admit(self, state: _State, key: Hashable) -> None:
        state.under_way[key] += 1
        self._in_use_metric.inc()

    async def _wait(self, state: _State, waiter: _Waiter) -> None:
        self._waiting_metric.inc()
        state.waiting[waiter.key] += 1
        try:
            async with asyncio.timeout(self._seconds):
                await waiter.admitted
        except BaseException as error:
            # The gate may have let this work in at the same moment at which its time ended.
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self.leave(waiter.key)
            if not isinstance(error, TimeoutError):
                raise
            self._refused_metric.inc()
            raise GateFull from None
        finally:
            state.waiters.remove(waiter)
            state.waiting[waiter.key] -= 1
            if not state.waiting[waiter.key]:
                del state.waiting[waiter.key]
            self._waiting_metric.dec()
