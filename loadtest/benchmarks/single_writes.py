"""Measure how many signed commands a second a web worker accepts: `python -m loadtest.benchmarks.single_writes`.

The web worker runs alone on core 0. PostgreSQL, the dispatcher and wrk share core 1. Each round has three measurements:
heartbeats, commands over 64 connections, and commands over one connection. Each command is a `ping` to one device
without a push token. All requests are signed before the measurement. At the end, the program verifies the audit.
"""

import argparse
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import psycopg
from rich.console import Console
from rich.table import Table

from loadtest.benchmarks import wrk
from loadtest.benchmarks.wrk import Contestant
from loadtest.fleet import credentials_file
from loadtest.load.figures import spread
from loadtest.testbed import testbed
from loadtest.testbed.machine import MEASURED_CORE, pin
from loadtest.testbed.testbed import ServerUnderTest
from nexmdm.auth import signing

TARGET: Final = "/admin/command"
UNLIMITED: Final = {"ADMIN_RATE_LIMIT": "1000000/s"}
_ROOT: Final = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Measured:
    """The results of three measurements: `heartbeats`, `many` and `one`.

    - `many`: commands over 64 connections.
    - `one`: commands over one connection.
    """

    heartbeats: Contestant
    many: Contestant
    one: Contestant


def main() -> int:
    """Measure, and print a table. Return 0 if every answer was 200 and the audit is valid, else 1."""
    arguments = _arguments()
    measured = wrk.run(lambda stack: _measured(stack, arguments))
    if measured is None:
        return 1
    _print(measured)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.single_writes", description=__doc__)
    add = parser.add_argument
    add("--devices", type=int, default=10_000, help="how many phones (10,000)")
    add("--requests", type=int, default=40_000, help="number of signed requests prepared for each run (40,000)")
    add("--rounds", type=int, default=3, help="number of rounds (3)")
    add("--seconds", type=int, default=8, help="seconds of each measurement (8), after a warm-up of 3")
    return parser.parse_args()


def _measured(stack: ExitStack, arguments: argparse.Namespace) -> Measured:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexmdm-")))
    place = stack.enter_context(
        testbed.started(folder, folder / "data", interval_seconds=120, commands_per_minute=0, settings=UNLIMITED)
    )
    assert place.serving is not None
    pin(place.serving.child("web-1"), MEASURED_CORE)
    testbed.seed(place.serving.environment, arguments.devices, folder / "roster", with_push_tokens=False)
    members = credentials_file.read(folder / "roster")
    tokens, requests = folder / "tokens", folder / "requests"
    for file in (tokens, requests):
        file.touch(mode=0o600)
    tokens.write_text("".join(f"{member.device_token}\n" for member in members))
    device_ids = [member.device_id for member in members]
    heartbeats = Contestant("heartbeats", f"{place.admin.url}/v1/heartbeat", tokens)
    many = Contestant("commands", place.admin.url + TARGET, requests, wrk.COMMAND)
    one = Contestant("commands, one connection", place.admin.url + TARGET, requests, wrk.COMMAND, connections=1)
    Contestant("first", place.admin.url + TARGET, requests, wrk.COMMAND).run(
        arguments.seconds, **_sign(place, requests, device_ids, arguments.requests)
    )
    _analyze(place)
    for number in range(1, arguments.rounds + 1):
        heartbeats.run(arguments.seconds)
        for writer in (many, one):
            writer.run(arguments.seconds, **_sign(place, requests, device_ids, arguments.requests))
        rates = " ".join(f"{each.rates[-1]:,.0f}" for each in (heartbeats, many, one))
        sys.stderr.write(f"round {number}: {rates}/s\n")
    _verify_audit(place)
    return Measured(heartbeats, many, one)


def _sign(place: ServerUnderTest, file: Path, device_ids: Sequence[str], count: int) -> dict[str, str]:
    """Write `count` signed requests to `file`. Return further environment variables for wrk's script."""
    assert place.serving is not None
    key, secret = place.serving.secrets["ADMIN_KEY"], place.serving.secrets["HMAC_SECRET"]
    now = int(time.time())
    with file.open("w") as lines:
        for number in range(count):
            target = {"device_ids": [device_ids[number % len(device_ids)]]}
            body = orjson.dumps({"action": "ping", "target": target})
            headers = signing.headers(
                key=key, secret=secret, timestamp=now, idempotency_key=secrets.token_hex(16), method="POST",
                target=TARGET, body=body,
            )  # fmt: skip
            lines.write(f"{headers['Idempotency-Key']}\t{headers['X-Signature']}\t{body.decode()}\n")
    return {"REQUESTS": str(file), "SIGNED_BY": key, "SIGNED_AT": str(now)}


def _analyze(place: ServerUnderTest) -> None:
    """Run ANALYZE, as autovacuum does within a minute.

    Without ANALYZE, PostgreSQL would keep its plans for empty tables. These plans read the whole table for each row.
    """
    assert place.serving is not None
    with psycopg.connect(place.serving.database_url(), autocommit=True) as database:
        database.execute("ANALYZE")


def _verify_audit(place: ServerUnderTest) -> None:
    assert place.serving is not None
    command = [sys.executable, "manage.py", "verify_audit"]
    done = subprocess.run(
        command, cwd=_ROOT, env=place.serving.environment, capture_output=True, text=True, check=False
    )
    sys.stderr.write(done.stdout + done.stderr)
    if done.returncode:
        raise wrk.Failed("The audit is not valid.")


def _print(measured: Measured) -> None:
    table = Table(title=f"Signed commands to one device, {len(measured.many.rates)} rounds: median (spread)")
    for heading in ("", "requests/s", "p50", "p99", "of the heartbeats"):
        table.add_column(heading, justify="right" if heading else "left")
    for each in (measured.heartbeats, measured.many, measured.one):
        ratios = [mine / other for mine, other in zip(each.rates, measured.heartbeats.rates, strict=True)]
        times = (f"{spread(milliseconds, '.1f')} ms" for milliseconds in (each.p50_ms, each.p99_ms))
        ratio = "" if each is measured.heartbeats else f"{spread(ratios, '.3f')} ×"
        table.add_row(each.name, spread(each.rates, ",.0f"), *times, ratio)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
