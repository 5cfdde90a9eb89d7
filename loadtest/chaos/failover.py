"""The fault `failover`: the primary is stopped under load and its synchronous standby is promoted, several times."""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest.chaos import answers, databases
from loadtest.chaos.answers import Gap, InGaps
from loadtest.chaos.databases import Database
from loadtest.chaos.faults import SameProcesses, Say
from loadtest.chaos.ledgers import DatabaseSnapshot
from loadtest.chaos.traffic import Exchange, Traffic
from loadtest.load.targets import Target
from loadtest.testbed.postgres_pair import PostgresPair
from loadtest.testbed.postgres_servers import Mode

NORMAL_SECONDS: Final = 5
"""The longest time after the promotion for which requests may still fail."""

MODES: Final[Sequence[Mode]] = ("kill", "immediate")


@contextmanager
def failing_over(folder: Path, times: int) -> Iterator[Database]:
    """Run a primary and its synchronous standby. Yield this database with a fault of `times` failovers.

    DATABASE_URL names both servers.
    """
    with databases.servers(folder) as made:
        pair = PostgresPair.made_by(made)

        def fault(same: SameProcesses, say: Say) -> Failovers:
            return Failovers(pair, same, times, say)

        yield Database({"DATABASE_URL": pair.url}, pair.writable_url, fault)


@dataclass(slots=True)
class Failovers(InGaps):
    """The fault `failover`: the primary is stopped, and its standby is promoted.

    Later the old primary returns as a standby.
    """

    normal_seconds = NORMAL_SECONDS

    pair: PostgresPair
    same: SameProcesses
    times: int
    say: Say
    gaps: list[Gap] = field(default_factory=list)

    async def run(self, traffic: Traffic) -> None:
        """Cause `times` failovers, one after another."""
        del traffic
        for number in range(self.times):
            await asyncio.sleep(random.uniform(10, 15))
            await self._fail_over(MODES[number % len(MODES)])
            await asyncio.sleep(2 * NORMAL_SECONDS)
            self.gaps[-1].busy_at = time.monotonic()
            await asyncio.to_thread(self.pair.rejoin)
            self.say(f"{self.pair.standby.name} is back as standby")
        await asyncio.sleep(2 * NORMAL_SECONDS)

    async def _fail_over(self, mode: Mode) -> None:
        stopped_at = time.monotonic()
        await asyncio.to_thread(self.pair.lose_primary, mode)
        # A failover manager needs this time to be certain that the primary has failed.
        await asyncio.sleep(random.uniform(1, 6))
        await asyncio.to_thread(self.pair.promote_standby)
        self.gaps.append(Gap(stopped_at, time.monotonic()))
        away = self.gaps[-1].back_at - stopped_at
        self.say(f"{self.pair.standby.name}: {mode}; {self.pair.primary.name} is primary {away:.1f} s later")

    def judged(
        self, exchanges: Sequence[Exchange], snapshot: DatabaseSnapshot, sends: Sequence[dict[str, Any]]
    ) -> list[Target]:
        """Check that each answer is 200 or 503, and that all processes survive.

        If NORMAL_SECONDS have passed since a promotion, each answer must be 200.
        """
        del snapshot, sends
        figure = f"no primary for {answers.lengths(self.gaps)}"
        return [
            Target("failovers", f"{self.times} times", figure, len(self.gaps) == self.times),
            *self.around_gaps(exchanges),
            self.same.judged(),
        ]
