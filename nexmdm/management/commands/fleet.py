"""manage.py fleet: an admin's client that signs by itself. It speaks HTTP only, and needs no database."""

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand
from django.http.request import validate_host

from nexmdm import fleet_values, fleet_verbs
from nexmdm.fleet_client import FleetClient
from nexmdm.fleet_terminal import Terminal
from nexmdm.fleet_verbs import Session

_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104
_EXIT_STATUS: Final = """Exit status: 0 done, and with --wait every device succeeded; 1 refused, or with --wait some
device did not succeed in time; 2 wrong usage; 3 the server gave no answer."""


class Command(BaseCommand):
    """Run one sub-command. The option `transport` (an httpx.BaseTransport) stands in for the network."""

    help = "Speak to a running server as an admin: every request is signed with ADMIN_KEY and HMAC_SECRET."
    requires_system_checks = ()
    stealth_options = ("transport",)
    # Nothing to say about any of them here; they still work.
    suppressed_base_arguments = {
        "--version", "--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color", "--force-color",
    }  # fmt: skip

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the sub-commands."""
        parser.epilog = _EXIT_STATUS
        _Arguments(parser).declare()

    def handle(self, *_: object, transport: httpx.BaseTransport | None = None, **options: Any) -> None:
        """Run it, and exit with its status."""
        terminal = Terminal(self.stdout, self.stderr, as_json=options.get("as_json", False))
        with closing(_client(options.get("url"), transport)) as client:
            status = fleet_verbs.outcome(Session(client, terminal, options))
        if status:
            sys.exit(status)


def _client(url: str | None, transport: httpx.BaseTransport | None) -> FleetClient:
    key, secret = settings.ADMIN_KEYS[0], settings.HMAC_SECRETS[0]
    if url is not None:
        return FleetClient(url, key=key, secret=secret, transport=transport)
    name = _LOOPBACK.get(settings.HOST, settings.HOST)
    name = f"[{name}]" if ":" in name else name
    return FleetClient(
        f"http://{name}:{settings.PORT}", key=key, secret=secret, host=_host_header(name), transport=transport
    )


def _host_header(name: str) -> str | None:
    """Return a name that the server of these settings accepts, if its address is none."""
    if not settings.ALLOWED_HOSTS or validate_host(name, settings.ALLOWED_HOSTS):
        return None
    accepted: str = settings.ALLOWED_HOSTS[0]
    return accepted.removeprefix(".")


class _Arguments:
    """Declares the sub-commands of a parser."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._verbs = parser.add_subparsers(metavar="COMMAND", required=True, dest="verb")
        self._reach = ArgumentParser(add_help=False)
        self._reach.add_argument(
            "--url", type=fleet_values.url, help="the server; default: HOST and PORT of the settings"
        )
        self._reach.add_argument("--json", action="store_true", dest="as_json", help="print JSON, for scripts")
        self._waiting = ArgumentParser(add_help=False)
        self._waiting.add_argument("--wait", action="store_true", help="wait until every device is done")
        self._waiting.add_argument(
            "--timeout",
            type=fleet_values.seconds,
            metavar="TIME",
            help="how long to wait (implies --wait); default: to the expiry",
        )

    def declare(self) -> None:
        """Declare them all."""
        self._enrollment()
        self._reading()
        self._sending()
        self._signing()

    def _verb(self, name: str, run: Callable[[Session], int], text: str, *, waits: bool = False) -> ArgumentParser:
        parents = [self._reach, self._waiting] if waits else [self._reach]
        verb: ArgumentParser = self._verbs.add_parser(name, help=text, description=text, parents=parents)
        verb.set_defaults(run=run)
        return verb

    def _enrollment(self) -> None:
        verb = self._verb(
            "enroll-token", fleet_verbs.enroll_token, "Make an enrollment token and print it, alone on a line."
        )
        verb.add_argument("--label", help="what it is for")
        verb.add_argument("--max-uses", type=int, metavar="N", help="how many phones it lets in; default 1")
        verb.add_argument(
            "--expires-in", type=fleet_values.seconds, metavar="TIME", help="as 600, 10m, 12h or 7d; default 1d"
        )
        verb.add_argument("--tag", action="append", help="a tag for the phones it lets in; may be repeated")
        verb.add_argument(
            "--re-enroll", action="store_true", default=None, help="let phones in that are enrolled already"
        )

    def _reading(self) -> None:
        devices = self._verb("devices", fleet_verbs.devices, "List devices, newest first.")
        devices.add_argument("--status", choices=["online", "offline", "never"])
        devices.add_argument("--tag")
        devices.add_argument("--q", metavar="TEXT", help="the start of an alias or a hardware id, or a device id")
        _limit(devices)
        self._verb("device", fleet_verbs.device, "Show one device.").add_argument(
            "device_id", type=fleet_values.identifier, metavar="ID"
        )
        commands = self._verb("commands", fleet_verbs.commands, "List commands, newest first.")
        commands.add_argument("--action")
        commands.add_argument("--state", choices=["open", "completed", "cancelled"])
        _limit(commands)
        command = self._verb("command", fleet_verbs.command, "Show one command with its deliveries.", waits=True)
        command.add_argument("request_id", type=fleet_values.identifier, metavar="ID")
        cancel = self._verb("cancel", fleet_verbs.cancel, "Withdraw what is still open of a command.")
        cancel.add_argument("request_id", type=fleet_values.identifier, metavar="ID")
        self._verb("summary", fleet_verbs.summary, "Count the fleet.")

    def _sending(self) -> None:
        ping = self._verb("ping", fleet_verbs.send, "Have devices answer, to show that the loop closes.", waits=True)
        ping.set_defaults(action="ping", param=[], priority=None, dry_run=None, expect_count=None, expires_in=None)
        ping.add_argument("target", type=fleet_values.target, metavar="TARGET", help=fleet_values.TARGET)
        send = self._verb("send", fleet_verbs.send, "Send a command.", waits=True)
        send.add_argument("action", metavar="ACTION", help="ping, launch_app, message, …")
        send.add_argument("target", type=fleet_values.target, metavar="TARGET", help=fleet_values.TARGET)
        send.add_argument(
            "--param", type=fleet_values.param, action="append", default=[], metavar="K=V",
            help="a parameter of the action, as JSON or else as text; may be repeated",
        )  # fmt: skip
        send.add_argument(
            "--expires-in", type=fleet_values.seconds, metavar="TIME", help="as 600, 10m, 12h or 7d; default 10m"
        )
        send.add_argument("--priority", choices=["high", "normal"])
        send.add_argument("--dry-run", action="store_true", default=None, help="check it all, and send nothing")
        send.add_argument("--expect-count", type=int, metavar="N", help="refuse unless it is for N devices")

    def _signing(self) -> None:
        text = "Print the headers that sign a request, the admin key among them, one a line: for curl -H @FILE."
        sign: ArgumentParser = self._verbs.add_parser("sign", help=text, description=text)
        sign.set_defaults(run=fleet_verbs.sign)
        sign.add_argument("method", type=fleet_values.method, metavar="METHOD")
        sign.add_argument(
            "target", type=fleet_values.path, metavar="TARGET", help="path and query exactly as they will be sent"
        )
        sign.add_argument(
            "--body", type=fleet_values.content, default=b"", metavar="FILE", help="the body; - is standard input"
        )


def _limit(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=fleet_values.positive, default=100, metavar="N", help="how many at most; default 100"
    )
