"""The process of an attack: `python -m loadtest.trust.trials.one_against_all.attacks`.

Lines on standard input control the attack. The first line is the order, as JSON. The second line begins the attack, the
third line ends the attack, and so on. When the attack has begun, the process prints an empty line. When the attack has
ended, the process prints its counts as a line of JSON. The attack is a separate process, because it must not delay the
honest clients.
"""

import asyncio
import random
import resource
import string
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import orjson
import uvloop

from loadtest.testbed.connections import Pool, Server, with_body
from loadtest.trust.trials.one_against_all import held
from loadtest.trust.trials.one_against_all.order import ROUND_TRIP_SECONDS, Order, Tally

_TICK_SECONDS: Final = 0.005
_SWEEP_SECONDS: Final = 0.5
_LETTERS: Final = string.ascii_lowercase + string.digits
_OUTPUT: Final = "x" * 12_000

Request = Callable[[int], bytes]
"""A function that returns the bytes of request number n."""


def _reports(order: Order) -> Request:
    head = Server.of(order.url).head("POST", "/v1/action-result", _bearer(order.tokens[0]))

    def request(number: int) -> bytes:
        report = {"request_id": order.request_id, "status": "running", "message": f"{number}"}
        return head + with_body(orjson.dumps({**report, "output": {"log": _OUTPUT}}))

    return request


def _rotations(order: Order) -> Request:
    head = Server.of(order.url).head("POST", "/v1/token/rotate", _bearer(order.tokens[0]))
    return lambda _: head + with_body(b"{}")


def _registrations(order: Order) -> Request:
    server = Server.of(order.url)
    heads = [server.head("POST", "/v1/register", _bearer(token)) for token in order.tokens]
    return lambda number: heads[number % len(heads)] + with_body(b'{"hardware_id":"%s"}' % _word(16).encode())


def _logins(order: Order) -> Request:
    csrf = _word(32)
    cookie = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": f"csrftoken={csrf}"}
    head = Server.of(order.url).head("POST", "/django-admin/login/", cookie)
    form = f"csrfmiddlewaretoken={csrf}&password=not-the-password&username="
    return lambda _: head + with_body(f"{form}{_word(8)}".encode())


def _sessions(order: Order) -> Request:
    server = Server.of(order.url)
    return lambda _: server.head("GET", "/django-admin/", {"Cookie": f"sessionid={_word(32)}"}) + with_body(b"")


def _guesses(order: Order) -> Request:
    server = Server.of(order.url)

    def request(number: int) -> bytes:
        address = {"X-Forwarded-For": f"2001:db8:7::{random.getrandbits(16):x}:{number & 0xFFFF:x}"}
        token = order.tokens[number % len(order.tokens)]
        return server.head("POST", "/v1/heartbeat", _bearer(token) | address) + with_body(b"{}")

    return request


def _readiness(order: Order) -> Request:
    head = Server.of(order.url).head("GET", "/readyz", {})
    return lambda _: head + with_body(b"")


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _word(length: int) -> str:
    return "".join(random.choices(_LETTERS, k=length))


async def _send(make: Callable[[Order], Request], order: Order, tally: Tally) -> None:
    """Send requests until cancelled. `make` returns the function that makes the requests of an order."""
    request = make(order)
    tally.under_way.set()
    with _pools(order) as pools:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_sweep(pools))
            if order.per_second:
                await _at_a_rate(tasks, pools, request, order.per_second, tally)
            for number in range(order.connections):
                tasks.create_task(_in_a_loop(pools[number % len(pools)], request, tally))


@contextmanager
def _pools(order: Order) -> Iterator[list[Pool]]:
    """Yield a pool of connections for each local address. At the end of the block, cut the connections."""
    server, each = Server.of(order.url), max(1, order.connections // len(order.sources))
    pools = [Pool(server, each, strict=True, sources=[source]) for source in order.sources]
    try:
        yield pools
    finally:
        for pool in pools:
            pool.close()


async def _at_a_rate(
    tasks: asyncio.TaskGroup, pools: list[Pool], request: Request, per_second: float, tally: Tally
) -> None:
    began, number = time.monotonic(), 0
    while True:
        while began + number / per_second <= time.monotonic():
            tasks.create_task(_once(pools[number % len(pools)], request, tally))
            number += 1
        await asyncio.sleep(_TICK_SECONDS)


async def _in_a_loop(pool: Pool, request: Request, tally: Tally) -> None:
    while True:
        await _once(pool, request, tally)
        await asyncio.sleep(ROUND_TRIP_SECONDS)


async def _once(pool: Pool, request: Request, tally: Tally) -> None:
    tally.sent += 1
    tally.note(*await pool.call(request(tally.sent)))


async def _sweep(pools: list[Pool]) -> None:
    while True:
        for pool in pools:
            pool.sweep()
        await asyncio.sleep(_SWEEP_SECONDS)


Attack = Callable[[Order, Tally], Awaitable[None]]
ATTACKS: Final[dict[str, Attack]] = {
    "dead tokens": partial(_send, _registrations),
    "guesses": partial(_send, _guesses),
    "idle connections": held.hold,
    "logins": partial(_send, _logins),
    "pipelining": held.pipeline,
    "readiness": partial(_send, _readiness),
    "reports": partial(_send, _reports),
    "rotations": partial(_send, _rotations),
    "sessions": partial(_send, _sessions),
}


async def _obey() -> None:
    lines = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin.buffer)
    order = Order(**orjson.loads(await lines.readline()))
    while await lines.readline():
        tally = Tally()
        attacking = asyncio.ensure_future(ATTACKS[order.kind](order, tally))
        await tally.under_way.wait()
        _say(b"")
        await lines.readline()
        if attacking.done():
            attacking.result()
        attacking.cancel()
        await asyncio.gather(attacking, return_exceptions=True)
        _say(orjson.dumps({"sent": tally.sent, "held": tally.held, "answers": dict(tally.answers)}))


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Read an order from standard input. Each further line begins or ends the attack, until the input is closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_obey())


if __name__ == "__main__":
    main()
