"""The rate of one dispatcher's pushes. The caller gives the present time as `now`, in seconds."""

from dataclasses import dataclass
from typing import Final

BURST_SECONDS: Final = 0.1
"""The token bucket contains at most the pushes of this time (in seconds)."""


@dataclass(slots=True)
class Pace:
    """The pace of one dispatcher: a token bucket of `per_second` pushes.

    Each second with a 429 halves the pace. After that, the pace grows each second by a tenth of `per_second`. The
    bucket contains at most the pushes of a tenth of a second. Therefore only these few pushes are sent immediately
    after a start or a pause.
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
        """Return the seconds from the last call of permits() until a push may be sent.

        The result is 0.0 if the last call permitted a push.
        """
        return max(0.0, 1.0 - self.available) / self._allowed

    @property
    def _allowed(self) -> float:
        return max(1.0, self.per_second * self.factor)

    def spend(self, count: int) -> None:
        """Record that `count` pushes are sent."""
        self.available -= count

    def slow_down(self, now: float) -> None:
        """Halve the pace after a 429 of FCM, at most once a second.

        The reason for this limit: if FCM is overloaded, FCM answers many pushes with 429 at the same time.
        """
        if now - self.slowed_at >= 1:
            self.factor = max(0.01, self.factor / 2)
            self.slowed_at = now
