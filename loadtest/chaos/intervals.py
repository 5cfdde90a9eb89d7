"""Calculations with intervals of time.

An interval is a pair of its beginning and its end, both in seconds on one clock.
"""

from collections.abc import Iterable, Sequence

Interval = tuple[float, float]


def union(spans: Iterable[Interval]) -> list[Interval]:
    """Return intervals that cover the time of all `spans`. They are in order, and do not overlap."""
    joined: list[Interval] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def common(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Return the intervals that are covered by both lists. The intervals of each list must not overlap."""
    pairs = ((max(one[0], other[0]), min(one[1], other[1])) for one in some for other in others)
    return [(begin, end) for begin, end in pairs if begin < end]


def length(spans: Iterable[Interval]) -> float:
    """Return the sum of the lengths of the intervals, in seconds."""
    return sum(end - begin for begin, end in spans)
