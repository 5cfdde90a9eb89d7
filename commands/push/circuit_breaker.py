"""The circuit breaker, which stops the pushes of a dispatcher while FCM fails.

The circuit breaker reads no clock: the caller gives the present time as `now`, in seconds.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

FAILURES_TO_OPEN: Final = 20
SEVERAL_DEVICES: Final = 3
"""If the sends to at least this number of devices fail, the server or FCM counts as the cause.

If the sends to fewer devices fail, the phones may be the cause.
"""

MOST_PASSED_OVER: Final = 1000
"""The largest number of failed deliveries that a circuit remembers. If one more delivery fails, the circuit forgets the
earliest of these deliveries.
"""

PROBE_INTERVAL_SECONDS: Final = 30.0

CLOSED: Final = "closed"
OPEN: Final = "open"


class Fault(StrEnum):
    """The fault of the server or of FCM that a send shows.

    - `NONE`: no fault. FCM accepted or rejected the message.
    - `PASSING`: a failure that may pass, such as a time-out or a 503.
    - `CONFIGURATION`: FCM refused the server's Firebase account or project.
    - `OAUTH`: the server got no access token for FCM.
    """

    NONE = "none"
    PASSING = "failures"
    CONFIGURATION = "configuration"
    OAUTH = "oauth"


CAUSES: Final = (Fault.PASSING, Fault.CONFIGURATION, Fault.OAUTH)
"""The faults that can open a circuit."""


@dataclass(slots=True)
class Circuit:
    """The circuit of one dispatcher.

    Closed: all pushes are sent. Open: one push is sent every 30 s, as a probe. The first probe that FCM accepts or
    rejects closes the circuit. `cause` is the cause that opened the circuit. There are three causes:

    - `OAUTH`: the server got no access token. One failure is enough, because all pushes need the token.
    - `CONFIGURATION`: FCM refused the server's Firebase account or project for three devices. Between these refusals,
      FCM accepted or rejected no message.
    - `PASSING`: 20 failures of any kind in a row, for at least three devices.

    While the circuit is open, a claim passes over the deliveries whose push has failed. A claim takes these deliveries
    only if no other delivery is due. Therefore the probes are for different deliveries. The first claim after the
    circuit has closed passes over these deliveries too.
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
        """Return the number of pushes that may be sent now, or None if any number may be sent."""
        if self.state == CLOSED:
            return None
        return 1 if now >= self.next_probe_at else 0

    def claimed(self, now: float) -> None:
        """Record that pushes are being sent. If the circuit is open, the next probe is due after the probe interval."""
        if self.state == OPEN:
            self.next_probe_at = now + PROBE_INTERVAL_SECONDS
        else:
            self._failed_before_closing = []

    def note(self, fault: Fault, reason: str, now: float, *, device_id: str, delivery_id: int) -> bool:
        """Record the result of a send. Return whether this result opened or closed the circuit.

        `reason` is the text of the fault, for the log.
        """
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
