"""The simulated fleet and its credentials, in a file that only its owner can read."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Member:
    """A phone of the fleet. `push_token` is empty if the phone has no push token."""

    device_id: str
    device_token: str
    command_key: str
    push_token: str


def write(path: Path, members: Iterable[Member]) -> None:
    """Write the file, a line for each phone, with mode 0600 from the first byte on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        for one in members:
            file.write(f"{one.device_id}\t{one.device_token}\t{one.command_key}\t{one.push_token}\n")


def read(path: Path, part: int = 0, parts: int = 1) -> list[Member]:
    """Return all phones, or every `parts`-th phone, beginning with phone number `part`."""
    with path.open(encoding="ascii") as file:
        return [Member(*line.rstrip("\n").split("\t")) for line in islice(file, part, None, parts)]
