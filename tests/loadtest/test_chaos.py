"""The promises of a single kind of fault can fail, and the simulated traffic hides no error."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from django.core.management import call_command
from django.db.models.functions import Now
from psycopg.conninfo import make_conninfo

from commands import models
from loadtest.chaos import ledgers, outages, pushes, traffic
from loadtest.chaos.answers import Gap
from loadtest.chaos.faults import DatabaseStops, Kills, SecondDispatcher
from loadtest.chaos.ledgers import Attempt, DatabaseSnapshot
from loadtest.chaos.outages import FcmOutages, Outage, Recovery
from loadtest.chaos.traffic import Account, Exchange, Result, Traffic
from loadtest.fake_fcm.server import FcmStandin
from loadtest.fleet.credentials_file import Member
from loadtest.load.targets import Target
from loadtest.testbed.serving import Serving
from nexmdm.client.http_client import FleetClient
from nexmdm.common.postgresql import direct
from nexmdm.models import DispatcherSeen
from tests.loadtest.test_ledgers import NOT_DUE, UNRECORDED, delivery
from tests.support.actors import Admin

MEMBERS = [Member(f"device-{number}", "nxd", "key", f"ok-{number}") for number in range(traffic.LARGEST_AUDIENCE)]
ENVELOPE = dict.fromkeys(("request_id", "action", "params", "issued_at", "expires_at", "signature"), "forged")
SECRET = "s" * 40
AWAY = Exchange("heartbeat", 101, 102, 503, "database_unavailable")
PROMPT = Exchange("heartbeat", 110, 110.1, 200)
NO_BOOK = DatabaseSnapshot(0, [], [], {}, {})


def missed(judged: list[Target]) -> set[str]:
    return {one.name for one in judged if not one.held}


def stops(*gaps: Gap) -> DatabaseStops:
    return DatabaseStops(cast("Serving", None), "", len(gaps), print, list(gaps))


def missed_by_the_database(*exchanges: Exchange) -> set[str]:
    return missed(stops(Gap(100, 104)).judged([PROMPT, *exchanges], NO_BOOK, []))


def test_a_database_that_is_away_must_be_answered_with_problem_details() -> None:
    assert missed_by_the_database(AWAY) == set()
    assert missed_by_the_database(AWAY, replace(AWAY, code="overloaded")) == set()
    for spoilt in (replace(AWAY, flaw="text/html"), replace(AWAY, code="internal"), replace(AWAY, code="")):
        assert missed_by_the_database(AWAY, spoilt) == {"refusals are problem details"}


def test_a_database_that_is_away_is_noticed_unless_it_is_back_immediately() -> None:
    first, short, long = Gap(100, 104), Gap(120, 122), Gap(120, 123)
    later = replace(PROMPT, begun_at=130, ended_at=131)
    assert missed(stops(first, short).judged([AWAY, later], NO_BOOK, [])) == set()
    assert missed(stops(first, long).judged([AWAY, later], NO_BOOK, [])) == {"requests refused in the gaps"}
    assert missed(stops(short).judged([AWAY, later], NO_BOOK, [])) == {"requests refused in the gaps"}


def test_a_request_that_fails_long_after_the_database_is_back_is_a_miss_whenever_it_began() -> None:
    assert missed_by_the_database(AWAY, replace(AWAY, ended_at=108.9)) == set()
    assert missed_by_the_database(AWAY, replace(AWAY, ended_at=109)) == {"last failure after the database was back"}


SLOW = "slow requests 5 s after the database was back"


def test_a_request_that_takes_long_after_the_database_is_back_is_a_miss_though_it_is_answered() -> None:
    for begin, end in ((109, 111.1), (104.1, 118), (103, 109.1), (50, 109.1)):
        assert missed_by_the_database(AWAY, replace(PROMPT, begun_at=begin, ended_at=end)) == {SLOW}
    for begin, end in ((109, 110.9), (108, 112.9), (103, 108.9)):
        assert missed_by_the_database(AWAY, replace(PROMPT, begun_at=begin, ended_at=end)) == set()


def test_a_request_that_takes_long_because_of_the_next_stop_is_no_miss() -> None:
    twice = stops(Gap(100, 104), Gap(120, 122))
    waiting = replace(PROMPT, begun_at=119, ended_at=126)
    assert missed(twice.judged([AWAY, waiting], NO_BOOK, [])) == set()
    assert missed(twice.judged([AWAY, replace(waiting, begun_at=117.9)], NO_BOOK, [])) == {SLOW}
    assert missed(twice.judged([AWAY, replace(waiting, ended_at=127.1)], NO_BOOK, [])) == {SLOW}


def test_no_requests_after_a_gap_is_a_miss() -> None:
    assert missed(stops(Gap(100, 104)).judged([AWAY], NO_BOOK, [])) == {SLOW}


def test_no_push_is_possible_while_no_dispatcher_runs() -> None:
    message = '{"name":"host:7","push":"ok","event":"dispatch.started","level":"info","at":"1970-01-01T00:01:43.5Z"}\n'
    serving, second = SimpleNamespace(said=f"NexMDM is ready\n{message}"), cast("SecondDispatcher", None)
    kills = Kills(cast("Serving", serving), second, 300, print)
    kills.first_killed_at, kills.second_away = [100, 101, 110], [(90, 99), (102, 105), (112, 113)]
    assert kills.away() == [(102, 103.5), (112, 113)]


class Outages:
    """Three minutes of 503 from second 1,000 on; normal again 12 s after the end; 80 pushes a second before and after.

    Twenty deliveries are open during it until a heartbeat delivers them.
    """

    def __init__(self) -> None:
        self.recovery = Recovery(1000, 1180, 12)
        self.open = delivery("device-0", issued_at=1000.0, expires_at=1600.0, open_until=1600.0)
        by_heartbeat = replace(
            self.open, state="succeeded", delivered_via="heartbeat", received_at=1100.0, settled_at=1100.0
        )
        self.by_push = replace(by_heartbeat, device_id="device-21", delivered_via="push")
        self.deliveries = [replace(by_heartbeat, device_id=f"device-{number}") for number in range(20)]
        ahead = time.time() - time.monotonic()
        self.exchanges = [Exchange("command", 1100 - ahead, 1100 - ahead, 200)]
        taken = [
            {"at": at / 80, "status": 200, "message_id": "m"} for at in (*range(79200, 80000), *range(95360, 96160))
        ]
        self.sends = taken + [{"at": 1001, "status": 503, "message_id": ""}] * 301

    def judged(self) -> list[Target]:
        fault = FcmOutages("", "", [Outage("503", {}, 180)], 60, print, [self.recovery])
        return fault.judged(self.exchanges, replace(NO_BOOK, deliveries=self.deliveries), self.sends)


def open_a_circuit_for_good(trial: Outages) -> None:
    trial.recovery = replace(trial.recovery, after_seconds=None)


def push_only_once_afterwards(trial: Outages) -> None:
    trial.sends = [send for send in trial.sends if send["at"] <= 1192]


def push_nothing_before(trial: Outages) -> None:
    trial.sends = [send for send in trial.sends if send["at"] > 1000]


def fail_too_little(trial: Outages) -> None:
    trial.sends.pop()


def answer_nothing_meanwhile(trial: Outages) -> None:
    trial.deliveries = [replace(one, settled_at=1181) for one in trial.deliveries]


def answer_pushes_meanwhile(trial: Outages) -> None:
    trial.deliveries += [trial.by_push, replace(trial.by_push, device_id="device-22")]


def let_all_expire_meanwhile(trial: Outages) -> None:
    trial.deliveries = [replace(one, state="expired", delivered_via=None) for one in trial.deliveries]


def bring_only_a_trickle_meanwhile(trial: Outages) -> None:
    trial.deliveries = [trial.deliveries[0]] + [
        replace(trial.open, device_id=f"device-{number}", state="succeeded", settled_at=1181) for number in range(1, 20)
    ]


def bring_only_a_trickle_of_what_is_open_for_less_than_an_interval(trial: Outages) -> None:
    heard = [replace(one, expires_at=1060, settled_at=1050) for one in trial.deliveries]
    expired = [replace(one, state="expired", delivered_via=None, settled_at=1060) for one in heard]
    trial.deliveries = heard[:9] + expired[9:]


def bring_late_what_was_open(trial: Outages) -> None:
    trial.deliveries[:2] = [replace(one, settled_at=1181) for one in trial.deliveries[:2]]


def bring_little_of_what_was_open_and_much_of_the_rest(trial: Outages) -> None:
    bring_late_what_was_open(trial)
    brought = replace(trial.deliveries[-1], expires_at=1020, settled_at=1010)
    trial.deliveries += [replace(brought, device_id=f"device-{number}") for number in range(20, 30)]


def let_nothing_be_open_meanwhile(trial: Outages) -> None:
    trial.deliveries = [replace(one, settled_at=1001) for one in trial.deliveries]


def refuse_a_command(trial: Outages) -> None:
    trial.exchanges.append(replace(trial.exchanges[0], status=503))


def accept_nothing_meanwhile(trial: Outages) -> None:
    trial.exchanges = [replace(trial.exchanges[0], begun_at=0)]


REACHED = "503: open in the outage, delivered by heartbeat"


def test_outages_with_a_recovery_keep_every_promise() -> None:
    trial = Outages()
    trial.deliveries.append(trial.by_push)
    assert missed(trial.judged()) == set()


def test_a_delivery_that_ends_before_a_heartbeat_need_not_arrive_by_heartbeat() -> None:
    trial = Outages()
    settled = replace(trial.open, state="succeeded", delivered_via="push", issued_at=900, settled_at=1001)
    over = replace(trial.open, state="expired", expires_at=1004, settled_at=1004)
    late = replace(trial.open, issued_at=1177)
    found = [settled] * 9 + [over] * 9 + [late] * 9
    trial.deliveries += [replace(one, device_id=f"device-{number}") for number, one in enumerate(found, start=30)]
    assert missed(trial.judged()) == set()


@pytest.mark.parametrize(
    ("spoil", "promise"),
    [
        (open_a_circuit_for_good, "503: pushing is normal again"),
        (push_only_once_afterwards, "503: pushing is normal again"),
        (push_nothing_before, "503: pushing is normal again"),
        (fail_too_little, "messages that FCM answered with 503"),
        (answer_nothing_meanwhile, "503: results in the outage, by heartbeat"),
        (answer_pushes_meanwhile, "503: results in the outage, by heartbeat"),
        (let_all_expire_meanwhile, "503: results in the outage, by heartbeat"),
        (bring_only_a_trickle_meanwhile, REACHED),
        (bring_only_a_trickle_of_what_is_open_for_less_than_an_interval, REACHED),
        (bring_late_what_was_open, REACHED),
        (bring_little_of_what_was_open_and_much_of_the_rest, REACHED),
        (let_nothing_be_open_meanwhile, REACHED),
        (let_all_expire_meanwhile, REACHED),
        (refuse_a_command, "503: commands accepted in the outage"),
        (refuse_a_command, "answers are 200"),
        (accept_nothing_meanwhile, "503: commands accepted in the outage"),
    ],
)
def test_each_failure_to_recover_from_an_outage_is_noticed(spoil: Callable[[Outages], None], promise: str) -> None:
    trial = Outages()
    spoil(trial)
    assert promise in missed(trial.judged())


def test_attempts_that_failed_in_an_outage_are_counted() -> None:
    trial = Outages()
    failed = Attempt("unknown", None, "", 1001, 1011)
    trial.deliveries[0] = replace(trial.deliveries[0], attempts=[failed, replace(failed, started_at=999)])
    assert trial.judged()[0].figure == "301; 1 attempts failed in all outages"


Answer = Callable[[web.Request], web.Response]


def heartbeat(*commands: dict[str, str]) -> web.Response:
    return web.json_response({"server_time": "2026-11-25T12:00:00Z", "commands": commands})


async def _live(tmp_path: Path, answer: Answer, heartbeats: int, settled: bool) -> Account:
    """Let the traffic send this number of heartbeats to a server that gives these answers."""
    numbers, enough = count(1), asyncio.Event()

    async def hear(request: web.Request) -> web.Response:
        if next(numbers) >= heartbeats:
            enough.set()
        return answer(request)

    async def accept(_: web.Request) -> web.Response:
        return web.json_response({"request_id": "command-1"})

    async def is_settled() -> bool:
        return settled

    app = web.Application()
    answers = [web.post("/admin/command", accept), web.patch("/admin/devices/{device_id}", accept)]
    app.add_routes([web.post("/v1/heartbeat", hear), *answers])
    journal = tmp_path / "journal"
    journal.touch()
    async with TestServer(app) as server:
        with FleetClient(str(server.make_url("")), key=SECRET, secret=SECRET) as admin:
            living = Traffic(admin, MEMBERS, journal, interval_seconds=0)
            await living.run(enough.wait(), is_settled)
    return living.account


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the traffic check immediately whether all is settled."""
    monkeypatch.setattr(traffic, "SETTLED_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(traffic, "PATIENCE_SECONDS", 0.2)


def live(tmp_path: Path, answer: Answer, *, heartbeats: int = 1, settled: bool = True) -> Account:
    return asyncio.run(_live(tmp_path, answer, heartbeats, settled))


def test_an_error_of_a_phone_ends_the_run(tmp_path: Path) -> None:
    nothing = {"server_time": "2026-11-25T12:00:00Z"}
    with pytest.raises(ExceptionGroup) as caught:
        live(tmp_path, lambda _: web.json_response(nothing), heartbeats=10**6)
    assert {repr(error) for error in caught.value.exceptions} == {"KeyError('commands')"}


def test_an_envelope_that_a_phone_does_not_trust_is_counted_and_no_result_is_claimed(tmp_path: Path) -> None:
    account = live(tmp_path, lambda _: heartbeat(ENVELOPE), heartbeats=2)
    assert account.refused > 0
    assert {one.kind for one in account.exchanges} <= {"heartbeat", "command", "rename"}
    assert account.results == []


def test_the_flaw_of_a_refusal_is_recorded(tmp_path: Path) -> None:
    problem = {"status": 503, "code": "database_unavailable"}
    account = live(tmp_path, lambda _: web.json_response(problem, status=503), heartbeats=2)
    refused = {(one.status, one.code, one.flaw) for one in account.exchanges if one.kind == "heartbeat"}
    assert refused == {(503, "database_unavailable", "application/json")}


@pytest.mark.parametrize("settled", [True, False])
def test_the_time_to_settle_is_recorded(tmp_path: Path, settled: bool) -> None:
    account = live(tmp_path, lambda _: heartbeat(), settled=settled)
    assert (account.settled_after_seconds is not None) == settled


def address() -> str:
    """Return the address of the tests' database."""
    return make_conninfo(**direct.parameters())


@pytest.mark.django_db(transaction=True)
def test_the_ledgers_of_a_working_server_agree_and_a_loss_is_noticed(admin: Admin, fcm: FcmStandin) -> None:
    phones = [admin.enrol(token, push_token=token) for token in ("ok-1", "unavailable-2")]
    request_id = admin.command("ping", to=phones, note="chaos 1").json["request_id"]
    assert admin.call("PATCH", f"/admin/devices/{phones[0].device_id}", {"alias": "renamed 1"}).status == 200
    call_command("dispatch", once=True)
    heard = phones[0].heartbeat().json["server_time"]
    told = phones[0].report(request_id, "succeeded", via="push").json
    said = (request_id, phones[0].device_id, "succeeded", "push")
    account = Account(
        sent={"chaos 1"},
        accepted={request_id: frozenset(one.device_id for one in phones)},
        renamed={phones[0].device_id: "renamed 1"},
        results=[Result(*said, told["state"], told["late"], at=time.time())],
        heard={phones[0].device_id: heard},
        settled_after_seconds=1,
    )
    members = [Member(one.device_id, one.device_token, one.command_key, one.hardware_id) for one in phones]
    sends = [asdict(one) for one in fcm.journal.sends()]

    def found() -> set[str]:
        snapshot = ledgers.read(address())
        return missed([*ledgers.compare(account, snapshot), *pushes.compare(snapshot, sends, members, [])])

    assert found() == set()
    assert not asyncio.run(ledgers.is_settled(address()))
    models.Delivery.objects.filter(push_state="retrying").update(next_attempt_at=None)
    assert found() == {NOT_DUE}
    models.Attempt.objects.filter(outcome="retry_later").delete()
    assert found() == {NOT_DUE, UNRECORDED}


@pytest.mark.django_db(transaction=True)
def test_pushing_is_normal_once_both_circuits_are_closed_and_nothing_is_overdue(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "RESUMED_SECONDS", 0.1)
    fault = FcmOutages("", address(), [], 60, print)

    def is_whole() -> bool:
        return asyncio.run(fault._recover(time.time())) is not None

    DispatcherSeen.objects.create(name="host:1", circuit="closed")
    assert not is_whole()
    second = DispatcherSeen.objects.create(name="host:2", circuit="open")
    assert not is_whole()
    second.circuit = "closed"
    second.save()
    assert is_whole()
    admin.command("ping", to=admin.enrol("phone-1", push_token="ok-1"))
    assert is_whole()
    models.Delivery.objects.update(next_attempt_at=Now() - timedelta(seconds=3))
    assert not is_whole()
