"""Claimed pushes that wait for their turn, and a dispatcher that has other work to do."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from django.db.models.functions import Now

from commands import queue, retention
from commands.models import Attempt, Delivery
from commands.push import fcm
from commands.push.dispatcher import Dispatcher
from commands.push.fcm import Sender
from commands.push.periodic import PeriodicTask
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.common.postgresql import direct
from nexmdm.common.postgresql.connection import Connection
from tests.support.actors import Admin, Phone
from tests.support.moments import releasing_connection, waiting

pytestmark = pytest.mark.django_db(transaction=True)

PHONES = 4


@pytest.fixture
def phones(admin: Admin, fcm: FcmStandin) -> list[Phone]:
    """Phones with push tokens, and a due ping for each."""
    phones = admin.enrol_fleet(PHONES, "ok-")
    admin.command("ping", to={"all": True})
    return phones


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a dispatcher one slot, and let it check each push again before it is sent."""
    monkeypatch.setattr("commands.push.dispatcher.SLOTS", 1)
    monkeypatch.setattr("commands.push.batch.FRESH_SECONDS", -1)


class Interrupted:
    """A sender, and an event that happens after the answer to its first push."""

    def __init__(self, sender: Sender, happening: Callable[[], object]) -> None:
        self.sender = sender
        self.happenings = [happening]

    async def send(self, push: fcm.FcmMessage) -> fcm.FcmResponse:
        """Send a push; cause the event after the first one."""
        answer = await self.sender.send(push)
        if self.happenings:
            await asyncio.to_thread(releasing_connection, self.happenings.pop())
        return answer


def with_sender(standin: FcmStandin, work: Callable[[Sender], Awaitable[None]]) -> None:
    """Run a function with a real sender to the fake FCM, on its own loop, as in a dispatcher."""

    async def working() -> None:
        async with Sender(standin.service_account(), standin.base_url, connections=10) as sender:
            await work(sender)

    asyncio.run(working())


def dispatch(standin: FcmStandin, *, after_the_first: Callable[[], object]) -> None:
    """Dispatch once; cause an event after the answer to the first push."""

    async def dispatched(sender: Sender) -> None:
        await Dispatcher(Interrupted(sender, after_the_first), per_second=5000).run_once()

    with_sender(standin, dispatched)


def pushed_to(standin: FcmStandin) -> list[str]:
    return [str(send.message["token"]) for send in standin.journal.sends()]


def test_a_push_that_is_cancelled_while_it_waits_is_not_sent(
    admin: Admin, fcm: FcmStandin, phones: list[Phone], one_at_a_time: None
) -> None:
    request_id = Delivery.objects.values_list("command_id", flat=True)[0]
    dispatch(fcm, after_the_first=lambda: admin.post(f"/admin/commands/{request_id}/cancel"))
    assert len(fcm.journal) == 1
    stayed = Attempt.objects.filter(outcome="blocked", http_status=None)
    assert {attempt.detail for attempt in stayed} == {"not sent: the push was withdrawn while it waited for its turn"}
    assert Delivery.objects.filter(state="cancelled", next_attempt_at=None, failure_count=0).count() == PHONES


def test_a_push_to_a_phone_that_is_revoked_meanwhile_is_not_sent(
    admin: Admin, fcm: FcmStandin, phones: list[Phone], one_at_a_time: None
) -> None:
    def revoke_all() -> None:
        for phone in phones:
            admin.post(f"/admin/devices/{phone.device_id}/revoke")

    dispatch(fcm, after_the_first=revoke_all)
    assert len(fcm.journal) == 1


def test_a_push_that_waits_is_sent_only_to_the_new_push_token(
    fcm: FcmStandin, phones: list[Phone], one_at_a_time: None
) -> None:
    def renew_all() -> None:
        for number, phone in enumerate(phones):
            phone.heartbeat(push_token=f"ok-new-{number}")

    dispatch(fcm, after_the_first=renew_all)
    first, *others = pushed_to(fcm)
    assert set(others) == {f"ok-new-{number}" for number in range(PHONES)} - {first.replace("-", "-new-")}
    assert not Delivery.objects.exclude(push_state="accepted").exists()


def test_a_push_whose_phone_reports_while_it_waits_is_not_sent(
    fcm: FcmStandin, phones: list[Phone], one_at_a_time: None
) -> None:
    def answer_all() -> None:
        for phone in phones:
            (command,) = phone.heartbeat().json["commands"]
            assert phone.report(command["request_id"], "succeeded", via="heartbeat").status == 200

    dispatch(fcm, after_the_first=answer_all)
    assert len(fcm.journal) == 1


def test_a_dispatcher_that_stops_returns_its_waiting_pushes(
    fcm: FcmStandin, phones: list[Phone], one_at_a_time: None
) -> None:
    async def stopped(sender: Sender) -> None:
        loop = asyncio.get_running_loop()
        interrupted = Interrupted(sender, lambda: loop.call_soon_threadsafe(dispatcher.stop))
        dispatcher = Dispatcher(interrupted, per_second=5000)
        await dispatcher.run()

    with_sender(fcm, stopped)
    assert len(fcm.journal) == 1
    given_back = Delivery.objects.filter(push_state="retrying", next_attempt_at__lte=Now(), failure_count=0)
    assert given_back.count() == PHONES - 1
    stayed = Attempt.objects.filter(outcome="blocked", delivery__in=given_back)
    assert {attempt.detail for attempt in stayed} == {
        "not sent: the dispatcher stopped while the push waited for its turn"
    }


def test_a_push_whose_lease_is_nearly_over_is_returned_and_claimed_again(
    fcm: FcmStandin, phones: list[Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.push.dispatcher.SLOTS", 1)
    monkeypatch.setattr("commands.push.dispatcher.LEAVES_WITHIN_SECONDS", 0.3)
    fcm.delay_ms = 200
    dispatch(fcm, after_the_first=lambda: None)
    assert sorted(pushed_to(fcm)) == [f"ok-{number}" for number in range(PHONES)]
    stayed = Attempt.objects.filter(outcome="blocked")
    assert {attempt.detail for attempt in stayed} == {"not sent: the push waited for too long"}
    assert not Delivery.objects.exclude(push_state="accepted").exists()


def test_pushes_are_sent_while_a_task_waits_for_a_lock(admin: Admin, fcm: FcmStandin, phones: list[Phone]) -> None:
    task = PeriodicTask("retention", 3600, lambda: retention.prune(timedelta(days=90), 10))

    def wait_and_issue() -> None:
        deadline = time.monotonic() + 5
        while not waiting():
            assert time.monotonic() < deadline, "the task does not wait"
        admin.command("lock", to={"all": True})

    async def dispatched(sender: Sender) -> None:
        dispatcher = Dispatcher(sender, per_second=5000, periodic_tasks=[task])
        running = asyncio.create_task(dispatcher.run())
        await asyncio.to_thread(releasing_connection, wait_and_issue)
        await asyncio.to_thread(fcm.journal.wait_for, 2 * PHONES)
        other.rollback()
        dispatcher.stop()
        await running

    with Connection.connect(**direct.parameters()) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('retention:deliveries', 0))")
        with_sender(fcm, dispatched)
    assert Delivery.objects.filter(push_state="accepted").count() == 2 * PHONES


def test_a_periodic_task_continues_while_its_batches_are_full(fcm: FcmStandin, phones: list[Phone]) -> None:
    Delivery.objects.update(open_until=Now())
    done = 0

    def expire() -> int:
        nonlocal done
        expired = len(queue.expire(1))
        done += expired
        return expired

    async def swept(sender: Sender) -> None:
        dispatcher = Dispatcher(sender, per_second=5000, periodic_tasks=[PeriodicTask("expire", 2, expire, 1)])
        running, deadline = asyncio.create_task(dispatcher.run()), time.monotonic() + 5
        while done < PHONES:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        dispatcher.stop()
        await running

    with_sender(fcm, swept)
    assert Delivery.objects.filter(state="expired").count() == PHONES
