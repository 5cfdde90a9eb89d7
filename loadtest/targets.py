"""What a run has to hold, and whether it did."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

from loadtest.conductor import CONNECTIONS, Run
from loadtest.figures import KINDS, Histogram, merged

DISPATCH_P95_MS: Final = 200
SETTLED_SECONDS: Final = 120
MOST_GROWTH_PERCENT: Final = 5
MOST_AWAY_SECONDS: Final = 5
MOST_IN_FLIGHT: Final = CONNECTIONS
LATE_P99_MS: Final = 10
"""From here on the generator says that it was late itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """One target with its figure; a figure that is missing is a miss."""

    name: str
    limit: str
    figure: str
    held: bool


def judged(run: Run) -> list[Target]:
    """Return the targets that this run can be held to: dispatch is one where there are commands and a stand-in."""
    heartbeats = _heartbeats(run)
    targets = [
        _errors(run),
        _latency("heartbeat p95", heartbeats, 95, run.load.p95_ms),
        _latency("heartbeat p99", heartbeats, 99, run.load.p99_ms),
    ]
    if run.load.journal and run.load.commands_per_minute:
        dispatch = run.ledger.dispatch(run.starts_at + run.measured_since)
        targets.append(_latency("dispatch p95", dispatch, 95, DISPATCH_P95_MS))
    return [*targets, *_memory(run), *_trial(run)]


def _heartbeats(run: Run) -> Histogram:
    """Return the latencies that count: all but those of the seconds in which a restart had no web worker."""
    gap = ceil(_back(run) - run.half) + 1 if run.trial and run.trial.kind == "restart" else 0
    before = run.figures.latencies("heartbeat", since=run.measured_since, until=run.half)
    return merged((before, run.figures.latencies("heartbeat", since=run.half + gap)))


def _back(run: Run) -> float:
    """Return the second in which the web was back after a restart."""
    return run.trial.back_at - run.starts_at if run.trial and run.trial.back_at else run.half


def error_percent(run: Run) -> float | None:
    """Return how many of a hundred requests failed; None without any."""
    requests = run.figures.latencies(*KINDS, since=run.measured_since).count
    return 100 * run.figures.errors(since=run.measured_since).total() / requests if requests else None


def lateness(run: Run) -> str:
    """Return a sentence if the generator itself was late, else nothing."""
    p99 = run.figures.late.percentile(99) or 0.0
    if p99 * 1000 < LATE_P99_MS:
        return ""
    longest = milliseconds(run.figures.late.longest)
    return f"The generator itself was late: p99 {milliseconds(p99)}, at most {longest}; latencies include it."


def milliseconds(seconds: float | None) -> str:
    """Return a length of time as people read it."""
    if seconds is None:
        return "–"
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _memory(run: Run) -> Iterator[Target]:
    """Judge the memory of a web worker, where there was time for it to settle."""
    settled = [mebibytes for second, mebibytes in run.memory if second >= SETTLED_SECONDS]
    if len(settled) < 2:
        return
    first, spread = settled[0], max(max(settled) - settled[0], settled[0] - min(settled))
    figure = f"{first:.0f} → {settled[-1]:.0f} MiB, ± {100 * spread / first:.1f} %"
    yield Target("memory from minute 2 on", f"± {MOST_GROWTH_PERCENT} %", figure, spread / first < 0.05)


def _trial(run: Run) -> Iterator[Target]:
    """Judge the second half by the first; at a restart, the new worker's first minute by the old one's last."""
    if (trial := run.trial) is None:
        return
    after = run.half
    if trial.kind == "restart":
        after = _back(run)
        yield Target(
            "web away", "< 5 s", f"{after - run.half:.1f} s", trial.back_at is not None and after - run.half < 5
        )
        yield _failed_with_the_worker(run, after)
    else:
        refused, sent = sum(trial.statuses[status] for status in trial.expected), trial.statuses.total()
        words = " or ".join(map(str, sorted(trial.expected)))
        yield Target(f"{trial.kind} get {words}", "all", f"{refused:,} of {sent:,}", 0 < sent == refused)
    for percent, most in ((95, 2.0), (99, 2.0)):
        before_it = run.figures.latencies("heartbeat", since=max(run.measured_since, run.half - 60), until=run.half)
        after_it = run.figures.latencies("heartbeat", since=ceil(after), until=ceil(after) + 60)
        yield _ratio(f"p{percent}, a minute with and without", before_it, after_it, percent, most)


def _failed_with_the_worker(run: Run, back: float) -> Target:
    """Judge the errors of a restart: what was in flight may fail, no more than there are connections."""
    here = run.figures.errors(run.half - 1, ceil(back) + 1).total()
    elsewhere = run.figures.errors(since=run.measured_since).total() - here
    held = here <= MOST_IN_FLIGHT and not elsewhere
    return Target("failed at the restart", f"≤ {MOST_IN_FLIGHT}, none else", f"{here}, {elsewhere} else", held)


def _ratio(name: str, before: Histogram, after: Histogram, percent: float, most: float) -> Target:
    one, other = before.percentile(percent), after.percentile(percent)
    if one is None or other is None:
        return Target(name, f"≤ {most:g} ×", "–", held=False)
    figure = f"{milliseconds(one)} → {milliseconds(other)}, {other / one:.2f} ×"
    return Target(name, f"≤ {most:g} ×", figure, other / one <= most)


def _errors(run: Run) -> Target:
    percent = error_percent(run)
    most = run.load.most_errors_percent
    held = percent is not None and (percent < most or percent == 0)
    limit = f"< {most:g} %" if most else "none"
    return Target("error rate", limit, "–" if percent is None else f"{percent:.2f} %", held)


def _latency(name: str, histogram: Histogram, percent: float, limit_ms: float) -> Target:
    seconds = histogram.percentile(percent)
    held = seconds is not None and seconds * 1000 < limit_ms
    return Target(name, f"< {limit_ms:g} ms", milliseconds(seconds), held)
