"""What a run may have to bear from its half on: a restart of the web workers, strangers, rubbish.

The first half is the measure of the second, so that both have the same machine, fleet and hour.
"""

import asyncio
import os
import random
import signal
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import Final, Literal, get_args

import httpx

from loadtest import machine
from loadtest.connections import NO_ANSWER, Pool, Server, with_body
from loadtest.roster import Member
from loadtest.serving import Serving

Span = tuple[float, float]
Kind = Literal["restart", "strangers", "rubbish"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

STRANGERS_PER_SECOND: Final = 500
RUBBISH_PER_SECOND: Final = 100
CONNECTIONS: Final = 64
PREPARED: Final = 5000
LAST_ANSWERS_SECONDS: Final = 1
_TICK_SECONDS: Final = 0.002
_POLL_SECONDS: Final = 0.05
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET: Final = slice(27, 70)
_RUBBISH: Final = (
    b'{"status":{"note":"\\u0000"}}',
    b'{"status":{"note":"\\ud800"}}',
    b'{"status":{"\\udfff":1}}',
    b'{"status":{"load":NaN}}',
    b'{"status":{"load":Infinity}}',
    b'{"status":{"count":9223372036854775808}}',
    b'{"status":{"count":1e300}}',
    b'{"status":{"battery_pct":101}}',
    b'{"status":{"battery_pct":99999999999999999999}}',
    b'{"status":{"uptime_seconds":-1}}',
    b'{"status":{"note":"\xff\xfe"}}',
    b'{"status":{"a":' + b"[" * 40 + b"]" * 40 + b"}}",
    b'{"status":{"battery_pct":50}',
)


@dataclass(slots=True)
class Trial:
    """What is to be borne, and what became of it: the statuses that nuisances got, when the web was back."""

    kind: Kind
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    back_at: float | None = None

    @property
    def per_second(self) -> int:
        """How many nuisances there are to be."""
        return STRANGERS_PER_SECOND if self.kind == "strangers" else RUBBISH_PER_SECOND

    @property
    def expected(self) -> set[int]:
        """The statuses by which a nuisance is refused."""
        return {401, 429} if self.kind == "strangers" else {400, 422}


async def bear(trial: Trial, serving: Serving | None, url: str, members: Sequence[Member], span: Span) -> None:
    """Do it in this span of the monotonic clock. What it takes is prepared before."""
    begins_at, ends_at = span
    server = Server.of(url)
    requests = [_request(server, *one) for one in islice(_nuisances(trial, members), PREPARED)]
    await asyncio.sleep(begins_at - time.monotonic())
    if trial.kind == "restart":
        assert serving is not None
        await _restart(trial, serving)
    else:
        await _pester(trial, server, cycle(requests), ends_at - LAST_ANSWERS_SECONDS)


def _nuisances(trial: Trial, members: Sequence[Member]) -> Iterator[tuple[str, bytes]]:
    return _strangers(members) if trial.kind == "strangers" else _rubbish(members)


def _request(server: Server, bearer: str, body: bytes) -> bytes:
    return server.head("POST", "/v1/heartbeat", {"Authorization": f"Bearer {bearer}"}) + with_body(body)


async def _restart(trial: Trial, serving: Serving) -> None:
    """Have the web worker stop as for an upgrade; its parent starts it again."""
    process = serving.child("web-1")
    os.kill(process, signal.SIGTERM)
    while machine.lives(process):  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)
    async with httpx.AsyncClient(timeout=30) as client:
        (await client.get(f"{serving.url}/healthz")).raise_for_status()
    trial.back_at = time.monotonic()


async def _pester(trial: Trial, server: Server, requests: Iterator[bytes], until: float) -> None:
    """Send requests at an even rate, whatever is answered, and count the answers."""
    pool = Pool(server, CONNECTIONS)
    begun_at = time.monotonic()
    try:
        while (now := time.monotonic()) < until:
            for _ in range(int((now - begun_at) * trial.per_second) - trial.sent):
                trial.sent += 1
                pool.send(next(requests), partial(_count, trial))
            pool.sweep()
            await asyncio.sleep(_TICK_SECONDS)
        await asyncio.sleep(LAST_ANSWERS_SECONDS)
    finally:
        pool.close()


def _count(trial: Trial, status: int, _: bytes) -> None:
    trial.statuses[status or NO_ANSWER] += 1


def _strangers(members: Sequence[Member]) -> Iterator[tuple[str, bytes]]:
    """Yield tokens of known phones with a secret that is not theirs, well-formed to the check sum."""
    while True:
        token = random.choice(members).device_token
        guessed = "0" + "".join(random.choices(_ALPHABET, k=_SECRET.stop - _SECRET.start - 1))
        head = token[: _SECRET.start] + guessed
        yield head + _base62(zlib.crc32(head.encode()), 6), b"{}"


def _rubbish(members: Sequence[Member]) -> Iterator[tuple[str, bytes]]:
    """Yield good tokens with bodies that must not reach the database."""
    while True:
        yield random.choice(members).device_token, random.choice(_RUBBISH)


def _base62(number: int, length: int) -> str:
    digits = ""
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits
