"""The circuit breaker, which stops pushing for a while. It is pure state, without a clock."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

FAILURES_TO_OPEN: Final = 20
SEVERAL_DEVICES: Final = 3
"""The number of devices whose sends must fail before the fault counts as one of the server or of FCM.

If the sends to only one or two devices fail, the phones may be the cause.
"""

MOST_PASSED_OVER: Final = 1000
"""The largest number of failed deliveries that a circuit stores. Fewer can fail before the circuit opens."""

PROBE_INTERVAL_SECONDS: Final = 30.0

CLOSED: Final = "closed"
OPEN: Final = "open"


class Fault(StrEnum):
    """The fault of the server or of FCM that a send shows. NONE: FCM accepted or rejected the message of this send."""

    NONE = "none"
    PASSING = "failures"
    CONFIGURATION = "configuration"
    OAUTH = "oauth"


CAUSES: Final = (Fault.PASSING, Fault.CONFIGURATION, Fault.OAUTH)
"""The causes for which a circuit opens."""


@dataclass(slots=True)
class Circuit:
    """Closed: all pushes are sent.

    Open: one probe is sent every 30 s, and the first probe that FCM accepts or rejects closes the circuit. The circuit
    opens after an OAuth failure, which concerns all pushes. It opens when FCM refuses the server's Firebase account or
    project for several devices, and between these refusals neither accepts nor rejects a single message. It opens after
    20 failures of any kind in a row, if they are of several devices. `cause` is the one of these three causes that
    opened the circuit.

    While the circuit is open, and in the first claim after it has closed, deliveries whose push has failed are passed
    over if any other delivery is due. So each probe is for another delivery. After the circuit closes, the first push
    is not for a delivery whose push opened it.
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
        """The ids of the deliveries that the next claim passes over."""
        return list(self._failed) if self.state == OPEN else self._failed_before_closing

    def permits(self, now: float) -> int | None:
        """Return how many pushes may be sent now; None means any number."""
        if self.state == CLOSED:
            return None
        return 1 if now >= self.next_probe_at else 0

    def claimed(self, now: float) -> None:
        """Note that pushes are sent. After a probe, the next probe waits for the probe interval."""
        if self.state == OPEN:
            self.next_probe_at = now + PROBE_INTERVAL_SECONDS
        else:
            self._failed_before_closing = []

    def note(self, fault: Fault, reason: str, now: float, *, device_id: str, delivery_id: int) -> bool:
        """Note the end of a send. Return True if it opened or closed the circuit."""
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
