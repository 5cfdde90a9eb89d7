"""What a scenario is: a name, the rule that it tests, and a function."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from nexmdm.conformance.case import Case


@dataclass(frozen=True, slots=True)
class Scenario:
    """`promise` is the rule of docs/agent.md in one sentence; a miss quotes it. `variables` are for its agent."""

    name: str
    promise: str
    play: Callable[[Case], Awaitable[None]]
    variables: Mapping[str, str] = field(default_factory=dict)
