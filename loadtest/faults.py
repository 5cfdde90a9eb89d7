"""What a server of our own is put through: processes killed, PostgreSQL stopped at once, FCM failing.

Each fault is a trial for a crowd: it runs for its time, notes what it did, and judges what only it can judge.
"""

import asyncio
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import psycopg

from loadtest.crowd import Crowd, Exchange
from loadtest.ledgers import Book
from loadtest.serving import Serving
from loadtest.targets import Target

Say = Callable[[str], None]

NORMAL_SECONDS: Final = 5
"""How soon after PostgreSQL is back no request may fail any more."""

RESUMED_SECONDS: Final = 60
"""How soon after FCM has recovered pushes have to go out again."""

LEAST_FAILURES: Final = 300
_LOOK_SECONDS: Final = 0.05
_STARTED: Final = "dispatch.started"


class Fault(Protocol):
    """One kind of trouble."""

    async def run(self, crowd: Crowd) -> None:
        """Make the trouble, for as long as it takes."""

    def judged(self, exchanges: Sequence[Exchange], book: Book, sends: Sequence[dict[str, Any]]) -> list[Target]:
        """Return what this fault in particular has to leave intact."""


class SecondDispatcher:
    """A dispatcher beside the one of `serve`."""

    def __init__(self, serving: Serving) -> None:
        """Start it."""
        self._serving = serving
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def replace_killed(self) -> None:
        """Take note of its end, and start another one."""
        self._process.wait()
        self._process = self._start()

    def stop(self) -> None:
        """Ask it to stop, and wait."""
        self._process.terminate()
        self._process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        return self._serving.start("dispatch", until_it_says=_STARTED)


@dataclass(slots=True)
class Kills:
    """kill -9 of a random web worker or dispatcher every 2 to 5 s."""

    serving: Serving
    second: SecondDispatcher
    seconds: float
    say: Say
    killed: Counter[str] = field(default_factory=Counter)

    async def run(self, crowd: Crowd) -> None:
        """Kill until the time is over."""
        del crowd
        ends_at = time.monotonic() + self.seconds
        while time.monotonic() < ends_at:
            await asyncio.sleep(random.uniform(2, 5))
            await asyncio.to_thread(self._kill_one)

    def _kill_one(self) -> None:
        victim = random.choice(("web-1", "web-2", "dispatch", "second dispatch"))
        with suppress(ProcessLookupError):
            os.kill(self.second.pid if victim == "second dispatch" else self.serving.child(victim), signal.SIGKILL)
            self.killed[victim] += 1
            self.say(f"killed {victim}")
            if victim == "second dispatch":
                self.second.replace_killed()

    def judged(self, exchanges: Sequence[Exchange], book: Book, sends: Sequence[dict[str, Any]]) -> list[Target]:
        """No answer may be worse than none."""
        del sends
        closed = sum(outcome == "unknown" for rows in book.attempts.values() for outcome, _ in rows)
        kills = ", ".join(f"{count} × {name}" for name, count in sorted(self.killed.items()))
        return [
            Target("processes killed", "all four kinds", kills, len(self.killed) == 4),
            Target("attempts closed as unknown", "some", f"{closed:,}", closed > 0),
            _answers(exchanges, allowed=(0, 200)),
        ]


@dataclass(slots=True)
class Gap:
    """When PostgreSQL was stopped, and when it took connections again (monotonic)."""

    stopped_at: float
    back_at: float


@dataclass(slots=True)
class DatabaseStops:
    """PostgreSQL stopped as by `pg_ctl stop -m immediate`, again and again; `serve` starts it anew."""

    serving: Serving
    database_url: str
    times: int
    say: Say
    gaps: list[Gap] = field(default_factory=list)

    async def run(self, crowd: Crowd) -> None:
        """Stop it so many times."""
        del crowd
        for _ in range(self.times):
            await asyncio.sleep(random.uniform(10, 15))
            await self._stop_once()
        await asyncio.sleep(2 * NORMAL_SECONDS)

    async def _stop_once(self) -> None:
        pid_file = self.serving.data_dir / "pg" / "cluster" / "postmaster.pid"
        postmaster = int(pid_file.read_text().split()[0])
        stopped_at = time.monotonic()
        os.kill(postmaster, signal.SIGQUIT)
        # The old postmaster may still be there for a moment.
        while Path(f"/proc/{postmaster}").exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(_LOOK_SECONDS)
        while not await self._answers():  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        self.gaps.append(Gap(stopped_at, time.monotonic()))
        self.say(f"PostgreSQL was away for {self.gaps[-1].back_at - stopped_at:.1f} s")

    async def _answers(self) -> bool:
        with suppress(psycopg.Error):
            await (await psycopg.AsyncConnection.connect(self.database_url)).close()
            return True
        return False

    def judged(self, exchanges: Sequence[Exchange], book: Book, sends: Sequence[dict[str, Any]]) -> list[Target]:
        """Nothing but 200 and 503 ever; after the gap nothing but 200 soon."""
        del book, sends
        failed = [one for one in exchanges if one.status != 200]
        inside = sum(any(gap.stopped_at - 1 <= one.ended_at <= gap.back_at for gap in self.gaps) for one in failed)
        tails = [self._tail(number, failed) for number in range(len(self.gaps))]
        longest = max(max(tails, default=0.0), 0.0)
        away = ", ".join(f"{gap.back_at - gap.stopped_at:.1f}" for gap in self.gaps)
        return [
            Target("PostgreSQL stopped", f"{self.times} times", f"away for {away} s", len(self.gaps) == self.times),
            Target("requests refused meanwhile", "some", f"{inside:,}", inside > 0),
            _answers(exchanges, allowed=(200, 503)),
            Target(
                "last failure after it was back", f"< {NORMAL_SECONDS} s", f"{longest:.1f} s", longest < NORMAL_SECONDS
            ),
        ]

    def _tail(self, number: int, failed: Sequence[Exchange]) -> float:
        """Return how long after it was back the last request began that failed before the next stop."""
        gap = self.gaps[number]
        until = self.gaps[number + 1].stopped_at if number + 1 < len(self.gaps) else float("inf")
        begun = (one.begun_at for one in failed if one.begun_at > gap.stopped_at and one.ended_at < until)
        return max((at - gap.back_at for at in begun), default=0.0)


@dataclass(frozen=True, slots=True)
class Outage:
    """How FCM fails, for how long: orders to the stand-in, and those that end it."""

    name: str
    orders: dict[str, Any]
    seconds: float


END: Final[dict[str, Any]] = {"override": None, "oauth_down": False}


@dataclass(slots=True)
class FcmOutages:
    """FCM failing in one way after the other, with time to recover in between."""

    control_url: str
    outages: Sequence[Outage]
    say: Say
    spans: list[tuple[float, float]] = field(default_factory=list)

    async def run(self, crowd: Crowd) -> None:
        """Let it fail in each way; the first one finds a command to the whole fleet on its way."""
        async with httpx.AsyncClient() as client:
            await asyncio.sleep(10)
            for number, outage in enumerate(self.outages):
                begun_at = await self._order(client, outage.orders)
                self.say(f"FCM: {outage.name}, for {outage.seconds:.0f} s")
                if number == 0:
                    crowd.post_to_all()
                await asyncio.sleep(outage.seconds)
                self.spans.append((begun_at, await self._order(client, END)))
                self.say("FCM is well again")
                await asyncio.sleep(RESUMED_SECONDS)

    async def _order(self, client: httpx.AsyncClient, orders: dict[str, Any]) -> float:
        (await client.post(f"{self.control_url}/control", json=orders)).raise_for_status()
        return time.monotonic()

    def judged(self, exchanges: Sequence[Exchange], book: Book, sends: Sequence[dict[str, Any]]) -> list[Target]:
        """The API goes on, heartbeats bring the commands, and pushes go out again by themselves."""
        late = sum(outcome == "retry_later" for rows in book.attempts.values() for outcome, _ in rows)
        return [
            Target("attempts that FCM answered with 503", f"> {LEAST_FAILURES}", f"{late:,}", late > LEAST_FAILURES),
            _answers(exchanges, allowed=(200,)),
            *(self._results(outage, span, exchanges) for outage, span in zip(self.outages, self.spans, strict=True)),
            *(self._resumed(outage, span, sends) for outage, span in zip(self.outages, self.spans, strict=True)),
        ]

    def _results(self, outage: Outage, span: tuple[float, float], exchanges: Sequence[Exchange]) -> Target:
        begin, end = span
        results = sum(one.kind == "result" and begin < one.begun_at < end for one in exchanges)
        return Target(f"{outage.name}: results meanwhile", "some", f"{results:,}", results > 0)

    def _resumed(self, outage: Outage, span: tuple[float, float], sends: Sequence[dict[str, Any]]) -> Target:
        _, end = span
        first = next(
            (send["monotonic"] - end for send in sends if send["monotonic"] > end and send["message_id"]), None
        )
        figure = "never" if first is None else f"{first:.1f} s"
        held = first is not None and first < RESUMED_SECONDS
        return Target(f"{outage.name}: first push afterwards", f"< {RESUMED_SECONDS} s", figure, held)


def _answers(exchanges: Sequence[Exchange], *, allowed: tuple[int, ...]) -> Target:
    """Judge all answers by their status; 0 is none."""
    others = Counter(f"{one.status} {one.code}".strip() for one in exchanges if one.status not in allowed)
    words = " or ".join("none" if status == 0 else str(status) for status in allowed)
    figure = ", ".join(f"{count} × {what}" for what, count in others.most_common(4)) or f"{len(exchanges):,}"
    return Target(f"answers are {words}", "all", figure, not others)
