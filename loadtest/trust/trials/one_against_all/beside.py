"""One against all: measures honest traffic, alternately with and without an attack, and so the cost of the attack."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol, cast

import orjson
import uvloop

from loadtest.fleet import credentials_file
from loadtest.fleet.credentials_file import Member
from loadtest.load.targets import milliseconds
from loadtest.testbed import machine, testbed
from loadtest.testbed.serving import MANAGE, Serving
from loadtest.trust.trials.finding import Finding
from loadtest.trust.trials.one_against_all.honest import Honest, Latencies
from loadtest.trust.trials.one_against_all.order import Order, Tally

ROUNDS: Final = 5
"""The number of rounds. The p99 of three seconds depends on five heartbeats, which the disk alone may delay, so the
median of several rounds is used."""

SECONDS: Final = 3
WARM_UP_SECONDS: Final = 1
MOST_SLOWER: Final = 3
FLOOR_SECONDS: Final = {"heartbeats": 0.03}
"""A p99 below this floor always passes, because other work on the machine can turn 2 ms into three times 2 ms."""

FLOOR_SECONDS_OF_FEW: Final = 0.25
"""The floor for traffic of a few requests a second, whose p99 is its longest latency."""

MOST_GROWN_MEBIBYTES: Final = 64
RECOVERY_SECONDS: Final = 20
"""The time that honest traffic may be slow after an attack, before the next turn without an attack."""

ANSWER_SECONDS: Final = 60
"""The time that an attack may take to begin, and to end."""

ENOUGH: Final = 0.8
"""The part of an attack's minimum that must be sent for the attack to count."""

TOO_SLOW: Final = "time-out"
"""The errors that an attacker may get instead of an answer, because NexMDM does not promise attackers quick answers."""

LEAST_HONEST: Final = 1000
"""The least number of honest requests for a judgement on their failures."""

PHONES: Final = 300
SETTINGS: Final = {
    "ADMIN_RATE_LIMIT": "100000/m", "ADMIN_READ_RATE_LIMIT": "100000/m", "HEARTBEAT_INTERVAL_SECONDS": "120",
}  # fmt: skip

_SAMPLE_SECONDS: Final = 0.1
_FAILURES_SHOWN: Final = 3
_LONGEST_FAILURE: Final = 80


class Attacker(Protocol):
    """An attack that lasts from begin() to end(), again and again."""

    async def begin(self) -> None:
        """Begin the attack again."""

    async def end(self) -> Tally:
        """Stop, and return the numbers of requests since begin() and of their answers."""


class Processes:
    """Attackers in separate processes, one for each order (`attacks.py`)."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def begin(self) -> None:
        """Let all of them attack, and return when they have begun."""
        self._write(b"\n")
        await self._lines()

    async def end(self) -> Tally:
        """Stop all of them; return their counts."""
        self._write(b"\n")
        whole, held = Tally(), 0
        for line in await self._lines():
            counted = orjson.loads(line)
            whole.add(Tally(counted["sent"], answers=Counter(counted["answers"])))
            held += counted["held"]
        whole.held = held
        return whole

    async def _lines(self) -> list[bytes]:
        """Return a line of each process. Raises RuntimeError if a process has failed, and TimeoutError."""
        async with asyncio.timeout(ANSWER_SECONDS):
            lines = [await cast("asyncio.StreamReader", process.stdout).readline() for process in self._processes]
        if not all(lines):
            raise RuntimeError("an attack ended early")
        return lines

    def _write(self, data: bytes) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(data)


@asynccontextmanager
async def processes(*orders: Order) -> AsyncIterator[Processes]:
    """Start a process for each order; it waits for begin(). All processes end with the block."""
    started = [await _started() for _ in orders]
    try:
        for process, order in zip(started, orders, strict=True):
            assert process.stdin is not None
            process.stdin.write(orjson.dumps(asdict(order), option=orjson.OPT_APPEND_NEWLINE))
        yield Processes(started)
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        await asyncio.gather(*(process.wait() for process in started))


async def _started() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.trust.trials.one_against_all.attacks"),
        cwd=Path(MANAGE).parent,
        start_new_session=True,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


Check = Callable[[Tally], tuple[str, bool]]
"""Checks the state after an attack; returns a figure, and whether the figure is as promised."""


@dataclass(frozen=True, slots=True)
class Case:
    """An attacker, its attack, the number of requests that it must send, and the answers that it may get."""

    who: str
    tried: str
    least_sent: float
    answers: Collection[str]
    seconds: float = SECONDS
    most_grown_mebibytes: int = MOST_GROWN_MEBIBYTES
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The latencies of the turns, the number of honest requests, the failures, and the growth of the worker."""

    without: Sequence[Latencies]
    beside: Sequence[Latencies]
    sent: int
    failures: Counter[str]
    grown_mebibytes: float


@contextmanager
def served(folder: Path, *, with_push_tokens: bool = False, **settings: str) -> Iterator[tuple[Serving, list[Member]]]:
    """Run a server with a fleet that was seeded into its database; it ends with the block."""
    path = folder / "roster"
    with testbed.served(folder / "data", **SETTINGS | settings) as serving:
        testbed.seed(serving.environment, PHONES, path, with_push_tokens=with_push_tokens)
        yield serving, credentials_file.read(path)


def each(trials: Mapping[str, Callable[[], Coroutine[Any, Any, Finding]]]) -> Iterator[Finding]:
    """Run the trials one after the other, by name; an error that ends a trial is a finding too."""
    for name, trial in trials.items():
        try:
            yield uvloop.run(trial())
        except Exception as error:  # noqa: BLE001  (the others are still to come)
            yield Finding(f"{name} against all", "ended with an error", f"{type(error).__name__}: {error}", held=False)


async def tried(case: Case, traffic: Honest, attacker: Attacker, serving: Serving) -> Finding:
    """Measure honest traffic, alternately without and with an attack; close the traffic, and check the result."""
    await traffic.turn(WARM_UP_SECONDS)
    worker = serving.child("web-1")
    failed, sent = traffic.failures, traffic.sent
    before, grown = machine.resident_mebibytes(worker), 0.0
    without, beside, tally = [], [], Tally()
    for _ in range(ROUNDS):
        without.append(await traffic.turn(SECONDS))
        weighing = asyncio.create_task(_heaviest(worker))
        await attacker.begin()
        beside.append(await traffic.turn(case.seconds))
        tally.add(await attacker.end())
        grown = max(grown, await _ended(weighing) - before)
        if len(beside) < ROUNDS:
            await _recovered(traffic, without[0])
    traffic.close()
    measured = Measured(without, beside, traffic.sent - sent, traffic.failures - failed, grown)
    return await asyncio.to_thread(judged, case, measured, tally)


async def _heaviest(process: int) -> float:
    """When cancelled, return the largest memory that the process had."""
    heaviest = 0.0
    try:
        while True:
            heaviest = max(heaviest, machine.resident_mebibytes(process))
            await asyncio.sleep(_SAMPLE_SECONDS)
    except asyncio.CancelledError:
        return heaviest


async def _ended(weighing: asyncio.Task[float]) -> float:
    weighing.cancel()
    return await weighing


async def _recovered(traffic: Honest, first: Latencies) -> None:
    """Before the next turn without the attack, wait until the traffic is fast again, but at most RECOVERY_SECONDS."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while time.monotonic() < deadline:
        turn = await traffic.turn(1)
        if all(_is_quick(kind, first[kind], turn[kind]) for kind in first):
            return


def judged(case: Case, measured: Measured, tally: Tally) -> Finding:
    """Check that the attack sent its minimum, and check the cost for the honest traffic."""
    kinds = [_judged(kind, measured) for kind in measured.without[0]]
    left, is_right = case.check(tally) if case.check else ("", True)
    figures = [*(figure for figure, _ in kinds), *_figures(measured), _told(tally), *filter(None, [left])]
    held = (
        all(is_held for _, is_held in kinds)
        and measured.sent >= LEAST_HONEST
        and not measured.failures
        and measured.grown_mebibytes <= case.most_grown_mebibytes
        and tally.sent >= case.least_sent
        and set(tally.answers) <= {*case.answers, TOO_SLOW}
        and is_right
    )
    return Finding(
        f"{case.who}: no request of others fails, their p99 stays within {MOST_SLOWER} × (or {_floors(measured)}), "
        f"and a worker grows by {case.most_grown_mebibytes} MiB at most",
        f"{case.tried}; {ROUNDS} × {case.seconds:g} s of it, and as many turns without it",
        "; ".join(figures),
        held,
    )


def _figures(measured: Measured) -> Iterator[str]:
    worst = measured.failures.most_common(_FAILURES_SHOWN)
    shown = ", ".join(f"{count} × {error[:_LONGEST_FAILURE]}" for error, count in worst)
    yield f"{measured.failures.total():,} of {measured.sent:,} failed" + (f" ({shown})" if shown else "")
    yield f"worker {measured.grown_mebibytes:+.0f} MiB"


def _judged(kind: str, measured: Measured) -> tuple[str, bool]:
    """Return the figure of one kind of traffic, and whether it was fast enough during the attack."""
    without, beside = (_median([turn[kind] for turn in turns]) for turns in (measured.without, measured.beside))
    return f"{kind} {milliseconds(without)} → {milliseconds(beside)}", _is_quick(kind, without, beside)


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median; None if there was a turn without an answer."""
    return median(one for one in values if one is not None) if None not in values else None


def _is_quick(kind: str, without: float | None, beside: float | None) -> bool:
    return without is not None and beside is not None and beside <= max(MOST_SLOWER * without, _floor(kind))


def _floor(kind: str) -> float:
    return FLOOR_SECONDS.get(kind, FLOOR_SECONDS_OF_FEW)


def _floors(measured: Measured) -> str:
    """Return the floors as text: that of heartbeats, and that of all other traffic."""
    floors = dict.fromkeys(milliseconds(_floor(kind)) for kind in measured.without[0])
    return ", ".join(floors)


def _told(tally: Tally) -> str:
    answers = ", ".join(f"{count:,} × {answer}" for answer, count in tally.answers.most_common()) or "no answer"
    held = f" (up to {tally.held:,} at a time)" if tally.held else ""
    return f"attack: {tally.sent:,} sent{held}: {answers}"
