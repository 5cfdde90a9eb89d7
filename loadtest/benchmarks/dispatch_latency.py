"""Measure how soon a push and a result arrive: `python -m loadtest.benchmarks.dispatch_latency`.

The program starts its own server and a fake FCM, and sends one ping after another to one phone. The first latency is
the time from POST /admin/command to the arrival of the push at FCM. The second latency begins with the answer to the
phone's report. It ends with the answer to an admin who waits for the result with `wait_seconds`.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console
from rich.table import Table

from loadtest.fake_fcm.server import FcmStandin
from loadtest.load.figures import percentile
from loadtest.testbed import testbed
from nexmdm.client.http_client import FleetClient

PUSH_P95_LIMIT_MS: Final = 50.0
ALONE_P95_LIMIT_MS: Final = 300.0
"""The limit for the p95 of the first latency if the dispatcher cannot use LISTEN and must poll."""

WAIT_LIMIT_MS: Final = 250.0
_LONGEST_PAUSE_SECONDS: Final = 0.3
"""The longest wait of the phone before its report. The wait is random, because the server polls at equal intervals."""


@dataclass(frozen=True, slots=True)
class Latency:
    """The latencies of one ping, in milliseconds.

    - `to_push`: the time from the POST to the arrival of the push at FCM.
    - `to_waiting_admin`: the time between the answer to the phone's report and the answer to the waiting admin.
    """

    to_push: float
    to_waiting_admin: float


def main() -> int:
    """Measure, and print a table. Return 0 if both latencies are within their limits, else 1."""
    arguments = _arguments()
    testbed.BEHIND_A_POOLER.set(arguments.pooler is not None)
    settings = {"DIRECT_DATABASE_URL": ""} if arguments.pooler == "alone" else {}
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        latencies = _measure(Path(folder), arguments.pings, settings)
    return 0 if _print(latencies, ALONE_P95_LIMIT_MS if settings else PUSH_P95_LIMIT_MS) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.dispatch_latency", description=__doc__)
    parser.add_argument("--pings", type=int, default=50, help="how many pings to send (50)")
    parser.add_argument(
        "--pooler",
        choices=("direct", "alone"),
        help="pool transactions by PgBouncer: direct = with a direct address for LISTEN, alone = without one",
    )
    return parser.parse_args()


def _measure(folder: Path, pings: int, settings: Mapping[str, str]) -> list[Latency]:
    with FcmStandin() as standin, ThreadPoolExecutor(1) as waiter:
        account = json.dumps(standin.service_account())
        unlimited = {"ADMIN_RATE_LIMIT": "100000/m", "DEVICE_RATE_LIMIT": "100000/m"}
        fcm = {"FCM_BASE_URL": standin.base_url, "FIREBASE_SERVICE_ACCOUNT_JSON": account}
        with (
            testbed.served(folder / "data", **fcm, **unlimited, **settings) as serving,
            serving.admin() as admin,
            serving.admin() as waiting,
            _phone(admin) as phone,
        ):
            run = partial(_ping, admin, waiting, waiter, standin, phone)
            run()  # The first push also requests an access token.
            return [run() for _ in range(pings)]


def _phone(admin: FleetClient) -> httpx.Client:
    """Register a phone, and return its client."""
    token = admin.post("/admin/enrollment-tokens", {})["enrollment_token"]
    body = {"hardware_id": "dispatch-latency", "push_token": "ok-1"}
    answer = httpx.post(f"{admin.url}/v1/register", json=body, headers={"Authorization": f"Bearer {token}"})
    bearer = {"Authorization": f"Bearer {answer.raise_for_status().json()['device_token']}"}
    return httpx.Client(base_url=admin.url, headers=bearer)


def _ping(
    admin: FleetClient, waiting: FleetClient, waiter: ThreadPoolExecutor, standin: FcmStandin, phone: httpx.Client
) -> Latency:
    standin.journal.clear()
    started = time.monotonic()
    request_id = admin.post("/admin/command", {"action": "ping", "target": {"all": True}})["request_id"]
    (send,) = standin.journal.wait_for(1)
    seen_at = waiter.submit(_wait, waiting, request_id)
    time.sleep(random.uniform(0.1, _LONGEST_PAUSE_SECONDS))
    result = {"request_id": request_id, "status": "succeeded", "via": "push"}
    phone.post("/v1/action-result", json=result).raise_for_status()
    reported_at = time.monotonic()
    return Latency((send.monotonic - started) * 1000, (seen_at.result() - reported_at) * 1000)


def _wait(waiting: FleetClient, request_id: str) -> float:
    """Wait with one request until a command is no longer open. Return the time of the answer."""
    command = waiting.get(f"/admin/commands/{request_id}", wait_seconds=10)
    if command["completed_at"] is None:
        raise RuntimeError(f"{request_id} was not completed within 10 s")
    return time.monotonic()


def _print(latencies: Sequence[Latency], limit_ms: float) -> bool:
    """Print percentiles of the push latency and of the wait latency. Return whether both are within their limits."""
    pushes = sorted(one.to_push for one in latencies)
    waits = sorted(one.to_waiting_admin for one in latencies)
    held = [percentile(pushes, 95) < limit_ms, waits[-1] < WAIT_LIMIT_MS]
    limits = [f"p95 < {limit_ms:.0f} ms", f"longest < {WAIT_LIMIT_MS:.0f} ms"]
    table = Table(title=f"{len(latencies)} pings, one after the other")
    for heading in ("from", "to", "p50", "p95", "p99", "longest", "limit", ""):
        table.add_column(heading, justify="left" if heading in ("from", "to") else "right")
    ways = (("POST /admin/command", "push at FCM"), ("the phone's result", "answer of wait_seconds"))
    for way, ordered, limit, is_held in zip(ways, (pushes, waits), limits, held, strict=True):
        figures = [*(percentile(ordered, rank) for rank in (50, 95, 99)), ordered[-1]]
        table.add_row(*way, *(f"{figure:.1f} ms" for figure in figures), limit, "held" if is_held else "missed")
    Console().print(table)
    return all(held)


if __name__ == "__main__":
    sys.exit(main())
