"""The figures of a run: latencies by kind and second, errors, and their sums over several processes.

The figures need a limited amount of memory. Seconds count from the start of the run. A latency belongs to the second in
which its request was due.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, log
from statistics import median
from typing import Any, Final, Literal, get_args

Kind = Literal["heartbeat", "result", "command"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

SHORTEST_SECONDS: Final = 1e-5
GROWTH: Final = 1.02
"""The factor between the limits of neighbouring buckets of a histogram. So a percentile is at most 2 % too high."""

_LAST: Final = 1000
"""The number of the last bucket. It contains all latencies above about an hour."""

_SCALE: Final = 1 / log(GROWTH)


class Histogram:
    """A collection of latencies that counts them in at most 1001 buckets.

    Each bucket ends 2 % higher than the bucket before it.
    """

    __slots__ = ("count", "counts", "longest")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.count = 0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Add one latency."""
        bucket = min(_LAST, ceil(log(seconds / SHORTEST_SECONDS) * _SCALE)) if seconds > SHORTEST_SECONDS else 0
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def merge(self, other: "Histogram") -> None:
        """Add the latencies of another histogram."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.count += other.count
        self.longest = max(self.longest, other.longest)

    def percentile(self, percent: float) -> float | None:
        """Return a percentile in seconds.

        It is never too low, and at most 2 % too high. An empty histogram returns None.
        """
        wanted = max(1, ceil(percent / 100 * self.count))
        for bucket in sorted(self.counts):
            wanted -= self.counts[bucket]
            if wanted <= 0:
                return min(self.longest, SHORTEST_SECONDS * GROWTH**bucket)
        return None

    def as_json(self) -> list[Any]:
        """Return the histogram as a list for JSON."""
        return [self.longest, *(number for pair in self.counts.items() for number in pair)]

    @classmethod
    def of(cls, said: list[Any]) -> "Histogram":
        """Return the histogram from the list that `as_json` made."""
        histogram = cls()
        histogram.longest = said[0]
        histogram.counts = dict(zip(said[1::2], said[2::2], strict=True))
        histogram.count = sum(histogram.counts.values())
        return histogram


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return one histogram with the latencies of all `histograms`."""
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


@dataclass(slots=True)
class Second:
    """The figures of one second of a run.

    - `due`: the number of heartbeats that were due in this second.
    - `answered`: the number of heartbeats whose answers arrived in this second.
    - `latencies`, `errors`: the latencies and errors of the requests that were due in this second.
    """

    due: int = 0
    answered: int = 0
    latencies: dict[Kind, Histogram] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    def merge(self, other: "Second") -> None:
        """Add the figures of another process for this second."""
        self.due += other.due
        self.answered += other.answered
        self.errors.update(other.errors)
        for kind, histogram in other.latencies.items():
            self.latencies.setdefault(kind, Histogram()).merge(histogram)

    def as_json(self) -> dict[str, Any]:
        """Return the figures of this second as a dictionary for JSON."""
        latencies = {kind: histogram.as_json() for kind, histogram in self.latencies.items()}
        return {"due": self.due, "answered": self.answered, "latencies": latencies, "errors": self.errors}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Second":
        """Return the figures from the dictionary that `as_json` made."""
        latencies = {kind: Histogram.of(histogram) for kind, histogram in said["latencies"].items()}
        return cls(said["due"], said["answered"], latencies, Counter(said["errors"]))


class Figures:
    """The figures of one or several processes."""

    def __init__(self) -> None:
        self.seconds: defaultdict[int, Second] = defaultdict(Second)
        self.late = Histogram()
        """The delays of the generator, from the due time of a request to its beginning."""

    def due(self, second: float, late_seconds: float) -> None:
        """Count a heartbeat that was due `second` s after the start of the run.

        The generator sent it `late_seconds` s late.
        """
        self.seconds[int(second)].due += 1
        self.late.add(late_seconds)

    def ended(self, kind: Kind, second: float, latency_seconds: float, error: str) -> None:
        """Record the end of a request that was due `second` s after the start of the run.

        `error` is empty if the request succeeded.
        """
        row = self.seconds[int(second)]
        histogram = row.latencies.get(kind)
        if histogram is None:
            histogram = row.latencies[kind] = Histogram()
        histogram.add(latency_seconds)
        if error:
            row.errors[error] += 1
        elif kind == "heartbeat":
            self.seconds[int(second + latency_seconds)].answered += 1

    def error(self, second: float, error: str) -> None:
        """Record an error that does not belong to a request, such as a missing result."""
        self.seconds[int(second)].errors[error] += 1

    def merge(self, other: "Figures") -> None:
        """Add the figures of another process."""
        self.late.merge(other.late)
        for second, row in other.seconds.items():
            self.seconds[second].merge(row)

    def latencies(self, *kinds: Kind, since: float = 0, until: float = float("inf")) -> Histogram:
        """Return the latencies of the requests of these kinds that were due at or after `since`, and before `until`."""
        rows = self.between(since, until)
        return merged(row.latencies[kind] for row in rows for kind in kinds if kind in row.latencies)

    def errors(self, since: float = 0, until: float = float("inf")) -> Counter[str]:
        """Return how often each error occurred in the seconds at or after `since`, and before `until`."""
        counts: Counter[str] = Counter()
        for row in self.between(since, until):
            counts.update(row.errors)
        return counts

    def answered(self, since: float, until: float) -> int:
        """Return the number of heartbeats whose answers arrived at or after `since`, and before `until`."""
        return sum(row.answered for row in self.between(since, until))

    def between(self, since: float, until: float) -> list[Second]:
        """Return the figures of the seconds at or after `since`, and before `until`.

        Seconds without any figures are left out.
        """
        return [row for second, row in self.seconds.items() if since <= second < until]

    def as_json(self) -> dict[str, Any]:
        """Return all figures as a dictionary for JSON."""
        return {
            "seconds": [[second, row.as_json()] for second, row in self.seconds.items()],
            "late": self.late.as_json(),
        }

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Figures":
        """Return the figures from the dictionary that `as_json` made."""
        figures = cls()
        figures.late = Histogram.of(said["late"])
        figures.seconds.update((second, Second.of(row)) for second, row in said["seconds"])
        return figures


def percentile(values: Iterable[float], percent: float) -> float:
    """Return a percentile of a few values. The result is one of these values. For many values, use a Histogram."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * len(ordered)))]


def spread(values: Sequence[float], form: str) -> str:
    """Return the median of the values, and the smallest and the largest value in parentheses.

    `form` is the format of each number, such as `.1f`.
    """
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"
