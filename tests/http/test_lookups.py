"""Look-ups that any client can cause without a credential: one at a time, and no signed call waits for them."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from prometheus_client import REGISTRY

from devices import tokens
from nexmdm.api import health
from nexmdm.auth import rate_limits
from nexmdm.common import database
from nexmdm.common.overload.gates import Gate, GateFull
from nexmdm.monitoring import dispatcher_status, metrics
from tests.conftest import SOON
from tests.support.actors import Admin, Answer, Client, Phone

T = TypeVar("T")

FULL = Gate("full", at_once=0, waiting=0, waiting_per_key=0, seconds=0)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each look-up of the readiness."""
    noted: list[str] = []
    state = dispatcher_status.dispatcher_state

    def noting() -> str:
        noted.append("readyz")
        return state()

    monkeypatch.setattr(dispatcher_status, "dispatcher_state", noting)
    return noted


def in_one_loop(talk: Callable[[], Awaitable[T]]) -> T:
    return async_to_sync(talk)()


def test_any_number_of_readiness_requests_costs_one_look_up(client: Client, db: None, looks: list[str]) -> None:
    async def talk() -> list[Answer]:
        at_once = await asyncio.gather(*(client.arequest("GET", "/readyz") for _ in range(100)))
        return [*at_once, await client.arequest("HEAD", "/readyz"), await client.arequest("GET", "/readyz")]

    assert {answer.status for answer in in_one_loop(talk)} == {200}
    assert looks == ["readyz"]


def test_readiness_is_looked_up_again_after_a_second(
    client: Client, db: None, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert health._ready._fresh_seconds == health.FRESH_SECONDS == 1
    monkeypatch.setattr(health._ready, "_fresh_seconds", SOON)

    async def talk() -> None:
        await client.arequest("GET", "/readyz")
        await asyncio.sleep(2 * SOON)
        await client.arequest("GET", "/readyz")

    in_one_loop(talk)
    assert len(looks) == 2


def test_an_unavailable_database_is_asked_once_for_all_readiness_requests(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def refuse() -> None:
        tried.append(1)
        raise OperationalError("connection refused")

    monkeypatch.setattr("django.db.connection.ensure_connection", refuse)

    async def talk() -> list[Answer]:
        return await asyncio.gather(*(client.arequest("GET", "/readyz") for _ in range(50)))

    answers = in_one_loop(talk)
    assert {(answer.status, answer.json["database"]) for answer in answers} == {(503, "unavailable")}
    assert len(tried) == 1


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Make the look-up of the readiness wait for this event."""
    free = threading.Event()
    monkeypatch.setattr(health, "READY_SECONDS", SOON)
    monkeypatch.setattr(dispatcher_status, "dispatcher_state", lambda: free.wait(10) and "ok")
    yield free
    free.set()


def test_a_database_that_does_not_answer_is_not_ready_within_the_deadline(
    client: Client, db: None, stuck: threading.Event
) -> None:
    async def talk() -> tuple[list[Answer], float, Answer]:
        began = time.monotonic()
        given_up = await asyncio.gather(*(client.arequest("GET", "/readyz") for _ in range(10)))
        given_up.append(await client.arequest("GET", "/readyz"))
        took = time.monotonic() - began
        stuck.set()
        answer = await client.arequest("GET", "/readyz")
        while answer.status != 200:
            await asyncio.sleep(SOON)
            answer = await client.arequest("GET", "/readyz")
        return given_up, took, answer

    given_up, took, answer = in_one_loop(talk)
    assert {one.status for one in given_up} == {503}
    assert {one.json["database"] for one in given_up} == {"unavailable"}
    assert all(int(one.headers["retry-after"]) >= 1 for one in given_up)
    assert took < 2
    assert answer.json["database"] == "ok"


def test_metrics_are_computed_once_for_simultaneous_requests(
    client: Client, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    exposition = metrics.exposition

    def noting() -> bytes:
        made.append(exposition())
        return made[-1]

    monkeypatch.setattr(metrics, "exposition", noting)

    async def talk() -> list[Answer]:
        return await asyncio.gather(*(client.arequest("GET", "/metrics") for _ in range(20)))

    assert {answer.body for answer in in_one_loop(talk)} == {made[0]}
    assert len(made) == 1


class Turnstile:
    """Replaces the database: work that begins does not end until the turnstile is opened."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.open = asyncio.Event()

    async def until(self, _: float, name: str) -> str:
        """Run the work like database.run_in_db_thread_until()."""
        self.inside.append(name)
        await self.open.wait()
        return name


def test_signed_calls_have_turns_that_neither_phones_nor_anonymous_clients_can_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def talk() -> list[str]:
        turnstile: Any = Turnstile()
        monkeypatch.setattr(database, "run_in_db_thread_until", turnstile.until)
        units: dict[str, Any] = {
            "device": database.run_for_phone, "lookup": database.run_lookup, "signed": database.run_in_db_thread
        }  # fmt: skip
        others = [asyncio.create_task(units[name](name)) for name in ("device", "lookup") for _ in range(100)]
        await asyncio.sleep(0)
        signed = asyncio.create_task(units["signed"]("signed"))
        await asyncio.sleep(0)
        inside = list(turnstile.inside)
        turnstile.open.set()
        assert len(await asyncio.gather(*others, signed)) == 201
        return inside

    inside = in_one_loop(talk)
    assert (inside.count("device"), inside.count("lookup"), inside.count("signed")) == (1, 1, 1)


@pytest.mark.parametrize(("unit", "kind"), [(database.run_for_phone, "phones"), (database.run_lookup, "lookups")])
def test_the_number_of_requests_that_wait_for_the_database_is_limited(
    monkeypatch: pytest.MonkeyPatch, unit: Callable[..., Awaitable[str]], kind: str
) -> None:
    limit, turns = {"phones": (database.PHONES_WAITING // 2, 1), "lookups": (database.LOOKUPS_WAITING // 4, 1)}[kind]
    before = REGISTRY.get_sample_value("nexmdm_gate_refused_total", {"gate": kind}) or 0.0

    async def talk() -> None:
        turnstile: Any = Turnstile()
        monkeypatch.setattr(database, "run_in_db_thread_until", turnstile.until)
        waiting = [asyncio.ensure_future(unit("x")) for _ in range(limit + turns)]
        await asyncio.sleep(0)
        with pytest.raises(GateFull):
            await unit("x")
        turnstile.open.set()
        await asyncio.gather(*waiting)
        assert await unit("x") == "x"

    in_one_loop(talk)
    assert REGISTRY.get_sample_value("nexmdm_gate_refused_total", {"gate": kind}) == before + 1


@pytest.mark.parametrize(
    ("target", "prefix", "gate"),
    [
        ("/v1/register", tokens.ENROLLMENT_PREFIX, ("LOOKUPS", FULL)),
        ("/v1/token/rotate", tokens.DEVICE_PREFIX, ("phones", lambda: FULL)),
    ],
)
def test_a_credential_that_cannot_be_looked_up_now_is_503(
    phone: Phone, admin: Admin, monkeypatch: pytest.MonkeyPatch, target: str, prefix: str, gate: tuple[str, Any]
) -> None:
    token = admin.enrollment_token() if prefix == tokens.ENROLLMENT_PREFIX else phone.device_token
    bodies = {
        "/v1/register": {"hardware_id": "phone-2"},
        "/v1/token/rotate": {},
    }
    monkeypatch.setattr(database, *gate)
    answer = phone.send(target, bodies[target], token)
    assert (answer.status, answer.code) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_failure_that_cannot_be_counted_now_is_still_401(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOOKUPS", FULL)
    answer = phone.send("/v1/heartbeat", {}, "nxd_wrong")
    assert (answer.status, answer.code) == (401, "invalid_token")


@pytest.mark.parametrize("unit", [database.run_for_phone, database.run_lookup])
def test_an_address_that_fills_its_places_leaves_places_to_other_addresses(
    monkeypatch: pytest.MonkeyPatch, unit: Callable[..., Awaitable[str]]
) -> None:
    async def ask(address: str) -> str:
        database.CLIENT.set(address)
        return await unit(address)

    async def talk() -> list[str | BaseException]:
        turnstile: Any = Turnstile()
        monkeypatch.setattr(database, "run_in_db_thread_until", turnstile.until)
        flood = [asyncio.create_task(ask("192.0.2.1")) for _ in range(3000)]
        await asyncio.sleep(0)
        honest = asyncio.create_task(ask("192.0.2.2"))
        await asyncio.sleep(0)
        turnstile.open.set()
        assert await honest == "192.0.2.2"
        return await asyncio.gather(*flood, return_exceptions=True)

    refused = [outcome for outcome in in_one_loop(talk) if isinstance(outcome, GateFull)]
    assert len(refused) > 400


def test_endless_rotations_take_no_turn_of_signed_calls_and_soon_no_statement(
    phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[str] = []
    run_for_phone = database.run_for_phone

    async def noting(*work: Any) -> Any:
        kinds.append("device")
        return await run_for_phone(*work)

    monkeypatch.setattr(rate_limits, "run_for_phone", noting)
    monkeypatch.setattr(rate_limits, "run_in_db_thread", None)
    assert [phone.rotate().status for _ in range(12)] == [200] * 10 + [429] * 2
    assert kinds == ["device"] * 11
    with CaptureQueriesContext(connection) as queries:
        answer = phone.rotate()
    assert (answer.status, answer.code, len(queries)) == (429, "rate_limited", 0)
