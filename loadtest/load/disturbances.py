"""Disturbances of the second half of a run: a restart of the web workers, invalid tokens, malformed requests.

The second half is compared with the first, so both have the same machine, fleet and hour.
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
from itertools import islice
from pathlib import Path
from typing import Final, Literal, get_args

import httpx
import orjson

from devices import tokens
from loadtest.fleet.credentials_file import Member
from loadtest.testbed import machine
from loadtest.testbed.serving import Serving

Kind = Literal["restart", "invalid_tokens", "malformed"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

INVALID_TOKENS_PER_SECOND: Final = 500
MALFORMED_PER_SECOND: Final = 100
PREPARED: Final = 5000
LAST_ANSWERS_SECONDS: Final = 1
_POLL_SECONDS: Final = 0.05
_SECRET: Final = slice(27, 70)
_MALFORMED: Final = (
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
    b'{"status":{"battery_pct":50',
    b'[{"battery_pct":50}]',
)


@dataclass(slots=True)
class Disturbance:
    """A disturbance and its result: the statuses that disturbing requests got, or the time when the web worker was
    back.
    """

    kind: Kind
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    back_at: float | None = None

    @property
    def sends_requests(self) -> bool:
        """Whether the disturbance consists of requests."""
        return self.kind != "restart"

    @property
    def per_second(self) -> int:
        """The number of planned disturbing requests."""
        return INVALID_TOKENS_PER_SECOND if self.kind == "invalid_tokens" else MALFORMED_PER_SECOND

    @property
    def expected(self) -> set[int]:
        """The statuses that its requests may get. A malformed body is either repaired and recorded, or refused."""
        return {401, 429} if self.kind == "invalid_tokens" else {200, 400, 422}


def write_requests(path: Path, disturbance: Disturbance, members: Sequence[Member]) -> None:
    """Write PREPARED disturbing requests into a new file that only its owner can read; the generators send the
    requests.

    Each line is a JSON array: the bearer token and the body.
    """
    disturbing_requests = invalid_tokens(members) if disturbance.kind == "invalid_tokens" else _malformed(members)
    path.touch(mode=0o600)
    lines = (orjson.dumps([bearer, body.decode("latin-1")]) for bearer, body in islice(disturbing_requests, PREPARED))
    path.write_bytes(b"\n".join(lines))


def read_requests(path: Path) -> list[tuple[str, bytes]]:
    """Return the bearer token and the body of each request that write_requests() wrote into a file."""
    pairs = map(orjson.loads, path.read_bytes().splitlines())
    return [(bearer, body.encode("latin-1")) for bearer, body in pairs]


async def restart(disturbance: Disturbance, serving: Serving) -> None:
    """Stop the web worker as for an upgrade; its parent starts it again. Return when it serves."""
    process = serving.child("web-1")
    os.kill(process, signal.SIGTERM)
    while machine.lives(process):  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)
    async with httpx.AsyncClient(timeout=30) as client:
        (await client.get(f"{serving.url}/healthz")).raise_for_status()
    disturbance.back_at = time.monotonic()


def invalid_tokens(members: Sequence[Member]) -> Iterator[tuple[str, bytes]]:
    """Yield tokens of known phones with a wrong secret, and with a correct check sum."""
    while True:
        token = random.choice(members).device_token
        guessed = "0" + "".join(random.choices(tokens.ALPHABET, k=_SECRET.stop - _SECRET.start - 1))
        head = token[: _SECRET.start] + guessed
        yield head + tokens.base62(zlib.crc32(head.encode()), 6), b"{}"


def _malformed(members: Sequence[Member]) -> Iterator[tuple[str, bytes]]:
    """Yield valid tokens with bodies that the server must not store unchanged."""
    while True:
        yield random.choice(members).device_token, random.choice(_MALFORMED)
