"""Measure how many signed writes a second a server carries out: `python -m loadtest.benchmarks.admin_writes`.

The program starts its own server. Several clients create enrollment tokens at the same time. Each client keeps one
connection, and waits for each answer before its next request. The creation of an enrollment token is one of the
cheapest signed writes. All signed writes take the lock on the audit. With this cheap write, the lock has the largest
share of the time. The server, PostgreSQL and the clients share the machine.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import uvloop
from rich.console import Console
from rich.table import Table

from loadtest.load.figures import percentile
from loadtest.testbed.connections import Pool, Server, understood, with_body
from loadtest.testbed.serving import READY, Serving
from nexmdm.client.http_client import FleetClient

TARGET = "/admin/enrollment-tokens"
BODY = b"{}"
WARM_UP_SECONDS = 2


class Failed(Exception):
    """A write got an answer other than 200, or no answer."""


def main() -> int:
    """Measure, and print a table. Return 0 if every answer was 200, else 1."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        serving = Serving(
            Path(folder) / "data", WEB_WORKERS=str(arguments.workers), ADMIN_RATE_LIMIT="1000000/s", LOG_LEVEL="INFO"
        )
        try:
            serving.until_it_says(READY)
            with serving.admin() as admin:
                rounds = _measure(admin, arguments)
        except Failed as error:
            sys.stderr.write(f"{error}\n")
            return 1
        finally:
            serving.interrupt()
    _print(rounds, arguments)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.admin_writes", description=__doc__)
    add = parser.add_argument
    add("--clients", type=int, default=8, help="how many clients write at the same time (8)")
    add("--workers", type=int, default=2, help="how many web workers (2)")
    add("--rounds", type=int, default=3, help="number of rounds (3)")
    add("--seconds", type=int, default=8, help="seconds of each round (8), after a warm-up of 2")
    return parser.parse_args()


def _measure(admin: FleetClient, arguments: argparse.Namespace) -> list[list[float]]:
    """Return, for each round, the duration of each write in milliseconds."""
    uvloop.run(_load(admin, arguments.clients, WARM_UP_SECONDS))
    rounds = []
    for number in range(1, arguments.rounds + 1):
        rounds.append(uvloop.run(_load(admin, arguments.clients, arguments.seconds)))
        sys.stderr.write(f"round {number}: {len(rounds[-1]) / arguments.seconds:,.0f}/s\n")
    return rounds


async def _load(admin: FleetClient, clients: int, seconds: float) -> list[float]:
    server = Server.of(admin.url)
    pool = Pool(server, clients)
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def write_on() -> None:
        while (began_at := time.perf_counter()) < until:
            head = server.head("POST", TARGET, admin.sign("POST", TARGET, BODY))
            failure, _ = understood(*await pool.call(head + with_body(BODY)))
            if failure:
                raise Failed(f"POST {TARGET}: {failure}")
            took.append((time.perf_counter() - began_at) * 1000)

    try:
        await asyncio.gather(*(write_on() for _ in range(clients)))
    finally:
        pool.close()
    return took


def _print(rounds: list[list[float]], arguments: argparse.Namespace) -> None:
    title = f"POST {TARGET}: {arguments.clients} clients, {arguments.workers} web workers, {len(rounds)} rounds"
    table = Table(title=title)
    for heading in ("", "median", "least", "most"):
        table.add_column(heading, justify="right" if heading else "left")
    figures = {
        "writes/s": [len(one) / arguments.seconds for one in rounds],
        "p50, ms": [percentile(one, 50) for one in rounds],
        "p99, ms": [percentile(one, 99) for one in rounds],
    }
    for name, values in figures.items():
        form = ",.0f" if name == "writes/s" else ".1f"
        table.add_row(name, f"{median(values):{form}}", f"{min(values):{form}}", f"{max(values):{form}}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
