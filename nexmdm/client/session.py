"""The session of one call of the admin's client."""

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
"""The exit status of a program that SIGPIPE ended, as by `| head`."""


@dataclass(frozen=True, slots=True)
class Session:
    """The objects that a verb uses.

    `program` is the called program: `nexmdm` or `manage.py fleet`. `source` names the place of the admin's key and
    secret. `given` contains the options of the verb, for advice on a refusal.
    """

    client: FleetClient
    terminal: Terminal
    names: Names
    program: str
    source: tuple[str, str]
    given: dict[str, Any]
