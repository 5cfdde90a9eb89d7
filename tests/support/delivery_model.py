"""A model of deliveries: the same rules again, in plain Python and for one caller at a time."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from commands import reports
from commands.models import FINAL, OPEN, AttemptOutcome, DeliveryState, PushState, ReportStatus
from commands.push.outbox import LEASE, LEAST, Sent
from commands.reports import EXTRA_TIME
from devices.enrollment import LOST_ANSWER_WINDOW
from tests.support.actors import Phone
from tests.support.push_target_model import OwnedTarget

MAY_GO_AGAIN: Final = (
    AttemptOutcome.UNKNOWN,
    AttemptOutcome.RETRY_LATER,
    AttemptOutcome.BLOCKED,
    AttemptOutcome.TOKEN_DEAD,
)
"""After these outcomes, a push is sent again (after the last of them, to another push token). After other outcomes, it
is sent again only if pushing was resumed.
"""

MAY_HAVE_ARRIVED: Final = (AttemptOutcome.ACCEPTED, AttemptOutcome.UNKNOWN, AttemptOutcome.IN_FLIGHT)
STUCK: Final = (PushState.NO_PUSH_TOKEN, PushState.UNDELIVERABLE, PushState.RETRYING)


@dataclass(slots=True, eq=False)
class Owner:
    """A phone, and the server's expected knowledge of it."""

    phone: Phone
    push: OwnedTarget
    enrolled_by: str
    enrolled_at: datetime | None = None
    token_used: bool = False
    revoked: bool = False
    retired_at: datetime | None = None
    enrollments: int = 1
    seen_at: datetime | None = None
    withdrawn: "list[DeliveryModel]" = field(default_factory=list)
    """The locks and wipes that its last revocation has withdrawn."""

    def lost_the_answer(self, enrollment_token: str, now: datetime) -> bool:
        """Return whether a registration with this token now counts as a lost answer."""
        is_recent = self.enrolled_at is None or now < self.enrolled_at + LOST_ANSWER_WINDOW
        return self.enrolled_by == enrollment_token and not self.token_used and not self.revoked and is_recent


@dataclass(frozen=True, slots=True)
class KeptReport:
    """A stored report. Equal reports that follow each other directly are stored as one report."""

    status: str
    via: str | None
    duplicate: bool
    times: int = 1


@dataclass(slots=True, eq=False)
class DeliveryModel:
    """One delivery. `due` is the time of its next push. `outcomes` are the outcomes of its attempts, in order."""

    owner: Owner
    request_id: str
    action: str
    issued_at: datetime
    expires_at: datetime
    push: PushState
    due: datetime | None
    open_until: datetime = field(init=False)
    enrollment: int = field(init=False)
    lease_until: datetime = field(init=False)
    state: DeliveryState = DeliveryState.PENDING
    reported_at: datetime | None = None
    has_final_report: bool = False
    outcomes: list[AttemptOutcome] = field(default_factory=list)
    resumed_after: set[int] = field(default_factory=set)
    reports: list[KeptReport] = field(default_factory=list)
    reports_not_kept: int = 0
    has_succeeded: bool = False
    """Whether its success was stored, in time or late."""

    def __post_init__(self) -> None:
        """Begin as a delivery that was just issued."""
        self.open_until, self.lease_until = self.expires_at, self.issued_at
        self.enrollment = self.owner.enrollments

    def is_last_word(self, status: ReportStatus, now: datetime) -> bool:
        """Return whether this report repeats, within a day, the success that retired its phone."""
        retired_at = self.owner.retired_at
        is_repeat = self.action == "wipe" and status == ReportStatus.SUCCEEDED and self.has_succeeded
        is_repeat &= not self.is_of_an_earlier_enrollment
        return is_repeat and retired_at is not None and now < retired_at + timedelta(hours=24)

    def retires(self, status: ReportStatus, *, duplicate: bool) -> bool:
        """Return whether this report was the last report of its phone's present enrollment."""
        is_last = self.action == "wipe" and status == ReportStatus.SUCCEEDED and not duplicate
        return is_last and self.owner.retired_at is None and not self.is_of_an_earlier_enrollment

    @property
    def is_of_an_earlier_enrollment(self) -> bool:
        """Return whether its phone was enrolled again after the command was issued."""
        return self.enrollment != self.owner.enrollments

    @property
    def is_in_flight(self) -> bool:
        """Return whether the outcome of its last push is not recorded yet."""
        return self.outcomes[-1:] == [AttemptOutcome.IN_FLIGHT]

    def is_open(self, now: datetime) -> bool:
        """Return whether the delivery waits for a final report, and its time is not over."""
        return self.state in OPEN and now < self.open_until

    def is_overdue(self, now: datetime) -> bool:
        """Return whether the next run of the expiry marks the delivery as expired."""
        return self.state in OPEN and now >= self.open_until

    def is_due(self, now: datetime) -> bool:
        """Return whether a push may be sent now, if the phone has a live push token."""
        return (
            self.state == DeliveryState.PENDING and self.due is not None and self.due <= now < self.expires_at - LEAST
        )

    def may_still_run(self) -> bool:
        """Return whether the phone may have the command."""
        beat_since = self.owner.seen_at is not None and self.owner.seen_at >= self.issued_at
        return self.reported_at is not None or beat_since or any(one in MAY_HAVE_ARRIVED for one in self.outcomes)

    def settle(self, state: DeliveryState) -> None:
        """Reach the final state."""
        self.state, self.due = state, None

    def claim(self, now: datetime) -> None:
        """Begin an attempt; first close the previous attempt, if its outcome was not recorded."""
        self.abandon()
        last = self.outcomes[-1:]
        assert not last or last[0] in MAY_GO_AGAIN or len(self.outcomes) in self.resumed_after
        self.outcomes.append(AttemptOutcome.IN_FLIGHT)
        self.due = self.lease_until = now + LEASE

    def abandon(self) -> None:
        """Close the attempt in flight without an answer."""
        if self.is_in_flight:
            self.outcomes[-1] = AttemptOutcome.UNKNOWN

    def record(self, sent: Sent, now: datetime, *, pushable: bool) -> None:
        """Close an attempt if it is the attempt in flight, and decide on the next attempt."""
        if sent.claimed.number != len(self.outcomes) or not self.is_in_flight:
            return
        self.outcomes[-1] = sent.outcome
        if sent.outcome == AttemptOutcome.ACCEPTED:
            self.push, self.due = PushState.ACCEPTED, None
            return
        wait = 0.0 if sent.outcome == AttemptOutcome.TOKEN_DEAD else sent.retry_in_seconds
        again = self.expires_at if wait is None else now + timedelta(seconds=wait)
        goes_again = again < self.expires_at - LEAST and pushable and self.state == DeliveryState.PENDING
        could_go_again = sent.outcome in (AttemptOutcome.RETRY_LATER, AttemptOutcome.UNKNOWN, AttemptOutcome.BLOCKED)
        superseded = could_go_again and self.state not in OPEN
        self.push = PushState.RETRYING if goes_again or superseded else PushState.UNDELIVERABLE
        self.due = again if goes_again else None

    def stop_pushing(self) -> None:
        """Stop pushing, because the phone has no live push token any more."""
        if self.due is not None:
            self.push, self.due = PushState.UNDELIVERABLE if self.outcomes else PushState.NO_PUSH_TOKEN, None

    def resume_pushing(self, now: datetime) -> None:
        """Push again, because the phone got a live push token: immediately, or after the push in flight."""
        if self.state == DeliveryState.PENDING and self.is_open(now) and self.push in STUCK:
            self.push, self.due = PushState.WAITING, max(now, self.lease_until) if self.is_in_flight else now
            self.resumed_after.add(len(self.outcomes))

    def report(self, status: ReportStatus, via: str | None, now: datetime) -> tuple[DeliveryState, bool, bool]:
        """Record the phone's report; return the state after it, and whether it is a duplicate, and late."""
        if self.is_overdue(now):
            self.settle(DeliveryState.EXPIRED)
        duplicate = self.has_final_report
        self.has_succeeded |= status == ReportStatus.SUCCEEDED and not duplicate
        self._keep(KeptReport(status.value, via, duplicate))
        late = status in FINAL and self.state in (DeliveryState.EXPIRED, DeliveryState.CANCELLED)
        self.has_final_report |= status in FINAL
        if self.state in OPEN:
            self.reported_at = now
            self.settle(DeliveryState(status.value) if status in FINAL else DeliveryState.RECEIVED)
            if status in (ReportStatus.RECEIVED, ReportStatus.RUNNING):
                self.open_until = self.expires_at + EXTRA_TIME
        return self.state, duplicate, late

    def _keep(self, report: KeptReport) -> None:
        is_final, last = report.status in FINAL, self.reports[-1] if self.reports else None
        if last is not None and not is_final and replace(last, times=1) == report:
            self.reports[-1] = replace(last, times=last.times + 1)
        elif len(self.reports) < reports.KEPT or (is_final and not report.duplicate):
            self.reports.append(report)
        else:
            self.reports_not_kept += 1


def offered(lives: Iterable[DeliveryModel], now: datetime) -> list[str]:
    """Return the request ids that a heartbeat offers to a phone; `lives` are its deliveries, oldest first."""
    waiting = [life for life in lives if life.is_open(now)]
    pending = [life for life in waiting if life.state == DeliveryState.PENDING]
    reported = sorted((life for life in waiting if life.reported_at), key=lambda life: life.reported_at or now)
    return [life.request_id for life in (*pending, *reported)]
