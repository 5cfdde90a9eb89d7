"""How long from POST /admin/command to the push arriving at FCM: `python -m loadtest.dispatch_latency`.

Starts a server of its own and a stand-in for FCM, sends pings one after the other to one phone, and prints percentiles.
The clock starts when the request is about to be written and stops when the push arrives: the whole of the request, the
transaction, the notification, the claim and the send lie in between.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from loadtest.fcm_standin import FcmStandin
from loadtest.figures import percentile
from loadtest.serving import READY, Serving
from nexmdm.fleet_client import FleetClient

P95_LIMIT_MS = 50.0


def main() -> int:
    """Measure, print a table, and return 0 if the 95th percentile is within its limit."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        latencies = sorted(_measure(Path(folder), arguments.pings))
    _print(latencies)
    return 0 if percentile(latencies, 95) < P95_LIMIT_MS else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.dispatch_latency", description=__doc__)
    parser.add_argument("--pings", type=int, default=50, help="how many pings to send (50)")
    return parser.parse_args()


def _measure(folder: Path, pings: int) -> list[float]:
    """Return the milliseconds that each of the pings took."""
    with FcmStandin() as standin:
        account = json.dumps(standin.service_account())
        serving = Serving(folder / "data", FCM_BASE_URL=standin.base_url, FIREBASE_SERVICE_ACCOUNT_JSON=account)
        try:
            serving.until_it_says(READY)
            with serving.admin() as admin:
                device_id = _enrol(admin)
                _ping(admin, standin, device_id)  # The first one also fetches an access token.
                return [_ping(admin, standin, device_id) for _ in range(pings)]
        finally:
            serving.interrupt()


def _enrol(admin: FleetClient) -> str:
    token = admin.post("/admin/enrollment-tokens", {})["enrollment_token"]
    body = {"hardware_id": "dispatch-latency", "push_token": "ok-1"}
    answer = httpx.post(f"{admin.url}/v1/register", json=body, headers={"Authorization": f"Bearer {token}"})
    return str(answer.raise_for_status().json()["device_id"])


def _ping(admin: FleetClient, standin: FcmStandin, device_id: str) -> float:
    standin.journal.clear()
    started = time.monotonic()
    admin.post("/admin/command", {"action": "ping", "target": {"device_ids": [device_id]}})
    (send,) = standin.journal.wait_for(1)
    return (send.monotonic - started) * 1000


def _print(ordered: list[float]) -> None:
    table = Table(title=f"POST /admin/command to the push arriving at FCM, {len(ordered)} pings")
    for heading in ("p50", "p95", "p99", "longest", f"p95 < {P95_LIMIT_MS:.0f} ms"):
        table.add_column(heading, justify="right")
    p95 = percentile(ordered, 95)
    figures = [percentile(ordered, 50), p95, percentile(ordered, 99), ordered[-1]]
    table.add_row(*(f"{figure:.1f} ms" for figure in figures), "held" if p95 < P95_LIMIT_MS else "missed")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
