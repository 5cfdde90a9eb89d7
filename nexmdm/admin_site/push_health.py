"""The page of push health, by model, manufacturer, Android version or agent version."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlencode

from devices.models import Device
from nexmdm.common.read_only_admin import page_time
from nexmdm.common.read_only_admin.columns import BAD, GOOD, NOTHING, WARN, address_of
from nexmdm.monitoring import push_health
from nexmdm.monitoring.push_health import PushHealthField, PushHealthRow

SHOWN: Final = 100
"""The largest number of rows on the page. There may be very many values, because phones choose them."""

FIELDS: Final = {
    PushHealthField.MODEL: "model",
    PushHealthField.MANUFACTURER: "manufacturer",
    PushHealthField.OS_VERSION: "Android version",
    PushHealthField.AGENT_VERSION: "agent version",
}
SPANS: Final = {
    "hour": ("last hour", timedelta(hours=1)),
    "day": ("last day", timedelta(days=1)),
    "7days": ("7 days", timedelta(days=7)),
    "30days": ("30 days", timedelta(days=30)),
}
_USUAL: Final = {"by": PushHealthField.MODEL.value, "last": "day"}
_GOOD_PERCENT: Final = 90
_BAD_PERCENT: Final = 50


class UnknownChoice(ValueError):
    """The query of the page has an unknown parameter or value."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice of the page: a field or a span of time. `address` is the address of the page with this choice."""

    label: str
    address: str
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the page.

    `address` is a link to the devices with this value. `percent` is the share of the accepted pushes that brought their
    command to the phone. It is None if FCM accepted no push.
    """

    counted: PushHealthRow
    address: str
    percent: int | None

    @property
    def look(self) -> str:
        """The colour of `percent`: bad, warning or good. The colour is bad if `percent` is None."""
        if self.percent is None or self.percent < _BAD_PERCENT:
            return BAD
        return GOOD if self.percent >= _GOOD_PERCENT else WARN

    @property
    def half_within(self) -> str:
        """The median time from the acceptance of a push to the first report."""
        return _length(self.counted.p50_ms)

    @property
    def most_within(self) -> str:
        """The time within which 95 % of the first reports came."""
        return _length(self.counted.p95_ms)


def page(given: dict[str, str]) -> dict[str, Any]:
    """Return the context of the template. `given` is the query. Raises UnknownChoice if the query is invalid."""
    chosen = _USUAL | given
    if chosen.keys() != _USUAL.keys() or chosen["by"] not in FIELDS or chosen["last"] not in SPANS:
        raise UnknownChoice
    by = PushHealthField(chosen["by"])
    span_name, span = SPANS[chosen["last"]]
    found = sorted(push_health.list_health(by, page_time.now() - span).items, key=_rank)
    return {
        "fields": [_choice(label, chosen, by=field.value) for field, label in FIELDS.items()],
        "spans": [_choice(label, chosen, last=name) for name, (label, _) in SPANS.items()],
        "field": FIELDS[by],
        "span": span_name,
        "lines": [_line(by, row) for row in found[:SHOWN]],
        "more": max(0, len(found) - SHOWN),
    }


def _choice(label: str, chosen: dict[str, str], **changed: str) -> Choice:
    return Choice(label, f"?{urlencode(chosen | changed)}", all(chosen[name] == one for name, one in changed.items()))


def _line(by: PushHealthField, row: PushHealthRow) -> Line:
    address = address_of(Device, "changelist", **{by.value: row.key}) if row.key else ""
    return Line(row, address, None if not row.accepted else round(100 * _share(row)))


def _share(row: PushHealthRow) -> float:
    # Without min(), the share could be above 1, because an answer may belong to a push from before the span.
    return min(1.0, row.answered_by_push / row.accepted) if row.accepted else 0.0


def _rank(row: PushHealthRow) -> tuple[bool, float, int, str]:
    """Return a sort key: the lowest share first, values without pushes last. The client sorts in the same way."""
    return row.attempts == row.accepted == 0, _share(row), -row.attempts, row.key


def _length(milliseconds: int | None) -> str:
    if milliseconds is None:
        return NOTHING
    seconds = milliseconds / 1000
    if seconds < 10:
        return f"{milliseconds} ms" if seconds < 1 else f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
