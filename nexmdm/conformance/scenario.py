"""The class of a scenario, which is a test of an agent."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from nexmdm.conformance.case import Case


@dataclass(frozen=True, slots=True)
class Scenario:
    """A test of one rule for agents.

    `promise` is the rule as docs/agent.md states it. `variables` are additional environment variables of the agent.
    """

    name: str
    promise: str
    play: Callable[[Case], Awaitable[None]]
    variables: Mapping[str, str] = field(default_factory=dict)
