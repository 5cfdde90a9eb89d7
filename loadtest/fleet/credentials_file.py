"""The file with the credentials of a simulated fleet. Only the owner of the file can read it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Member:
    """A phone of the fleet, with its credentials. `push_token` is empty if the phone has no push token."""

    device_id: str
    device_token: str
    command_key: str
    push_token: str


def write(path: Path, members: Iterable[Member]) -> None:
    """Write the phones into a new file, one in each line.

    An existing file is replaced. The file's mode is always 0600.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        for one in members:
            file.write(f"{one.device_id}\t{one.device_token}\t{one.command_key}\t{one.push_token}\n")


def read(path: Path, part: int = 0, parts: int = 1) -> list[Member]:
    """Return every `parts`-th phone of the file, from phone number `part` on, counted from 0."""
    with path.open(encoding="ascii") as file:
        return [Member(*line.rstrip("\n").split("\t")) for line in islice(file, part, None, parts)]
