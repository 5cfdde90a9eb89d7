"""Connections are limited, in total and by address: no client can take all, and a refused client gets an answer."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import pytest
import uvicorn
from asgiref.sync import async_to_sync
from prometheus_client import REGISTRY
from pytest_django import Settings
from uvicorn.server import ServerState

from nexmdm.asgi import application
from nexmdm.common import addresses
from nexmdm.config.environment import ConfigError
from nexmdm.http import connection_bounds
from nexmdm.http.connection_bounds import Bounds
from nexmdm.http.protocol import Protocol
from tests.conftest import SOON
from tests.http.test_protocol import HEALTH, Line, assert_last_problem, over_a_socket
from tests.support.processes import run

ASKED: Final = HEALTH + b"\r\n"


@asynccontextmanager
async def another(line: Line, source: str = "127.0.0.1") -> AsyncIterator[Line]:
    """Open another connection to the server of a line, from an address of this machine."""
    server = line.writer.get_extra_info("peername")
    reader, writer = await asyncio.open_connection(*server, local_addr=(source, 0))
    try:
        yield Line(reader, writer, line.state)
    finally:
        writer.transport.abort()


async def until_open(line: Line, count: int) -> None:
    """Wait until the server has this number of connections."""
    while len(line.state.connections) != count:  # noqa: ASYNC110  (uvicorn has no event for it)
        await asyncio.sleep(0)


def refused(bound: str) -> float:
    return REGISTRY.get_sample_value("nexmdm_connections_refused_total", {"bound": bound}) or 0.0


async def assert_refused(line: Line, detail: str) -> None:
    await line.say(ASKED)
    answer = await line.answer()
    assert_last_problem(answer, 503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert detail in answer.json["detail"]
    assert await line.ends()


async def assert_served(line: Line) -> None:
    await line.say(ASKED)
    assert (await line.answer()).status == 200


def test_one_address_gets_no_more_than_its_share_and_others_get_theirs(settings: Settings) -> None:
    settings.MAX_CONNECTIONS_PER_ADDRESS = 3
    before = refused("address")

    async def talk(line: Line) -> None:
        async with another(line), another(line):
            await until_open(line, 3)
            async with another(line) as fourth, another(line, "127.0.0.2") as elsewhere:
                await assert_refused(fourth, "this address")
                await assert_served(elsewhere)
            await assert_served(line)

    over_a_socket(talk)
    assert refused("address") == before + 1


@pytest.mark.parametrize("bound", ["MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ADDRESS"])
def test_a_connection_that_ends_makes_room_for_another(settings: Settings, bound: str) -> None:
    setattr(settings, bound, 2)

    async def talk(line: Line) -> None:
        for _ in range(5):
            async with another(line) as second:
                await assert_served(second)
            await until_open(line, 1)

    over_a_socket(talk)


def test_all_addresses_together_get_no_more_than_the_total(settings: Settings) -> None:
    settings.MAX_CONNECTIONS = 2
    before = refused("total")

    async def talk(line: Line) -> None:
        async with another(line, "127.0.0.2"):
            await until_open(line, 2)
            async with another(line, "127.0.0.3") as third:
                await assert_refused(third, "Too many connections are open")

    over_a_socket(talk)
    assert refused("total") == before + 1


def test_a_trusted_proxy_counts_in_total_only(settings: Settings) -> None:
    settings.MAX_CONNECTIONS, settings.MAX_CONNECTIONS_PER_ADDRESS = 4, 1
    settings.TRUSTED_PROXIES = [ip_network("127.0.0.0/30")]

    async def talk(line: Line) -> None:
        async with another(line) as second, another(line, "127.0.0.9"):
            await assert_served(second)
            await until_open(line, 3)
            async with another(line, "127.0.0.9") as not_trusted, another(line) as fourth:
                await assert_refused(not_trusted, "this address")
                await assert_served(fourth)
                async with another(line) as fifth:
                    await assert_refused(fifth, "Too many connections are open")

    over_a_socket(talk)


def test_clients_of_a_unix_socket_count_in_total_only(settings: Settings, tmp_path: Path) -> None:
    settings.MAX_CONNECTIONS, settings.MAX_CONNECTIONS_PER_ADDRESS = 3, 1

    async def served() -> None:
        config = uvicorn.Config(application, http=Protocol, ws="none", log_config=None)
        config.load()
        state, path = ServerState(), str(tmp_path / "socket")
        loop = asyncio.get_running_loop()
        async with (
            await loop.create_unix_server(lambda: Protocol(config, state, {}), path),
            asyncio.timeout(10),
            AsyncExitStack() as open_ones,
        ):
            lines = []
            for _ in range(4):
                reader, writer = await asyncio.open_unix_connection(path)
                open_ones.callback(writer.transport.abort)
                lines.append(Line(reader, writer, state))
            for line in lines[:3]:
                await assert_served(line)
            await assert_refused(lines[3], "Too many connections are open")

    async_to_sync(served)()


def test_a_silent_refused_client_is_answered_too_and_soon_closed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MAX_CONNECTIONS = 1
    monkeypatch.setattr(connection_bounds, "REFUSED_SECONDS", SOON)

    async def talk(line: Line) -> None:
        async with another(line) as silent:
            assert_last_problem(await silent.answer(), 503, "overloaded")
            assert await silent.ends()
        await assert_served(line)

    over_a_socket(talk)


def test_a_refused_client_is_not_read_for_long(settings: Settings) -> None:
    settings.MAX_CONNECTIONS = 1

    async def talk(line: Line) -> None:
        async with another(line) as talkative:
            await talkative.say(*[b"x" * 10_000] * 2000)
            with suppress(ConnectionError):
                assert_last_problem(await talkative.answer(), 503, "overloaded")
            assert await talkative.ends()

    over_a_socket(talk)


def test_only_a_few_of_many_refused_clients_are_waited_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MAX_CONNECTIONS = 1
    monkeypatch.setattr(connection_bounds, "REFUSED_TOGETHER", 2)
    monkeypatch.setattr(connection_bounds, "REFUSED_SECONDS", 60)

    async def talk(line: Line) -> None:
        async with another(line) as first, another(line) as second, another(line) as third:
            assert_last_problem(await third.answer(), 503, "overloaded")
            assert await third.ends()
            await assert_refused(first, "Too many")
            await assert_refused(second, "Too many")
        while connection_bounds.of(line.state)._refused:  # noqa: ASYNC110  (there is no event for it)
            await asyncio.sleep(0)

    over_a_socket(talk)


def test_the_gauge_follows_the_connections_that_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_bounds, "_NOTE_SECONDS", 0)

    async def talk(line: Line) -> None:
        for count in (2, 3):
            async with AsyncExitStack() as others:
                for _ in range(count - 1):
                    await others.enter_async_context(another(line))
                while REGISTRY.get_sample_value("nexmdm_connections") != count:  # noqa: ASYNC110  (there is no event for it)
                    await asyncio.sleep(0)

    over_a_socket(talk)


def file_limit(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))


def test_a_file_limit_that_is_too_low_lowers_both_limits_in_proportion_and_the_log_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file_limit(monkeypatch, 1208)
    assert connection_bounds.bounds() == Bounds(1000, 200)
    connection_bounds.report_lowered()
    content = json.loads(capsys.readouterr().out)
    assert (content["level"], content["event"]) == ("warning", "connections.bounds_lowered")
    assert (content["file_limit"], content["max_connections"], content["max_connections_per_address"]) == (
        1208,
        1000,
        200,
    )
    assert "LimitNOFILE" in content["hint"]


@pytest.mark.parametrize("limit", [65_536, resource.RLIM_INFINITY])
def test_a_sufficient_file_limit_changes_no_limit_and_logs_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limit: int
) -> None:
    file_limit(monkeypatch, limit)
    assert connection_bounds.bounds() == Bounds(10_000, 2000)
    connection_bounds.report_lowered()
    assert capsys.readouterr().out == ""


SHOWN: Final = "from nexmdm import settings; print(settings.MAX_CONNECTIONS, settings.MAX_CONNECTIONS_PER_ADDRESS)"


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({}, "10000 2000"),
        ({"MAX_CONNECTIONS": "50000"}, "50000 2000"),
        ({"MAX_CONNECTIONS": "1000"}, "1000 200"),
        ({"MAX_CONNECTIONS": "3"}, "3 1"),
        ({"MAX_CONNECTIONS": "1000", "MAX_CONNECTIONS_PER_ADDRESS": "1000"}, "1000 1000"),
    ],
)
def test_by_default_one_address_gets_a_fifth_at_most(variables: dict[str, str], shown: str) -> None:
    assert run("-c", SHOWN, **variables).stdout.strip() == shown


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MAX_CONNECTIONS": "0"}, "MAX_CONNECTIONS must be a whole number from 1 to 1000000, not '0'."),
        ({"MAX_CONNECTIONS": "many"}, "MAX_CONNECTIONS must be a whole number from 1 to 1000000, not 'many'."),
        (
            {"MAX_CONNECTIONS": "100", "MAX_CONNECTIONS_PER_ADDRESS": "101"},
            "MAX_CONNECTIONS_PER_ADDRESS must be a whole number from 1 to 100, not '101'.",
        ),
    ],
)
def test_an_invalid_limit_stops_the_start(variables: dict[str, str], said: str) -> None:
    done = run("-m", "nexmdm.web", **variables)
    assert done.returncode == 1
    assert f"({ConfigError.MALFORMED}) {said}" in done.stderr


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:0201", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:0DB8:0:0:ffff::2", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_all_spellings_of_an_address_are_counted_together(given: str, name: str) -> None:
    assert addresses.counting_key(given) == name


@pytest.mark.parametrize(
    ("given", "trusted"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("11.1.2.3", False), ("", False)],
)
def test_a_trusted_proxy_is_recognized_by_any_spelling_of_its_address(
    settings: Settings, given: str, trusted: bool
) -> None:
    settings.TRUSTED_PROXIES = [ip_network("10.0.0.0/8")]
    assert addresses.is_trusted_proxy(given) == trusted
