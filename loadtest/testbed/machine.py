"""The machine of a run, and the processor time that a server uses on it."""

import os
import platform
from collections import defaultdict
from contextlib import suppress
from math import nan
from pathlib import Path
from typing import Final

MEASURED_CORE: Final = 0
"""The core of the measured process, which runs there alone, if a figure is for one core."""

OTHER_CORE: Final = 1
"""The core for all other processes."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_FIRST_TIME: Final = 11
"""The place of utime, stime, cutime and cstime after the name in /proc/PID/stat."""


def described() -> str:
    """Return processor, memory, system and Python in one line."""
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} cores"
    return ", ".join(
        (
            _processor(),
            cores,
            f"{gibibytes:.0f} GiB",
            platform.platform(terse=True),
            f"Python {platform.python_version()}",
        )
    )


def load_average() -> float:
    """Return how many processes needed a core in the last minute."""
    return os.getloadavg()[0]


def resident_mebibytes(process: int) -> float:
    """Return a process's memory in RAM, including shared memory; NaN if there is no /proc."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return nan


def lives(process: int) -> bool:
    """Return whether a process with this id exists."""
    return Path(f"/proc/{process}").exists()


def pin(process: int, core: int) -> None:
    """Run all threads of a process, and the threads that they will start, on one core."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def cpu_seconds(data_dir: Path) -> dict[str, float]:
    """Return the processor time of the server of a data folder, and of its PostgreSQL; nothing if there is no /proc."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for process in Path("/proc").glob("[0-9]*"):
        if _works_for(process, data_dir):
            seconds[_part(process)] += _cpu_seconds(process)
    return seconds


def cpu_seconds_of(process: int) -> float:
    """Return the processor time of one process; 0 if there is no /proc."""
    return _cpu_seconds(Path(f"/proc/{process}"))


def _part(process: Path) -> str:
    with suppress(OSError):
        return "PostgreSQL" if (process / "comm").read_text() == "postgres\n" else "web and dispatcher"
    return "web and dispatcher"


def _works_for(process: Path, data_dir: Path) -> bool:
    with suppress(OSError):
        traces = (process / "environ").read_bytes() + b"\0" + bytes((process / "cwd").readlink())
        return bytes(data_dir) in traces
    return False


def _cpu_seconds(process: Path) -> float:
    """Return the time of a process and of its children that have ended."""
    with suppress(OSError):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[_FIRST_TIME : _FIRST_TIME + 4])) / _TICKS
    return 0.0


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()
