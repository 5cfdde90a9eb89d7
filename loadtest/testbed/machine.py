"""The machine of a run, and the processor time and memory of processes on it."""

import os
import platform
from collections import defaultdict
from contextlib import suppress
from math import nan
from pathlib import Path
from typing import Final

MEASURED_CORE: Final = 0
"""The core on which only the measured process runs."""

OTHER_CORE: Final = 1
"""The core for all other processes."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_FIRST_TIME: Final = 11
"""The place of the first of four times in /proc/PID/stat, counted after the name: utime, stime, cutime and cstime."""


def described() -> str:
    """Return the processor, memory, system and Python version as one line."""
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
    """Return the average number of processes that needed a core in the last minute."""
    return os.getloadavg()[0]


def resident_mebibytes(process: int) -> float:
    """Return the resident memory of a process in MiB, including shared memory. Without /proc, return NaN."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return nan


def lives(process: int) -> bool:
    """Return whether a process with this id exists."""
    return Path(f"/proc/{process}").exists()


def pin(process: int, core: int) -> None:
    """Let all threads of a process run only on one core.

    A thread that the process starts later also runs only on this core.
    """
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def cpu_seconds(data_dir: Path) -> dict[str, float]:
    """Return the processor time of the server with this data folder, by part: PostgreSQL, and all other processes.

    Without /proc, the dictionary is empty.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    for process in Path("/proc").glob("[0-9]*"):
        if _works_for(process, data_dir):
            seconds[_part(process)] += _cpu_seconds(process)
    return seconds


def cpu_seconds_of(process: int) -> float:
    """Return the processor time of one process in seconds. Without /proc, return 0."""
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
    """Return the processor time of a process and of its ended children, in seconds."""
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
