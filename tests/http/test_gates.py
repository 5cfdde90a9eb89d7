"""Gates: how much expensive work runs, how much work waits, and which work is refused."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from prometheus_client import REGISTRY

from nexmdm.common.overload.gates import Gate, GateFull

NAME = "of-this-test"


def gate(*, at_once: int = 1, waiting: int = 10, seconds: float = 60, **of_a_key: int) -> Gate:
    return Gate(NAME, at_once=at_once, waiting=waiting, seconds=seconds, **{"waiting_per_key": 10, **of_a_key})


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"gate": NAME}) or 0.0


async def begun(*work: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Start pieces of work one after the other; return when none of them can continue without help."""
    tasks = []
    for one in work:
        tasks.append(asyncio.create_task(one))
        for _ in range(5):
            await asyncio.sleep(0)
    return tasks


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_a_limited_number_runs_and_the_others_follow_in_order() -> None:
    async def test() -> None:
        two, done, seen = gate(at_once=2), asyncio.Event(), []

        async def work(number: int) -> None:
            async with two.turn(number):
                seen.append(number)
                await done.wait()

        tasks = await begun(*(work(number) for number in range(5)))
        assert (seen, metric("nexmdm_gate_in_use"), metric("nexmdm_gate_waiting")) == ([0, 1], 2, 3)
        done.set()
        await asyncio.gather(*tasks)
        assert (seen, metric("nexmdm_gate_in_use"), metric("nexmdm_gate_waiting")) == ([0, 1, 2, 3, 4], 0, 0)

    run(test())


def test_work_without_a_place_to_wait_is_refused_and_counted() -> None:
    async def test() -> None:
        full, before = gate(waiting=1), metric("nexmdm_gate_refused_total")
        await full.enter("a")
        (waiter,) = await begun(full.enter("b"))
        with pytest.raises(GateFull):
            await full.enter("c")
        assert metric("nexmdm_gate_refused_total") == before + 1
        full.leave("a")
        assert await waiter is True
        full.leave("b")
        assert await full.enter("c") is False
        full.leave("c")

    run(test())


def test_work_that_has_waited_too_long_is_refused_and_frees_its_place() -> None:
    async def test() -> None:
        impatient, before = gate(seconds=0), metric("nexmdm_gate_refused_total")
        await impatient.enter("a")
        with pytest.raises(GateFull):
            await impatient.enter("b")
        assert metric("nexmdm_gate_refused_total") == before + 1
        impatient.leave("a")
        assert await impatient.enter("c") is False
        impatient.leave("c")

    run(test())


@pytest.mark.parametrize("admitted_meanwhile", [False, True])
def test_a_cancelled_wait_frees_its_place(admitted_meanwhile: bool) -> None:
    async def test() -> None:
        one = gate()
        await one.enter("a")
        (waiter,) = await begun(one.enter("b"))
        if admitted_meanwhile:
            one.leave("a")
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        if not admitted_meanwhile:
            one.leave("a")
        assert await one.enter("c") is False
        one.leave("c")
        assert (metric("nexmdm_gate_in_use"), metric("nexmdm_gate_waiting")) == (0, 0)

    run(test())


def test_a_key_that_has_its_share_is_overtaken_by_others() -> None:
    async def test() -> None:
        shared = gate(at_once=2, at_once_per_key=1)
        await shared.enter("greedy")
        (again,) = await begun(shared.enter("greedy"))
        assert await shared.enter("modest") is False
        shared.leave("modest")
        assert not again.done()
        shared.leave("greedy")
        assert await again is True
        shared.leave("greedy")

    run(test())


def test_a_key_has_a_share_of_the_places_to_wait() -> None:
    async def test() -> None:
        shared = gate(waiting_per_key=1)
        await shared.enter("greedy")
        waiters = await begun(shared.enter("greedy"), shared.enter("modest"))
        with pytest.raises(GateFull):
            await shared.enter("greedy")
        shared.leave("greedy")
        await waiters[0]
        shared.leave("greedy")
        await waiters[1]
        shared.leave("modest")

    run(test())


def test_returning_work_waits_in_front_of_the_others_even_at_a_full_gate() -> None:
    async def test() -> None:
        full = gate(waiting=1)
        await full.enter("a")
        other, back = await begun(full.enter("b"), full.enter("c", again=True))
        full.leave("a")
        await back
        assert not other.done()
        full.leave("c")
        await other
        full.leave("b")

    run(test())
