"""The environment of a call, and the options that choose the server and the admin.

These options may come before or after the verb.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Final

import rich_click as click

from nexmdm.client import arguments
from nexmdm.client.network.transport import Transport
from nexmdm.client.profiles.own_server import OwnServer

Decorator = Callable[[Any], Any]
PROGRAM: Final = "nexmdm"
"""The name of the installed program. In a checkout, the name is `manage.py fleet`."""

PANEL: Final = "Server and output"
REACH_NAMES: Final = ("url", "acts_as", "profile")
REACH: Final[tuple[Decorator, ...]] = (
    click.option(
        "--url", type=arguments.URL, panel=PANEL,
        help="The server. Default: NEXMDM_URL, or the server of the profile; for `manage.py fleet`, HOST and PORT.",
    ),
    click.option(
        "--as", "acts_as", metavar="NAME", panel=PANEL,
        help="Sign with ADMIN_KEY_<NAME> and HMAC_SECRET_<NAME> instead of ADMIN_KEY and HMAC_SECRET.",
    ),
    click.option(
        "--profile", metavar="NAME", panel=PANEL,
        help="The profile that `login` saved. Default: NEXMDM_PROFILE, or the profile named `default`.",
    ),
)  # fmt: skip


@dataclass(slots=True)
class Surroundings:
    """The environment of a call of the client.

    - `program`: the name of the called program.
    - `own`: the server of `manage.py fleet`, or None for `nexmdm`.
    - `transport`: replaces the network, for tests.
    - `out`: replaces standard output.
    - `wish`: the options before the verb. Options after the verb override them.
    """

    program: str = PROGRAM
    own: OwnServer | None = None
    transport: Transport | None = None
    out: IO[str] | None = None
    wish: Mapping[str, str | None] = field(default_factory=dict)
