"""The order that starts an attack, and the counts of the attack."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from loadtest.testbed.connections import NO_ANSWER

ROUND_TRIP_SECONDS: Final = 0.04
"""The pause of an attacker between an answer and its next request. With this pause, the attacker seems to be far away.
"""


@dataclass(frozen=True, slots=True)
class Order:
    """An attack that a separate process carries out.

    - `kind`: a key of `attacks.ATTACKS`.
    - `url`: the address of the attacked server.
    - `sources`: the local addresses of the attacker.
    - `connections`: the number of all connections.
    - `per_second`: the rate of requests; 0: each connection sends its next request after the last answer.
    - `tokens`: the bearer tokens, which are used in turn.
    - `request_id`: the command that the attacker reports on.
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
    """The counts of an attack.

    - `sent`: the number of requests, or of opened connections.
    - `held`: the largest number of connections that were open together.
    - `answers`: the answers, counted by status or by the reason why there was no answer.
    """

    sent: int = 0
    held: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    under_way: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, status: int, body: bytes) -> None:
        """Count an answer. An answer of 500 or above that is not JSON counts separately."""
        not_json = " not JSON" if status >= 500 and not body.startswith(b"{") else ""
        self.answers[body.decode() if status == NO_ANSWER else f"{status}{not_json}"] += 1

    def add(self, other: "Tally") -> None:
        """Add the counts of another attack."""
        self.sent += other.sent
        self.held = max(self.held, other.held)
        self.answers.update(other.answers)
