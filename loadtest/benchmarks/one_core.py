"""Measure how many heartbeats a second one web worker answers on one core: `python -m loadtest.benchmarks.one_core`.

The web worker runs alone on core 0. PostgreSQL, the dispatcher and wrk share core 1. One phone in a hundred has an open
delivery. The log and the metrics are on, as in `serve`. Each round also measures an upper limit
(loadtest/benchmarks/bare_asgi.py). With --against, each round also measures other servers that accept heartbeats of
NexMDM.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from loadtest.benchmarks import bare_asgi, wrk
from loadtest.benchmarks.wrk import Contestant
from loadtest.fleet import credentials_file
from loadtest.load.figures import spread
from loadtest.testbed import testbed
from loadtest.testbed.machine import MEASURED_CORE, pin
from loadtest.testbed.testbed import ServerUnderTest

OPEN_PART: Final = 100
"""One phone in this number of phones has an open delivery."""

_ROOT: Final = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    """Measure, and print a table. Return 0 if every answer was 200, else 1."""
    arguments = _arguments()
    contestants = wrk.run(lambda stack: _measured(stack, arguments))
    if contestants is None:
        return 1
    _print(contestants)
    return 0


def _measured(stack: ExitStack, arguments: argparse.Namespace) -> list[Contestant]:
    contestants = _contestants(stack, arguments)
    for number in range(arguments.rounds):
        for one in contestants:
            one.run(arguments.seconds)
            sys.stderr.write(f"round {number + 1}: {one.name}: {one.rates[-1]:,.0f}/s\n")
    return contestants


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.one_core", description=__doc__)
    add = parser.add_argument
    add("--devices", type=int, default=100_000, help="how many phones (100,000)")
    add("--rounds", type=int, default=3, help="number of rounds (3)")
    add("--seconds", type=int, default=8, help="seconds of each measurement (8), after a warm-up of 3")
    add("--keep", type=Path, metavar="FOLDER", help="folder for the server's data, for further runs")
    add(
        "--against", nargs=3, action="append", default=[], metavar=("NAME", "URL", "TOKENS"),
        help="another server with POST /v1/heartbeat, pinned to core 0 by you, and a file of its device tokens",
    )  # fmt: skip
    return parser.parse_args()


def _contestants(stack: ExitStack, arguments: argparse.Namespace) -> list[Contestant]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexmdm-")))
    data_dir = (arguments.keep or folder).resolve() / "data"
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    place = stack.enter_context(testbed.started(folder, data_dir, interval_seconds=120, commands_per_minute=0))
    assert place.serving is not None
    pin(place.serving.child("web-1"), MEASURED_CORE)
    testbed.enroll_fleet(place, arguments.devices, folder / "roster", lambda: None)
    members = credentials_file.read(folder / "roster")
    tokens = folder / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text("".join(f"{member.device_token}\n" for member in members))
    _leave_open(place, [member.device_id for member in members[::OPEN_PART]])
    dsn = place.serving.database_url()
    bare_asgi.prepare(dsn, members)
    bare = stack.enter_context(_bare(dsn))
    return [
        Contestant("one web worker", f"{place.admin.url}/v1/heartbeat", tokens),
        Contestant("bare ASGI + group commit", f"{bare}/v1/heartbeat", tokens),
        *(Contestant(name, url, Path(path)) for name, url, path in arguments.against),
    ]


def _leave_open(place: ServerUnderTest, device_ids: list[str]) -> None:
    target = {"device_ids": device_ids}
    place.admin.post(
        "/admin/command", {"action": "ping", "target": target, "expires_in_seconds": 86_400, "supersede": True}
    )


@contextmanager
def _bare(dsn: str) -> Iterator[str]:
    """Run the ASGI server of bare_asgi.py on the same core as the web worker, and with the same PostgreSQL.

    Yield its address.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor = listener.fileno()
        program = [
            "taskset",
            "-c",
            str(MEASURED_CORE),
            sys.executable,
            "-m",
            "loadtest.benchmarks.bare_asgi",
            str(descriptor),
        ]
        environment = {**os.environ, bare_asgi.DSN_VARIABLE: dsn}
        with subprocess.Popen(program, cwd=_ROOT, env=environment, pass_fds=[descriptor]) as process:
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                process.terminate()


def _print(contestants: list[Contestant]) -> None:
    ours = contestants[0]
    table = Table(title=f"POST /v1/heartbeat, {wrk.CONNECTIONS} connections, {len(ours.rates)} rounds: median (spread)")
    for heading in ("", "requests/s", "p99", "ours is"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in contestants:
        ratios = [mine / other for mine, other in zip(ours.rates, one.rates, strict=True)]
        rate, p99 = spread(one.rates, ",.0f"), spread(one.p99_ms, ".1f")
        table.add_row(one.name, rate, f"{p99} ms", "" if one is ours else f"{spread(ratios, '.2f')} ×")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
