"""The report of a run as one HTML file.

The file loads no other files. Its colours are light or dark, as the reader's browser prefers.
"""

from collections.abc import Sequence
from html import escape
from math import ceil
from pathlib import Path
from typing import Final

from loadtest.load import targets
from loadtest.load.figures import Histogram
from loadtest.load.report import charts
from loadtest.load.report.charts import Axis, Limit, Line
from loadtest.load.runner import Run
from loadtest.load.targets import Target, milliseconds
from loadtest.testbed import machine
from loadtest.testbed.connections import ANSWER_SECONDS

_STYLE: Final = Path(__file__).with_suffix(".css")
_LOOKS: Final = ("first", "second", "third")
_PERCENTILES: Final = (50, 90, 95, 99, 99.9)
_WIDTHS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
_MOST_POINTS: Final = 120
_FEWEST_IN_A_POINT: Final = 20
_LOWEST_MS: Final = 0.5
_METHOD: Final = (
    (
        "Load",
        (
            "Open loop: each phone has its own due times, independent of its earlier heartbeats. Latency counts from "
            "the due time, so a stall adds to the latency of every request that was due meanwhile."
        ),
    ),
    ("Connections", "Kept open and limited, as behind a load balancer. The wait for a free connection is latency."),
    (
        "Phones",
        (
            "Verify each command's signature, carry it out once, and report on it. "
            f"A request without an answer after {ANSWER_SECONDS} s is an error."
        ),
    ),
    ("Dispatch", "From the moment when the POST is written to the arrival of the push at a fake FCM."),
)


def page(run: Run, judged: Sequence[Target]) -> str:
    """Return the report of a run as HTML."""
    held = all(target.held for target in judged)
    parts = [
        _header(run, judged, held=held),
        _tiles(run),
        _lateness(run),
        _targets(judged),
        _latency_over_time(run),
        _heartbeats(run),
        _percentiles(run),
        _errors(run),
        _method(run),
    ]
    title = f"NexMDM load test: {run.load.devices:,} devices, {'pass' if held else 'miss'}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f'<body class="{"good" if held else "bad"}">\n<main>\n{"".join(parts)}</main>\n</body>\n</html>\n'
    )


def _header(run: Run, judged: Sequence[Target], *, held: bool) -> str:
    load = run.load
    missed = ", ".join(target.name for target in judged if not target.held)
    verdict = "All targets met" if held else f"Missed: {missed}"
    lead = (
        f"{load.devices:,} devices, a heartbeat each every {load.interval_seconds:g} s, "
        f"for {_length(load.duration_seconds)} after a ramp of {load.ramp_seconds:g} s; "
        f"{load.commands_per_minute:g} commands a minute in total."
    )
    when = f"{run.begun:%-d %B %Y, %H:%M} UTC"
    return (
        f'<header><p class="eyebrow">NexMDM load test · {when}</p><h1>{escape(verdict)}</h1>'
        f'<p class="lead">{lead}</p></header>\n'
    )


def _tiles(run: Run) -> str:
    since = run.measured_since
    heartbeats = run.figures.latencies("heartbeat", since=since)
    seconds = max(run.load.seconds - since, 1)
    percent = targets.error_percent(run)
    tiles = [
        ("heartbeats/s", f"{run.figures.answered(since, run.load.seconds) / seconds:,.1f}"),
        *((f"heartbeat p{percent}", milliseconds(heartbeats.percentile(percent))) for percent in (50, 95, 99)),
        ("errors", "–" if percent is None else f"{percent:.2f} %"),
        ("commands done", f"{run.ledger.done:,} of {run.ledger.done + run.ledger.open:,}"),
    ]
    return f'<dl class="tiles">{_pairs(tiles)}</dl>\n'


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)


def _lateness(run: Run) -> str:
    late = targets.lateness(run)
    return f'<section class="late"><p>{escape(late)}</p></section>\n' if late else ""


def _targets(judged: Sequence[Target]) -> str:
    rows = "".join(
        f"<tr><td>{escape(target.name)}</td><td>{escape(target.limit)}</td><td>{escape(target.figure)}</td>"
        f"<td>{_word(held=target.held)}</td></tr>"
        for target in judged
    )
    head = "<tr><th>target</th><th>limit</th><th>figure</th><th></th></tr>"
    return f"<section><h2>Targets</h2><table>{head}{rows}</table></section>\n"


def _word(*, held: bool) -> str:
    return '<span class="word held">pass</span>' if held else '<span class="word missed">miss</span>'


def _latency_over_time(run: Run) -> str:
    width = point_seconds(run)
    lines = [_percentile_line(run, width, percent, look) for percent, look in zip((50, 95, 99), _LOOKS, strict=False)]
    note = (
        f"Latency of heartbeats, from the due time to the end of the answer; a point covers {width} s. "
        "Dashed: the targets for p95 and p99."
    )
    limits = (Limit(run.load.p95_ms, "second"), Limit(run.load.p99_ms, "third"))
    y = _log_axis([value for line in lines for _, value in line.points] + [limit.value for limit in limits])
    picture = charts.chart(
        "latency over time", charts.clock(run.load.seconds), y, lines, limits=limits, shade=run.load.ramp_seconds
    )
    return _section("Latency over time", note, picture)


def point_seconds(run: Run) -> int:
    """Return how many seconds a point of a chart covers.

    A chart has a limited number of points, and each point covers enough heartbeats.
    """
    rate = run.figures.latencies("heartbeat").count / max(run.load.seconds, 1)
    wanted = max(run.load.seconds / _MOST_POINTS, _FEWEST_IN_A_POINT / max(rate, 0.01))
    return next((width for width in _WIDTHS if width >= wanted), _WIDTHS[-1])


def _spans(run: Run, width: int) -> list[tuple[int, int]]:
    """Return the seconds at which each point of a chart begins and ends.

    The last point includes the remaining seconds.
    """
    count = max(1, round(run.load.seconds) // width)
    ends = [width * number for number in range(1, count)] + [ceil(run.load.seconds)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _percentile_line(run: Run, width: int, percent: int, look: str) -> Line:
    points, words = [], []
    for begin, end in _spans(run, width):
        histogram = run.figures.latencies("heartbeat", since=begin, until=end)
        seconds = histogram.percentile(percent)
        if seconds is not None:
            points.append(((begin + end) / 2, seconds * 1000))
            words.append(
                f"{_clock(begin)}–{_clock(end)}: p{percent} {milliseconds(seconds)}, {histogram.count:,} heartbeats"
            )
    return Line(f"p{percent}", look, points, words)


def _log_axis(values: Sequence[float]) -> Axis:
    positive = [max(value, _LOWEST_MS) for value in values]
    low, high, steps = charts.logarithmic(min(positive), max(positive))
    return Axis(low, high, [(step, _tick(step)) for step in steps], is_log=True)


def _tick(value: float) -> str:
    return f"{value / 1000:g} s" if value >= 1000 else f"{value:g} ms"


def _heartbeats(run: Run) -> str:
    width = point_seconds(run)
    spans = _spans(run, width)
    due = [sum(row.due for row in run.figures.between(*span)) / (span[1] - span[0]) for span in spans]
    answered = [run.figures.answered(*span) / (span[1] - span[0]) for span in spans]
    lines = [_rate_line("answered", "first", spans, answered), _rate_line("due", "second dashed", spans, due)]
    high, steps = charts.linear(max([*due, *answered, 0.1]))
    y = Axis(0, high, [(step, f"{step:,g}") for step in steps])
    picture = charts.chart("heartbeats a second", charts.clock(run.load.seconds), y, lines, shade=run.load.ramp_seconds)
    note = "Due: the heartbeats that the fleet sends by its plan. If fewer are answered, the server is too slow."
    return _section("Heartbeats per second", note, picture)


def _rate_line(name: str, look: str, spans: Sequence[tuple[int, int]], rates: Sequence[float]) -> Line:
    points = [((begin + end) / 2, rate) for (begin, end), rate in zip(spans, rates, strict=True)]
    words = [
        f"{_clock(begin)}–{_clock(end)}: {rate:,.1f}/s {name}" for (begin, end), rate in zip(spans, rates, strict=True)
    ]
    return Line(name, look, points, words)


def _percentiles(run: Run) -> str:
    since = run.measured_since
    rows = [
        ("heartbeat", run.figures.latencies("heartbeat", since=since)),
        ("action-result", run.figures.latencies("result", since=since)),
        ("POST /admin/command", run.figures.latencies("command", since=since)),
        ("dispatch: POST to the push at FCM", run.ledger.dispatch(run.starts_at + since)),
        ("round trip: POST to the phone's result", run.ledger.round_trip(run.starts_at + since)),
    ]
    head = "".join(
        f"<th>{name}</th>" for name in ("", "count", *(f"p{percent:g}" for percent in _PERCENTILES), "longest")
    )
    body = "".join(_percentile_row(name, histogram) for name, histogram in rows if histogram.count)
    note = "After the ramp. Percentiles are at most 2 % too high, never too low; the longest latency is exact."
    return _section("Latency percentiles", note, f"<table><tr>{head}</tr>{body}</table>")


def _percentile_row(name: str, histogram: Histogram) -> str:
    figures = [milliseconds(histogram.percentile(percent)) for percent in _PERCENTILES]
    cells = "".join(f"<td>{cell}</td>" for cell in (f"{histogram.count:,}", *figures, milliseconds(histogram.longest)))
    return f"<tr><td>{escape(name)}</td>{cells}</tr>"


def _errors(run: Run) -> str:
    counts = run.figures.errors()
    if not counts:
        return _section("Errors", "None in the whole run, including the ramp.", "")
    rows = "".join(f"<tr><td>{escape(error)}</td><td>{count:,}</td></tr>" for error, count in counts.most_common())
    table = f"<table><tr><th>what</th><th>count</th></tr>{rows}</table>"
    return _section("Errors", "Errors of the whole run, including the ramp.", _errors_over_time(run) + table)


def _errors_over_time(run: Run) -> str:
    width = point_seconds(run)
    spans = _spans(run, width)
    rates = [run.figures.errors(*span).total() / (span[1] - span[0]) for span in spans]
    high, steps = charts.linear(max(rates))
    y = Axis(0, high, [(step, f"{step:g}/s") for step in steps])
    line = _rate_line("errors", "third", spans, rates)
    return charts.chart("errors a second", charts.clock(run.load.seconds), y, [line], shade=run.load.ramp_seconds)


def _method(run: Run) -> str:
    facts = [
        ("Server", run.load.server),
        ("Server's processor time", _cores(run)),
        ("Machine", f"{machine.described()}; load average at the start {run.load_average:.1f}"),
        ("Generator", _generator(run)),
        *_METHOD,
    ]
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f'<section><h2>Machine and method</h2><dl class="facts">{pairs}</dl></section>\n'


def _cores(run: Run) -> str:
    parts = (f"{name} {cores:.2f}" for name, cores in run.server_cores.items())
    return f"{', '.join(parts)} of a core" if run.server_cores else "not known"


def _generator(run: Run) -> str:
    count, late = run.load.processes, run.figures.late
    core = sum(run.cpu_seconds.values()) / max(run.load.seconds, 1)
    return (
        f"{count} process{'es' if count > 1 else ''}, {core:.2f} of a core; delay from due time to begin: "
        f"p50 {milliseconds(late.percentile(50))}, p99 {milliseconds(late.percentile(99))}, "
        f"at most {milliseconds(late.longest)}"
    )


def _section(heading: str, note: str, content: str) -> str:
    wide = f'<div class="scroll">{content}</div>' if content else ""
    return f'<section><h2>{heading}</h2><p class="note">{note}</p>{wide}</section>\n'


def _length(seconds: float) -> str:
    return f"{seconds:g} s" if seconds % 60 else f"{seconds / 60:g} min"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
