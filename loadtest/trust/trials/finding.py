"""The findings of a trial."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of the test of one promise.

    - `promise`: the promise, in words.
    - `tried`: how the promise was tested, in words.
    - `figure`: what was measured, in words.
    - `held`: whether the promise was kept.
    """

    promise: str
    tried: str
    figure: str
    held: bool


Trial = Callable[[Path], Iterator[Finding]]
"""A function that starts servers, tests promises against them, and yields a finding for each promise. Its argument is
an empty folder for the servers."""
