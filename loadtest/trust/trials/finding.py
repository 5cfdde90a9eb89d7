"""What a trial finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise, what was tried against it, the figure that came of it, and whether it was held."""

    promise: str
    tried: str
    figure: str
    held: bool


Trial = Callable[[Path], Iterator[Finding]]
"""A trial has a folder of its own for the servers that it starts, and yields its findings as they come."""
