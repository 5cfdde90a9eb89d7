"""One call of the admin's client: what a verb works with."""

from dataclasses import dataclass
from typing import Any, Final

from nexmdm.client.display import Terminal
from nexmdm.client.http_client import FleetClient
from nexmdm.client.names import Names

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
READER_GONE: Final = 141
"""As of a program that SIGPIPE ended: `| head` has read enough."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a verb works with.

    `program` is what the person called, as `nexmdm` or `manage.py fleet`; `source` names where the admin's key and
    secret are from; `given` are the options of the verb, for what is said of a refusal.
    """

    client: FleetClient
    terminal: Terminal
    names: Names
    program: str
    source: tuple[str, str]
    given: dict[str, Any]
