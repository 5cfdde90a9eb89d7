"""What a run has to hold, and whether it did."""

from dataclasses import dataclass
from typing import Final

from loadtest.conductor import Run
from loadtest.figures import KINDS, Histogram

MOST_ERRORS_PERCENT: Final = 1.0
HEARTBEAT_P95_MS: Final = 150
HEARTBEAT_P99_MS: Final = 300
DISPATCH_P95_MS: Final = 200
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
    heartbeats = run.figures.latencies("heartbeat", since=run.measured_since)
    targets = [
        _errors(run),
        _latency("heartbeat p95", heartbeats, 95, HEARTBEAT_P95_MS),
        _latency("heartbeat p99", heartbeats, 99, HEARTBEAT_P99_MS),
    ]
    if run.load.journal and run.load.commands_per_minute:
        dispatch = run.ledger.dispatch(run.starts_at + run.measured_since)
        targets.append(_latency("dispatch p95", dispatch, 95, DISPATCH_P95_MS))
    return targets


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


def _errors(run: Run) -> Target:
    percent = error_percent(run)
    held = percent is not None and percent < MOST_ERRORS_PERCENT
    return Target("error rate", f"< {MOST_ERRORS_PERCENT:.0f} %", "–" if percent is None else f"{percent:.2f} %", held)


def _latency(name: str, histogram: Histogram, percent: float, limit_ms: int) -> Target:
    seconds = histogram.percentile(percent)
    held = seconds is not None and seconds * 1000 < limit_ms
    return Target(name, f"< {limit_ms} ms", milliseconds(seconds), held)
