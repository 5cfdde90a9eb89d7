"""Pipelined requests: all are answered in their order, and cost other clients neither time nor memory."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from pytest_django import Settings

from nexmdm.http import pipelining, protocol
from nexmdm.http.protocol import Protocol
from tests.conftest import SOON
from tests.http.test_protocol import HEALTH, HEARTBEAT, Line, assert_last_problem, over_a_socket
from tests.support.actors import Admin, Phone

ASKED: Final = HEALTH + b"\r\n"
NOTHING: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@asynccontextmanager
async def another(line: Line) -> AsyncIterator[Line]:
    """Open another connection to the server of a line."""
    reader, writer = await asyncio.open_connection(*line.writer.get_extra_info("peername"))
    try:
        yield Line(reader, writer, line.state)
    finally:
        writer.transport.abort()


@pytest.fixture
def most_waiting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The largest number of requests that are parsed and not answered, recorded after each parsed piece."""
    noted: list[int] = []
    parse = Protocol._parse

    def noting(connection: Protocol, portion: bytes) -> int:
        parsed = parse(connection, portion)
        noted.append(len(connection.pipeline) + (not connection._is_idle()))
        return parsed

    monkeypatch.setattr(Protocol, "_parse", noting)
    return noted


def signed(admin: Admin, target: str) -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in admin.headers("GET", target, b"").items()]
    return "\r\n".join([*lines, "", ""]).encode()


def test_any_number_of_requests_sent_ahead_is_answered_and_no_more_than_16_are_kept_parsed(
    most_waiting: list[int],
) -> None:
    async def talk(line: Line) -> list[int]:
        sending = asyncio.create_task(line.say((ASKED + NOTHING) * 500))
        answers = [(await line.answer()).status for _ in range(1000)]
        await sending
        return answers

    assert over_a_socket(talk) == [200, 404] * 500
    assert 2 < max(most_waiting) <= pipelining.PIPELINED == 16


def test_nothing_more_is_read_while_requests_wait(admin: Admin, phone: Phone) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    slow = signed(admin, f"/admin/commands/{request_id}?wait_seconds=1")

    async def talk(line: Line) -> tuple[int, bool]:
        sending = asyncio.create_task(line.say(slow + ASKED * 100_000))
        await line.begins()
        await asyncio.sleep(3 * SOON)
        sent = sending.done()
        sending.cancel()
        return pipelining.UNPARSED.taken, sent

    kept, sent = over_a_socket(talk)
    assert (0 < kept < 300_000, sent) == (True, False)


@pytest.mark.parametrize("most_headers", [1, 2, 3, 50])
def test_the_number_of_parsed_requests_is_limited_for_any_form_of_them(
    most_waiting: list[int], most_headers: int
) -> None:
    sent = b"".join(HEALTH + b"X: x\r\n" * (number % most_headers) + b"\r\n" for number in range(100))

    async def talk(line: Line) -> set[int]:
        await line.say(sent[:-1], sent[-1:])
        return {(await line.answer()).status for _ in range(100)}

    assert over_a_socket(talk) == {200}
    assert max(most_waiting) <= pipelining.PIPELINED


def test_the_limit_of_a_head_counts_each_head_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_LIMIT", 1000)

    async def talk(line: Line) -> set[int]:
        sent = NOTHING * 100
        await line.say(*(sent[place : place + 50] for place in range(0, len(sent), 50)))
        return {(await line.answer()).status for _ in range(100)}

    assert over_a_socket(talk) == {404}


def test_the_unparsed_data_of_all_connections_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelining.UNPARSED, "total", 4000)

    async def talk(line: Line) -> tuple[list[int], bool]:
        await line.say(ASKED * 100)
        before = pipelining.UNPARSED.taken
        statuses: list[int] = []
        while not statuses or statuses[-1] == 200:
            answer = await line.answer()
            statuses.append(answer.status)
        assert_last_problem(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert before <= 1000
        return statuses, await line.ends()

    statuses, ended = over_a_socket(talk)
    assert (len(statuses) <= 1 + pipelining.PIPELINED, ended) == (True, True)
    assert pipelining.UNPARSED.taken == 0


def test_a_body_that_waits_behind_too_much_is_refused_by_its_own_answer(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelining.UNPARSED, "total", 4000)
    head = HEARTBEAT + b"X-Correlation-ID: mine\r\nContent-Length: 60000\r\n\r\n"

    async def talk(line: Line) -> tuple[int, Any, bool]:
        await line.say(ASKED + ASKED + head + b"\n" * 59_999)
        first, second = await line.answer(), await line.answer()
        return first.status + second.status, await line.answer(), await line.ends()

    statuses, answer, ended = over_a_socket(talk)
    assert (statuses, ended) == (400, True)
    assert (answer.status, answer.code, answer.headers["connection"]) == (503, "overloaded", "close")
    assert answer.headers["x-correlation-id"] == "mine"


def test_a_closed_connection_leaves_nothing_waiting() -> None:
    async def talk(line: Line) -> None:
        await line.say(ASKED * 200)
        await line.answer()
        line.writer.transport.abort()
        while line.state.connections:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0)

    over_a_socket(talk)
    assert pipelining.UNPARSED.taken == 0


def test_pipelined_requests_are_started_one_at_a_time_with_a_pause_after_each() -> None:
    connections, requests = 40, 100

    async def talk(line: Line) -> float:
        async def send_ahead() -> None:
            async with another(line) as ahead:
                await ahead.say(NOTHING * 400)
                while await ahead.reader.read(65_536):
                    pass

        sending = [asyncio.create_task(send_ahead()) for _ in range(connections)]
        while line.state.total_requests < 5 * connections:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0)
        before, began = line.state.total_requests, time.monotonic()
        while line.state.total_requests < before + requests:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0)
        for task in sending:
            task.cancel()
        return (time.monotonic() - began) / requests

    # The loop's timers count whole milliseconds, so a pause may be up to 1 ms shorter.
    assert over_a_socket(talk) > pipelining.PAUSE_SECONDS / 2


def test_requests_that_wait_for_an_answer_are_not_cut_for_their_slowness(
    impatient: None, admin: Admin, phone: Phone
) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    slow = signed(admin, f"/admin/commands/{request_id}?wait_seconds=1")

    async def talk(line: Line) -> tuple[list[int], bool]:
        await line.say(slow + ASKED * 40 + HEALTH)
        await line.say(b"\r\n")
        return [(await line.answer()).status for _ in range(42)], await line.ends()

    assert over_a_socket(talk) == ([200] * 42, True)


def test_a_head_begun_before_the_answer_to_the_one_before_has_its_whole_time(
    monkeypatch: pytest.MonkeyPatch, admin: Admin, phone: Phone
) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    slow = signed(admin, f"/admin/commands/{request_id}?wait_seconds=1")

    async def talk(line: Line) -> list[int]:
        await line.say(slow + HEALTH)
        await line.begins()
        (connection,) = line.state.connections
        monkeypatch.setattr(connection, "timeout_keep_alive", SOON)
        first = await line.answer()
        await asyncio.sleep(3 * SOON)
        await line.say(b"\r\n")
        return [first.status, (await line.answer()).status]

    assert over_a_socket(talk) == [200, 200]


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_beyond_what_is_buffered_go_together_with_requests_sent_ahead(admin: Admin, chunked: bool) -> None:
    body = json.dumps({"note": ["x" * 70] * 4000}, indent=1).encode()
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = HEARTBEAT.replace(b"/v1/heartbeat", b"/admin/command") + f"{framing}\r\n\r\n".encode()

    async def talk(line: Line) -> list[int]:
        sending = asyncio.create_task(line.say((head + framed + ASKED + NOTHING) * 4))
        statuses = [(await line.answer()).status for _ in range(12)]
        await sending
        return statuses

    assert len(body) > 300_000
    assert over_a_socket(talk) == [401, 200, 404] * 4


def test_requests_after_a_request_for_an_upgrade_are_answered() -> None:
    upgrade = HEALTH + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

    async def talk(line: Line) -> list[int]:
        await line.say((upgrade + NOTHING) * 20)
        return [(await line.answer()).status for _ in range(40)]

    assert over_a_socket(talk) == [200, 404] * 20


NO_HTTP: Final = (b"RUBBISH\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", HEALTH.replace(b"/healthz", b"/\xff") + b"\r\n")


@pytest.mark.parametrize("sent", NO_HTTP)
@pytest.mark.parametrize("before", [1, 5, 40])
def test_bad_http_is_answered_after_the_requests_before_it(sent: bytes, before: int) -> None:
    async def talk(line: Line) -> tuple[list[int], Any, bool]:
        await line.say(ASKED * before + sent + ASKED)
        return [(await line.answer()).status for _ in range(before)], await line.answer(), await line.ends()

    statuses, last, ended = over_a_socket(talk)
    assert (statuses, ended) == ([200] * before, True)
    assert_last_problem(last, 400, "invalid_request")


def test_an_answer_in_progress_is_not_cut_by_bad_http_after_its_request(
    impatient: None, admin: Admin, phone: Phone
) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    slow = signed(admin, f"/admin/commands/{request_id}?wait_seconds=1")

    async def talk(line: Line) -> tuple[int, Any, bool]:
        await line.say(slow + b"RUBBISH\r\n\r\n")
        return (await line.answer()).status, await line.answer(), await line.ends()

    status, last, ended = over_a_socket(talk)
    assert (status, ended) == (200, True)
    assert_last_problem(last, 400, "invalid_request")


BROKEN: Final = {
    "no length": b"zz\r\n{}\r\n0\r\n\r\n",
    "more than its length": b"2\r\n{}{}\r\n0\r\n\r\n",
    "no length in the second": b"2\r\n{}\r\n-1\r\n{}\r\n0\r\n\r\n",
    "a trailer that is none": b"2\r\n{}\r\n0\r\nX: \x00\r\n\r\n",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("before", [0, 1, 40])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_body_of_broken_chunks_is_400_in_its_turn_and_ends_the_connection(
    impatient: None, body: bytes, before: int, at_once: bool
) -> None:
    head = HEARTBEAT + b"X-Correlation-ID: broken\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def talk(line: Line) -> tuple[list[int], Any, bool]:
        await line.say(*([ASKED * before + head + body] if at_once else [ASKED * before + head, body]))
        statuses = [(await line.answer()).status for _ in range(before)]
        return statuses, await line.answer(), await line.ends()

    statuses, answer, ended = over_a_socket(talk)
    assert (statuses, ended) == ([200] * before, True)
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, "invalid_request", "close")
    assert answer.headers["x-correlation-id"] == "broken"


def test_a_body_that_breaks_off_after_its_answer_gets_no_second_answer(impatient: None, settings: Settings) -> None:
    head = HEARTBEAT.replace(b"localhost", b"evil.example") + b"Transfer-Encoding: chunked\r\n\r\n"

    async def talk(line: Line) -> tuple[Any, bool]:
        await line.say(head)
        answer = await line.answer()
        await line.say(b"zz\r\n")
        return answer, await line.ends()

    answer, ended = over_a_socket(talk)
    assert (answer.code, ended) == ("invalid_host", True)
