"""The targets of a run, and the check whether the run met them."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, isnan, nan
from typing import Final

from loadtest.load.disturbances import LAST_ANSWERS_SECONDS
from loadtest.load.figures import KINDS, Histogram, merged
from loadtest.load.runner import CONNECTIONS, Run

DISPATCH_P95_MS: Final = 200
SETTLED_SECONDS: Final = 120
MOST_GROWTH_PERCENT: Final = 5
MOST_AWAY_SECONDS: Final = 5
MOST_SLOWER: Final = 2
LEAST_SENT: Final = 0.95
"""The least share of the planned disturbing requests that must be sent. With a smaller share, the run misses a target.
"""

MOST_IN_FLIGHT: Final = CONNECTIONS
LATE_P99_MS: Final = 10
"""If the p99 of the generator's delay is at least this number of milliseconds, the result mentions the delay."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target of a run.

    - `limit`: the limit, as text.
    - `figure`: the measured figure, as text.
    - `held`: whether the figure is within the limit. A figure that could not be measured is not within its limit.
    """

    name: str
    limit: str
    figure: str
    held: bool


def judged(run: Run) -> list[Target]:
    """Return the targets of a run.

    The p95 of the time from POST to push is a target only if the run has commands and a fake FCM.
    """
    heartbeats = _heartbeats(run)
    aside = ", gap not counted" if run.disturbance and run.disturbance.kind == "restart" else ""
    targets = [
        _errors(run),
        _latency(f"heartbeat p95{aside}", heartbeats, 95, run.load.p95_ms),
        _latency(f"heartbeat p99{aside}", heartbeats, 99, run.load.p99_ms),
    ]
    if run.load.journal and run.load.commands_per_minute:
        dispatch = run.ledger.dispatch(run.starts_at + run.measured_since)
        targets.append(_latency("dispatch p95", dispatch, 95, DISPATCH_P95_MS))
    return [*targets, *_memory(run), *_trial(run)]


def _heartbeats(run: Run) -> Histogram:
    """Return the latencies of heartbeats that count for the targets.

    After a restart, the seconds without a web worker do not count.
    """
    gap = ceil(_back(run)) - int(run.half) if run.disturbance and run.disturbance.kind == "restart" else 0
    before = run.figures.latencies("heartbeat", since=run.measured_since, until=int(run.half))
    return merged((before, run.figures.latencies("heartbeat", since=int(run.half) + gap)))


def _back(run: Run) -> float:
    """Return the second of the run in which a web worker was back after a restart."""
    return run.disturbance.back_at - run.starts_at if run.disturbance and run.disturbance.back_at else run.half


def error_percent(run: Run) -> float | None:
    """Return the percentage of requests that failed. If there were no requests, return None."""
    requests = run.figures.latencies(*KINDS, since=run.measured_since).count
    return 100 * run.figures.errors(since=run.measured_since).total() / requests if requests else None


def lateness(run: Run) -> str:
    """Return a sentence about the generator's delay, or an empty text if the delay is short."""
    p99 = run.figures.late.percentile(99) or 0.0
    if p99 * 1000 < LATE_P99_MS:
        return ""
    longest = milliseconds(run.figures.late.longest)
    return f"The generator itself was late: p99 {milliseconds(p99)}, at most {longest}; latencies include this delay."


def milliseconds(seconds: float | None) -> str:
    """Return a duration as text in milliseconds. None becomes a dash."""
    if seconds is None:
        return "–"
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _memory(run: Run) -> Iterator[Target]:
    """Yield a target for the memory of a web worker, if the run lasted long enough to measure it."""
    settled = [mebibytes for second, mebibytes in run.memory if second >= SETTLED_SECONDS]
    if len(settled) < 2 or all(map(isnan, settled)):
        return
    first, spread = settled[0], nan if any(map(isnan, settled)) else max(abs(one - settled[0]) for one in settled)
    figure = f"{first:.0f} → {settled[-1]:.0f} MiB, ± {100 * spread / first:.1f} %"
    yield Target(
        "memory from minute 2 on", f"± {MOST_GROWTH_PERCENT} %", figure, 100 * spread / first < MOST_GROWTH_PERCENT
    )


def _trial(run: Run) -> Iterator[Target]:
    """Yield the targets of a run with a disturbance. They compare the second half of the run with the first half.

    After a restart, these targets compare a minute of the new web worker with a minute of the old web worker.
    """
    if (disturbance := run.disturbance) is None:
        return
    after = run.half
    if disturbance.kind == "restart":
        after = _back(run)
        away = after - run.half
        yield Target("web away", f"< {MOST_AWAY_SECONDS} s", f"{away:.1f} s", 0 < away < MOST_AWAY_SECONDS)
        yield _failed_with_the_worker(run, after)
    else:
        met = sum(disturbance.statuses[status] for status in disturbance.expected)
        enough = disturbance.sent > LEAST_SENT * disturbance.per_second * (
            run.load.duration_seconds / 2 - LAST_ANSWERS_SECONDS
        )
        words = " or ".join(map(str, sorted(disturbance.expected)))
        figure = f"{met:,} of {disturbance.sent:,}"
        yield Target(f"{disturbance.kind} get {words}", "all", figure, enough and met == disturbance.sent)
    half, back = int(run.half), ceil(after)
    without = run.figures.latencies("heartbeat", since=max(run.measured_since, half - 60), until=half)
    with_it = run.figures.latencies("heartbeat", since=back, until=back + 60)
    for percent in (95, 99):
        yield _ratio(f"p{percent}, a minute without and with", without, with_it, percent)


def _failed_with_the_worker(run: Run, back: float) -> Target:
    """Return the target for errors of a restart.

    At most one request for each connection may fail, and only at the restart.
    """
    here = run.figures.errors(run.half - 1, ceil(back) + 1).total()
    elsewhere = run.figures.errors(since=run.measured_since).total() - here
    held = here <= MOST_IN_FLIGHT and not elsewhere
    return Target("failed at the restart", f"≤ {MOST_IN_FLIGHT}, no others", f"{here}, {elsewhere} others", held)


def _ratio(name: str, before: Histogram, after: Histogram, percent: float) -> Target:
    one, other = before.percentile(percent), after.percentile(percent)
    if one is None or other is None:
        return Target(name, f"≤ {MOST_SLOWER} ×", "–", held=False)
    figure = f"{milliseconds(one)} → {milliseconds(other)}, {other / one:.2f} ×"
    return Target(name, f"≤ {MOST_SLOWER} ×", figure, other / one <= MOST_SLOWER)


def _errors(run: Run) -> Target:
    percent = error_percent(run)
    most = run.load.most_errors_percent
    held = percent is not None and (percent < most or percent == 0)
    limit = f"< {most:g} %" if most else "none"
    return Target(
        "error rate", limit, "–" if percent is None else f"{percent:.2f} %" if held else f"{percent:.4f} %", held
    )


def _latency(name: str, histogram: Histogram, percent: float, limit_ms: float) -> Target:
    seconds = histogram.percentile(percent)
    held = seconds is not None and seconds * 1000 < limit_ms
    return Target(name, f"< {limit_ms:g} ms", milliseconds(seconds), held)
