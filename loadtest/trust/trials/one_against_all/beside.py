"""The measurement of an attack by turns of honest traffic.

A turn is a few seconds of honest traffic. The attack runs in every second turn. The difference between the turns is the
cost of the attack.
"""

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
"""The number of rounds, of which the median counts. In a turn of three seconds, the p99 depends on five heartbeats, and
the disk alone can delay these heartbeats."""

SECONDS: Final = 3
WARM_UP_SECONDS: Final = 1
MOST_SLOWER: Final = 3
FLOOR_SECONDS: Final = {"heartbeats": 0.03}
"""The floor of each kind of traffic. A p99 below its floor always passes, because other work on the machine can triple
a latency of 2 ms."""

FLOOR_SECONDS_OF_FEW: Final = 0.25
"""The floor for traffic of a few requests a second. The p99 of this traffic is its longest latency."""

MOST_GROWN_MEBIBYTES: Final = 64
RECOVERY_SECONDS: Final = 20
"""The longest wait after an attack for honest traffic to become fast again. After this wait, the next turn begins."""

ANSWER_SECONDS: Final = 60
"""The longest time that an attack may take to begin, and to end."""

ENOUGH: Final = 0.8
"""The share of the planned requests that an attack must send."""

TOO_SLOW: Final = "time-out"
"""An error that every attacker may get, because NexMDM does not promise quick answers to attackers."""

LEAST_HONEST: Final = 1000
"""The least number of honest requests. With fewer requests, the promise counts as not kept."""

PHONES: Final = 300
SETTINGS: Final = {
    "ADMIN_RATE_LIMIT": "100000/m", "ADMIN_READ_RATE_LIMIT": "100000/m", "HEARTBEAT_INTERVAL_SECONDS": "120",
}  # fmt: skip

_SAMPLE_SECONDS: Final = 0.1
_FAILURES_SHOWN: Final = 3
_LONGEST_FAILURE: Final = 80


class Attacker(Protocol):
    """An attack that can begin and end several times."""

    async def begin(self) -> None:
        """Begin the attack. Return when the attack has begun."""

    async def end(self) -> Tally:
        """End the attack. Return its counts since `begin`."""


class Processes:
    """An attacker that consists of separate processes, one for each order. The processes run `attacks.py`."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def begin(self) -> None:
        """Let all processes attack. Return when all attacks have begun."""
        self._write(b"\n")
        await self._lines()

    async def end(self) -> Tally:
        """End the attacks of all processes. Return the sum of their counts."""
        self._write(b"\n")
        whole, held = Tally(), 0
        for line in await self._lines():
            counted = orjson.loads(line)
            whole.add(Tally(counted["sent"], answers=Counter(counted["answers"])))
            held += counted["held"]
        whole.held = held
        return whole

    async def _lines(self) -> list[bytes]:
        """Return a line of output from each process.

        Raises RuntimeError if a process has ended, and TimeoutError after ANSWER_SECONDS.
        """
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
    """Start a process for each order. Each process waits for `begin`. All processes end with the block."""
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
"""A function that checks the state after an attack. It returns a figure, and whether the figure is as promised."""


@dataclass(frozen=True, slots=True)
class Case:
    """An attack, and what is expected of it.

    - `who`: the attacker, in words.
    - `tried`: the attack, in words.
    - `least_sent`: the least number of requests that the attacker must send in all rounds.
    - `answers`: the answers that the attacker may get.
    - `seconds`: how long each round measures the honest traffic during the attack.
    - `most_grown_mebibytes`: how much the memory of the web worker may grow.
    """

    who: str
    tried: str
    least_sent: float
    answers: Collection[str]
    seconds: float = SECONDS
    most_grown_mebibytes: int = MOST_GROWN_MEBIBYTES
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of all turns.

    - `without`, `beside`: the p99 of each kind of traffic, for each turn without and with the attack.
    - `sent`: the number of honest requests.
    - `failures`: the failed honest requests, counted by error.
    - `grown_mebibytes`: how much the memory of the web worker has grown.
    """

    without: Sequence[Latencies]
    beside: Sequence[Latencies]
    sent: int
    failures: Counter[str]
    grown_mebibytes: float


@contextmanager
def served(folder: Path, *, with_push_tokens: bool = False, **settings: str) -> Iterator[tuple[Serving, list[Member]]]:
    """Run a server with a seeded fleet until the end of the block. Yield the server and its phones."""
    path = folder / "roster"
    with testbed.served(folder / "data", **SETTINGS | settings) as serving:
        testbed.seed(serving.environment, PHONES, path, with_push_tokens=with_push_tokens)
        yield serving, credentials_file.read(path)


def each(trials: Mapping[str, Callable[[], Coroutine[Any, Any, Finding]]]) -> Iterator[Finding]:
    """Run trials one after another, and yield their findings. If an error ends a trial, yield a finding about this
    error.

    The keys of `trials` are the names of the attacks.
    """
    for name, trial in trials.items():
        try:
            yield uvloop.run(trial())
        except Exception as error:  # noqa: BLE001  (the other trials must still run)
            yield Finding(f"{name} against all", "ended with an error", f"{type(error).__name__}: {error}", held=False)


async def tried(case: Case, traffic: Honest, attacker: Attacker, serving: Serving) -> Finding:
    """Measure honest traffic, in turn without and with an attack. Close the traffic, and return the finding."""
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
    """When cancelled, return the largest memory of the process since the call, in MiB."""
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
    """Wait until the traffic is fast again after an attack, but at most RECOVERY_SECONDS."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while time.monotonic() < deadline:
        turn = await traffic.turn(1)
        if all(_is_quick(kind, first[kind], turn[kind]) for kind in first):
            return


def judged(case: Case, measured: Measured, tally: Tally) -> Finding:
    """Return the finding: whether the attack was strong enough, and whether the honest traffic stayed fast."""
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
    """Return the median, or None if one of the values is None."""
    return median(one for one in values if one is not None) if None not in values else None


def _is_quick(kind: str, without: float | None, beside: float | None) -> bool:
    return without is not None and beside is not None and beside <= max(MOST_SLOWER * without, _floor(kind))


def _floor(kind: str) -> float:
    return FLOOR_SECONDS.get(kind, FLOOR_SECONDS_OF_FEW)


def _floors(measured: Measured) -> str:
    """Return the floors of all kinds of traffic, as text."""
    floors = dict.fromkeys(milliseconds(_floor(kind)) for kind in measured.without[0])
    return ", ".join(floors)


def _told(tally: Tally) -> str:
    answers = ", ".join(f"{count:,} × {answer}" for answer, count in tally.answers.most_common()) or "no answer"
    held = f" (up to {tally.held:,} at a time)" if tally.held else ""
    return f"attack: {tally.sent:,} sent{held}: {answers}"
