"""Clients do no harm if they send too much, send too slowly, or send nothing. A stop under load loses nothing.

The trial uses real sockets.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

import uvloop

from loadtest.fleet import enrolling
from loadtest.fleet.credentials_file import Member
from loadtest.load.targets import milliseconds
from loadtest.testbed import machine, testbed
from loadtest.testbed.serving import Serving
from loadtest.trust.trials import sockets
from loadtest.trust.trials.background_load import BackgroundLoad
from loadtest.trust.trials.finding import Finding
from loadtest.trust.trials.sockets import CHUNK, Received, head
from nexmdm.client.http_client import FleetClient, Refused, Unreachable

HUNDRED_MB: Final = 100_000_000
MOST_READ: Final = 5 * 1024 * 1024
"""The largest number of bytes that the server may read: 4 MiB that it reads and discards, and the bytes in transit. The
server discards bytes because an honest client must be able to read the answer."""

MEGABYTE: Final = 1_000_000
LARGE: Final = 300
MOST_GROWN_MEBIBYTES: Final = 150
BODY_SECONDS: Final = 10
STOP_SECONDS: Final = 25
PHONES: Final = 300
PER_SECOND: Final = 200
SILENT: Final = 1000
SLOW: Final = 200
ROUNDS: Final = 3
ROUND_SECONDS: Final = 8
MOST_SLOWER: Final = 3
SETTINGS: Final = {"BCRYPT_ROUNDS": "4", "ADMIN_RATE_LIMIT": "100000/m", "HEARTBEAT_INTERVAL_SECONDS": "120"}

_JSON: Final = "Content-Type: application/json"
_HEARTBEAT: Final = "/v1/heartbeat"


def trial(folder: Path) -> Iterator[Finding]:
    """Test one web worker with hostile clients, and stop it under load."""
    data_dir = folder / "data"
    with testbed.served(data_dir, **SETTINGS) as serving, serving.admin() as admin:
        members, _ = enrolling.enrol(admin, PHONES, with_push_tokens=False, watch=lambda: None)
        yield from _sizes(serving)
        yield from _times(serving.url)
        yield _memory(serving)
        yield uvloop.run(_squatters(serving.url, members))
        stopped = uvloop.run(_stop(serving, admin, members))
    with testbed.served(data_dir, **SETTINGS) as again, again.admin() as admin:
        yield _what_is_left(admin, stopped)


def _sizes(serving: Serving) -> Iterator[Finding]:
    declared = [head(_HEARTBEAT, _JSON, f"Content-Length: {HUNDRED_MB}"), b"\r\n"]
    chunked = [head(_HEARTBEAT, _JSON, "Transfer-Encoding: chunked"), b"\r\n"]
    chunk = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
    padding = [head(_HEARTBEAT, _JSON, *(f"X-{number}: {'x' * 1000}" for number in range(200))), b"\r\n"]
    endless = [head(_HEARTBEAT, _JSON), b"X-Padding: "]
    for tried, status, pieces in (
        ("100 MB, declared", 413, chain(declared, repeat(CHUNK, HUNDRED_MB // len(CHUNK)))),
        ("100 MB in chunks", 413, chain(chunked, repeat(chunk, HUNDRED_MB // len(CHUNK)))),
        ("200 KB of headers", 431, iter(padding)),
        ("100 MB of one header", 431, chain(endless, repeat(CHUNK, HUNDRED_MB // len(CHUNK)))),
        ("100 MB for a host that is not served", 400, chain(
            [part.replace(b"127.0.0.1", b"evil.example") for part in chunked],
            repeat(chunk, HUNDRED_MB // len(CHUNK)),
        )),
    ):  # fmt: skip
        before = _bytes_read(serving)
        received = sockets.flood(serving.url, pieces)
        read = _bytes_read(serving) - before
        figure = f"{received.status} after {received.seconds:.1f} s, {read / 2**20:.1f} MiB read"
        held = received.status == status and read <= MOST_READ
        yield Finding(f"a request that is too large gets {status}, and is not read to its end", tried, figure, held)


def _bytes_read(serving: Serving) -> int:
    """Return how many bytes the web worker has read so far, from sockets and files."""
    fields = Path(f"/proc/{serving.child('web-1')}/io").read_text().split()
    return int(fields[fields.index("rchar:") + 1])


def _times(url: str) -> Iterator[Finding]:
    unfinished = {
        "a body that does not finish is 408 at 10 s": ("1 of 100 bytes", 408, (
            head(_HEARTBEAT, _JSON, "Content-Length: 100"), b"\r\n", b"{",
        )),
        "a head that does not finish is 408 too": ("half a head", 408, (head(_HEARTBEAT, _JSON), b"X-Padding: x")),
        "a silent connection is closed": ("silence", 0, ()),
    }  # fmt: skip
    with ThreadPoolExecutor(len(unfinished)) as threads:
        received = [threads.submit(sockets.say, url, *pieces) for _, _, pieces in unfinished.values()]
    for (promise, (tried, status, _)), one in zip(unfinished.items(), received, strict=True):
        yield _in_time(promise, tried, one.result(), status)


def _in_time(promise: str, tried: str, heard: Received, status: int) -> Finding:
    word = str(heard.status) if heard.status else "closed"
    held = heard.status == status and BODY_SECONDS - 0.5 < heard.seconds < BODY_SECONDS + 2
    return Finding(promise, tried, f"{word} after {heard.seconds:.1f} s", held)


def _memory(serving: Serving) -> Finding:
    """Let clients send as many large unfinished bodies as they can, and measure the worker's memory."""
    worker = serving.child("web-1")
    before = machine.resident_mebibytes(worker)
    unfinished = head("/admin/command", _JSON, f"Content-Length: {MEGABYTE}") + b"\r\n" + b" " * (MEGABYTE - 1)
    with ThreadPoolExecutor(LARGE) as threads:
        received = [threads.submit(sockets.say, serving.url, unfinished) for _ in range(LARGE)]
        grown = 0.0
        while not all(one.done() for one in received):
            grown = max(grown, machine.resident_mebibytes(worker) - before)
            time.sleep(0.1)
    statuses = Counter(one.result().status for one in received)
    message = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
    return Finding(
        f"large bodies that do not finish take at most {MOST_GROWN_MEBIBYTES} MiB of a worker",
        f"{LARGE} clients without a credential, each with 999,999 of 1,000,000 bytes",
        f"{grown:.0f} MiB; {message}",
        grown <= MOST_GROWN_MEBIBYTES and set(statuses) == {408, 503},
    )


async def _squatters(url: str, members: list[Member]) -> Finding:
    """Measure heartbeats in turns: without and with clients that only keep connections open."""
    pulse = BackgroundLoad(url, members, per_second=PER_SECOND)
    await pulse.beat(2)
    without, beside = [], []
    for _ in range(ROUNDS):
        without.append(_p99(await pulse.beat(ROUND_SECONDS)))
        async with squatting(url):
            beside.append(_p99(await pulse.beat(ROUND_SECONDS)))
    pulse.close()
    ratio = median(beside) / median(without)
    failed = pulse.failures.total()
    return Finding(
        f"clients that keep connections open do not slow down others (p99 within {MOST_SLOWER} ×)",
        f"{SILENT:,} silent connections and {SLOW} slow bodies next to {PER_SECOND} heartbeats/s",
        f"{milliseconds(median(without))} → {milliseconds(median(beside))}, {ratio:.2f} ×, {failed} failed",
        ratio <= MOST_SLOWER and not failed,
    )


def _p99(latencies: Any) -> float:
    found: float = latencies.percentile(99)
    return found


@asynccontextmanager
async def squatting(url: str) -> AsyncIterator[None]:
    """Keep silent and slow connections open until the end of the block.

    A connection that the server closes is replaced.
    """
    tasks = [asyncio.create_task(_squat(url, _in_silence)) for _ in range(SILENT)]
    tasks += [asyncio.create_task(_squat(url, _drop_by_drop)) for _ in range(SLOW)]
    await asyncio.sleep(1)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


Squat = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _squat(url: str, squat: Squat) -> None:
    while True:
        with suppress(OSError):
            async with sockets.connected(url) as (reader, writer):
                await squat(reader, writer)
        await asyncio.sleep(0.1)


async def _in_silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _drop_by_drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(head(_HEARTBEAT, _JSON, "Content-Length: 60000") + b"\r\n")
    while not writer.transport.is_closing():
        writer.write(b" ")
        await asyncio.sleep(0.5)


async def _no_reading(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Request large answers, and do not read them."""
    transport = cast("asyncio.Transport", writer.transport)
    transport.pause_reading()
    writer.write((head("/openapi.json", method="GET") + b"\r\n") * 50)
    await asyncio.sleep(STOP_SECONDS)


@dataclass(frozen=True, slots=True)
class Stopped:
    """The result of a stop.

    - `seconds`: the duration of the stop.
    - `acknowledged`: the largest number in a heartbeat that was answered with 200, by device id.
    - `accepted`: the request ids of the accepted commands.
    - `traces`: the number of tracebacks in the log.
    """

    seconds: float
    acknowledged: dict[str, int]
    accepted: list[str]
    traces: int


async def _stop(serving: Serving, admin: FleetClient, members: list[Member]) -> Stopped:
    """Stop the server under load, while hostile clients keep connections open."""
    pulse = BackgroundLoad(serving.url, members, per_second=PER_SECOND)
    accepted: list[str] = []
    async with squatting(serving.url):
        others: list[asyncio.Task[Any]] = [asyncio.create_task(_squat(serving.url, _no_reading)) for _ in range(20)]
        others.append(asyncio.create_task(pulse.beat(STOP_SECONDS)))
        others.append(asyncio.create_task(asyncio.to_thread(_command, admin, accepted)))
        await asyncio.sleep(3)
        began = time.monotonic()
        serving.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(serving.process.wait)
        took = time.monotonic() - began
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    pulse.close()
    return Stopped(took, pulse.acknowledged, accepted, serving.said.count("Traceback"))


def _command(admin: FleetClient, accepted: list[str]) -> None:
    """Send pings until the server has stopped. Append the request id of each accepted ping to `accepted`."""
    with suppress(Unreachable, Refused):
        while True:
            accepted.append(admin.post("/admin/command", {"action": "ping", "target": {"all": True}})["request_id"])


def _what_is_left(admin: FleetClient, stopped: Stopped) -> Finding:
    devices, _ = admin.items("/admin/devices", PHONES)
    recorded = {device["device_id"]: device["last_status"]["number"] for device in devices}
    phones, accepted = stopped.acknowledged, stopped.accepted
    lost = sum(recorded[device_id] < number for device_id, number in phones.items())
    commands, _ = admin.items("/admin/commands", len(accepted) + 1)
    lost += len(set(accepted) - {command["request_id"] for command in commands})
    message = f"{len(phones)} phones' last heartbeats and {len(accepted)} commands: {lost} lost"
    return Finding(
        f"SIGTERM ends within {STOP_SECONDS} s, and loses nothing that was answered 200",
        "the same connections, 20 clients that read no answer, heartbeats and commands",
        f"{stopped.seconds:.1f} s; {message}; {stopped.traces} tracebacks in the log",
        stopped.seconds < STOP_SECONDS and not lost and not stopped.traces and bool(phones) and bool(accepted),
    )
