"""One client without a credential does not harm others, whatever it sends.

The attacks are logins, invented sessions, dead enrollment tokens, pipelined requests, guesses, idle connections and
requests for /readyz.
"""

import asyncio
import resource
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import httpx
import psycopg

from loadtest.fleet.credentials_file import Member
from loadtest.load import disturbances
from loadtest.testbed.serving import Serving
from loadtest.trust.trials.background_load import BackgroundLoad
from loadtest.trust.trials.finding import Finding
from loadtest.trust.trials.one_against_all import beside, honest
from loadtest.trust.trials.one_against_all.beside import ENOUGH, ROUNDS, SECONDS, Case
from loadtest.trust.trials.one_against_all.held import PIPELINED
from loadtest.trust.trials.one_against_all.honest import Honest, Traffic
from loadtest.trust.trials.one_against_all.order import Order, Tally
from nexmdm.client.http_client import FleetClient

HEARTBEATS_PER_SECOND: Final = 150
LOGINS: Final = 40
LOGIN_SECONDS: Final = 6
"""The length of each attack by logins. Five of these attacks take half a minute, which is the time in the promise."""

SESSIONS: Final = 300
DEAD_TOKENS_PER_SECOND: Final = 20
PIPELINING: Final = 60
GUESSES: Final = 8000
MOST_COUNTERS: Final = 200
"""The number of rows that guesses from one network may add to the table of counters."""

MOST_TRIED: Final = 250
"""The number of guesses that the server may check. The limit allows 60 guesses a minute, for two minutes. The rest is
for guesses that are in progress when the limit is reached.
"""

IDLE: Final = 12_000
IDLE_GROWN_MEBIBYTES: Final = 150
FILES_TO_SPARE: Final = 500
READINESS_PER_SECOND: Final = 325
PROXY: Final = "127.0.7.1"
"""The address from which the guesses come. It stands for a trusted proxy that forwards the addresses of the attackers.
"""

_TOKENS: Final = "/admin/enrollment-tokens"


def trial(folder: Path) -> Iterator[Finding]:
    """Let clients without a credential attack, one kind of attack after another."""
    with beside.served(folder, TRUSTED_PROXIES=PROXY) as (serving, members), serving.admin() as admin:
        yield from beside.each({name: partial(tried, serving, members, admin) for name, tried in _ATTACKS.items()})


def _traffic(serving: Serving, members: list[Member], admin: FleetClient, **others: Traffic) -> Honest:
    heartbeats = BackgroundLoad(serving.url, members, per_second=HEARTBEATS_PER_SECOND)
    return Honest({"heartbeats": heartbeats, "signed calls": honest.calls(admin, "/admin/summary"), **others})


async def _tried(case: Case, traffic: Honest, serving: Serving, *orders: Order) -> Finding:
    async with beside.processes(*orders) as attacker:
        return await beside.tried(case, traffic, attacker, serving)


async def _logins(serving: Serving, members: list[Member], admin: FleetClient) -> Finding:
    sources = ["127.0.4.1"] * (LOGINS // 2) + [f"127.0.4.{number}" for number in range(2, LOGINS // 2 + 2)]
    case = Case(
        "a client that logs in without end",
        f"{LOGINS} logins at a time as unknown users, half of them from one address, each of the others from its own",
        least_sent=2 * LOGINS,
        answers={"200", "403", "429", "503"},
        seconds=LOGIN_SECONDS,
    )
    return await _tried(case, _traffic(serving, members, admin), serving, Order("logins", serving.url, sources, LOGINS))


async def _sessions(serving: Serving, members: list[Member], admin: FleetClient) -> Finding:
    case = Case(
        "a client with invented sessions",
        f"{LOGINS} requests for the admin site at a time, each with a session id of its own",
        least_sent=SESSIONS,
        answers={"302", "429", "503"},
    )
    order = Order("sessions", serving.url, ["127.0.4.101"], LOGINS)
    return await _tried(case, _traffic(serving, members, admin), serving, order)


async def _dead_tokens(serving: Serving, members: list[Member], admin: FleetClient) -> Finding:
    tokens = await asyncio.to_thread(_dead, admin)
    case = Case(
        "a client with used-up, revoked and expired enrollment tokens",
        f"{DEAD_TOKENS_PER_SECOND} registrations a second; phones with a valid token register meanwhile",
        least_sent=ENOUGH * DEAD_TOKENS_PER_SECOND * ROUNDS * SECONDS,
        answers={"401", "429"},
    )
    good = (await asyncio.to_thread(admin.post, _TOKENS, {"max_uses": 1000}))["enrollment_token"]
    traffic = _traffic(serving, members, admin, registrations=honest.registrations(serving.url, good))
    order = Order("dead tokens", serving.url, ["127.0.5.2"], DEAD_TOKENS_PER_SECOND, DEAD_TOKENS_PER_SECOND, tokens)
    return await _tried(case, traffic, serving, order)


def _dead(admin: FleetClient) -> list[str]:
    """Return three enrollment tokens that are not valid: an expired token, a used token and a revoked token.

    The function does not wait for the expiry. The first token expires 1 s after its creation.
    """
    expired, spent, revoked = (admin.post(_TOKENS, {"expires_in_seconds": seconds}) for seconds in (1, 600, 600))
    bearer = {"Authorization": f"Bearer {spent['enrollment_token']}"}
    httpx.post(f"{admin.url}/v1/register", json={"hardware_id": "spends-it"}, headers=bearer).raise_for_status()
    admin.post(f"{_TOKENS}/{revoked['id']}/revoke")
    return [token["enrollment_token"] for token in (expired, spent, revoked)]


async def _pipelining(serving: Serving, members: list[Member], admin: FleetClient) -> Finding:
    case = Case(
        "a client that pipelines",
        f"{PIPELINING} connections, each with {PIPELINED:,} requests at a time",
        least_sent=PIPELINING * PIPELINED * ROUNDS,
        answers={"404", "503"},
    )
    traffic = _traffic(serving, members, admin, probes=honest.probes(serving.url))
    return await _tried(case, traffic, serving, Order("pipelining", serving.url, ["127.0.6.1"], PIPELINING))


async def _guesses(serving: Serving, members: list[Member], admin: FleetClient) -> Finding:
    tokens = [bearer for bearer, _ in islice(disturbances.invalid_tokens(members), 500)]
    per_second = GUESSES / (ROUNDS * SECONDS)
    database_url = await asyncio.to_thread(serving.database_url)
    case = Case(
        "a client that guesses device tokens from all over its IPv6 network",
        f"{GUESSES:,} wrong tokens from as many addresses of one /64",
        least_sent=ENOUGH * GUESSES,
        answers={"401", "429", "503"},
        check=_counted(database_url, _counters(database_url)),
    )
    order = Order("guesses", serving.url, [PROXY], 32, per_second, tokens)
    return await _tried(case, _traffic(serving, members, admin), serving, order)


def _counters(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM nexmdm_counter").fetchone()
    return int(row[0]) if row else 0


def _counted(database_url: str, before: int) -> Callable[[Tally], tuple[str, bool]]:
    def check(tally: Tally) -> tuple[str, bool]:
        grown, tried = _counters(database_url) - before, tally.answers["401"]
        return f"{grown:,} counters more", grown <= MOST_COUNTERS and tried <= MOST_TRIED

    return check


async def _idle(serving: Serving, members: list[Member], admin: FleetClient) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    each = min(IDLE, hard - FILES_TO_SPARE)
    case = Case(
        "two clients that keep connections open",
        f"{each:,} idle connections each; a process may have {hard:,} open files; other clients open new connections",
        least_sent=ENOUGH * 2 * each * ROUNDS,
        answers={"408", "503"},
        most_grown_mebibytes=IDLE_GROWN_MEBIBYTES,
    )
    traffic = _traffic(serving, members, admin, probes=honest.probes(serving.url))
    orders = [Order("idle connections", serving.url, [f"127.0.8.{number}"], each) for number in (1, 2)]
    return await _tried(case, traffic, serving, *orders)


async def _readiness(serving: Serving, members: list[Member], admin: FleetClient) -> Finding:
    case = Case(
        "a client that asks whether the server is ready",
        f"/readyz {READINESS_PER_SECOND} times a second",
        least_sent=ENOUGH * READINESS_PER_SECOND * ROUNDS * SECONDS,
        answers={"200", "503"},
    )
    order = Order("readiness", serving.url, ["127.0.9.1"], 64, READINESS_PER_SECOND)
    return await _tried(case, _traffic(serving, members, admin), serving, order)


_ATTACKS: Final = {
    "logins": _logins,
    "invented sessions": _sessions,
    "dead tokens": _dead_tokens,
    "pipelining": _pipelining,
    "guesses": _guesses,
    "idle connections": _idle,
    "readiness": _readiness,
}
