"""The fault `web`: for minutes, the web workers are away, while the dispatchers and PostgreSQL run.

In this time, no device may go offline.
"""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from loadtest.chaos import answers
from loadtest.chaos.faults import Say
from loadtest.chaos.intervals import Interval
from loadtest.chaos.ledgers import DatabaseSnapshot, none
from loadtest.chaos.traffic import Exchange, Traffic
from loadtest.load.targets import Target
from loadtest.testbed.serving import Serving, wait_for

BEFORE_SECONDS: Final = 90
"""The length of the time before the fault, and also of the time after the fault. In each of these times, each phone
sends at least one heartbeat."""

QUIET_SECONDS: Final = 5
"""The time from the last command until the fault. In this time, the phones answer the last commands."""

NORMAL_SECONDS: Final = 5
"""The longest time after the return of the web workers for which new requests may get no answer."""

_OFFLINE: Final = "SELECT count(*) FROM nexmdm_event WHERE type = 'device.offline'"
_ONLINE: Final = """
    SELECT count(*), count(*) + (SELECT count(*) FROM devices_presencespan)
    FROM devices_presence WHERE online_from IS NOT NULL
"""
_GAPS: Final = "SELECT COALESCE(max(extract(epoch FROM ended_at - began_at)), 0)::float8 FROM devices_servicegap"


@dataclass(slots=True)
class WebAway:
    """The fault `web`: the supervisor is frozen and its web workers are killed. Later the supervisor starts them again.

    - `gap`: the interval in which the web workers were away.
    - `offline`: the number of events `device.offline` after the run.
    - `spans`: the number of open spans in the presence history, and the number of all spans.
    - `longest_gap`: the length of the longest service gap in the database, in seconds.
    """

    serving: Serving
    database_url: str
    seconds: float
    say: Say
    gap: answers.Gap | None = None
    offline: int = -1
    spans: tuple[int, int] = (0, 0)
    longest_gap: float = 0

    async def run(self, traffic: Traffic) -> None:
        """Take the web workers away once, for `seconds`.

        The admin issues no commands in this time. When the web workers are back, the server would refuse these POSTs: a
        signature is valid for only 300 s.
        """
        await asyncio.sleep(BEFORE_SECONDS)
        traffic.pause_commands()
        await asyncio.sleep(QUIET_SECONDS)
        stopped_at = time.monotonic()
        os.kill(self.serving.process.pid, signal.SIGSTOP)
        workers = [self.serving.child(name) for name in ("web-1", "web-2")]
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        self.say(f"the web workers are away, for {self.seconds:.0f} s")
        await asyncio.sleep(self.seconds)
        os.kill(self.serving.process.pid, signal.SIGCONT)
        await asyncio.to_thread(wait_for, lambda: not {self.serving.child(n) for n in ("web-1", "web-2")} & {*workers})
        self.gap = answers.Gap(stopped_at, time.monotonic())
        self.say("the web workers are back")
        traffic.resume_commands()
        await asyncio.sleep(BEFORE_SECONDS)
        await asyncio.to_thread(self._look)

    def _look(self) -> None:
        with psycopg.connect(self.database_url) as connection:
            ((self.offline,),) = connection.execute(_OFFLINE).fetchall()
            (self.spans,) = connection.execute(_ONLINE).fetchall()
            ((self.longest_gap,),) = connection.execute(_GAPS).fetchall()

    def away(self) -> list[Interval]:
        """Return an empty list: the dispatchers can push all the time."""
        return []

    def judged(
        self, exchanges: Sequence[Exchange], snapshot: DatabaseSnapshot, sends: Sequence[dict[str, Any]]
    ) -> list[Target]:
        """Check that no device went offline, and that requests are answered after the return of the web workers."""
        del snapshot, sends
        assert self.gap is not None
        open_spans, spans = self.spans
        normal_at = self.gap.back_at + NORMAL_SECONDS
        late = sum(one.status == 0 and one.begun_at > normal_at for one in exchanges)
        away = sum(one.status == 0 for one in exchanges)
        return [
            Target("requests without an answer", "some", f"{away:,}", away > 0),
            none("requests without an answer after the return", late),
            none("devices that went offline", self.offline),
            Target("open spans of presence", "all", f"{open_spans:,} of {spans:,} spans", open_spans == spans > 0),
            Target(
                "longest gap in the service", f"> {self.seconds - NORMAL_SECONDS:.0f} s", f"{self.longest_gap:.0f} s",
                self.longest_gap > self.seconds - NORMAL_SECONDS,
            ),
            answers.statuses(exchanges, allowed=(0, 200)),
        ]  # fmt: skip
