"""The findings of a trial."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise, how it was tested, the measured figure, and whether it was kept."""

    promise: str
    tried: str
    figure: str
    held: bool


Trial = Callable[[Path], Iterator[Finding]]
"""A trial gets a folder for the servers that it starts, and yields its findings one by one."""
