"""The runner of a load test.

It starts the generators, issues the admin's commands, adds up the figures, and ends the run.
"""

import asyncio
import math
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson

from loadtest.fake_fcm.journal import JournalTail
from loadtest.fleet import credentials_file
from loadtest.load import disturbances
from loadtest.load.command_load import CommandLoad, Ledger
from loadtest.load.disturbances import Disturbance
from loadtest.load.figures import Figures
from loadtest.load.generator import Plan
from loadtest.testbed import machine
from loadtest.testbed.serving import Serving
from nexmdm.client.http_client import FleetClient

HEARTBEATS_PER_PROCESS: Final = 5000
"""The planned rate of one generator, in heartbeats a second. The number of generators is calculated from this rate. If
no other process uses its core, a generator can send twice as many heartbeats.
"""

CONNECTIONS: Final = 256
WEIGH_SECONDS: Final = 10
GRACE_SECONDS: Final = 10
"""The time that the last commands may take after the end of the heartbeats."""

_WATCH_SECONDS: Final = 0.25
_LINE_LIMIT: Final = 2**26
_ROOT: Final = Path(__file__).resolve().parent.parent.parent


class GeneratorEnded(Exception):
    """A generator ended before the end of the run. The generator has printed the reason."""


@dataclass(frozen=True, slots=True)
class Load:
    """The plan of a run, with a description of its server.

    - `server`: the description of the server for the report.
    - `scale`: the heartbeat interval of the run, divided by the server's heartbeat interval.
    - `roster`: the file with the credentials of the phones.
    - `journal`: the file of the fake FCM, from which phones get their pushes; None: phones get no pushes.
    - `most_errors_percent`: the target for the percentage of failed requests; 0: no request may fail.
    - `p95_ms`, `p99_ms`: the targets for the latency of heartbeats.
    - `answer_spread_seconds`: the longest time from a push to the report, as in Reporter.
    - `sources`: the local addresses of the phones, as in Pool.
    """

    server: str
    url: str
    devices: int
    interval_seconds: float
    ramp_seconds: float
    duration_seconds: float
    commands_per_minute: float
    scale: float
    roster: Path
    journal: Path | None
    most_errors_percent: float = 1
    p95_ms: float = 150
    p99_ms: float = 300
    answer_spread_seconds: float = 0
    connections: int = CONNECTIONS
    sources: Sequence[str] = ()

    @property
    def seconds(self) -> float:
        """The time for which the phones send heartbeats, in seconds."""
        return self.ramp_seconds + self.duration_seconds

    @property
    def heartbeats_per_second(self) -> float:
        """The number of heartbeats in a second after the ramp."""
        return self.devices / self.interval_seconds

    @property
    def processes(self) -> int:
        """The number of generators, at most one for each core."""
        return min(os.cpu_count() or 1, math.ceil(self.heartbeats_per_second / HEARTBEATS_PER_PROCESS))

    def plan(self, part: int) -> Plan:
        """Return the plan of generator number `part`, counted from 0."""
        return Plan(
            url=self.url,
            roster=str(self.roster),
            part=part,
            parts=self.processes,
            ramp_seconds=self.ramp_seconds,
            duration_seconds=self.duration_seconds,
            interval_seconds=self.interval_seconds,
            scale=self.scale,
            connections=max(1, self.connections // self.processes),
            journal=str(self.journal or ""),
            answer_spread_seconds=self.answer_spread_seconds,
            sources=self.sources,
        )

    def disturbing_requests(self) -> Path:
        """Return the path of the file for disturbing requests. It is in the folder of `roster`."""
        return self.roster.with_name("disturbing_requests")


@dataclass(slots=True)
class Run:
    """A run: its plan, its state, and its figures."""

    load: Load
    serving: Serving | None = None
    disturbance: Disturbance | None = None
    figures: Figures = field(default_factory=Figures)
    ledger: Ledger = field(default_factory=Ledger)
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    starts_at: float = 0.0
    cpu_seconds: dict[int, float] = field(default_factory=dict)
    server_cores: dict[str, float] = field(default_factory=dict)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """The memory of a web worker: pairs of the second of the run and the memory in MiB."""

    load_average: float = field(default_factory=machine.load_average)

    @property
    def elapsed_seconds(self) -> float:
        """The time for which the phones have sent heartbeats, in seconds."""
        return min(self.load.seconds, max(0.0, time.monotonic() - self.starts_at)) if self.starts_at else 0.0

    @property
    def measured_since(self) -> float:
        """The second of the run from which the figures count."""
        return math.ceil(self.load.ramp_seconds)

    @property
    def half(self) -> float:
        """The second of the run in which the second half of the measurement begins."""
        return self.measured_since + self.load.duration_seconds / 2

    def plan(self, part: int) -> Plan:
        """Return the plan of generator number `part`, with its share of the disturbing requests."""
        plan = self.load.plan(part)
        if self.disturbance is None or not self.disturbance.sends_requests:
            return plan
        return replace(
            plan,
            disturbing_requests=str(self.load.disturbing_requests()),
            nuisances_per_second=self.disturbance.per_second / self.load.processes,
            nuisances_from=self.half,
            nuisances_until=self.load.seconds - disturbances.LAST_ANSWERS_SECONDS,
        )

    def take(self, part: int, line: bytes) -> None:
        """Add the figures in a line of output from generator number `part`."""
        content = orjson.loads(line)
        if self.disturbance is not None:
            self.disturbance.sent += content["nuisances_sent"]
            self.disturbance.statuses.update(
                {int(status): count for status, count in content["disturbing_requests"].items()}
            )
        self.figures.merge(Figures.of(content["figures"]))
        self.cpu_seconds[part] = content["cpu_seconds"]
        for request_id, at, _ in content["results"]:
            self.ledger.settled(request_id, at)


async def run_load(run: Run, admin: FleetClient, watch: Callable[[], None]) -> None:
    """Carry out a run. Call `watch` four times a second.

    Raises GeneratorEnded if a generator ends before the end of the run.
    """
    async with AsyncExitStack() as stack:
        if run.disturbance is not None and run.disturbance.sends_requests:
            disturbances.write_requests(
                run.load.disturbing_requests(), run.disturbance, credentials_file.read(run.load.roster)
            )
        generators = [await _start(run.plan(part)) for part in range(run.load.processes)]
        for generator in generators:
            stack.push_async_callback(_stop, generator)
        await _begin(run, generators)
        hearing = [asyncio.create_task(_hear(run, part, one)) for part, one in enumerate(generators)]
        besides = [asyncio.create_task(work) for work in (_command(run, admin), _restart(run), _weigh(run))]
        for task in besides:
            stack.callback(task.cancel)
        await _watch(run, watch, [*hearing, *besides])
        for generator in generators:
            _end_input(generator)
        await asyncio.gather(*hearing)
        _note_unanswered(run)
        watch()


async def _start(plan: Plan) -> Process:
    generator = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest.load.generator", stdin=PIPE, stdout=PIPE, cwd=_ROOT, limit=_LINE_LIMIT
    )
    _tell(generator, plan.as_line())
    return generator


async def _stop(generator: Process) -> None:
    _end_input(generator)
    if generator.returncode is None:
        generator.kill()
    await generator.wait()


def _tell(generator: Process, line: bytes) -> None:
    assert generator.stdin is not None
    generator.stdin.write(line)


def _end_input(generator: Process) -> None:
    assert generator.stdin is not None
    generator.stdin.close()


async def _begin(run: Run, generators: list[Process]) -> None:
    """Wait until all generators have read their phones, and start them together."""
    for generator in generators:
        assert generator.stdout is not None
        if not await generator.stdout.readline():
            raise GeneratorEnded("A generator ended before its time. Its output is above.")
    run.starts_at = time.monotonic() + _WATCH_SECONDS
    run.begun = datetime.now(UTC)
    for generator in generators:
        _tell(generator, b"%.6f\n" % run.starts_at)


async def _hear(run: Run, part: int, generator: Process) -> None:
    assert generator.stdout is not None
    async for line in generator.stdout:
        run.take(part, line)
    if await generator.wait():
        raise GeneratorEnded("A generator ended before its time. Its output is above.")


async def _command(run: Run, admin: FleetClient) -> None:
    load = run.load
    if not load.commands_per_minute:
        return
    device_ids = [member.device_id for member in credentials_file.read(load.roster)]
    commander = CommandLoad(
        admin, device_ids, per_minute=load.commands_per_minute, figures=run.figures, ledger=run.ledger
    )
    try:
        await commander.run(run.starts_at, run.starts_at + load.seconds)
        await asyncio.sleep(GRACE_SECONDS)
    finally:
        commander.close()


async def _restart(run: Run) -> None:
    """Restart the web worker halfway, if this is the disturbance of the run."""
    if run.disturbance is None or run.disturbance.sends_requests:
        return
    assert run.serving is not None
    await asyncio.sleep(run.starts_at + run.half - time.monotonic())
    await disturbances.restart(run.disturbance, run.serving)


async def _weigh(run: Run) -> None:
    """Record the memory of the test's own web worker every WEIGH_SECONDS."""
    if run.serving is None or (run.disturbance and not run.disturbance.sends_requests):
        return
    process = run.serving.child("web-1")
    while True:
        run.memory.append((time.monotonic() - run.starts_at, machine.resident_mebibytes(process)))
        await asyncio.sleep(WEIGH_SECONDS)


async def _watch(run: Run, watch: Callable[[], None], workers: list[asyncio.Task[None]]) -> None:
    """Wait until the heartbeats have ended.

    Then wait until each command has a result, but for at most the allowed time.
    """
    ends_at = run.starts_at + run.load.seconds
    patience = GRACE_SECONDS if run.load.journal else 0
    with closing(JournalTail(run.load.journal or Path(os.devnull))) as journal:
        while (now := time.monotonic()) < ends_at + patience and (now < ends_at or run.ledger.open):
            for send in journal.sends():
                run.ledger.pushed(send["request_id"], send["monotonic"])
            for worker in workers:
                if worker.done():
                    worker.result()
            watch()
            await asyncio.sleep(_WATCH_SECONDS)


def _note_unanswered(run: Run) -> None:
    """Count each command without a result as an error, if the command had enough time.

    Without pushes, a command needs a little more than a heartbeat interval.
    """
    load = run.load
    needed = 0 if load.journal else 1.2 * load.interval_seconds
    for posted_at in run.ledger.unanswered():
        second = posted_at - run.starts_at
        if second <= load.seconds - needed:
            run.figures.error(second, "command: no result")
