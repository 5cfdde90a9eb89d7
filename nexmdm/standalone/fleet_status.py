"""The text that `serve` shows about the fleet, from the metrics of the server."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

_HEARTBEATS: Final = ("nexmdm_heartbeats_total", "good")
_OPEN: Final = ("nexmdm_open_deliveries", "")
_UNKNOWN: Final = "the server does not answer"


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    heartbeats: float


class FleetStatus:
    """The text about the fleet, in one line.

    `read` returns the text of /metrics, or raises OSError if the server does not answer.
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._last: _Seen | None = None

    def line(self) -> str:
        """Return the online and offline devices, the heartbeats per second and the open deliveries, as one line.

        The heartbeats are counted since the previous call.
        """
        try:
            text = self._read()
        except OSError:
            self._last = None
            return _UNKNOWN
        values = _values(text)
        seen = _Seen(time.monotonic(), values[_HEARTBEATS])
        last, self._last = self._last, seen
        devices = [f"{values['nexmdm_devices', presence]:.0f} {presence}" for presence in ("online", "offline")]
        parts = [f"devices: {', '.join(devices)}"]
        if last is not None and seen.at > last.at:
            parts.append(f"heartbeats: {max(0.0, seen.heartbeats - last.heartbeats) / (seen.at - last.at):.1f}/s")
        parts.append(f"open deliveries: {values[_OPEN]:.0f}")
        return " · ".join(parts)


def _values(text: str) -> defaultdict[tuple[str, str], float]:
    """Return the sum of the samples for each pair of a metric name and the value of its first label."""
    values: defaultdict[tuple[str, str], float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name, next(iter(sample.labels.values()), "")] += sample.value
    return values
