"""The actions of a server of this version, for help texts. The client can also send other actions."""

import json
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_FILE: Final = Path(__file__).with_name("actions.json")
"""Written by `tests/client/test_actions.py` from `commands/actions.py`. The client must not import server code."""

_EXPIRES_IN_SECONDS: Final = 600
"""The time to begin of an unknown action, in seconds."""


class Action(NamedTuple):
    """An action of the catalogue.

    `parameters` maps each parameter to a description of its type. `expires_in_seconds` is the default time to begin.
    """

    name: str
    description: str
    parameters: dict[str, str]
    expires_in_seconds: int


@cache
def catalogue() -> dict[str, Action]:
    """Return the actions by name."""
    return {one["name"]: Action(**one) for one in json.loads(_FILE.read_text(encoding="utf-8"))}


def expires_in_seconds(name: str) -> int:
    """Return the default time to begin of an action, in seconds."""
    known = catalogue().get(name)
    return known.expires_in_seconds if known else _EXPIRES_IN_SECONDS
