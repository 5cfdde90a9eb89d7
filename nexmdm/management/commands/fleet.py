"""The command `manage.py fleet`: the client `nexmdm`, with the address and secrets from the settings of this process.

The client uses HTTP, and does not use the database.
"""

from typing import NoReturn

from django.conf import settings
from django.core.management.base import BaseCommand

from nexmdm.client import program
from nexmdm.client.surroundings import Surroundings
from nexmdm.common import addresses
from nexmdm.config import named_admins

PROGRAM = "manage.py fleet"


class OwnServer:
    """The address and the secrets of the server with these settings.

    `host` is the Host header for requests to `url`, or None if it is the host in `url`.
    """

    def __init__(self) -> None:
        self.url, self.host = addresses.of_settings()

    def credentials(self, principal: str) -> tuple[str, str] | None:
        """Return the current admin key and HMAC secret of a principal, or None if there is no such admin."""
        if principal == named_admins.UNNAMED:
            return settings.ADMIN_KEYS[0], settings.HMAC_SECRETS[0]
        if principal not in settings.NAMED_ADMIN_KEYS:
            return None
        return settings.NAMED_ADMIN_KEYS[principal][0], settings.NAMED_HMAC_SECRETS[principal][0]


class Command(BaseCommand):
    """Pass the arguments to the client. The client parses them, and Django's parser does not."""

    help = "Call a running server as an admin. The client signs every request with ADMIN_KEY and HMAC_SECRET."
    requires_system_checks = ()

    def run_from_argv(self, argv: list[str]) -> NoReturn:
        """Run the client with the arguments after `fleet`, and exit with its status."""
        program.run(argv[2:], Surroundings(PROGRAM, OwnServer()))

    def print_help(self, prog_name: str, subcommand: str) -> NoReturn:
        """Print the client's help, and exit."""
        del prog_name, subcommand
        program.run(["--help"], Surroundings(PROGRAM, OwnServer()))
