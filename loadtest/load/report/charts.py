"""Line charts as SVG text.

The charts have no scripts. CSS classes give the colours, so a chart fits light and dark pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

WIDTH: Final = 960
HEIGHT: Final = 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 92, 14, 34
_APART: Final = 15
"""The smallest distance between the names of two lines, in pixels."""

_DOTTED_UP_TO: Final = 60
_STEPS: Final = (1, 2, 5)
_CLOCK_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_CLOCK_TICKS: Final = 10


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a chart: its range, and the value and text of each label."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return the position of a value on the axis, from 0 to 1."""
        if self.is_log:
            return (log10(max(value, self.low)) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart.

    - `look`: the CSS class that gives the line its colour.
    - `words`: the tooltip of each point.
    """

    name: str
    look: str
    points: Sequence[tuple[float, float]]
    words: Sequence[str]


@dataclass(frozen=True, slots=True)
class Limit:
    """A horizontal line for an upper limit. `look` is the `look` of the Line that must stay below this limit."""

    value: float
    look: str


def chart(
    title: str, x: Axis, y: Axis, lines: Sequence[Line], *, limits: Sequence[Limit] = (), shade: float = 0
) -> str:
    """Return a chart as SVG. The part from 0 to `shade` on the x-axis is shaded, because it is not measured."""
    drawn = [line for line in lines if line.points]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        _shade(x, shade) if shade else "",
        *(_rule(y, value, text) for value, text in y.ticks),
        *(_mark(x, value, text) for value, text in x.ticks),
        *(_limit(y, limit) for limit in limits if y.low < limit.value <= y.high),
        *(_line(x, y, line) for line in drawn),
        *_names(y, drawn),
        "</svg>",
    ]
    return "".join(parts)


def logarithmic(low: float, high: float) -> tuple[float, float, list[float]]:
    """Return the ends of a logarithmic axis that contains `low` and `high`, and the labels of this axis.

    All returned values are 1, 2 or 5 times a power of ten. `low` and `high` must be positive.
    """
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = [step * 10.0**power for power in powers for step in _STEPS]
    first = max((step for step in steps if step <= low * 1.0001), default=steps[0])
    last = min((step for step in steps if step >= high * 0.9999), default=steps[-1])
    return first, last, [step for step in steps if first <= step <= last]


def linear(high: float) -> tuple[float, list[float]]:
    """Return a round number that is not below `high`, and the labels of an axis from zero to this number."""
    rough = max(high, 1e-9) / 4
    power = 10.0 ** floor(log10(rough))
    step = next(step * power for step in (*_STEPS, 10) if step * power >= rough)
    count = ceil(high / step * 0.9999) or 1
    return step * count, [step * number for number in range(count + 1)]


def clock(seconds: float) -> Axis:
    """Return an axis of time from zero to `seconds`, with labels in minutes and seconds."""
    step = next((step for step in _CLOCK_STEPS if seconds / step <= _CLOCK_TICKS), ceil(seconds / _CLOCK_TICKS))
    ticks = [(float(at), f"{at // 60}:{at % 60:02d}") for at in range(0, int(seconds) + 1, step)]
    return Axis(0, seconds, ticks)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - axis.share(value) * (HEIGHT - _TOP - _BOTTOM)


def _shade(x: Axis, until: float) -> str:
    width, height = _x(x, until) - _LEFT, HEIGHT - _TOP - _BOTTOM
    name = f'<text class="note" x="{_LEFT + width / 2:.1f}" y="{_TOP + 14}" text-anchor="middle">ramp</text>'
    rectangle = f'<rect class="shade" x="{_LEFT}" y="{_TOP}" width="{width:.1f}" height="{height}"/>'
    return rectangle + (name if width > 40 else "")


def _rule(y: Axis, value: float, text: str) -> str:
    at = _y(y, value)
    rule = f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
    return f'{rule}<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>'


def _mark(x: Axis, value: float, text: str) -> str:
    return f'<text class="tick" x="{_x(x, value):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(text)}</text>'


def _limit(y: Axis, limit: Limit) -> str:
    at = _y(y, limit.value)
    return f'<line class="limit {limit.look}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'


def _line(x: Axis, y: Axis, line: Line) -> str:
    places = [(_x(x, left), _y(y, up)) for left, up in line.points]
    path = " ".join(f"{left:.1f},{up:.1f}" for left, up in places)
    look = "dot" if len(places) <= _DOTTED_UP_TO else "dot hidden"
    dots = (
        f'<circle class="{look} {line.look}" cx="{left:.1f}" cy="{up:.1f}" r="3"><title>{escape(said)}</title></circle>'
        for (left, up), said in zip(places, line.words, strict=True)
    )
    return f'<polyline class="line {line.look}" points="{path}"/>{"".join(dots)}'


def _names(y: Axis, lines: Sequence[Line]) -> list[str]:
    """Write the name of each line at its right end. Names that would overlap are moved apart."""
    ordered = sorted(lines, key=lambda line: line.points[-1][1])
    places: list[float] = []
    for line in ordered:
        at = _y(y, line.points[-1][1]) + 4
        places.append(min(at, places[-1] - _APART) if places else at)
    over = max(0.0, _TOP + _APART - min(places, default=HEIGHT))
    return [
        f'<text class="name {line.look}" x="{WIDTH - _RIGHT + 10}" y="{at + over:.1f}">{escape(line.name)}</text>'
        for line, at in zip(ordered, places, strict=True)
    ]
