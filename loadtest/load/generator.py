"""A generator of load: the phones that one process simulates (`python -m loadtest.load.generator`).

Each phone has its own due times, which do not depend on its earlier heartbeats (open loop). Latency counts from the due
time. So if the server stalls, the latency of every request that is due in this time grows.

The process reads a plan from standard input, prints that it is ready, and reads the time of the start. It ends when
standard input ends. Twice a second, it prints its new figures as a line of JSON.
"""

import asyncio
import gc
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from heapq import heappop, heappush
from http import HTTPStatus
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop

from loadtest.fake_fcm.journal import JournalTail
from loadtest.fleet import credentials_file
from loadtest.fleet.credentials_file import Member
from loadtest.load.disturbances import read_requests
from loadtest.load.figures import Figures, Kind
from loadtest.load.reporting import Reporter
from loadtest.testbed.connections import ANSWER_SECONDS, Pool, Server, understood, with_body
from nexmdm.client.phone import Agent, Channel, Credentials, Envelope

SAYS_EVERY_SECONDS: Final = 0.5
NUISANCE: Final = -1
"""The number that stands for the disturbing requests in place of a phone's number."""

_TICK_SECONDS: Final = 0.001
"""The resolution of the event loop's timers."""

_IDLE_TICK_SECONDS: Final = 0.05
_JOURNAL_SECONDS: Final = 0.02
_SWEEP_SECONDS: Final = 1
_BODIES: Final = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one generator. The class `Load` explains the fields that are not in this list.

    - `part`, `parts`: the number of this generator, counted from 0, and the number of all generators.
    - `journal`: the file of the fake FCM; empty: phones get no pushes.
    - `disturbing_requests`: the file of the disturbing requests; empty: there are none.
    - `nuisances_…`: the rate of the disturbing requests, and the seconds of the run between which they are sent.
    """

    url: str
    roster: str
    part: int
    parts: int
    ramp_seconds: float
    duration_seconds: float
    interval_seconds: float
    scale: float
    connections: int
    journal: str
    disturbing_requests: str = ""
    nuisances_per_second: float = 0
    nuisances_from: float = 0
    nuisances_until: float = 0
    answer_spread_seconds: float = 0
    sources: Sequence[str] = ()

    def as_line(self) -> bytes:
        """Return the plan as one line of JSON."""
        return orjson.dumps(asdict(self), option=orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_line(cls, line: bytes) -> "Plan":
        """Return the plan from a line that `as_line` made."""
        return cls(**orjson.loads(line))


def first_dues(count: int, *, ramp_seconds: float, interval_seconds: float, chance: random.Random) -> list[float]:
    """Return the time of each phone's first heartbeat, in seconds after the start.

    The phones are spread evenly over the ramp. Then each phone waits for a random part of the interval. So the load
    grows evenly, and is constant after the ramp and one interval.
    """
    return [ramp_seconds * number / count + chance.uniform(0, interval_seconds) for number in range(count)]


def heartbeat_bodies(chance: random.Random) -> list[bytes]:
    """Return some typical bodies of heartbeats. In front of each body are the last lines of the request's head."""
    statuses = (
        {
            "battery_pct": chance.randint(5, 100),
            "charging": chance.random() < 0.3,
            "network": chance.choice(["wifi", "cellular"]),
            "uptime_seconds": chance.randint(60, 10**6),
            "free_storage_mb": chance.randint(500, 60_000),
            "foreground_app": "com.example.kiosk",
        }
        for _ in range(_BODIES)
    )
    return [with_body(orjson.dumps({"status": status, "agent_version": "1.0.0"})) for status in statuses]


class Generator:
    """The phones of one process, on one event loop. The caller may empty `figures` and `results` at any time."""

    def __init__(self, plan: Plan, members: Iterable[Member]) -> None:
        self._plan = plan
        self._members = list(members)
        self._chance = random.Random()
        server = Server.of(plan.url)
        self._heartbeat = server.head("POST", "/v1/heartbeat", {})
        self._result = server.head("POST", "/v1/action-result", {})
        self._bodies = cycle(heartbeat_bodies(self._chance))
        self._bearers = [f"Authorization: Bearer {member.device_token}\r\n".encode() for member in self._members]
        self._agents: dict[int, Agent] = {}
        self._dues: list[tuple[float, int]] = []
        self._starts_at = self._ends_at = 0.0
        self._pool = Pool(server, plan.connections, sources=plan.sources)
        self._reporter = Reporter(self._pool, self._chance, plan.answer_spread_seconds)
        self._in_hand: set[tuple[int, str]] = set()
        self._side_tasks: list[asyncio.Task[None]] = []
        self._at_work: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._disturbing_requests = self._read_disturbing_requests(server)
        self.nuisances_sent = 0
        self.nuisance_statuses: Counter[int] = Counter()
        self.figures = Figures()
        self.results: list[tuple[str, float, Channel]] = []
        """The accepted reports: the request id, the time on the monotonic clock, and the channel of the command."""

    def _read_disturbing_requests(self, server: Server) -> Iterator[bytes]:
        if not self._plan.disturbing_requests:
            return iter(())
        pairs = read_requests(Path(self._plan.disturbing_requests))
        heads = (server.head("POST", "/v1/heartbeat", {"Authorization": f"Bearer {bearer}"}) for bearer, _ in pairs)
        return cycle([head + with_body(body) for head, (_, body) in zip(heads, pairs, strict=True)])

    def start(self, starts_at: float) -> None:
        """Begin the load at `starts_at` of the monotonic clock. Return immediately; timers send the heartbeats."""
        plan = self._plan
        self._starts_at, self._ends_at = starts_at, starts_at + plan.ramp_seconds + plan.duration_seconds
        dues = first_dues(
            len(self._members),
            ramp_seconds=plan.ramp_seconds,
            interval_seconds=plan.interval_seconds,
            chance=self._chance,
        )
        for number, due in enumerate(dues):
            self._schedule(starts_at + due, number)
        if plan.disturbing_requests:
            heappush(self._dues, (starts_at + plan.nuisances_from, NUISANCE))
        self._tick()
        self._side_tasks.append(asyncio.create_task(self._sweep()))
        if plan.journal:
            self._side_tasks.append(asyncio.create_task(self._hear_pushes(Path(plan.journal))))

    async def finish(self) -> None:
        """Wait until no request is in progress, but at most as long as a request may take.

        Finally, close all connections.
        """
        self._dues.clear()
        deadline = time.monotonic() + ANSWER_SECONDS + _SWEEP_SECONDS
        while (self._under_way or self._at_work) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_JOURNAL_SECONDS)
        for task in (*self._side_tasks, *self._at_work):
            task.cancel()
        self._pool.close()

    def _schedule(self, due: float, number: int) -> None:
        if due < self._ends_at:
            heappush(self._dues, (due, number))

    def _tick(self) -> None:
        dues, now = self._dues, time.monotonic()
        while dues and dues[0][0] <= now:
            due, number = heappop(dues)
            if number == NUISANCE:
                self._send_disturbance(due)
                continue
            self.figures.due(due - self._starts_at, now - due)
            self._beat(number, due, regular=True)
        wait = min(_IDLE_TICK_SECONDS, max(_TICK_SECONDS, dues[0][0] - now)) if dues else _IDLE_TICK_SECONDS
        asyncio.get_running_loop().call_later(wait, self._tick)

    def _beat(self, number: int, due: float, *, regular: bool) -> None:
        self._under_way += 1
        request = self._heartbeat + self._bearers[number] + next(self._bodies)
        self._pool.send(request, partial(self._beaten, number, due, regular))

    def _send_disturbance(self, due: float) -> None:
        self._under_way += 1
        self.nuisances_sent += 1
        self._pool.send(next(self._disturbing_requests), self._disturbance_ended)
        following = due + 1 / self._plan.nuisances_per_second
        if following < self._starts_at + self._plan.nuisances_until:
            heappush(self._dues, (following, NUISANCE))

    def _disturbance_ended(self, status: int, _: bytes) -> None:
        self._under_way -= 1
        self.nuisance_statuses[status] += 1

    def _beaten(self, number: int, due: float, regular: bool, status: int, body: bytes) -> None:
        error, answer = understood(status, body)
        self._note("heartbeat", due, error)
        if regular:
            self._schedule(due + self._wait(answer), number)
        if answer.get("commands"):
            self._work(self._carry_out(number, answer))

    def _wait(self, answer: dict[str, Any]) -> float:
        """Return the seconds to the next due time: the time that the server sent, or the phone's own interval."""
        seconds: int | None = answer.get("next_heartbeat_seconds")
        if seconds is not None:
            return seconds * self._plan.scale
        return self._chance.uniform(0.9, 1.1) * self._plan.interval_seconds

    async def _carry_out(self, number: int, answer: dict[str, Any]) -> None:
        """Carry out and report a heartbeat's commands in their order.

        If there are more commands, send a heartbeat immediately.
        """
        self._agent(number).set_server_time(answer["server_time"])
        reported = [await self._receive(number, envelope, "heartbeat") for envelope in answer["commands"]]
        if answer["has_more"] and any(reported):
            self._beat(number, time.monotonic(), regular=False)

    async def _hear_pushes(self, path: Path) -> None:
        """Give the phones of this process the pushes that the fake FCM accepted for them."""
        owners = {member.push_token: number for number, member in enumerate(self._members)}
        with closing(JournalTail(path)) as journal:
            while True:
                for send in journal.sends():
                    number = owners.get(send["push_token"])
                    if number is not None and send["status"] == HTTPStatus.OK:
                        self._work(self._receive(number, send["message"]["data"], "push"))
                await asyncio.sleep(_JOURNAL_SECONDS)

    async def _receive(self, number: int, envelope: Envelope, via: Channel) -> bool:
        """Let a phone carry out a command and report on it. Return False if the phone refuses the envelope."""
        report = self._agent(number).receive(envelope, via)
        if report is None:
            self.figures.error(time.monotonic() - self._starts_at, "command: bad signature")
            return False
        key = number, report.request_id
        if key in self._in_hand:  # The other channel has already delivered the command.
            return True
        self._in_hand.add(key)
        await self._reporter.wait()
        request = self._result + self._bearers[number] + with_body(orjson.dumps(report.body()))
        answer = await self._reporter.send(request, self._note_report)
        self._in_hand.discard(key)
        if answer:
            self.results.append((report.request_id, time.monotonic(), via))
        return True

    def _note_report(self, began_at: float, error: str) -> None:
        self._under_way += 1
        self._note("result", began_at, error)

    def _agent(self, number: int) -> Agent:
        agent = self._agents.get(number)
        if agent is None:
            member = self._members[number]
            agent = Agent(member.device_id, Credentials(member.device_token, member.command_key))
            self._agents[number] = agent
        return agent

    def _note(self, kind: Kind, due: float, error: str) -> None:
        self._under_way -= 1
        self.figures.ended(kind, due - self._starts_at, time.monotonic() - due, error and f"{kind}: {error}")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._pool.sweep()

    def _work(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine)
        self._at_work.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._at_work.discard(task)
        if not task.cancelled():
            task.result()


def main() -> None:
    """Simulate phones by the plan on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process, which closes standard input.
    plan = Plan.from_line(sys.stdin.buffer.readline())
    generator = Generator(plan, credentials_file.read(Path(plan.roster), plan.part, plan.parts))
    # A full garbage collection would visit all phones and their tasks, and delay the requests that are due.
    gc.collect()
    gc.disable()
    _say({"ready": True})
    starts_at = float(sys.stdin.buffer.readline())
    uvloop.run(_drive(generator, starts_at))


async def _drive(generator: Generator, starts_at: float) -> None:
    generator.start(starts_at)
    end_of_input = asyncio.create_task(_end_of_input())
    while not end_of_input.done():
        await asyncio.wait([end_of_input], timeout=SAYS_EVERY_SECONDS)
        _say(_seen(generator))
    await generator.finish()
    _say(_seen(generator))


def _seen(generator: Generator) -> dict[str, Any]:
    figures, generator.figures = generator.figures, Figures()
    results, generator.results = generator.results, []
    sent, generator.nuisances_sent = generator.nuisances_sent, 0
    statuses, generator.nuisance_statuses = generator.nuisance_statuses, Counter()
    return {
        "figures": figures.as_json(),
        "results": results,
        "cpu_seconds": time.process_time(),
        "nuisances_sent": sent,
        "disturbing_requests": {str(status): count for status, count in statuses.items()},
    }


def _say(words: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(words, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


async def _end_of_input() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    main()
