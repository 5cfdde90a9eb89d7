"""What a scenario is: a name, the rule that it tests, and a function."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from nexmdm.conformance.case import Case


@dataclass(frozen=True, slots=True)
class Scenario:
    """`promise` is the rule as docs/agent.md states it. If a run misses the rule, the table of results quotes it.

    `variables` are for the agent of this scenario.
    """

    name: str
    promise: str
    play: Callable[[Case], Awaitable[None]]
    variables: Mapping[str, str] = field(default_factory=dict)
