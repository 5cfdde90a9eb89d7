"""The life of deliveries, played at random: two dispatchers, two phones, an admin, and time that passes.

Each example is one transaction, which is rolled back. Its time stands still: to let time pass, all stored times are
moved into the past. With NEXMDM_MACHINE_EXAMPLES=2000, 2,000 examples are played, different examples each time. By
default, the same few examples are played.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any, Final

import orjson
import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.db.models import Func, Prefetch, QuerySet
from django.db.models.functions import Now
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pytest_django import Settings

from commands import finishing, queue
from commands.models import (
    FINAL,
    OPEN,
    Attempt,
    AttemptOutcome,
    Delivery,
    DeliveryChannel,
    DeliveryState,
    PushState,
    Report,
    ReportStatus,
)
from commands.push import attempts, fcm, outbox
from commands.push.batch import FRESH_SECONDS, Batch
from commands.push.dispatcher import LEAVES_WITHIN_SECONDS, Dispatcher
from commands.push.outbox import Claimed
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.common import database
from nexmdm.common.types import rfc3339
from tests.support.actors import Admin, Phone
from tests.support.delivery_model import DeliveryModel, KeptReport, Owner, offered
from tests.support.moments import let_pass
from tests.support.outcomes import expected
from tests.support.push_target_model import Deaths, OwnedTarget, Target

EXAMPLES: Final = int(os.environ.get("NEXMDM_MACHINE_EXAMPLES", "0"))
STEPS: Final = 40
ALL: Final = 1000
SCRIPTS: Final = (
    "ok", "ok", "ok", "unregistered", "mismatch", "invalid", "forbidden", "missing", "quota", "quota7", "unavailable",
    "unavailable90", "internal", "unauthenticated", "reset", "garbage", "malformed", "blank401", "html404",
    "quota999999999",
)  # fmt: skip
KINDS: Final = st.sampled_from(["fid", "fid", "token"])
PUSH_TARGETS: Final = st.one_of(
    st.none(),
    st.builds(
        Target,
        KINDS,
        st.builds("{}-{}".format, st.sampled_from(SCRIPTS), st.integers(1, 2)),
    ),
)
UNTIL_REGISTERED: Final = st.sampled_from([60, 3600])
REGISTERED: Final = st.sampled_from([None, 0, 0, 60, 7200, -60])
"""How many seconds ago a target was registered; a negative one is in the future. None: the phone does not send it."""
AFTER_SECONDS: Final = st.sampled_from([0, 31, 46, 46, 91])
CALM: Final = 8
"""The number of steps between two withdrawals: with fewer, hardly any push would be sent."""
PHONES: Final = st.integers(0, 1)
DISPATCHERS: Final = st.integers(0, 1)
STANDING_CLOCK: Final = """
    CREATE SCHEMA standing;
    CREATE FUNCTION standing.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now()';
    SET LOCAL search_path TO standing, pg_catalog, public
"""
"""Replaces PostgreSQL's clock by one that stands still, until the transaction ends."""
BEFORE: Final = ((), ("it lapses",), ("enrolled again",), ("it lapses", "enrolled again"))
AFTER: Final = ((), ("enrolled again",), ("enrolled again", "retired"), ("retired",))
BEFORE_SUCCESS: Final = st.sampled_from(BEFORE)
AFTER_SUCCESS: Final = st.sampled_from(AFTER)
PUSH_TARGET_RULES: Final = {
    "moved",
    "revived",
    "revived within the last hour",
    "registered after the push that FCM answered",
    "a dead token stays dead",
    "a dead fid stays dead",
}
"""The rules of push targets that must be of consequence at least once."""
WIPES: Final = {
    "in time",
    "again",
    "late",
    "late, again",
    "again, after a new enrollment",
    "late, after a new enrollment",
    "late, again, after a new enrollment",
    "refused, again, after a new enrollment",
}
"""The ways to report the success of a wipe, each of which must occur in a play."""


@dataclass(slots=True)
class Line:
    """FCM as the fake's script defines it, without a socket; stores the messages that were sent."""

    standin: FcmStandin
    left: list[dict[str, Any]] = field(default_factory=list)

    async def send(self, push: fcm.FcmMessage) -> fcm.FcmResponse:
        """Answer as a sender would."""
        self.left.append(orjson.loads(fcm.encode(push))["message"])
        reply = self.standin.scripted(push.target)
        if reply.status is None:
            return fcm.FcmResponse(None, fault="timeout")
        return fcm.parse(reply.status, reply.retry_after or "", reply.body)


class DispatcherDriver:
    """The state of one dispatcher, which a crash deletes."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.crash()

    def crash(self) -> None:
        """Delete the claimed pushes and the answers."""
        self.dispatcher = Dispatcher(self.line, per_second=ALL)
        self.claimed: list[tuple[Claimed, datetime]] = []

    def send(self, claimed: Claimed, waited: timedelta) -> Mapping[str, Any] | None:
        """Send a push that was claimed this long ago; return the message if one was sent."""
        before = len(self.line.left)
        batch = Batch([claimed], time.monotonic() - waited.total_seconds(), is_probe=True)
        async_to_sync(self.dispatcher._send)(claimed, batch)
        return self.line.left[-1] if len(self.line.left) > before else None

    def answered(self) -> list[outbox.Sent]:
        """Return the answers that are not recorded yet, and delete them."""
        answered, self.dispatcher.recorder.waiting = self.dispatcher.recorder.waiting, []
        return answered


@dataclass(frozen=True, slots=True)
class Setup:
    """The state before each example: two phones, and two enrollment tokens for many registrations."""

    admin: Admin
    standin: FcmStandin
    enrollment_tokens: Sequence[str]
    owners: Sequence[Owner]
    wipes: set[str] = field(default_factory=set)
    """The ways in which the success of a wipe was reported."""
    push_target_rules: set[str] = field(default_factory=set)
    """The rules of push targets that were of consequence."""


class Deliveries(RuleBasedStateMachine):
    """The actions of admins, phones, dispatchers and time, in any order; after each step the rows match the model."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup, self.admin = setup, setup.admin
        self.owners = [replace(owner, phone=replace(owner.phone), push=replace(owner.push)) for owner in setup.owners]
        self.drivers = [DispatcherDriver(Line(setup.standin)) for _ in range(2)]
        self.lives: dict[tuple[str, str], DeliveryModel] = {}
        self.deaths = Deaths(seen=setup.push_target_rules)
        self.claimed_at: dict[tuple[int, int], datetime] = {}
        self.settled: dict[tuple[str, str], str] = {}
        self.passed = timedelta()
        self.calm = 0
        self.example = transaction.atomic()
        self.example.__enter__()
        database.execute(STANDING_CLOCK)
        self.began = database.now()

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.example.__exit__(None, None, None)

    @property
    def now(self) -> datetime:
        return self.began + self.passed

    @initialize(
        push_targets=st.tuples(PUSH_TARGETS, PUSH_TARGETS),
        before=BEFORE_SUCCESS,
        after=AFTER_SUCCESS,
        kind=KINDS,
        overtakes=st.booleans(),
        seconds=UNTIL_REGISTERED,
    )
    def begin(
        self,
        push_targets: tuple[Target | None, Target | None],
        before: Sequence[str],
        after: Sequence[str],
        kind: str,
        overtakes: bool,
        seconds: int,
    ) -> None:
        self.time_passes(1)
        self.wipe(0, before, after)
        self.dead_target(1, kind, overtakes=overtakes, seconds=seconds)
        if self.owners[0].revoked:
            self.enrol_with_the_other_token(0)
        for number, target in enumerate(push_targets):
            self.new_push_target(number, target, None)
        self.issue({0, 1}, "ping", 86_400, supersede=False)

    @rule(
        phones=st.sets(PHONES, min_size=1),
        action=st.sampled_from(["ping", "lock", "wipe"]),
        seconds=st.sampled_from([1, 60, 600, 7200]),
        supersede=st.sampled_from([False, False, False, True]),
    )
    def issue(self, phones: set[int], action: str, seconds: int, supersede: bool) -> None:
        owners = [self.owners[number] for number in sorted(phones)]
        fields: dict[str, Any] = {"expires_in_seconds": seconds, "supersede": supersede}
        if action == "wipe":
            fields["expect_count"] = len(owners)
        answer = self.admin.command(action, to=[owner.phone for owner in owners], **fields)
        if any(owner.revoked for owner in owners):
            assert answer.code == "unknown_devices"
            return
        assert answer.json["push"]["queued"] == sum(map(self.can_be_pushed_to, owners))
        for life in self.open_lives():
            if supersede and life.owner in owners and life.action == action:
                life.settle(DeliveryState.CANCELLED)
        for owner in owners:
            pushable = self.can_be_pushed_to(owner)
            self.lives[answer.json["request_id"], owner.phone.device_id] = DeliveryModel(
                owner,
                answer.json["request_id"],
                action,
                issued_at=self.now.replace(microsecond=0),
                expires_at=rounded_up(self.now + timedelta(seconds=seconds)),
                push=PushState.WAITING if pushable else PushState.NO_PUSH_TOKEN,
                due=self.now if pushable else None,
            )

    @rule(number=DISPATCHERS, after_seconds=AFTER_SECONDS, limit=st.sampled_from([1, ALL]))
    def claim(self, number: int, after_seconds: int, limit: int) -> None:
        self.time_passes(after_seconds)
        due = [life for life in self.lives.values() if life.is_due(self.now) and self.can_be_pushed_to(life.owner)]
        claimed = outbox.claim_due(limit)
        assert len({one.delivery_id for one in claimed}) == len(claimed) == min(limit, len(due))
        for one in claimed:
            life = self.life_of(one)
            assert life in due
            life.claim(self.now)
            assert (one.number, target_of(one)) == (len(life.outcomes), life.owner.push.target)
            self.claimed_at[one.delivery_id, one.number] = self.now
            self.drivers[number].claimed.append((one, self.now))

    @precondition(lambda self: any(driver.claimed for driver in self.drivers))
    @rule(number=DISPATCHERS)
    def send(self, number: int) -> None:
        """No message is sent after its time or its lease, without an open attempt, or long after its withdrawal."""
        driver = self.one_of(number, lambda driver: bool(driver.claimed))
        for claimed, claimed_at in driver.claimed:
            life, waited = self.life_of(claimed), self.now - claimed_at
            message = driver.send(claimed, waited)
            in_time = self.now < life.expires_at - outbox.LEAST and waited.total_seconds() < LEAVES_WITHIN_SECONDS
            is_wanted = life.state == DeliveryState.PENDING and self.can_be_pushed_to(life.owner)
            is_wanted &= life.owner.push.target == target_of(claimed) and claimed.number == len(life.outcomes)
            if message is not None:
                assert in_time
                assert is_wanted or waited.total_seconds() <= FRESH_SECONDS
                assert float(message["android"]["ttl"][:-1]) <= (life.expires_at - self.now).total_seconds()
                assert message["data"]["request_id"] == life.request_id
                assert (message.get("token"), message.get("fid")).count(None) == 1
                assert message[claimed.push_kind] == claimed.push_token
                attempt = Attempt.objects.get(delivery_id=claimed.delivery_id, number=claimed.number)
                assert attempt.outcome == AttemptOutcome.IN_FLIGHT
            else:
                assert not in_time or not is_wanted
        driver.claimed.clear()

    @precondition(lambda self: any(driver.dispatcher.recorder.waiting for driver in self.drivers))
    @rule(number=DISPATCHERS)
    def record(self, number: int) -> None:
        answered = self.one_of(number, lambda driver: bool(driver.dispatcher.recorder.waiting)).answered()
        attempts.record_attempts(answered)
        died: dict[Target, datetime] = {}
        for claimed in (sent.claimed for sent in answered if sent.outcome == AttemptOutcome.TOKEN_DEAD):
            at, target = self.claimed_at[claimed.delivery_id, claimed.number], target_of(claimed)
            died[target] = max(at, died.get(target, at))
        for target, at in died.items():
            self.deaths.record(target, at, [owner.push for owner in self.owners])
        for sent in answered:
            life = self.life_of(sent.claimed)
            life.record(sent, self.now, pushable=self.can_be_pushed_to(life.owner))
        for owner in self.owners:
            if owner.push.target in died and not owner.push.is_live:
                self.stop_pushing_to(owner)

    @rule(number=DISPATCHERS, after_seconds=AFTER_SECONDS)
    def claim_and_send(self, number: int, after_seconds: int) -> None:
        self.claim(number, after_seconds, ALL)
        if self.drivers[number].claimed:
            self.send(number)

    @rule(number=DISPATCHERS, after_seconds=AFTER_SECONDS)
    def dispatch(self, number: int, after_seconds: int) -> None:
        self.claim_and_send(number, after_seconds)
        if self.drivers[number].dispatcher.recorder.waiting:
            self.record(number)

    @precondition(lambda self: any(driver.claimed or driver.dispatcher.recorder.waiting for driver in self.drivers))
    @rule(number=DISPATCHERS)
    def crash(self, number: int) -> None:
        self.drivers[number].crash()

    @precondition(lambda self: self.lives)
    @rule(
        choice=st.data(),
        status=st.sampled_from(ReportStatus.values),
        via=st.sampled_from([*DeliveryChannel.values, None]),
    )
    def report(self, choice: st.DataObject, status: str, via: str | None) -> None:
        self.report_on(choice.draw(st.sampled_from(list(self.lives.values()))), status, via)

    def report_on(self, life: DeliveryModel, status: str, via: str | None = None) -> None:
        """Report on a delivery."""
        answer = life.owner.phone.report(life.request_id, status, via=via)
        owner = life.owner
        if owner.revoked and not life.is_last_word(ReportStatus(status), self.now):
            assert answer.code == "device_revoked"
            self.note_wipe(life, status, is_refused=True)
            return
        owner.token_used = True
        state, duplicate, late = life.report(ReportStatus(status), via, self.now)
        expected = {"request_id": life.request_id, "state": state.value, "duplicate": duplicate, "late": late}
        assert answer.json == expected
        self.note_wipe(life, status, late=late, duplicate=duplicate)
        if life.retires(ReportStatus(status), duplicate=duplicate):
            self.retired(owner)

    def note_wipe(
        self, life: DeliveryModel, status: str, *, late: bool = False, duplicate: bool = False, is_refused: bool = False
    ) -> None:
        """Record how the success of a wipe was reported."""
        if (life.action, status) == ("wipe", "succeeded"):
            words = {
                "refused": is_refused,
                "late": late,
                "again": duplicate or (is_refused and life.has_succeeded),
                "after a new enrollment": life.is_of_an_earlier_enrollment,
            }
            self.setup.wipes.add(", ".join(word for word, is_so in words.items() if is_so) or "in time")

    @precondition(lambda self: self.calm >= CALM)
    @rule(number=PHONES, before=BEFORE_SUCCESS, after=AFTER_SUCCESS)
    def wipe(self, number: int, before: Sequence[str], after: Sequence[str]) -> None:
        """A registered phone gets a wipe, and reports success three times; other events may happen in between."""
        owner = self.owners[number]
        if owner.retired_at is not None:
            self.enrol_with_the_other_token(number)
        self.reinstate()
        self.issue({number}, "wipe", 60, supersede=False)
        life = self.lives_of(owner)[-1]
        happens: dict[str, Callable[[], None]] = {
            "it succeeds": lambda: self.report_on(life, "succeeded"),
            "it lapses": lambda: self.time_passes(600),
            "enrolled again": lambda: self.enrol_with_the_other_token(number),
            "retired": lambda: self.retire(number),
        }
        for event in (*before, "it succeeds", "it succeeds", *after, "it succeeds"):
            happens[event]()
            self.rows_are_as_expected()
        self.calm = 0

    def enrol_with_the_other_token(self, number: int) -> None:
        """Enroll a phone again. With the same enrollment token, this could count as a lost answer."""
        tokens = self.setup.enrollment_tokens
        self.enrol_again(number, 1 - tokens.index(self.owners[number].enrolled_by), None)

    @precondition(lambda self: self.calm >= CALM)
    @rule(choice=st.data())
    def cancel(self, choice: st.DataObject) -> None:
        self.calm = 0
        request_id = choice.draw(st.sampled_from(list(dict.fromkeys(request_id for request_id, _ in self.lives))))
        meant = [life for life in self.lives.values() if life.request_id == request_id]
        withdrawn = [life for life in meant if life.is_open(self.now)]
        assert self.admin.post(f"/admin/commands/{request_id}/cancel").json == {
            "request_id": request_id,
            "cancelled": len(withdrawn),
            "already_settled": len(meant) - len(withdrawn),
            "may_still_run": sum(life.may_still_run() for life in withdrawn),
        }
        for life in withdrawn:
            life.settle(DeliveryState.CANCELLED)

    @rule()
    def sweep(self) -> None:
        overdue = [life for life in self.lives.values() if life.is_overdue(self.now)]
        assert len(queue.expire(ALL)) == len(overdue)
        attempts.close_abandoned(ALL)
        for life in overdue:
            life.settle(DeliveryState.EXPIRED)
        for life in self.lives.values():
            if life.lease_until < self.now:
                life.abandon()

    @rule(number=PHONES)
    def heartbeat(self, number: int) -> None:
        owner = self.owners[number]
        answer = owner.phone.heartbeat()
        if self.beats(owner, answer.code):
            offers = [command["request_id"] for command in answer.json["commands"]]
            assert offers == offered(self.lives_of(owner), self.now)[: queue.OFFER_LIMIT]

    @rule(number=PHONES, push_target=PUSH_TARGETS, registered=REGISTERED)
    def new_push_target(self, number: int, push_target: Target | None, registered: int | None) -> None:
        owner, target = self.owners[number], push_target
        answer = owner.phone.heartbeat(push_target=self.as_sent(target, registered))
        at = self.at(registered)
        if self.beats(owner, answer.code) and self.deaths.is_written(owner.push, target, at, self.now):
            self.give_push_target(owner, target, at)

    @precondition(lambda self: self.calm >= CALM)
    @rule(number=PHONES, kind=KINDS, overtakes=st.booleans(), seconds=UNTIL_REGISTERED)
    def dead_target(self, number: int, kind: str, overtakes: bool, seconds: int) -> None:
        """A target dies twice, and its phone registers it again: before FCM's answer is recorded, or this long after it
        is recorded.

        In the end the other phone sends the target, without a time of registration.
        """
        owner, target = self.owners[number], Target(kind, "unregistered-1")
        if owner.retired_at is not None:
            self.enrol_with_the_other_token(number)
        self.reinstate()
        self.new_push_target(number, target, 0)
        self.issue({number}, "ping", 86_400, supersede=False)
        for _ in range(2):
            self.claim(0, 1, ALL)
            if self.drivers[0].claimed:
                self.send(0)
            if overtakes:
                self.time_passes(600 + 1)
                self.new_push_target(number, target, 0)
            if self.drivers[0].dispatcher.recorder.waiting:
                self.record(0)
            self.rows_are_as_expected()
            self.time_passes(seconds)
            self.new_push_target(number, target, 0)
            self.rows_are_as_expected()
        self.new_push_target(1 - number, target, None)
        self.calm = 0

    @rule(number=PHONES, registered=REGISTERED)
    def same_push_target(self, number: int, registered: int | None) -> None:
        self.new_push_target(number, self.owners[number].push.target, registered)

    @precondition(lambda self: self.calm >= CALM)
    @rule(number=PHONES, token=st.integers(0, 1), push_target=PUSH_TARGETS, registered=REGISTERED)
    def enrol_again(self, number: int, token: int, push_target: Target | None, registered: int | None = None) -> None:
        self.calm = 0
        self.time_passes(1)
        owner, enrollment_token = self.owners[number], self.setup.enrollment_tokens[token]
        said = {} if push_target is None else {"push_target": self.as_sent(push_target, registered)}
        answer = owner.phone.register(enrollment_token, **said)
        if owner.revoked and owner.retired_at is None:
            assert answer.code == "device_revoked"
            return
        answer_was_lost = owner.lost_the_answer(enrollment_token, self.now)
        owner.revoked, owner.retired_at = False, None
        assert answer.json["re_enrolled"] is not answer_was_lost
        owner.enrolled_by, owner.token_used = enrollment_token, False
        if not answer_was_lost:
            owner.enrollments += 1
            owner.enrolled_at = self.now
            self.cancel_all_of(owner)
            if push_target is None:
                owner.push.forget()
        if push_target is not None:
            self.give_push_target(owner, push_target, self.at(registered))
        self.time_passes(1)

    @precondition(lambda self: self.calm >= CALM)
    @rule(number=PHONES, for_good=st.booleans())
    def revoke(self, number: int, for_good: bool) -> None:
        self.calm = 0
        owner = self.owners[number]
        withdrawn = [life for life in self.open_lives() if life.owner is owner and life.action in ("lock", "wipe")]
        answer = self.admin.post(f"/admin/devices/{owner.phone.device_id}/revoke")
        assert answer.json["withdrawn"] == as_withdrawn(withdrawn)
        if not owner.revoked:
            owner.revoked, owner.withdrawn = True, withdrawn
        self.cancel_all_of(owner)
        if not for_good:
            self.reinstate()

    @precondition(lambda self: any(owner.revoked for owner in self.owners))
    @rule()
    def reinstate(self) -> None:
        for owner in self.owners:
            answer = self.admin.post(f"/admin/devices/{owner.phone.device_id}/reinstate")
            if owner.retired_at is not None:
                assert answer.code == "device_retired"
                continue
            assert answer.json["withdrawn"] == (as_withdrawn(owner.withdrawn) if owner.revoked else [])
            owner.revoked = False

    @precondition(lambda self: self.calm >= CALM)
    @rule(number=PHONES)
    def retire(self, number: int) -> None:
        self.calm = 0
        owner = self.owners[number]
        assert self.admin.post(f"/admin/devices/{owner.phone.device_id}/retire").status == 200
        if owner.retired_at is None:
            self.retired(owner)

    def retired(self, owner: Owner) -> None:
        """Record that a phone was retired."""
        owner.revoked, owner.retired_at = True, self.now
        self.cancel_all_of(owner)

    @rule(seconds=st.sampled_from([1, 31, 91, 600, 3600]))
    def time_passes(self, seconds: int) -> None:
        if seconds:
            let_pass(seconds=seconds)
            self.passed += timedelta(seconds=seconds)

    @rule(is_written_down=st.booleans())
    def look_at_the_commands(self, *, is_written_down: bool) -> None:
        """The state of each command follows from its deliveries, before its end is stored and after."""
        if is_written_down:
            finishing.finish(1000)
        for request_id in {request_id for request_id, _ in self.lives}:
            said = self.admin.get(f"/admin/commands/{request_id}").json
            states = {
                "expired" if life.is_overdue(self.now) else life.state.value
                for (one, _), life in self.lives.items()
                if one == request_id
            }
            stands = expected(states, was_cancelled=said["cancelled_at"] is not None)
            assert (said["state"], said["outcome"]) == stands

    @invariant()
    def rows_are_as_expected(self) -> None:
        self.calm += 1
        rows = {(str(row.command_id), str(row.device_id)): row for row in deliveries()}
        assert rows.keys() == self.lives.keys()
        for key, row in rows.items():
            attempts = list(row.attempts.all())
            life = self.lives[key]
            assert (row.device.retired_at is None) is (life.owner.retired_at is None)
            assert (row.state, row.push_state) == (life.state, life.push)
            assert self.is_at(row.next_attempt_at, life.due)
            assert [attempt.outcome for attempt in attempts] == life.outcomes
            assert [attempt.number for attempt in attempts] == list(range(1, row.attempt_count + 1))
            assert [as_kept(report) for report in row.reports.all()] == life.reports
            assert row.reports_not_kept == life.reports_not_kept
            finals = [report for report in life.reports if report.status in FINAL and not report.duplicate]
            assert len(finals) == life.has_final_report
            self.assert_it_is_not_lost_nor_settled_twice(key, row)

    def assert_it_is_not_lost_nor_settled_twice(self, key: tuple[str, str], row: Any) -> None:
        if row.state not in OPEN:
            assert self.settled.setdefault(key, row.state) == row.state
        else:
            assert key not in self.settled
        if row.state == DeliveryState.PENDING and row.push_state in (PushState.WAITING, PushState.RETRYING):
            assert row.next_attempt_at is not None, "nothing would ever push it again"

    def one_of(self, number: int, fit: Callable[[DispatcherDriver], bool]) -> DispatcherDriver:
        """Return this dispatcher if it can act, or else the other dispatcher."""
        return next(driver for driver in (self.drivers[number], self.drivers[1 - number]) if fit(driver))

    def beats(self, owner: Owner, refused: str | None) -> bool:
        """Return whether a heartbeat of this phone counts, and record it."""
        assert refused == ("device_revoked" if owner.revoked else None)
        if not owner.revoked:
            owner.token_used, owner.seen_at = True, self.now
        return not owner.revoked

    def can_be_pushed_to(self, owner: Owner) -> bool:
        return owner.push.is_live and not owner.revoked

    def at(self, seconds_ago: int | None) -> datetime | None:
        return None if seconds_ago is None else self.now - timedelta(seconds=seconds_ago)

    def as_sent(self, target: Target | None, seconds_ago: int | None) -> dict[str, Any] | None:
        """Return a push target as a phone sends it now; for the database, now is always the time of the beginning."""
        if target is None:
            return None
        at = None if seconds_ago is None else rfc3339(self.began - timedelta(seconds=seconds_ago))
        return {"kind": target.kind, "value": target.value, "registered_at": at}

    def give_push_target(self, owner: Owner, target: Target | None, registered_at: datetime | None) -> None:
        for other in self.owners:
            if other is not owner and target and other.push.target and other.push.target.value == target.value:
                other.push.forget()
                self.setup.push_target_rules.add("moved")
                self.stop_pushing_to(other)
        if not self.deaths.assign(owner.push, target, registered_at, self.now):
            return
        if not self.can_be_pushed_to(owner):
            self.stop_pushing_to(owner)
            return
        for life in self.lives_of(owner):
            life.resume_pushing(self.now)

    def stop_pushing_to(self, owner: Owner) -> None:
        for life in self.lives_of(owner):
            life.stop_pushing()

    def cancel_all_of(self, owner: Owner) -> None:
        for life in self.open_lives():
            if life.owner is owner:
                life.settle(DeliveryState.CANCELLED)

    def lives_of(self, owner: Owner) -> list[DeliveryModel]:
        return [life for life in self.lives.values() if life.owner is owner]

    def open_lives(self) -> list[DeliveryModel]:
        return [life for life in self.lives.values() if life.is_open(self.now)]

    def life_of(self, claimed: Claimed) -> DeliveryModel:
        return self.lives[str(claimed.content.request_id), str(claimed.recipient.device_id)]

    def is_at(self, stored: datetime | None, expected: datetime | None) -> bool:
        """Compare a stored time with a time of the model; the two sides round microseconds differently."""
        if stored is None or expected is None:
            return stored is expected
        return abs(stored + self.passed - expected) < timedelta(milliseconds=1)


def deliveries() -> QuerySet[Any]:
    by_number = Prefetch("attempts", Attempt.objects.order_by("number"))
    reports_in_order = Prefetch("reports", Report.objects.order_by("id"))
    return Delivery.objects.order_by("id").select_related("device").prefetch_related(by_number, reports_in_order)


def target_of(claimed: Claimed) -> Target:
    return Target(claimed.push_kind, claimed.push_token)


def as_kept(report: Report) -> KeptReport:
    return KeptReport(report.status, report.via, report.duplicate, report.repeat_count + 1)


def as_withdrawn(lives: list[DeliveryModel]) -> list[dict[str, Any]]:
    """Return deliveries in the form in which the answer to a revocation names them."""
    return [
        {"request_id": life.request_id, "action": life.action, "may_still_run": life.may_still_run()}
        for life in sorted(lives, key=lambda life: life.request_id)
    ]


def rounded_up(moment: datetime) -> datetime:
    """Return the next whole second."""
    whole = moment.replace(microsecond=0)
    return whole if whole == moment else whole + timedelta(seconds=1)


@pytest.fixture
def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Django's Now(), like now() in SQL, return the time at which the transaction began."""
    monkeypatch.setattr(Now, "as_postgresql", Func.as_sql)


@pytest.fixture
def setup(admin: Admin, fcm: FcmStandin, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr("commands.reports.KEPT", 3)
    settings.ADMIN_RATE_LIMIT = settings.DEVICE_RATE_LIMIT = "1000000/m"
    for_ever = {"max_uses": 1000, "expires_in_seconds": 10 * 365 * 86_400, "re_enroll": True}
    texts = [admin.enrollment_token(**for_ever) for _ in range(2)]
    owners = []
    for number in range(2):
        phone = Phone(admin.client, f"phone-{number}")
        phone.register(texts[0], push_token=f"ok-phone-{number}")
        push = OwnedTarget(Target("token", f"ok-phone-{number}"))
        owners.append(Owner(phone, push, enrolled_by=texts[0]))
    return Setup(admin, fcm, texts, owners)


def play_each_beginning(setup: Setup) -> None:
    """Play what the random play may leave out: each way in which a wipe is reported, and in which a target dies."""
    for number, (before, after) in enumerate(product(BEFORE, AFTER)):
        play = Deliveries(setup)
        kind, overtakes, seconds = ("fid", "fid", "token")[number % 3], number % 2 == 0, (60, 3600)[number // 2 % 2]
        try:
            play.begin((None, Target("token", "ok-1")), before, after, kind, overtakes=overtakes, seconds=seconds)
        finally:
            play.teardown()


def test_no_delivery_is_lost_settled_twice_or_sent_too_late_in_any_order_of_events(
    setup: Setup, time_stands_still: None
) -> None:
    play = hypothesis_settings(
        max_examples=EXAMPLES or 20,
        stateful_step_count=STEPS,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    class OnThisScene(Deliveries):
        def __init__(self) -> None:
            super().__init__(setup)

    run_state_machine_as_test(OnThisScene, settings=play)
    play_each_beginning(setup)
    assert setup.wipes >= WIPES
    assert setup.push_target_rules >= PUSH_TARGET_RULES
