"""Load by wrk, which is a Debian package. Each connection waits for an answer before it sends the next request."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from loadtest.testbed.machine import OTHER_CORE

R = TypeVar("R")

CONNECTIONS: Final = 64
WARM_UP_SECONDS: Final = 3
SETTINGS: Final = {"WEB_WORKERS": "1", "LOG_LEVEL": "INFO", "LOG_FORMAT": "json"}
"""The settings of the measured server. Its log is on, as in `serve`."""

HEARTBEAT: Final = Path(__file__).parent / "heartbeat.lua"
REPORT: Final = Path(__file__).parent / "report.lua"
COMMAND: Final = Path(__file__).parent / "command.lua"

_WRK: Final = shutil.which("wrk")
_RATE: Final = re.compile(r"Requests/sec:\s+([0-9.]+)")
_PERCENTILE: Final = re.compile(r"(50|99)%\s+([0-9.]+)(us|ms|s)\b")
_FAILED: Final = re.compile(r"Non-2xx or 3xx responses: \d+|Socket errors: .*")
_MILLISECONDS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Failed(Exception):
    """wrk failed, or the server gave an answer other than 200."""


def run(measure: Callable[[ExitStack], R]) -> R | None:
    """Run `measure` on the core that the measured web worker does not use, and return its result.

    If the measurement fails, the error is printed, and the result is None.
    """
    if _WRK is None:
        sys.stderr.write("This needs wrk: apt-get install wrk\n")
        return None
    os.sched_setaffinity(0, {OTHER_CORE})
    os.environ.update(SETTINGS)
    try:
        with ExitStack() as stack:
            return measure(stack)
    except Failed as error:
        sys.stderr.write(f"{error}\n")
        return None


@dataclass(slots=True)
class Contestant:
    """A server that wrk loads, with the results of each round.

    - `tokens`: the file from which wrk's script gets tokens or signed requests.
    - `rates`: the requests per second of each round.
    """

    name: str
    url: str
    tokens: Path
    script: Path = HEARTBEAT
    connections: int = CONNECTIONS
    rates: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)

    def run(self, seconds: int, **variables: str) -> None:
        """Warm the server up, load it for `seconds`, and add the results of this round.

        `variables` are environment variables for wrk's script. Raises Failed.
        """
        self._wrk(WARM_UP_SECONDS, {**variables, "PART": "warm-up"})
        measured = self._wrk(seconds, {**variables, "PART": "measured"})
        rate, percentiles = _RATE.search(measured), _PERCENTILE.findall(measured)
        if rate is None or len(percentiles) != 2:
            raise Failed(f"{self.name}: {measured}")
        self.rates.append(float(rate[1]))
        p50, p99 = (float(value) * _MILLISECONDS[unit] for _, value, unit in percentiles)
        self.p50_ms.append(p50)
        self.p99_ms.append(p99)

    def _wrk(self, seconds: int, variables: Mapping[str, str]) -> str:
        options = ["-t1", f"-c{self.connections}", f"-d{seconds}", "--latency", "-s", str(self.script)]
        done = subprocess.run(
            [str(_WRK), *options, self.url],
            env={**os.environ, "TOKENS": str(self.tokens), **variables},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode or _FAILED.search(done.stdout):
            raise Failed(f"{self.name}: {done.stdout}{done.stderr}")
        return done.stdout
