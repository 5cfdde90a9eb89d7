"""The order for an attack, and its counts."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from loadtest.testbed.connections import NO_ANSWER

ROUND_TRIP_SECONDS: Final = 0.04
"""The pause of an attacker between an answer and its next request, as if the attacker were far away."""


@dataclass(frozen=True, slots=True)
class Order:
    """An attack of a kind of `attacks.ATTACKS`: its server, addresses, and total number of connections.

    `per_second` is its rate. Without a rate, each connection sends the next request after the last answer. `tokens` are
    the bearer tokens, used one after the other.
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
    """The number of requests sent (or of connections opened), the number of connections open at a time, and the
    answers.
    """

    sent: int = 0
    held: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    under_way: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, status: int, body: bytes) -> None:
        """Count an answer by its status, with a note if a server error is not JSON; or by the reason why there was no
        answer.
        """
        not_json = " not JSON" if status >= 500 and not body.startswith(b"{") else ""
        self.answers[body.decode() if status == NO_ANSWER else f"{status}{not_json}"] += 1

    def add(self, other: "Tally") -> None:
        """Add the counts of another attack."""
        self.sent += other.sent
        self.held = max(self.held, other.held)
        self.answers.update(other.answers)
