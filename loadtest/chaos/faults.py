"""The faults of the test's own server: processes are killed, or PostgreSQL is stopped in its mode `immediate`.

A fault runs while phones and an admin send requests. The fault records what it did, and checks the promises that apply
only to it.
"""

import asyncio
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg

from loadtest.chaos import answers, intervals
from loadtest.chaos.answers import Gap, InGaps
from loadtest.chaos.intervals import Interval
from loadtest.chaos.ledgers import DatabaseSnapshot
from loadtest.chaos.traffic import Exchange, Traffic
from loadtest.load.targets import Target
from loadtest.testbed.serving import Serving

Say = Callable[[str], None]

NORMAL_SECONDS: Final = 5
"""The longest time after the return of PostgreSQL for which requests may still fail."""

SERVED: Final = ("web-1", "web-2", "dispatch")
"""The names of the parts that `serve` starts, as in its log."""

SECOND: Final = "second dispatch"
STOP_SECONDS: Final = 25
_LOOK_SECONDS: Final = 0.05
_STARTED: Final = "dispatch.started"
_STARTED_AT: Final = re.compile(r'"event":"dispatch\.started".*"at":"([^"]+)"')


class Fault(Protocol):
    """One kind of fault."""

    async def run(self, traffic: Traffic) -> None:
        """Cause the fault. Return when the fault is over."""

    def away(self) -> list[Interval]:
        """Return the intervals in which no dispatcher could push, in Unix time."""

    def judged(
        self, exchanges: Sequence[Exchange], snapshot: DatabaseSnapshot, sends: Sequence[dict[str, Any]]
    ) -> list[Target]:
        """Return the result of one check (a Target) for each promise that applies only to this fault.

        `sends` contains the lines of the journal of the fake FCM.
        """


class SecondDispatcher:
    """A dispatcher that runs in addition to the dispatcher of `serve`."""

    def __init__(self, serving: Serving) -> None:
        """Start the dispatcher."""
        self._serving = serving
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The process id of the dispatcher."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the dispatcher still runs."""
        return self._process.poll() is None

    def replace_killed(self) -> None:
        """Wait for the end of the killed dispatcher, and start a new dispatcher."""
        self._process.wait()
        self._process = self._start()

    def stop(self) -> None:
        """Stop the dispatcher with SIGTERM. If it does not end within STOP_SECONDS, kill it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        return self._serving.start("dispatch", until_it_says=_STARTED)


class SameProcesses:
    """The web workers and the dispatchers that run before a fault. All of them must survive the fault."""

    def __init__(self, serving: Serving, second: SecondDispatcher) -> None:
        """Record the process ids of the parts of `serve`."""
        self._serving = serving
        self._second = second
        self._before = self._pids()

    def _pids(self) -> dict[str, int]:
        return {name: self._serving.child(name) for name in SERVED}

    def judged(self) -> Target:
        """Check that none of the recorded processes has ended, and that the second dispatcher still runs."""
        pids = self._pids()
        ended = [name for name in SERVED if pids[name] != self._before[name]]
        if not self._second.is_alive():
            ended.append(SECOND)
        return Target("processes that ended", "none", ", ".join(ended) or "none", not ended)


@dataclass(slots=True)
class Kills:
    """The fault `kills`: every 2 to 5 s, SIGKILL ends a random web worker or dispatcher."""

    serving: Serving
    second: SecondDispatcher
    seconds: float
    say: Say
    killed: Counter[str] = field(default_factory=Counter)
    first_killed_at: list[float] = field(default_factory=list)
    """The times when the dispatcher of `serve` was killed, in Unix time."""

    second_away: list[Interval] = field(default_factory=list)

    async def run(self, traffic: Traffic) -> None:
        """Kill processes until `seconds` have passed."""
        del traffic
        ends_at = time.monotonic() + self.seconds
        while time.monotonic() < ends_at:
            await asyncio.sleep(random.uniform(2, 5))
            await asyncio.to_thread(self._kill_one)

    def _kill_one(self) -> None:
        victim = random.choice((*SERVED, SECOND))
        with suppress(ProcessLookupError):
            killed_at = time.time()
            os.kill(self.second.pid if victim == SECOND else self.serving.child(victim), signal.SIGKILL)
            self.killed[victim] += 1
            self.say(f"killed {victim}")
            if victim == "dispatch":
                self.first_killed_at.append(killed_at)
            if victim == SECOND:
                self.second.replace_killed()
                self.second_away.append((killed_at, time.time()))

    def away(self) -> list[Interval]:
        """Return the intervals in which neither dispatcher ran, in Unix time."""
        started = [datetime.fromisoformat(at).timestamp() for at in _STARTED_AT.findall(self.serving.said)]
        first = [(at, min((one for one in started if one > at), default=inf)) for at in self.first_killed_at]
        return intervals.common(intervals.union(first), intervals.union(self.second_away))

    def judged(
        self, exchanges: Sequence[Exchange], snapshot: DatabaseSnapshot, sends: Sequence[dict[str, Any]]
    ) -> list[Target]:
        """Check that both web workers and both dispatchers were killed, and that each request got 200 or no answer."""
        del sends
        closed = sum(attempt.outcome == "unknown" for one in snapshot.deliveries for attempt in one.attempts)
        kills = ", ".join(f"{count} × {name}" for name, count in sorted(self.killed.items()))
        return [
            Target("processes killed", "all four kinds", kills, len(self.killed) == 4),
            Target("attempts closed as unknown", "some", f"{closed:,}", closed > 0),
            answers.statuses(exchanges, allowed=(0, 200)),
        ]


@dataclass(slots=True)
class DatabaseStops(InGaps):
    """The fault `database`: PostgreSQL is stopped several times in its mode `immediate`. `serve` starts it again."""

    normal_seconds = NORMAL_SECONDS

    serving: Serving
    database_url: str
    times: int
    say: Say
    gaps: list[Gap] = field(default_factory=list)

    async def run(self, traffic: Traffic) -> None:
        """Stop PostgreSQL `times` times."""
        del traffic
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

    def judged(
        self, exchanges: Sequence[Exchange], snapshot: DatabaseSnapshot, sends: Sequence[dict[str, Any]]
    ) -> list[Target]:
        """Check that each answer is 200 or 503.

        Each answer that comes NORMAL_SECONDS or more after the return of PostgreSQL must be 200.
        """
        del snapshot, sends
        figure = f"away for {answers.lengths(self.gaps)}"
        return [
            Target("PostgreSQL stopped", f"{self.times} times", figure, len(self.gaps) == self.times),
            *self.around_gaps(exchanges),
        ]
