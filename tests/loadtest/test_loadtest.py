"""The load test: its figures are correct, its load is open, its report is one file, and it runs from end to end."""

import asyncio
import random
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from itertools import islice
from math import ceil, nan
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from django.core.management import call_command
from django.db.models import Count, F, Sum
from hypothesis import given
from hypothesis import strategies as st

from commands.models import Attempt, Command, Delivery, Report
from devices import tokens
from devices.models import Device, Presence
from loadtest.fake_fcm.journal import JournalTail
from loadtest.fleet import credentials_file, seeding
from loadtest.fleet.credentials_file import Member
from loadtest.load import command, disturbances, runner, targets
from loadtest.load.command_load import Ledger
from loadtest.load.disturbances import Disturbance
from loadtest.load.figures import GROWTH, Figures, Histogram, merged
from loadtest.load.generator import Generator, Plan, first_dues
from loadtest.load.report import charts, document
from loadtest.load.runner import Load, Run
from loadtest.testbed.connections import NO_ANSWER, Pool, Server, with_body
from nexmdm.client.phone import Agent, Credentials
from nexmdm.models import AuditEntry
from tests.support.actors import Admin, Client
from tests.support.moments import in_one_batch

LATENCIES = st.lists(st.floats(min_value=1e-4, max_value=100), min_size=1, max_size=300)


def histogram_of(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(LATENCIES, st.sampled_from([50, 90, 95, 99, 99.9, 100]))
def test_a_percentile_is_that_of_the_sorted_latencies_or_up_to_two_per_cent_more(
    values: list[float], percent: float
) -> None:
    true = sorted(values)[ceil(percent / 100 * len(values)) - 1]
    found = histogram_of(values).percentile(percent)
    assert found is not None
    assert true * (1 - 1e-9) <= found <= true * GROWTH * (1 + 1e-9)


@given(LATENCIES, LATENCIES)
def test_histograms_add_up(some: list[float], others: list[float]) -> None:
    together = merged([histogram_of(some), histogram_of(others)])
    whole = histogram_of(some + others)
    assert (together.counts, together.count, together.longest) == (whole.counts, whole.count, whole.longest)


def test_a_histogram_stays_small() -> None:
    histogram = histogram_of([1.001**exponent * 1e-6 for exponent in range(30_000)])
    assert len(histogram.counts) <= 1001
    assert histogram.count == 30_000


def test_an_empty_histogram_has_no_percentile() -> None:
    assert Histogram().percentile(99) is None


def test_figures_are_unchanged_after_a_transfer_to_another_process() -> None:
    figures = Figures()
    figures.due(3.2, 0.001)
    figures.ended("heartbeat", 3.2, 0.9, "")
    figures.ended("heartbeat", 4.0, 10.0, "heartbeat: time-out")
    content = Figures.of(orjson.loads(orjson.dumps(figures.as_json())))
    assert content.as_json() == figures.as_json()
    content.merge(figures)
    assert content.latencies("heartbeat", until=4).count == 2
    assert content.errors(since=4) == {"heartbeat: time-out": 2}
    assert content.late.count == 2


def test_a_latency_belongs_to_the_second_of_its_due_time_and_an_answer_to_its_own() -> None:
    figures = Figures()
    figures.ended("heartbeat", 3.2, 0.9, "")
    assert figures.latencies("heartbeat", since=3, until=4).count == 1
    assert (figures.answered(3, 4), figures.answered(4, 5)) == (0, 1)


def test_the_ledger_accepts_events_in_any_order_and_counts_the_first() -> None:
    ledger = Ledger()
    ledger.pushed("a", 10.02)
    ledger.posted("a", 10.0)
    ledger.pushed("a", 50.0)
    ledger.posted("b", 11.0)
    ledger.settled("b", 11.5)
    assert (ledger.open, ledger.done, ledger.unanswered()) == (1, 1, [10.0])
    assert ledger.dispatch(0).longest == pytest.approx(0.02)
    assert ledger.round_trip(10.5).longest == pytest.approx(0.5)


def test_without_a_ramp_phones_are_spread_over_the_whole_interval() -> None:
    dues = first_dues(10_000, ramp_seconds=0, interval_seconds=10, chance=random.Random(1))
    assert 0 <= min(dues) <= max(dues) <= 10
    assert all(900 < sum(second <= due < second + 1 for due in dues) < 1100 for second in range(10))


def test_over_the_ramp_the_load_grows_evenly() -> None:
    dues = first_dues(10_000, ramp_seconds=10, interval_seconds=100, chance=random.Random(1))
    first, second = (sum(begin <= due < begin + 5 for due in dues) for begin in (0, 5))
    assert first == pytest.approx(125, rel=0.35)
    assert second == pytest.approx(375, rel=0.25)


def test_the_credentials_file_is_for_its_owner_only_and_is_read_in_parts(tmp_path: Path) -> None:
    members = [Member(f"id-{number}", "token", "key", "" if number % 2 else "push") for number in range(5)]
    credentials_file.write(tmp_path / "roster", members)
    assert stat.S_IMODE((tmp_path / "roster").stat().st_mode) == 0o600
    assert credentials_file.read(tmp_path / "roster") == members
    assert credentials_file.read(tmp_path / "roster", 1, 2) == members[1::2]


def test_the_journal_is_read_line_by_line_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"request_id":"before"}\n')
    tail = JournalTail(path)
    with path.open("ab", buffering=0) as file:
        file.write(b'{"request_id":"a"}\n{"requ')
        assert tail.sends() == [{"request_id": "a"}]
        file.write(b'est_id":"b"}\n')
        assert tail.sends() == [{"request_id": "b"}]
    tail.close()


Handler = Callable[[web.Request], Any]


@contextmanager
def answering(handler: Handler) -> Iterator[Callable[[Callable[[str], Any]], Any]]:
    """Return a runner that calls a coroutine function with the address of a server with this handler."""

    async def run(play: Callable[[str], Any]) -> None:
        app = web.Application()
        app.router.add_post("/{path:.+}", handler)
        async with TestServer(app) as server:
            await play(str(server.make_url("")).rstrip("/"))

    yield lambda play: asyncio.run(run(play))


def plan_for(url: str, **changes: Any) -> Plan:
    given = {
        "url": url, "roster": "", "part": 0, "parts": 1, "ramp_seconds": 0, "duration_seconds": 2,
        "interval_seconds": 0.5, "scale": 0.5, "connections": 1, "journal": "",
    }  # fmt: skip
    return Plan(**{**given, **changes})


def test_a_stall_counts_for_all_heartbeats_that_were_due_meanwhile() -> None:
    stalled = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        if not stalled.is_set():
            stalled.set()
            await asyncio.sleep(1)
        return web.json_response({"server_time": "", "next_heartbeat_seconds": 1, "commands": [], "has_more": False})

    async def play(url: str) -> None:
        generator = Generator(plan_for(url), [Member(f"id-{number}", "token", "key", "") for number in range(10)])
        generator.start(time.monotonic())
        await asyncio.sleep(2.5)
        await generator.finish()
        heartbeats = generator.figures.latencies("heartbeat")
        assert heartbeats.count == 40  # ten phones, twice a second for two seconds, as if nothing had happened
        late = heartbeats.count - sum(
            count for bucket, count in heartbeats.counts.items() if 1e-5 * GROWTH**bucket < 0.1
        )
        assert late >= 15  # about all that were due in the second of the stall
        assert generator.figures.late.percentile(50) < 0.1  # type: ignore[operator]

    with answering(handler) as run:
        run(play)


def test_a_refusal_is_an_error_by_its_code_and_the_phone_continues() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"code": "overloaded"}, status=503)

    async def play(url: str) -> None:
        generator = Generator(plan_for(url, duration_seconds=1.4), [Member("id", "token", "key", "")])
        generator.start(time.monotonic())
        await asyncio.sleep(1.5)
        await generator.finish()
        assert generator.figures.errors()["heartbeat: 503 overloaded"] >= 2

    with answering(handler) as run:
        run(play)


def test_a_stale_connection_causes_no_error() -> None:
    async def handler(request: web.Request) -> web.Response:
        answer = web.Response(body=b"{}")
        if request.path == "/v1/close-unsaid":
            asyncio.get_running_loop().call_later(0.05, request.transport.close)  # type: ignore[union-attr]
        return answer

    async def play(url: str) -> None:
        server = Server.of(url)
        pool = Pool(server, 1)
        assert await pool.call(server.head("POST", "/v1/close-unsaid", {}) + with_body(b"{}")) == (200, b"{}")
        await asyncio.sleep(0.04)
        answers = [pool.call(server.head("POST", "/v1/x", {}) + with_body(b"{}")) for _ in range(20)]
        assert set(await asyncio.gather(*answers)) == {(200, b"{}")}
        pool.close()

    with answering(handler) as run:
        run(play)


def test_an_address_without_a_server_counts_as_no_answer() -> None:
    async def play() -> None:
        server = Server.of("http://127.0.0.1:1")
        request = server.head("POST", "/v1/heartbeat", {}) + with_body(b"{}")
        assert await Pool(server, 1).call(request) == (NO_ANSWER, b"cannot connect: ConnectionRefusedError")

    asyncio.run(play())


def test_seeded_phones_are_accepted_trust_their_commands_and_are_found_again(client: Client, admin: Admin) -> None:
    members = seeding.seed(3, with_push_tokens=True)
    admin.command(to={"device_ids": [members[1].device_id]})
    answer = client.request("POST", "/v1/heartbeat", {}, {"Authorization": f"Bearer {members[1].device_token}"})
    (envelope,) = answer.json["commands"]
    credentials = Credentials(members[1].device_token, members[1].command_key)
    assert Agent(members[1].device_id, credentials).trusts(envelope)
    assert seeding.seed(5, with_push_tokens=True)[:3] == members
    assert Device.objects.exclude(token_used_at=None).count() == 5


def test_phones_without_a_push_token_are_another_fleet(db: None) -> None:
    seeding.seed(2, with_push_tokens=True)
    assert [member.push_token for member in seeding.seed(2, with_push_tokens=False)] == ["", ""]


def test_a_seeded_history_is_whole_in_the_order_of_time_and_has_nothing_to_push(db: None) -> None:
    seeding.seed(20, with_push_tokens=True)
    seeding.seed_history(500)
    assert Command.objects.aggregate(Sum("device_count"))["device_count__sum"] == Delivery.objects.count() == 500
    counted = Delivery.objects.annotate(sent=Count("attempts"))
    assert not counted.exclude(sent=F("attempt_count")).exists()
    assert not Delivery.objects.exclude(next_attempt_at=None).exists()
    finals = Delivery.objects.filter(state__in=("received", "succeeded", "failed"))
    assert Report.objects.count() == finals.count() > 100
    assert AuditEntry.objects.count() == Command.objects.count()
    for model, column in ((Command, "issued_at"), (Attempt, "started_at"), (Report, "reported_at")):
        times = list(model._default_manager.order_by("pk").values_list(column, flat=True))
        assert times == sorted(times)


def test_the_invalid_tokens_of_a_trial_can_be_refused_only_by_the_database(client: Client, admin: Admin) -> None:
    members = seeding.seed(2, with_push_tokens=False)
    for token, _ in islice(disturbances.invalid_tokens(members), 20):
        stranger = tokens.parse(tokens.DEVICE_PREFIX, token)
        assert stranger is not None
        assert str(stranger.id) in {member.device_id for member in members}
        answer = client.request("POST", "/v1/heartbeat", {}, {"Authorization": f"Bearer {token}"})
        assert (answer.status, answer.code) == (401, "invalid_token")


def test_malformed_requests_are_repaired_or_refused_and_good_heartbeats_are_recorded(admin: Admin) -> None:
    members = seeding.seed(10 + len(disturbances._MALFORMED), with_push_tokens=False)
    good: list[tuple[str, Any]] = [(member.device_token, {"status": {"battery_pct": 7}}) for member in members[:10]]
    bad = [(member.device_token, body) for member, body in zip(members[10:], disturbances._MALFORMED, strict=True)]
    answers = in_one_batch(*bad[:6], *good, *bad[6:])
    assert [answer.status for answer in answers[6:16]] == [200] * 10
    assert Presence.objects.filter(last_status={"battery_pct": 7}).count() == 10
    beside = answers[:6] + answers[16:]
    assert {answer.status for answer in beside} == disturbances.Disturbance("malformed").expected
    assert all("warnings" in answer.json for answer in beside if answer.status == 200)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of a minute with a hundred heartbeats a second, all within 20 ms, and its commands."""
    load = Load(
        server="a server", url="http://127.0.0.1:8000", devices=3000, interval_seconds=30, ramp_seconds=5,
        duration_seconds=55, commands_per_minute=60, scale=1, roster=tmp_path / "roster", journal=tmp_path / "journal",
    )  # fmt: skip
    run = Run(load, starts_at=1000.0)
    for number in range(6000):
        run.figures.due(number / 100, 0.001)
        run.figures.ended("heartbeat", number / 100, 0.001 + number % 20 / 1000, "")
    for number in range(10, 50):
        run.ledger.posted(f"request-{number}", 1000.0 + number)
        run.ledger.pushed(f"request-{number}", 1000.02 + number)
        run.ledger.settled(f"request-{number}", 1000.05 + number)
    return run


def missed(run: Run) -> list[str]:
    return [target.name for target in targets.judged(run) if not target.held]


def test_a_run_without_faults_reaches_all_targets(run: Run) -> None:
    assert [target.name for target in targets.judged(run)] == [
        "error rate", "heartbeat p95", "heartbeat p99", "dispatch p95"
    ]  # fmt: skip
    assert missed(run) == []
    assert targets.lateness(run) == ""


def test_each_target_is_missed_separately(run: Run) -> None:
    for number in range(70):
        run.figures.ended("heartbeat", 20 + number / 10, 0.31, "")
    assert missed(run) == ["heartbeat p99"]
    for number in range(70):
        run.figures.error(20 + number / 10, "command: no result")
    assert missed(run) == ["error rate", "heartbeat p99"]


def test_the_second_half_is_judged_by_the_first(run: Run) -> None:
    run.disturbance = Disturbance("invalid_tokens", 13_200, Counter({401: 60, 429: 13_140}))
    assert missed(run) == []
    run.disturbance.sent += 1
    assert missed(run) == ["invalid_tokens get 401 or 429"], "one got something else, or nothing"
    for number in range(200):
        run.figures.ended("heartbeat", 40 + number / 20, 0.06, "")
    assert missed(run)[1:] == ["p95, a minute without and with", "p99, a minute without and with"]


def test_a_restart_may_fail_only_the_requests_in_flight(run: Run) -> None:
    run.disturbance = Disturbance("restart", back_at=1000 + run.half + 1.5)
    for number in range(256):
        run.figures.ended("heartbeat", run.half + number / 300, 1.5, "heartbeat: connection lost")
    held = {target.name: target for target in targets.judged(run)}
    assert held["web away"].figure == "1.5 s"
    assert held["failed at the restart"].held
    assert held["heartbeat p99, gap not counted"].held, "no worker can be fast while there is none"
    run.figures.error(run.half + 20, "heartbeat: 503 overloaded")
    assert "failed at the restart" in missed(run)


def test_memory_is_judged_from_the_second_minute_on(run: Run) -> None:
    run.memory = [(10.0, 60.0), (120.0, 100.0), (130.0, 104.0)]
    assert missed(run) == []
    run.memory.append((140.0, 106.0))
    assert missed(run) == ["memory from minute 2 on"]
    run.memory[-1] = (140.0, nan)
    assert missed(run) == ["memory from minute 2 on"], "the worker is gone"


def test_what_happens_in_the_ramp_does_not_count(run: Run) -> None:
    for number in range(1000):
        run.figures.ended("heartbeat", 2.5, 5.0, f"heartbeat: {number}")
    assert missed(run) == []


def test_a_figure_that_is_missing_is_a_miss(run: Run) -> None:
    run.ledger.lives.clear()
    assert missed(run) == ["dispatch p95"]


def test_a_late_generator_is_reported(run: Run) -> None:
    for number in range(100):
        run.figures.due(20 + number / 10, 0.25)
    assert "The generator itself was late" in targets.lateness(run)
    assert "The generator itself was late" in document.page(run, targets.judged(run))


def test_the_report_is_one_file_that_loads_nothing(run: Run) -> None:
    run.figures.error(20.5, "heartbeat: <b>503</b>")
    page = document.page(run, targets.judged(run))
    assert re.findall(r"(?i)<script|<link|<img|<iframe|@import|url\(|src=|href=", page) == []
    assert "prefers-color-scheme: dark" in page
    assert "All targets met" in page
    assert "heartbeat: &lt;b&gt;503&lt;/b&gt;" in page


def test_a_run_without_an_answer_still_has_a_report(run: Run) -> None:
    nothing = Run(run.load, starts_at=1000.0)
    page = document.page(nothing, targets.judged(nothing))
    assert "Missed: error rate, heartbeat p95, heartbeat p99, dispatch p95" in page


@pytest.mark.parametrize(
    ("low", "high", "steps"), [(0.6, 300, [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]), (10, 10, [10])]
)
def test_a_logarithmic_axis_has_round_steps(low: float, high: float, steps: list[float]) -> None:
    assert charts.logarithmic(low, high)[2] == pytest.approx(steps)


def test_a_small_fleet_reaches_its_targets_against_its_own_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "HEARTBEATS_PER_PROCESS", 2)  # several generators, where there are several cores
    output = StringIO()
    message = ("--devices", "20", "--interval", "5", "--duration", "4", "--ramp", "1", "--commands-per-minute", "120")
    try:
        call_command(command.Command(), *message, "--report", str(tmp_path / "report.html"), stdout=output)
    except SystemExit:
        pytest.fail(output.getvalue())
    words = output.getvalue()
    assert words.count("pass") == 4, words
    assert re.search(r"[1-9]\d* commands done, 0 open", words), words
    assert "All targets met" in (tmp_path / "report.html").read_text()
