"""The actions that a server of this version knows, for the help. The client sends any other action too."""

import json
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_FILE: Final = Path(__file__).with_name("actions.json")
"""Written from `commands/actions.py` by `tests/client/test_actions.py`, because the client imports no server code."""

_EXPIRES_IN_SECONDS: Final = 600
"""The time to begin, in seconds, for an action that this version does not know."""


class Action(NamedTuple):
    """An action: its description, its parameters in order with their types in words, and its time to begin."""

    name: str
    description: str
    parameters: dict[str, str]
    expires_in_seconds: int


@cache
def catalogue() -> dict[str, Action]:
    """Return the actions by name."""
    return {one["name"]: Action(**one) for one in json.loads(_FILE.read_text(encoding="utf-8"))}


def expires_in_seconds(name: str) -> int:
    """Return how long a phone has to begin an action if the command does not set it."""
    known = catalogue().get(name)
    return known.expires_in_seconds if known else _EXPIRES_IN_SECONDS
