"""The trials of one against all: an attack must be real, and if it affects honest traffic the promise is not kept."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from loadtest.fleet.credentials_file import Member
from loadtest.trust.trials.one_against_all import attacks, beside, honest
from loadtest.trust.trials.one_against_all.beside import Case, Measured
from loadtest.trust.trials.one_against_all.honest import Latencies, Pushes
from loadtest.trust.trials.one_against_all.order import Order, Tally
from nexmdm.client.http_client import FleetClient

CASE: Final = Case("a client that asks for ever", "asked", least_sent=1000, answers={"200", "429"})
TURN: Final[Latencies] = {"heartbeats": 0.020, "signed calls": 0.030}
MEASURED: Final = Measured([TURN] * 3, [TURN] * 3, sent=3000, failures=Counter(), grown_mebibytes=5.0)


def attack(**answers: int) -> Tally:
    return Tally(2000, answers=Counter({name.strip("_"): count for name, count in answers.items()}))


def slower(seconds: float | None) -> list[Latencies]:
    return [{**TURN, "heartbeats": seconds}] * 3


def test_a_trial_is_kept_if_a_real_attack_did_not_affect_honest_traffic() -> None:
    found = beside.judged(CASE, MEASURED, attack(_200=100, _429=1900))
    assert found.held
    assert "heartbeats 20.0 ms → 20.0 ms; signed calls 30.0 ms → 30.0 ms; 0 of 3,000 failed" in found.figure
    assert "attack: 2,000 sent: 1,900 × 429, 100 × 200" in found.figure


@pytest.mark.parametrize(
    "measured",
    [
        replace(MEASURED, beside=slower(0.061)),
        replace(MEASURED, beside=slower(None)),
        replace(MEASURED, failures=Counter({"heartbeats: time-out": 1})),
        replace(MEASURED, grown_mebibytes=65.0),
        replace(MEASURED, sent=999),
    ],
    ids=["slower", "unanswered", "failed", "grown", "too little"],
)
def test_a_trial_is_not_kept_if_honest_traffic_was_affected(measured: Measured) -> None:
    assert not beside.judged(CASE, measured, attack(_200=2000)).held


@pytest.mark.parametrize(
    ("case", "tally"),
    [
        (CASE, Tally(999, answers=Counter({"200": 999}))),
        (CASE, Tally()),
        (CASE, Tally(2000, answers=Counter({"200": 1999, "connection lost": 1}))),
        (CASE, Tally(2000, answers=Counter({"500 not JSON": 1}))),
        (replace(CASE, check=lambda _: ("5,000 rows", False)), attack(_200=2000)),
    ],
    ids=["too few", "none", "cut off", "broken", "what it left"],
)
def test_a_trial_is_not_kept_if_the_attack_was_too_small_or_did_damage(case: Case, tally: Tally) -> None:
    assert not beside.judged(case, MEASURED, tally).held


@pytest.mark.parametrize(
    ("without", "with_it", "held"), [(0.002, 0.029, True), (0.002, 0.031, False), (0.02, 0.059, True)]
)
def test_a_p99_below_the_floor_passes_and_above_the_floor_the_ratio_counts(
    without: float, with_it: float, held: bool
) -> None:
    measured = replace(MEASURED, without=slower(without), beside=slower(with_it))
    assert beside.judged(CASE, measured, attack(_200=2000)).held == held


def test_a_trial_that_fails_is_not_kept_and_the_next_one_runs() -> None:
    async def breaks() -> Any:
        raise TimeoutError("nothing came")

    async def goes_on() -> Any:
        return beside.judged(CASE, MEASURED, attack(_200=2000))

    first, second = beside.each({"logins": breaks, "guesses": goes_on})
    assert (first.held, first.promise, first.figure) == (False, "logins against all", "TimeoutError: nothing came")
    assert second.held


class Victim:
    """A server that answers everything 404, and counts the requests."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.came = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.came.set()
        with closing(writer):
            while head := await self._head(reader):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""


async def attacked(kind: str) -> tuple[Victim, list[Tally]]:
    """Run an attack of this kind in two turns."""
    victim = Victim()
    server = await asyncio.start_server(victim.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    order = Order(kind, f"http://127.0.0.1:{port}", ["127.0.0.2", "127.0.0.3"], 4, tokens=["a", "b"], request_id="r")
    async with server, beside.processes(order) as attacker:
        tallies = []
        for _ in range(2):
            victim.came.clear()
            await attacker.begin()
            await victim.came.wait()
            tallies.append(await attacker.end())
    return victim, tallies


@pytest.mark.parametrize("kind", attacks.ATTACKS)
def test_each_attack_sends_and_counts_in_each_of_its_turns(kind: str) -> None:
    victim, tallies = asyncio.run(attacked(kind))
    assert all(tally.sent > 0 for tally in tallies)
    assert victim.connections > 0
    if kind == "idle connections":
        assert all(0 < tally.held <= 4 for tally in tallies)
    else:
        assert victim.requests
        assert set().union(*(tally.answers for tally in tallies)) <= {"404"}


def test_an_attack_that_ends_early_is_an_error() -> None:
    async def ended() -> Tally:
        async with beside.processes(Order("no such attack", "http://127.0.0.1:1", ["127.0.0.2"], 1)) as attacker:
            await attacker.begin()
            return await attacker.end()

    with pytest.raises(RuntimeError, match="ended early"):
        asyncio.run(ended())


@pytest.fixture
def admin() -> Iterator[FleetClient]:
    with FleetClient("http://127.0.0.1:1", key="key", secret="secret") as admin:
        yield admin


async def pushed(
    admin: FleetClient, journal: Path, sends: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Pushes:
    """Send one command to two phones, with these pushes arriving."""
    lines = b"".join(orjson.dumps(send, option=orjson.OPT_APPEND_NEWLINE) for send in sends)

    async def accept(*_: object) -> tuple[str, dict[str, Any]]:
        await asyncio.to_thread(journal.write_bytes, lines)
        return "", {"request_id": "r"}

    monkeypatch.setattr(honest, "answer", accept)
    monkeypatch.setattr(honest, "PUSH_SECONDS", 0.05)
    members = [Member(f"device-{number}", "", "", f"ok-{number}") for number in range(2)]
    pushes = Pushes(admin, members, journal, per_second=1)
    with closing(pushes):
        await pushes.beat(0.001)
    return pushes


def test_a_push_that_does_not_reach_fcm_in_time_has_failed(
    admin: FleetClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal"
    journal.touch()
    arrived = {"request_id": "r", "push_token": "ok-0", "monotonic": 0.0, "answer": "ok"}
    other = arrived | {"push_token": "blank401-1", "answer": "blank"}
    pushes = asyncio.run(pushed(admin, journal, [arrived, other], monkeypatch))
    assert (pushes.sent, pushes.failures.total(), pushes.answers) == (2, 1, Counter(blank=1))
