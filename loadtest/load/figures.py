"""The figures of a run in bounded memory: latencies by kind and second, errors, and sums over processes.

Seconds count from the start of the run. A latency belongs to the second in which its request was due.
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
"""The factor between two buckets of a histogram. It is also the largest error of a percentile."""

_LAST: Final = 1000
"""The last bucket: all latencies of more than about an hour."""

_SCALE: Final = 1 / log(GROWTH)


class Histogram:
    """Latencies in buckets, each 2 % larger than the one before: at most a thousand buckets for any number of
    latencies.
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
        """Return a percentile in seconds: never too low, at most 2 % too high. None: empty."""
        wanted = max(1, ceil(percent / 100 * self.count))
        for bucket in sorted(self.counts):
            wanted -= self.counts[bucket]
            if wanted <= 0:
                return min(self.longest, SHORTEST_SECONDS * GROWTH**bucket)
        return None

    def as_json(self) -> list[Any]:
        """Return the histogram in a form for JSON."""
        return [self.longest, *(number for pair in self.counts.items() for number in pair)]

    @classmethod
    def of(cls, said: list[Any]) -> "Histogram":
        """Return the object from the form that as_json() returned."""
        histogram = cls()
        histogram.longest = said[0]
        histogram.counts = dict(zip(said[1::2], said[2::2], strict=True))
        histogram.count = sum(histogram.counts.values())
        return histogram


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Return one histogram with the latencies of all histograms."""
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


@dataclass(slots=True)
class Second:
    """The events of a second: heartbeats that were due, heartbeats that were answered, and the results of the due
    requests.
    """

    due: int = 0
    answered: int = 0
    latencies: dict[Kind, Histogram] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    def merge(self, other: "Second") -> None:
        """Add the figures of another source for this second."""
        self.due += other.due
        self.answered += other.answered
        self.errors.update(other.errors)
        for kind, histogram in other.latencies.items():
            self.latencies.setdefault(kind, Histogram()).merge(histogram)

    def as_json(self) -> dict[str, Any]:
        """Return the figures of this second in a form for JSON."""
        latencies = {kind: histogram.as_json() for kind, histogram in self.latencies.items()}
        return {"due": self.due, "answered": self.answered, "latencies": latencies, "errors": self.errors}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Second":
        """Return the object from the form that as_json() returned."""
        latencies = {kind: Histogram.of(histogram) for kind, histogram in said["latencies"].items()}
        return cls(said["due"], said["answered"], latencies, Counter(said["errors"]))


class Figures:
    """The figures of one process, or of several processes together."""

    def __init__(self) -> None:
        self.seconds: defaultdict[int, Second] = defaultdict(Second)
        self.late = Histogram()
        """The delays of the generator: the times from the due time of a request to its beginning."""

    def due(self, second: float, late_seconds: float) -> None:
        """Count a heartbeat that was due `second` s after the start; the generator began it `late_seconds` s late."""
        self.seconds[int(second)].due += 1
        self.late.add(late_seconds)

    def ended(self, kind: Kind, second: float, latency_seconds: float, error: str) -> None:
        """Record the end of a request that was due `second` s after the start; `error` is empty if it succeeded."""
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
        """Note an error that is not the error of a request."""
        self.seconds[int(second)].errors[error] += 1

    def merge(self, other: "Figures") -> None:
        """Add the figures of another source."""
        self.late.merge(other.late)
        for second, row in other.seconds.items():
            self.seconds[second].merge(row)

    def latencies(self, *kinds: Kind, since: float = 0, until: float = float("inf")) -> Histogram:
        """Return the latencies of the requests that were due in these seconds."""
        rows = self.between(since, until)
        return merged(row.latencies[kind] for row in rows for kind in kinds if kind in row.latencies)

    def errors(self, since: float = 0, until: float = float("inf")) -> Counter[str]:
        """Return the number of each error among the requests that were due in these seconds."""
        counts: Counter[str] = Counter()
        for row in self.between(since, until):
            counts.update(row.errors)
        return counts

    def answered(self, since: float, until: float) -> int:
        """Return how many heartbeats were answered in these seconds."""
        return sum(row.answered for row in self.between(since, until))

    def between(self, since: float, until: float) -> list[Second]:
        """Return the seconds in this range in which something happened."""
        return [row for second, row in self.seconds.items() if since <= second < until]

    def as_json(self) -> dict[str, Any]:
        """Return the figures of all seconds in a form for JSON."""
        return {
            "seconds": [[second, row.as_json()] for second, row in self.seconds.items()],
            "late": self.late.as_json(),
        }

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Figures":
        """Return the object from the form that as_json() returned."""
        figures = cls()
        figures.late = Histogram.of(said["late"])
        figures.seconds.update((second, Second.of(row)) for second, row in said["seconds"])
        return figures


def percentile(values: Iterable[float], percent: float) -> float:
    """Return a percentile of a few values: the nearest value. (For many values, use a Histogram.)"""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * len(ordered)))]


def spread(values: Sequence[float], form: str) -> str:
    """Return the median of some rounds, and in brackets the smallest and the largest value, each in this format."""
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"
