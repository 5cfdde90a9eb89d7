"""The fault `frozen`: a proxy acknowledges packets to the database, but forwards nothing.

Networks freeze in this way if a load balancer hangs, a host is migrated, or a router loses a connection.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from loadtest.chaos import answers, databases
from loadtest.chaos.answers import Gap, InGaps
from loadtest.chaos.databases import Database
from loadtest.chaos.faults import SameProcesses, Say
from loadtest.chaos.ledgers import DatabaseSnapshot
from loadtest.chaos.traffic import Exchange, Traffic
from loadtest.load.targets import Target
from loadtest.testbed.tcp_proxy import TcpProxy

NORMAL_SECONDS: Final = 10
"""The longest time after a freeze for which requests may still fail."""

ANSWER_SECONDS: Final = 10
"""The longest allowed time of a request that overlaps a freeze."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """One freeze of the proxy.

    - `seconds`: the time during which the proxy forwards nothing.
    - `forgets`: whether the connections that were open at the freeze stay dead after the freeze.
    """

    seconds: float
    forgets: bool = False

    def __str__(self) -> str:
        """Return a description of the freeze for the log of the run."""
        return f"frozen for {self.seconds:.0f} s{', then forgotten' if self.forgets else ''}"


FREEZES: Final = (Freeze(40), Freeze(40, forgets=True), Freeze(0, forgets=True), Freeze(40))


@contextmanager
def freezing(folder: Path, times: int, seconds: float) -> Iterator[Database]:
    """Run a PostgreSQL, and a proxy in front of it. Yield this database, with a fault that freezes the proxy `times`
    times.

    A freeze that is longer than `seconds` is shortened to `seconds`.
    """
    freezes = [replace(one, seconds=min(one.seconds, seconds)) for one in FREEZES[:times]]
    with databases.servers(folder) as made:
        server = made.primary("only")
        with TcpProxy(server.port) as proxy:

            def fault(same: SameProcesses, say: Say) -> Freezes:
                return Freezes(proxy, same, freezes, say)

            yield Database({"DATABASE_URL": server.url_through(proxy.port)}, server.url, fault)


@dataclass(slots=True)
class Freezes(InGaps):
    """The fault `frozen`: the proxy freezes several times, with time to recover after each freeze."""

    normal_seconds = NORMAL_SECONDS

    proxy: TcpProxy
    same: SameProcesses
    freezes: Sequence[Freeze]
    say: Say
    gaps: list[Gap] = field(default_factory=list)

    async def run(self, traffic: Traffic) -> None:
        """Cause all freezes, one after another."""
        del traffic
        for freeze in self.freezes:
            await asyncio.sleep(random.uniform(10, 15))
            await self._freeze_once(freeze)
            self.say(str(freeze))
            await asyncio.sleep(NORMAL_SECONDS)
        await asyncio.sleep(NORMAL_SECONDS)

    async def _freeze_once(self, freeze: Freeze) -> None:
        self.proxy.freeze()
        stopped_at = time.monotonic()
        await asyncio.sleep(freeze.seconds)
        if freeze.forgets:
            self.proxy.forget()
        back_at = time.monotonic()
        self.proxy.thaw()
        self.gaps.append(Gap(stopped_at, back_at))

    def judged(
        self, exchanges: Sequence[Exchange], snapshot: DatabaseSnapshot, sends: Sequence[dict[str, Any]]
    ) -> list[Target]:
        """Check that requests are refused in time during a freeze, and that the server's processes survive."""
        del snapshot, sends
        count, figure = len(self.freezes), answers.lengths(self.gaps)
        return [
            Target("freezes", f"{count} times", figure, len(self.gaps) == count),
            self._refused(exchanges),
            self._in_time(exchanges),
            *self.around_gaps(exchanges),
            self.same.judged(),
        ]

    def _refused(self, exchanges: Sequence[Exchange]) -> Target:
        """Check that each request that began and ended within a freeze got 503."""
        meanwhile = Counter(
            one.status
            for one in exchanges
            if any(gap.stopped_at < one.begun_at and one.ended_at < gap.back_at for gap in self.gaps)
        )
        figure = ", ".join(f"{count:,} × {status or 'no answer'}" for status, count in meanwhile.most_common()) or "0"
        return Target("answers meanwhile", "503", figure, set(meanwhile) == {503})

    def _in_time(self, exchanges: Sequence[Exchange]) -> Target:
        """Check the time of each request that overlapped a freeze or began within NORMAL_SECONDS after a freeze."""
        seconds = [
            one.ended_at - one.begun_at
            for one in exchanges
            if any(gap.stopped_at < one.ended_at and one.begun_at < gap.back_at + NORMAL_SECONDS for gap in self.gaps)
        ]
        hung = sum(one > ANSWER_SECONDS for one in seconds)
        figure = f"{hung:,} took longer; the longest {max(seconds, default=0):.1f} s"
        name = "requests that overlapped a freeze were answered"
        return Target(name, f"≤ {ANSWER_SECONDS} s", figure, bool(seconds) and not hung)
