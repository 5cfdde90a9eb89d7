"""The session of one call of the client, and the exit statuses."""

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
"""The exit status if the reader of the output has ended, such as `head` in a pipe.

A shell reports this status for a process that SIGPIPE has ended."""


@dataclass(frozen=True, slots=True)
class Session:
    """The objects that a verb uses.

    - `program`: the name of the called program, `nexmdm` or `manage.py fleet`.
    - `source`: the origins of the admin key and of the HMAC secret, for messages.
    - `given`: the options of the verb.
    """

    client: FleetClient
    terminal: Terminal
    names: Names
    program: str
    source: tuple[str, str]
    given: dict[str, Any]
