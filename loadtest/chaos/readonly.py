"""The fault `readonly`: a primary becomes read-only under load, and clients still connect to it for some seconds."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
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
from loadtest.testbed.postgres_servers import NAME
from loadtest.testbed.serving import wait_for
from loadtest.testbed.tcp_proxy import TcpProxy

NORMAL_SECONDS: Final = 5
"""The longest time for which requests may still fail after the address of the proxy leads to the new primary. After
this time, no connection to the old primary may exist.
"""

READ_ONLY_SECONDS: Final = 8
_WRITING: Final = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND backend_xid IS NOT NULL"
_CONNECTED: Final = """
    SELECT count(*), coalesce(string_agg(DISTINCT left(query, 40), '; '), '')
    FROM pg_stat_activity WHERE usename = %s
"""


@contextmanager
def demoting(folder: Path, times: int) -> Iterator[Database]:
    """Run a primary and its standby, and a proxy in front of them. Yield this database with a fault of `times`
    demotions.

    The server knows only the address of the proxy.
    """
    with databases.servers(folder) as made:
        pair = PostgresPair.made_by(made)
        with TcpProxy(pair.primary.port) as proxy:

            def fault(same: SameProcesses, say: Say) -> Demotions:
                return Demotions(pair, proxy, same, times, say)

            yield Database({"DATABASE_URL": pair.primary.url_through(proxy.port)}, pair.writable_url, fault)


@dataclass(slots=True)
class Demotions(InGaps):
    """The fault `readonly`: the primary accepts no more writes, and its standby is promoted.

    READ_ONLY_SECONDS later, the address of the proxy leads to the new primary. The old primary stops writes in one of
    two ways, which alternate:

    - It sets `default_transaction_read_only`, and keeps its connections.
    - It restarts as a standby, and cuts its connections.

    In both cases, the old primary answers reads until long after the change of the address.
    """

    normal_seconds = NORMAL_SECONDS

    pair: PostgresPair
    proxy: TcpProxy
    same: SameProcesses
    times: int
    say: Say
    gaps: list[Gap] = field(default_factory=list)
    left: list[tuple[int, str]] = field(default_factory=list)
    """One pair for each demotion: how many connections to the old primary were left, and their last statements. The
    connections are counted NORMAL_SECONDS after the change of the address."""

    async def run(self, traffic: Traffic) -> None:
        """Cause `times` demotions, one after another."""
        del traffic
        for number in range(self.times):
            await asyncio.sleep(random.uniform(10, 15))
            keeps_connections = number % 2 == 0
            await self._move(self._demote if keeps_connections else self._restart_as_standby)
            await asyncio.sleep(NORMAL_SECONDS)
            self.gaps[-1].busy_at = time.monotonic()
            if keeps_connections:
                await asyncio.to_thread(self.pair.rejoin)
        await asyncio.sleep(2 * NORMAL_SECONDS)

    async def _move(self, demote: Callable[[], None]) -> None:
        """Demote the primary, change the address some seconds later, and count the connections to the old primary."""
        stopped_at = time.monotonic()
        await asyncio.to_thread(demote)
        old, new = self.pair.standby, self.pair.primary
        self.say(f"{old.name} accepts no more writes")
        await asyncio.sleep(READ_ONLY_SECONDS)
        self.proxy.point_to(new.port)
        self.gaps.append(Gap(stopped_at, time.monotonic()))
        self.say(f"the address leads to {new.name}")
        await asyncio.sleep(NORMAL_SECONDS)
        self.left.append(await asyncio.to_thread(old.execute, _CONNECTED, NAME))

    def _demote(self) -> None:
        """Make the primary read-only, wait until all writes have reached the standby, and promote the standby."""
        old = self.pair.primary
        old.configure(default_transaction_read_only="on")
        wait_for(lambda: old.execute(_WRITING, NAME) == (0,))
        self.pair.standby.until_it_streams_from(old)
        self.pair.promote_standby()

    def _restart_as_standby(self) -> None:
        """Stop the primary after it has sent all data, promote the standby, and start the old primary as a standby."""
        self.pair.lose_primary("fast")
        self.pair.promote_standby()
        self.pair.rejoin()

    def judged(
        self, exchanges: Sequence[Exchange], snapshot: DatabaseSnapshot, sends: Sequence[dict[str, Any]]
    ) -> list[Target]:
        """Check the answers, the connections to the old primary, and that all processes survive.

        Each answer must be 200 or 503. From NORMAL_SECONDS after the proxy leads to the new primary, each answer must
        be 200.
        """
        del snapshot, sends
        figure = f"read-only for {answers.lengths(self.gaps)}"
        return [
            Target("primary demoted", f"{self.times} times", figure, len(self.gaps) == self.times),
            *self.around_gaps(exchanges),
            self._connected(),
            self.same.judged(),
        ]

    def _connected(self) -> Target:
        counts = ", ".join(str(count) for count, _ in self.left)
        statements = "; ".join(sorted({statement for _, statement in self.left if statement}))
        held = len(self.left) == self.times and not any(count for count, _ in self.left)
        figure = f"{counts} {f'({statements})' if statements else ''}".strip()
        return Target(f"connections to the old primary after {NORMAL_SECONDS} s", "none", figure, held)
