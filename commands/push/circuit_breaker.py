"""The circuit breaker: when to stop pushing for a while. Pure state, no clock of its own."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

FAILURES_TO_OPEN: Final = 20
SEVERAL_DEVICES: Final = 3
"""Sends to so many devices have to fail before it is our side's fault: one or two may be the phones' own."""

MOST_PASSED_OVER: Final = 1000
"""How many deliveries a circuit remembers as failed: more than fail before it opens, with all slots in use."""

PROBE_INTERVAL_SECONDS: Final = 30.0

CLOSED: Final = "closed"
OPEN: Final = "open"


class Fault(StrEnum):
    """What a send tells of our own side. NONE: FCM has judged this message, so all of our side is in order."""

    NONE = "none"
    PASSING = "failures"
    CONFIGURATION = "configuration"
    OAUTH = "oauth"


CAUSES: Final = (Fault.PASSING, Fault.CONFIGURATION, Fault.OAUTH)
"""What opens a circuit."""


@dataclass(slots=True)
class Circuit:
    """Closed: pushes go out. Open: one probe each 30 s; the first one that FCM judges closes it again.

    It opens after an OAuth failure, since that is everybody's; when FCM refuses our side for several devices and judges
    no message in between; and after 20 failures in a row of any kind, if they are of several devices. `cause` is which
    of these it was.

    Deliveries that have failed are passed over if any other is due: while the circuit is open, and by the first claim
    after it. So each probe is another one, and what has opened the circuit is not the first to go when it closes.
    """

    state: str = CLOSED
    reason: str = ""
    cause: Fault = Fault.NONE
    failures: int = 0
    next_probe_at: float = 0.0
    _failed: dict[int, None] = field(default_factory=dict)
    _failed_before_closing: list[int] = field(default_factory=list)
    _failing_devices: set[str] = field(default_factory=set)
    _refused_devices: set[str] = field(default_factory=set)

    @property
    def passed_over(self) -> list[int]:
        """The ids of the deliveries that the next claim leaves for later."""
        return list(self._failed) if self.state == OPEN else self._failed_before_closing

    def permits(self, now: float) -> int | None:
        """Return how many pushes may leave now; None means any number."""
        if self.state == CLOSED:
            return None
        return 1 if now >= self.next_probe_at else 0

    def claimed(self, now: float) -> None:
        """Note that pushes leave. If it is a probe, the next one waits its interval."""
        if self.state == OPEN:
            self.next_probe_at = now + PROBE_INTERVAL_SECONDS
        else:
            self._failed_before_closing = []

    def note(self, fault: Fault, reason: str, now: float, *, device_id: str, delivery_id: int) -> bool:
        """Take the end of a send into account; return True if the circuit has opened or closed by it."""
        if fault == Fault.NONE:
            return self._close()
        self._remember(fault, device_id, delivery_id)
        if self.state == OPEN:
            self.reason = reason[:200]
            return False
        cause = self._cause_to_open(fault)
        if cause == Fault.NONE:
            return False
        self.state, self.cause, self.reason = OPEN, cause, reason[:200]
        self.next_probe_at = now + PROBE_INTERVAL_SECONDS
        return True

    def _remember(self, fault: Fault, device_id: str, delivery_id: int) -> None:
        self.failures += 1
        self._failed[delivery_id] = None
        if len(self._failed) > MOST_PASSED_OVER:
            del self._failed[next(iter(self._failed))]
        if len(self._failing_devices) < SEVERAL_DEVICES:
            self._failing_devices.add(device_id)
        if fault == Fault.CONFIGURATION and len(self._refused_devices) < SEVERAL_DEVICES:
            self._refused_devices.add(device_id)

    def _cause_to_open(self, fault: Fault) -> Fault:
        if fault == Fault.OAUTH:
            return Fault.OAUTH
        if len(self._refused_devices) >= SEVERAL_DEVICES:
            return Fault.CONFIGURATION
        several_failures = self.failures >= FAILURES_TO_OPEN and len(self._failing_devices) >= SEVERAL_DEVICES
        return Fault.PASSING if several_failures else Fault.NONE

    def _close(self) -> bool:
        changed = self.state == OPEN
        if changed:
            self._failed_before_closing = list(self._failed)
        self.state, self.reason, self.cause, self.failures = CLOSED, "", Fault.NONE, 0
        self._failed.clear()
        self._failing_devices.clear()
        self._refused_devices.clear()
        return changed
