"""The storm: simulated phones report in the same minute, and try again when the server asks for it."""

import asyncio
import random
import re

import pytest

from loadtest.benchmarks import storm
from loadtest.load.reporting import Reporter
from loadtest.testbed.connections import NO_ANSWER, Pool, Server

BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 21\r\n\r\n" + b'{"code":"overloaded"}'
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n" + b'{"state":"succeeded"}'


async def report(answers: list[bytes], spread_seconds: float) -> tuple[dict[str, str], list[str], float]:
    """Send a report to a server that gives these answers; return the last answer, the errors, and the seconds."""
    given = iter(answers)

    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(next(given))
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(Server("127.0.0.1", port, tls=False, authority=f"127.0.0.1:{port}"), 1)
    reporter = Reporter(pool, random.Random(7), spread_seconds)
    errors: list[str] = []
    began_at = asyncio.get_running_loop().time()
    answer = await reporter.send(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", lambda _, error: errors.append(error))
    seconds = asyncio.get_running_loop().time() - began_at
    pool.close()
    await ended.wait()
    server.close()
    await server.wait_closed()
    return answer, errors, seconds


def test_a_phone_tries_again_after_retry_after_with_jitter() -> None:
    answer, errors, seconds = asyncio.run(report([BUSY, DONE], spread_seconds=0.1))
    assert (answer, errors) == ({"state": "succeeded"}, ["503 overloaded", ""])
    assert 1 <= seconds < 2.5


def test_a_phone_without_an_answer_tries_again_after_a_random_time_that_doubles() -> None:
    reporter = Reporter(Pool(Server("127.0.0.1", 1, tls=False, authority=""), 1), random.Random(7), spread_seconds=1)
    times = [[reporter._seconds_to_next(NO_ANSWER, 0, number) for _ in range(200)] for number in (1, 2, 3)]
    assert [(round(min(some)), round(max(some))) for some in times] == [(5, 10), (10, 20), (20, 40)]


def test_without_a_storm_a_phone_reports_once() -> None:
    answer, errors, _ = asyncio.run(report([BUSY, DONE], spread_seconds=0))
    assert (answer, errors) == ({}, ["503 overloaded"])


def test_a_small_storm_delivers_every_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("RAMP_SECONDS", 1), ("QUIET_SECONDS", 1), ("FAN_OUT_SECONDS", 3)):
        monkeypatch.setattr(storm, name, seconds)
    monkeypatch.setattr("sys.argv", ["storm", "--devices", "30", "--spread", "1"])
    storm.main()
    printed = capsys.readouterr().out
    assert re.search(r"'succeeded': 30, 'failed': 0", printed)
    assert "errors: {}" in printed
