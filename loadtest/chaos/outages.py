"""The fault `fcm`: FCM fails in several ways, one after another.

The API must continue during each outage, and pushing must recover after it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import psycopg

from loadtest.chaos import answers
from loadtest.chaos.faults import Say
from loadtest.chaos.intervals import Interval
from loadtest.chaos.ledgers import FINAL, DatabaseSnapshot, Delivery, part
from loadtest.chaos.traffic import SPREAD, Exchange, Traffic
from loadtest.load.targets import Target

RESUMED_SECONDS: Final = 60
"""The longest time from the end of an outage until pushing must be normal again."""

LEAST_FAILURES: Final = 300
FAILED: Final = ("retry_later", "unknown", "blocked")
IN_THE_AIR_SECONDS: Final = 2
"""The time from the beginning of an outage in which phones still answer earlier pushes."""

LEAST_BY_HEARTBEAT: Final = 0.95
RATE_SECONDS: Final = 10
LEAST_RATE: Final = 0.5
"""The least rate of pushes after an outage, as a share of the rate before the outage."""

END: Final[dict[str, Any]] = {"override": None, "oauth_down": False}
_LOOK_SECONDS: Final = 0.25
_WHOLE: Final = """
    SELECT (
        SELECT count(*) FILTER (WHERE circuit = 'closed') >= 2 AND count(*) FILTER (WHERE circuit <> 'closed') = 0
        FROM nexmdm_dispatcherseen WHERE last_seen_at > now() - interval '8 seconds'
    ) AND NOT EXISTS (
        SELECT FROM commands_delivery
        WHERE state = 'pending' AND next_attempt_at < now() - interval '2 seconds' AND open_until > now()
    )
"""


@dataclass(frozen=True, slots=True)
class Outage:
    """One planned outage of the fake FCM.

    - `orders`: the orders of `POST /control` that begin the outage.
    - `seconds`: the length of the outage.
    """

    name: str
    orders: dict[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """One outage that is over. Times are Unix time.

    - `after_seconds`: the time from the end of the outage until pushing was normal; None: it was not normal in time.
    """

    begun_at: float
    ended_at: float
    after_seconds: float | None


@dataclass(slots=True)
class FcmOutages:
    """The fault `fcm`: the outages follow one another, with time to recover after each outage."""

    control_url: str
    database_url: str
    outages: Sequence[Outage]
    interval_seconds: float
    say: Say
    recoveries: list[Recovery] = field(default_factory=list)

    async def run(self, traffic: Traffic) -> None:
        """Cause all outages, one after another.

        At the beginning of the first outage, the admin also issues a command to all phones.
        """
        async with httpx.AsyncClient() as client:
            for number, outage in enumerate(self.outages):
                await asyncio.sleep(RATE_SECONDS)
                begun_at = await self._order(client, outage.orders)
                self.say(f"FCM: {outage.name}, for {outage.seconds:.0f} s")
                if number == 0:
                    traffic.post_to_all()
                await asyncio.sleep(outage.seconds)
                ended_at = await self._order(client, END)
                self.say("FCM works again")
                self.recoveries.append(Recovery(begun_at, ended_at, await self._recover(ended_at)))
        await asyncio.sleep(RATE_SECONDS)

    async def _order(self, client: httpx.AsyncClient, orders: dict[str, Any]) -> float:
        (await client.post(f"{self.control_url}/control", json=orders)).raise_for_status()
        return time.time()

    async def _recover(self, ended_at: float) -> float | None:
        """Wait until all dispatchers push and no push is overdue.

        Return the seconds of the wait, or None after RESUMED_SECONDS.
        """
        async with await psycopg.AsyncConnection.connect(self.database_url, autocommit=True) as connection:
            while (waited := time.time() - ended_at) < RESUMED_SECONDS:
                if await (await connection.execute(_WHOLE)).fetchone() == (True,):
                    self.say(f"pushing is normal again after {waited:.1f} s")
                    return waited
                await asyncio.sleep(_LOOK_SECONDS)
        return None

    def away(self) -> list[Interval]:
        """Return the outages in Unix time. Each interval ends only when pushing was normal again."""
        return [
            (one.begun_at, one.ended_at + (RESUMED_SECONDS if one.after_seconds is None else one.after_seconds))
            for one in self.recoveries
        ]

    def judged(
        self, exchanges: Sequence[Exchange], snapshot: DatabaseSnapshot, sends: Sequence[dict[str, Any]]
    ) -> list[Target]:
        """Check that the API continues, that heartbeats deliver the commands, and that pushing recovers."""
        named = list(zip((outage.name for outage in self.outages), self.recoveries, strict=True))
        refused = sum(send["status"] == 503 for send in sends)
        failed = sum(_failed_within(snapshot, one.begun_at, one.ended_at) for one in self.recoveries)
        figure = f"{refused:,}; {failed:,} attempts failed in all outages"
        return [
            Target("messages that FCM answered with 503", f"> {LEAST_FAILURES}", figure, refused > LEAST_FAILURES),
            answers.statuses(exchanges, allowed=(200,)),
            *(_accepted(name, one, exchanges) for name, one in named),
            *(_by_heartbeat(name, _answered(one, snapshot)) for name, one in named),
            *(self._reached(name, one, snapshot) for name, one in named),
            *(_resumed(name, one, sends) for name, one in named),
        ]

    def _reached(self, name: str, one: Recovery, snapshot: DatabaseSnapshot) -> Target:
        """Check that heartbeats delivered enough of the commands that were open in the outage.

        A phone's next heartbeat comes at a random moment of its interval. Example: if a delivery is open for half of
        the longest interval, a heartbeat delivers it with a probability of at least 0.5.
        """
        longest = (1 + SPREAD) * self.interval_seconds
        heard = {each.key for each in _answered(one, snapshot) if each.delivered_via == "heartbeat"}
        open_seconds = {each.key: _open_seconds(each, one) for each in snapshot.deliveries}
        least = LEAST_BY_HEARTBEAT * sum(min(1, seconds / longest) for seconds in open_seconds.values())
        long = {key for key, seconds in open_seconds.items() if seconds >= longest}
        reached = len(heard & long)
        figure = f"{reached:,} of {len(long):,} open for {longest:.0f} s; {len(heard):,} of all, {least:,.0f} expected"
        held = reached >= LEAST_BY_HEARTBEAT * len(long) and len(heard) >= least > 0
        return Target(
            f"{name}: open in the outage, delivered by heartbeat", f"≥ {LEAST_BY_HEARTBEAT:.0%}", figure, held
        )


def _failed_within(snapshot: DatabaseSnapshot, begin: float, end: float) -> int:
    attempts = (attempt for one in snapshot.deliveries for attempt in one.attempts)
    return sum(one.outcome in FAILED and begin < one.started_at < end for one in attempts)


def _accepted(name: str, one: Recovery, exchanges: Sequence[Exchange]) -> Target:
    ahead = time.time() - time.monotonic()
    posts = [each for each in exchanges if each.kind == "command"]
    meanwhile = [each for each in posts if one.begun_at < each.begun_at + ahead < one.ended_at]
    taken = sum(each.status == 200 for each in meanwhile)
    return Target(f"{name}: commands accepted in the outage", "all", *part(taken, len(meanwhile)))


def _answered(one: Recovery, snapshot: DatabaseSnapshot) -> list[Delivery]:
    """Return the deliveries that phones settled in an outage.

    The first IN_THE_AIR_SECONDS of the outage do not count.
    """
    begin, end = one.begun_at + IN_THE_AIR_SECONDS, one.ended_at
    return [each for each in snapshot.deliveries if each.state in FINAL and begin < (each.settled_at or 0) < end]


def _open_seconds(delivery: Delivery, one: Recovery) -> float:
    """Return the seconds of an outage between the issue and the expiry of a delivery. If the delivery was settled
    before these seconds, return 0.

    The first IN_THE_AIR_SECONDS of the outage do not count.
    """
    begin = one.begun_at + IN_THE_AIR_SECONDS
    if delivery.settled_at is not None and delivery.settled_at <= begin:
        return 0
    return max(0, min(one.ended_at, delivery.expires_at) - max(begin, delivery.issued_at))


def _by_heartbeat(name: str, answered: Sequence[Delivery]) -> Target:
    """Check that nearly all results in an outage belong to commands that came by heartbeat."""
    heard = sum(each.delivered_via == "heartbeat" for each in answered)
    figure = f"{heard:,} of {len(answered):,}"
    held = heard > 0 and heard >= LEAST_BY_HEARTBEAT * len(answered)
    return Target(f"{name}: results in the outage, by heartbeat", f"≥ {LEAST_BY_HEARTBEAT:.0%}", figure, held)


def _resumed(name: str, one: Recovery, sends: Sequence[dict[str, Any]]) -> Target:
    """Check that pushing was normal in time after an outage.

    The rate of pushes must be at least LEAST_RATE of the rate before the outage.
    """
    before = _per_second(sends, one.begun_at - RATE_SECONDS)
    limit = f"< {RESUMED_SECONDS} s, rate ≥ {LEAST_RATE:.0%}"
    if one.after_seconds is None:
        return Target(f"{name}: pushing is normal again", limit, "never", held=False)
    after = _per_second(sends, one.ended_at + one.after_seconds)
    figure = f"{one.after_seconds:.1f} s; {before:.0f} → {after:.0f} pushes/s"
    held = one.after_seconds < RESUMED_SECONDS and after >= LEAST_RATE * before > 0
    return Target(f"{name}: pushing is normal again", limit, figure, held)


def _per_second(sends: Sequence[dict[str, Any]], since: float) -> float:
    taken = [send for send in sends if send["message_id"] and since <= send["at"] < since + RATE_SECONDS]
    return len(taken) / RATE_SECONDS
