"""The rate of one dispatcher's pushes. It is pure state, without a clock."""

from dataclasses import dataclass
from typing import Final

BURST_SECONDS: Final = 0.1
"""For how long a dispatcher may exceed its pace after it had nothing to send, in seconds."""


@dataclass(slots=True)
class Pace:
    """A token bucket of `per_second` pushes.

    Each second with a 429 halves the pace; afterwards the pace grows by a tenth each second. The bucket contains the
    pushes of a tenth of a second, so neither a pause nor a start exceeds the pace by much.
    """

    per_second: float
    factor: float = 1.0
    available: float = 0.0
    updated_at: float | None = None
    slowed_at: float = float("-inf")

    def permits(self, now: float) -> int:
        """Return how many pushes may be sent now."""
        elapsed = BURST_SECONDS if self.updated_at is None else max(0.0, now - self.updated_at)
        self.updated_at = now
        if now - self.slowed_at >= 1:
            self.factor = min(1.0, self.factor + 0.1 * min(elapsed, 10.0))
        self.available = min(max(1.0, BURST_SECONDS * self._allowed), self.available + elapsed * self._allowed)
        return int(self.available)

    def seconds_to_next(self) -> float:
        """Return the seconds from the last update until the next push may be sent; 0.0 if it could be sent then."""
        return max(0.0, 1.0 - self.available) / self._allowed

    @property
    def _allowed(self) -> float:
        return max(1.0, self.per_second * self.factor)

    def spend(self, count: int) -> None:
        """Note that `count` pushes were sent."""
        self.available -= count

    def slow_down(self, now: float) -> None:
        """Halve the pace after a 429 of FCM, at most once a second: one overload causes many 429s."""
        if now - self.slowed_at >= 1:
            self.factor = max(0.01, self.factor / 2)
            self.slowed_at = now
