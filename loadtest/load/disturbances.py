"""Disturbances of the second half of a run: a restart of the web worker, invalid tokens, or malformed requests.

A run compares its second half with its first half. So both halves have the same machine, fleet and hour.
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
REQUESTS_IN_FILE: Final = 5000
"""The number of disturbing requests that the generators send in turn."""

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
    """A disturbance and its result.

    - `sent`: the number of disturbing requests that were sent.
    - `statuses`: how often each status was the answer to a disturbing request.
    - `back_at`: the time when the web worker was back after a restart, on the monotonic clock; None: not yet.
    """

    kind: Kind
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    back_at: float | None = None

    @property
    def sends_requests(self) -> bool:
        """Whether the disturbance consists of requests. This is false only for `restart`."""
        return self.kind != "restart"

    @property
    def per_second(self) -> int:
        """The planned number of disturbing requests in a second."""
        return INVALID_TOKENS_PER_SECOND if self.kind == "invalid_tokens" else MALFORMED_PER_SECOND

    @property
    def expected(self) -> set[int]:
        """The statuses that the disturbing requests may get.

        The server may store a malformed body without its invalid values, and answer 200.
        """
        return {401, 429} if self.kind == "invalid_tokens" else {200, 400, 422}


def write_requests(path: Path, disturbance: Disturbance, members: Sequence[Member]) -> None:
    """Write REQUESTS_IN_FILE disturbing requests into a new file for the generators.

    Only the owner of the file can read the file.

    Each line is a JSON array of the bearer token and the body.
    """
    disturbing_requests = invalid_tokens(members) if disturbance.kind == "invalid_tokens" else _malformed(members)
    path.touch(mode=0o600)
    lines = (
        orjson.dumps([bearer, body.decode("latin-1")]) for bearer, body in islice(disturbing_requests, REQUESTS_IN_FILE)
    )
    path.write_bytes(b"\n".join(lines))


def read_requests(path: Path) -> list[tuple[str, bytes]]:
    """Return the bearer token and the body of each request in a file that `write_requests` wrote."""
    pairs = map(orjson.loads, path.read_bytes().splitlines())
    return [(bearer, body.encode("latin-1")) for bearer, body in pairs]


async def restart(disturbance: Disturbance, serving: Serving) -> None:
    """Stop the web worker with SIGTERM, as for an upgrade. Return when the new web worker answers requests."""
    process = serving.child("web-1")
    os.kill(process, signal.SIGTERM)
    while machine.lives(process):  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)
    async with httpx.AsyncClient(timeout=30) as client:
        (await client.get(f"{serving.url}/healthz")).raise_for_status()
    disturbance.back_at = time.monotonic()


def invalid_tokens(members: Sequence[Member]) -> Iterator[tuple[str, bytes]]:
    """Yield pairs without end: an invalid device token, and the body of a heartbeat.

    Each token has the id of a known phone, a wrong secret and a correct checksum.
    """
    while True:
        token = random.choice(members).device_token
        guessed = "0" + "".join(random.choices(tokens.ALPHABET, k=_SECRET.stop - _SECRET.start - 1))
        head = token[: _SECRET.start] + guessed
        yield head + tokens.base62(zlib.crc32(head.encode()), 6), b"{}"


def _malformed(members: Sequence[Member]) -> Iterator[tuple[str, bytes]]:
    """Yield pairs without end: a valid device token, and a body that the server must refuse or repair."""
    while True:
        yield random.choice(members).device_token, random.choice(_MALFORMED)
