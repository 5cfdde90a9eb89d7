"""What an attack is told, and what it counts."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from loadtest.testbed.connections import NO_ANSWER

ROUND_TRIP_SECONDS: Final = 0.04
"""How far away an attacker is that waits for an answer: how long it takes to send the next request of a loop."""


@dataclass(frozen=True, slots=True)
class Order:
    """An attack, of a kind of `attacks.ATTACKS`: on which server, from which addresses, by how many connections in all.

    `per_second` is its rate; without one, each connection sends the next request when the last one was answered.
    `tokens` are the bearers, taken in turns.
    """

    kind: str
    url: str
    sources: list[str]
    connections: int
    per_second: float = 0
    tokens: list[str] = field(default_factory=list)
    request_id: str = ""


@dataclass(slots=True)
class Tally:
    """How many requests were sent (or connections opened), how many connections were held at a time, the answers."""

    sent: int = 0
    held: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    under_way: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, status: int, body: bytes) -> None:
        """Count an answer: a status, with a word if a failure of the server is not in JSON; or why there was none."""
        not_json = " not JSON" if status >= 500 and not body.startswith(b"{") else ""
        self.answers[body.decode() if status == NO_ANSWER else f"{status}{not_json}"] += 1

    def add(self, other: "Tally") -> None:
        """Count what another one has counted at another time."""
        self.sent += other.sent
        self.held = max(self.held, other.held)
        self.answers.update(other.answers)
