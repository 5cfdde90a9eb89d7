"""Checks of the answers to clients: their status, their form and their time.

A gap is an interval without a usable database.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Final

from loadtest.chaos.intervals import Interval
from loadtest.chaos.traffic import Exchange
from loadtest.load.targets import Target

SLOW_SECONDS: Final = 2
"""The longest allowed duration of a request, if it begins `normal_seconds` or more after a gap."""

LONG_SECONDS: Final = 3
"""If a gap is at least this long, some requests must fail in it. A request waits for the database for 2 s. So no
request needs to fail in a shorter gap."""

AWAY_CODES: Final = ("database_unavailable", "overloaded")


@dataclass(slots=True)
class Gap:
    """An interval without a usable database. Times are seconds on the monotonic clock.

    - `stopped_at`: the time when the database was lost.
    - `back_at`: the time from which the database can be used again.
    - `busy_at`: the time from which answers may be slow, because other programs use the machine.
    """

    stopped_at: float
    back_at: float
    busy_at: float = inf


def lengths(gaps: Sequence[Gap]) -> str:
    """Return the length of each gap in seconds, as one text."""
    return ", ".join(f"{gap.back_at - gap.stopped_at:.1f}" for gap in gaps) + " s"


class InGaps:
    """The common part of the faults that take the database away several times."""

    __slots__ = ()
    normal_seconds: ClassVar[float]
    """The longest time after a gap for which requests may still fail."""

    gaps: list[Gap]

    def away(self) -> list[Interval]:
        """Return the gaps as intervals in Unix time. Each interval also contains the `normal_seconds` after its gap."""
        ahead = time.time() - time.monotonic()
        return [(gap.stopped_at + ahead, gap.back_at + ahead + self.normal_seconds) for gap in self.gaps]

    def around_gaps(self, exchanges: Sequence[Exchange]) -> list[Target]:
        """Check the answers that clients got in the gaps and after them."""
        return AroundGaps(self.gaps, exchanges, self.normal_seconds).judged()


@dataclass(frozen=True, slots=True)
class AroundGaps:
    """The checks of all answers of a run. `gaps` are the intervals without a usable database, in the order of time.

    - `normal_seconds`: the longest time after a gap for which requests may still fail.
    """

    gaps: Sequence[Gap]
    exchanges: Sequence[Exchange]
    normal_seconds: float

    def judged(self) -> list[Target]:
        """Check that each answer is 200 or 503.

        Each answer that comes `normal_seconds` or more after a gap must be 200.
        """
        failed = [one for one in self.exchanges if one.status != 200]
        tails = [self._tail(number, failed) for number in range(len(self.gaps))]
        longest = max(max(tails, default=0.0), 0.0)
        limit = f"< {self.normal_seconds} s"
        return [
            self._refused(failed),
            statuses(self.exchanges, allowed=(200, 503)),
            _problems(failed),
            Target(
                "last failure after the database was back", limit, f"{longest:.1f} s", longest < self.normal_seconds
            ),
            self._brisk(),
        ]

    def _refused(self, failed: Sequence[Exchange]) -> Target:
        """Check that requests failed in the gaps.

        A gap that is shorter than LONG_SECONDS may be without a failed request.
        """
        refused = [
            sum(one.ended_at > gap.stopped_at and one.begun_at < gap.back_at for one in failed) for gap in self.gaps
        ]
        silent = any(
            not count and gap.back_at - gap.stopped_at >= LONG_SECONDS
            for count, gap in zip(refused, self.gaps, strict=True)
        )
        limit = f"some in each gap of {LONG_SECONDS} s"
        return Target("requests refused in the gaps", limit, ", ".join(map(str, refused)), any(refused) and not silent)

    def _brisk(self) -> Target:
        """Check that requests are fast after each gap. The check ends at the next gap, or at the gap's `busy_at`."""
        slow, longest = 0, 0.0
        for number, gap in enumerate(self.gaps):
            normal_at = gap.back_at + self.normal_seconds
            until = min(self._next_stop(number), gap.busy_at)
            for one in self.exchanges:
                begin, seconds = one.begun_at, min(one.ended_at, until) - one.begun_at
                if begin < until and begin + seconds > normal_at:
                    slow += seconds > (SLOW_SECONDS if begin >= normal_at else self.normal_seconds)
                    longest = max(longest, seconds)
        name = f"slow requests {self.normal_seconds} s after the database was back"
        figure = f"{slow:,}; the longest took {longest:.1f} s"
        return Target(name, f"none over {SLOW_SECONDS} s", figure, longest > 0 and not slow)

    def _next_stop(self, number: int) -> float:
        return self.gaps[number + 1].stopped_at if number + 1 < len(self.gaps) else inf

    def _tail(self, number: int, failed: Sequence[Exchange]) -> float:
        """Return the time of the last failure in or after a gap, in seconds after the end of the gap.

        Failures after the beginning of the next gap do not count.
        """
        gap, until = self.gaps[number], self._next_stop(number)
        ended = (one.ended_at for one in failed if gap.stopped_at < one.ended_at < until)
        return max((at - gap.back_at for at in ended), default=0.0)


def _problems(failed: Sequence[Exchange]) -> Target:
    """Check that each failed answer has complete problem details, and that its code is in AWAY_CODES."""
    codes = Counter(one.code for one in failed)
    wrong = Counter(one.flaw or f"code {one.code}" for one in failed if one.flaw or one.code not in AWAY_CODES)
    figure = ", ".join(f"{count:,} × {what}" for what, count in (wrong or codes).most_common(4)) or "none"
    return Target("refusals are problem details", " or ".join(AWAY_CODES), figure, not wrong)


def statuses(exchanges: Sequence[Exchange], *, allowed: tuple[int, ...]) -> Target:
    """Check that each answer has an allowed status. The status 0 means that there was no answer."""
    others = Counter(f"{one.status} {one.code}".strip() for one in exchanges if one.status not in allowed)
    words = " or ".join("none" if status == 0 else str(status) for status in allowed)
    figure = ", ".join(f"{count} × {what}" for what, count in others.most_common(4)) or f"{len(exchanges):,}"
    return Target(f"answers are {words}", "all", figure, not others)
