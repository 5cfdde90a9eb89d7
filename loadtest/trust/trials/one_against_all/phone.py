"""One enrolled phone that sends reports or rotates its token without end does not harm others."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import psycopg

from loadtest.fleet.credentials_file import Member
from loadtest.testbed.serving import Serving
from loadtest.trust.trials.background_load import BackgroundLoad
from loadtest.trust.trials.finding import Finding
from loadtest.trust.trials.one_against_all import beside, honest
from loadtest.trust.trials.one_against_all.beside import ROUNDS, SECONDS, Case
from loadtest.trust.trials.one_against_all.honest import Honest
from loadtest.trust.trials.one_against_all.order import Order, Tally
from nexmdm.client.http_client import FleetClient

HEARTBEATS_PER_SECOND: Final = 150
CONNECTIONS: Final = 8
"""The number of connections of the bad phone. After each answer, a connection pauses for ROUND_TRIP_SECONDS. So the
phone sends at most 200 requests a second. A real bad phone once had this rate."""

LEAST_PER_SECOND: Final = 4
"""The least number of requests a second that the phone must send. It is low, because the server may answer slowly."""

MOST_KEPT: Final = 102
"""The largest number of stored reports of a delivery: the first hundred, the first final report and the first late
final report."""

_REPORTS: Final = """
    SELECT count(*) FROM commands_report
    JOIN commands_delivery ON commands_delivery.id = commands_report.delivery_id
    WHERE commands_delivery.command_id = %s
"""


def trial(folder: Path) -> Iterator[Finding]:
    """Let one phone attack the server, first with reports, then with rotations of its token."""
    with beside.served(folder) as (serving, members), serving.admin() as admin:
        bad, *good = members
        attacks = {"reports": _reports, "rotations": _rotations}
        yield from beside.each({name: partial(tried, serving, admin, bad, good) for name, tried in attacks.items()})


async def _reports(serving: Serving, admin: FleetClient, bad: Member, good: list[Member]) -> Finding:
    ping = {"action": "ping", "target": {"device_ids": [bad.device_id]}}
    request_id = (await asyncio.to_thread(admin.post, "/admin/command", ping))["request_id"]
    deliveries = f"/admin/commands/{request_id}/deliveries"
    order = Order("reports", serving.url, ["127.0.3.1"], CONNECTIONS, tokens=[bad.device_token], request_id=request_id)
    database_url = await asyncio.to_thread(serving.database_url)
    case = Case(
        "a phone that reports on one delivery without end",
        f"{CONNECTIONS} connections of one phone, 12 KB in each report; the admin reads that delivery",
        least_sent=LEAST_PER_SECOND * ROUNDS * SECONDS,
        answers={"200", "429"},
        check=_kept(database_url, request_id),
    )
    reading = honest.calls(admin, "/admin/summary", deliveries, f"{deliveries}/{bad.device_id}")
    traffic = Honest(
        {"heartbeats": BackgroundLoad(serving.url, good, per_second=HEARTBEATS_PER_SECOND), "signed calls": reading}
    )
    async with beside.processes(order) as attacker:
        return await beside.tried(case, traffic, attacker, serving)


def _kept(database_url: str, request_id: str) -> Callable[[Tally], tuple[str, bool]]:
    def check(_: Tally) -> tuple[str, bool]:
        with psycopg.connect(database_url) as connection:
            row = connection.execute(_REPORTS, [request_id]).fetchone()
        kept = row[0] if row else 0
        return f"{kept:,} reports kept", 0 < kept <= MOST_KEPT

    return check


async def _rotations(serving: Serving, admin: FleetClient, bad: Member, good: list[Member]) -> Finding:
    order = Order("rotations", serving.url, ["127.0.5.1"], CONNECTIONS, tokens=[bad.device_token])
    case = Case(
        "a phone that rotates its token without end",
        f"{CONNECTIONS} connections of one phone; others register",
        least_sent=LEAST_PER_SECOND * ROUNDS * SECONDS,
        answers={"200", "429", "503"},
    )
    token = (await asyncio.to_thread(admin.post, "/admin/enrollment-tokens", {"max_uses": 1000}))["enrollment_token"]
    traffic = Honest(
        {
            "heartbeats": BackgroundLoad(serving.url, good, per_second=HEARTBEATS_PER_SECOND),
            "signed calls": honest.calls(admin, "/admin/summary"),
            "registrations": honest.registrations(serving.url, token),
        }
    )
    async with beside.processes(order) as attacker:
        return await beside.tried(case, traffic, attacker, serving)
