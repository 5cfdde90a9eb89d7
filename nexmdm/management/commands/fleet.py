"""manage.py fleet: a client for admins that signs its requests. It speaks only HTTP, and needs no database."""

import os
import sys
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from nexmdm.client import arguments, session, subcommands
from nexmdm.client.arguments import NO_BODY
from nexmdm.client.display import Terminal
from nexmdm.client.http_client import FleetClient, on_loopback
from nexmdm.client.session import FAILED, WRONG_USAGE, Session
from nexmdm.common import addresses
from nexmdm.config import environment, named_admins

_OF_THE_SERVER: Final = ("ADMIN_KEY", "HMAC_SECRET")
_ONLY_OF_SEND: Final = ("priority", "dry_run", "expect_count", "expires_in", "supersede", "note")
_EXIT_STATUS: Final = """Exit status: 0 done, and with --wait every device succeeded; 1 refused, nothing was left to
cancel, or with --wait some device did not succeed in time; 2 wrong usage; 3 the server gave no answer."""


class Command(BaseCommand):
    """Run one sub-command. The option `transport` (an httpx.BaseTransport) replaces the network."""

    help = "Speak to a running server as an admin: every request is signed with ADMIN_KEY and HMAC_SECRET."
    requires_system_checks = ()
    stealth_options = ("transport",)
    # These options of Django are not shown in the help; they still work.
    suppressed_base_arguments = {
        "--version", "--verbosity", "--settings", "--pythonpath", "--traceback", "--no-color", "--force-color",
    }  # fmt: skip

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the sub-commands."""
        parser.epilog = _EXIT_STATUS
        _Arguments(parser).declare()

    def handle(self, *_: object, transport: httpx.BaseTransport | None = None, **options: Any) -> None:
        """Run the sub-command, and exit with its status."""
        if (wants := options.get("wants")) and not set(wants) & set(options):
            raise CommandError("Nothing to change was given: see --help.", returncode=WRONG_USAGE)
        if options.get("dry_run") and (options["wait"] or options["timeout"] is not None):
            raise CommandError("--dry-run sends nothing, so it does not work with --wait.", returncode=WRONG_USAGE)
        principal = options["acts_as"].lower()
        variables = _variables(principal)
        terminal = Terminal(self.stdout, self.stderr, as_json=options["as_json"])
        url: str | None = options["url"]
        if url is not None and url.startswith("http:") and not on_loopback(url):
            terminal.hint(f"Warning: {url} has no TLS: the admin key and every answer travel unencrypted.")
        self._tolerate_letters()
        with closing(_client(principal, url, transport)) as client:
            try:
                status = session.outcome(Session(client, terminal, options, variables))
                self.stdout.flush()
            except OSError as error:
                terminal.complain(f"The answer could not be written: {error.strerror or error}")
                self._give_up_output()
                status = FAILED
        if status:
            sys.exit(status)

    def _tolerate_letters(self) -> None:
        """Print a mark instead of characters that the output's encoding does not have."""
        if reconfigure := getattr(self.stdout, "reconfigure", None):
            reconfigure(errors="replace")

    def _give_up_output(self) -> None:
        """Discard the rest of the output: Python would try once more at its end, and print an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stdout.fileno())
        os.close(nowhere)


def _client(principal: str, url: str | None, transport: httpx.BaseTransport | None) -> FleetClient:
    key, secret = _credentials(principal)
    own, host = addresses.of_settings()
    if url is None:
        url = own
    else:
        host = None
        if principal == named_admins.UNNAMED:
            _check_secrets(url, own)
    return FleetClient(url, key=key, secret=secret, host=host, transport=transport, repeats=True)


def _variables(principal: str) -> tuple[str, str]:
    """Return the variables of the environment with the key and the secret of an admin, who must have them if named."""
    found = named_admins.variables_of(principal)
    if found is None:
        message = (
            f"{principal!r} cannot be the name of an admin: a name is 1 to 64 letters A to Z and digits, such as OPS1."
        )
        raise CommandError(message, returncode=WRONG_USAGE)
    if principal != named_admins.UNNAMED and principal not in settings.NAMED_ADMIN_KEYS:
        message = f"There is no admin {principal!r}: set {' and '.join(found)} in the environment."
        raise CommandError(message, returncode=WRONG_USAGE)
    return found


def _credentials(principal: str) -> tuple[str, str]:
    """Return the current key and secret of an admin. Those of a named admin are always from the environment."""
    if principal == named_admins.UNNAMED:
        return settings.ADMIN_KEYS[0], settings.HMAC_SECRETS[0]
    return settings.NAMED_ADMIN_KEYS[principal][0], settings.NAMED_HMAC_SECRETS[principal][0]


def _check_secrets(url: str, own: str) -> None:
    """Refuse to sign for another server with the secrets that were generated for the server on this machine."""
    missing = [name for name in _OF_THE_SERVER if not environment.text(name)]
    if not missing or on_loopback(url) or url.rstrip("/") == own:
        return
    message = f"{url} is another server: set {' and '.join(_OF_THE_SERVER)} in the environment to those of that server"
    raise CommandError(f"{message} (not set: {', '.join(missing)}).", returncode=WRONG_USAGE)


class _Arguments:
    """Declares the sub-commands of a parser."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._verbs = parser.add_subparsers(metavar="COMMAND", required=True, dest="verb")
        self._reach = ArgumentParser(add_help=False)
        self._reach.add_argument("--url", type=arguments.url, help="the server; default: HOST and PORT of the settings")
        self._reach.add_argument(
            "--as",
            default=named_admins.UNNAMED,
            dest="acts_as",
            metavar="NAME",
            help="sign with ADMIN_KEY_<NAME> and HMAC_SECRET_<NAME>; default: ADMIN_KEY and HMAC_SECRET",
        )
        self._reach.add_argument("--json", action="store_true", dest="as_json", help="print JSON, for scripts")
        self._waiting = ArgumentParser(add_help=False)
        self._waiting.add_argument("--wait", action="store_true", help="wait until every device is done")
        self._waiting.add_argument(
            "--timeout",
            type=arguments.seconds,
            metavar="TIME",
            help="how long to wait (implies --wait); default: until the command expires",
        )

    def declare(self) -> None:
        """Declare them all."""
        self._enrollment()
        self._devices()
        self._commands()
        self._sending()
        self._whole()
        self._any_request()

    def _verb(self, name: str, run: Callable[[Session], int], text: str, *, waits: bool = False) -> ArgumentParser:
        parents = [self._reach, self._waiting] if waits else [self._reach]
        verb: ArgumentParser = self._verbs.add_parser(name, help=text, description=text, parents=parents)
        verb.set_defaults(run=run)
        return verb

    def _enrollment(self) -> None:
        verb = self._verb(
            "enroll-token", subcommands.enroll_token, "Make an enrollment token and print it, alone on a line."
        )
        verb.add_argument("--label", help="a note on its purpose")
        verb.add_argument("--max-uses", type=int, metavar="N", help="how many phones may register with it; default 1")
        verb.add_argument(
            "--expires-in", type=arguments.seconds, metavar="TIME", help="as 600, 10m, 12h or 7d; default 1d"
        )
        verb.add_argument("--tag", action="append", help="a tag for the phones that register with it; may be repeated")
        verb.add_argument(
            "--re-enroll", action="store_true", default=None, help="also valid for phones that are enrolled already"
        )

        _limit(self._verb("enroll-tokens", subcommands.enroll_tokens, "List enrollment tokens, newest first."))
        verb = self._verb(
            "revoke-token", subcommands.revoke_token, "Revoke an enrollment token: phones can no longer use it."
        )
        verb.add_argument("token_id", type=arguments.identifier, metavar="ID")

    def _devices(self) -> None:
        devices = self._verb("devices", subcommands.devices, "List devices, newest first.")
        devices.add_argument("--status", choices=["online", "offline", "never", "revoked", "retired"])
        devices.add_argument("--push", choices=["ok", "failing", "dead", "none"])
        devices.add_argument("--tag")
        for name in ("--model", "--os-version", "--agent-version"):
            devices.add_argument(name, metavar="TEXT", help="exactly as the device reported it")
        devices.add_argument(
            "--not-seen-for", type=arguments.seconds, metavar="TIME", dest="not_seen_for_seconds",
            help="no heartbeat for this time (10m, 12h, 7d), also revoked and retired devices; before the first "
            "heartbeat, the time since the enrollment counts",
        )  # fmt: skip
        devices.add_argument(
            "--q", metavar="TEXT", help="part of an alias or a hardware id, in any case; or the start of a device id"
        )
        _limit(devices)
        for name, run, text in (
            ("device", subcommands.device, "Show one device."),
            ("revoke", subcommands.revoke, "Revoke a device immediately; its open commands are cancelled."),
            ("retire", subcommands.retire, "Retire a device permanently; its hardware may register again."),
            ("reinstate", subcommands.reinstate, "Reinstate a revoked device, with the same token."),
        ):
            self._verb(name, run, text).add_argument("device_id", type=arguments.identifier, metavar="ID")
        self._changes()

    def _changes(self) -> None:
        change = self._verb("change", subcommands.change, "Change or remove the alias and the tags of a device.")
        change.add_argument("device_id", type=arguments.identifier, metavar="ID")
        alias = change.add_mutually_exclusive_group()
        alias.add_argument("--alias", default=SUPPRESS, metavar="NAME")
        alias.add_argument(
            "--no-alias", action="store_const", const=None, default=SUPPRESS, dest="alias", help="remove the alias"
        )
        tags = change.add_mutually_exclusive_group()
        tags.add_argument(
            "--tag",
            action="append",
            default=SUPPRESS,
            dest="tags",
            help="a tag that replaces all present ones; may be repeated",
        )
        tags.add_argument(
            "--no-tags", action="store_const", const=[], default=SUPPRESS, dest="tags", help="remove all tags"
        )
        change.set_defaults(wants=("alias", "tags"))
        tag = self._verb("tag", subcommands.tag, "Add a tag to devices, or remove it from them.")
        tag.add_argument("tag", type=arguments.tag, metavar="TAG")
        for name, text in (("--add", "devices that get the tag"), ("--remove", "devices that lose the tag")):
            tag.add_argument(
                name,
                type=arguments.identifier,
                nargs="+",
                action="extend",
                default=SUPPRESS,
                metavar="ID",
                help=text,
            )
        tag.set_defaults(wants=("add", "remove"))

    def _commands(self) -> None:
        commands = self._verb("commands", subcommands.commands, "List commands, newest first.")
        commands.add_argument("--action")
        commands.add_argument("--state", choices=["open", "completed", "expired", "cancelled"])
        commands.add_argument("--outcome", choices=["succeeded", "partial", "failed", "expired", "cancelled"])
        commands.add_argument("--device", type=arguments.identifier, metavar="ID", dest="device_id")
        _between(commands)
        _limit(commands)
        command = self._verb("command", subcommands.command, "Show one command with its deliveries.", waits=True)
        command.add_argument("request_id", type=arguments.identifier, metavar="ID")
        command.add_argument(
            "--not-succeeded", action="store_true", help="leave out the devices that succeeded in time"
        )
        delivery = self._verb("delivery", subcommands.delivery, "Show the timeline of a command on one device.")
        delivery.add_argument("request_id", type=arguments.identifier, metavar="ID")
        delivery.add_argument("device_id", type=arguments.identifier, metavar="DEVICE")
        cancel = self._verb("cancel", subcommands.cancel, "Cancel the open deliveries of a command.")
        cancel.add_argument("request_id", type=arguments.identifier, metavar="ID")

    def _whole(self) -> None:
        self._verb("summary", subcommands.summary, "Show the summary of the fleet.")
        audit = self._verb("audit", subcommands.audit, "List the signed writes, carried out or refused, newest first.")
        audit.add_argument("--action", help="the action: wipe, retire, cancel, …")
        audit.add_argument("--device", type=arguments.identifier, metavar="ID", dest="device_id")
        audit.add_argument("--command", type=arguments.identifier, metavar="ID", dest="request_id")
        audit.add_argument(
            "--principal", type=str.lower, metavar="NAME", help="the name of the admin, in upper or lower case"
        )
        audit.add_argument("--status", type=int, help="the status of the answer: 200, 422, …")
        _between(audit)
        _limit(audit)

    def _sending(self) -> None:
        ping = self._verb(
            "ping", subcommands.send, "Send a ping, which tests the way to the devices and back.", waits=True
        )
        ping.set_defaults(action="ping", param=[], **dict.fromkeys(_ONLY_OF_SEND))
        ping.add_argument("target", type=arguments.target, metavar="TARGET", help=arguments.TARGET)
        send = self._verb("send", subcommands.send, "Send a command.", waits=True)
        send.add_argument("action", metavar="ACTION", help="ping, launch_app, message, …")
        send.add_argument("target", type=arguments.target, metavar="TARGET", help=arguments.TARGET)
        send.add_argument(
            "--param", type=arguments.param, action="append", default=[], metavar="K=V",
            help="a parameter of the action, as JSON or else as text; may be repeated",
        )  # fmt: skip
        send.add_argument(
            "--expires-in",
            type=arguments.seconds,
            metavar="TIME",
            help="as 600, 10m, 12h or 7d; by default 10m, reboot 1h, lock and wipe 28d",
        )
        send.add_argument("--priority", choices=["high", "normal"])
        send.add_argument("--dry-run", action="store_true", default=None, help="check everything, and send nothing")
        send.add_argument(
            "--expect-count", type=int, metavar="N", help="the number of devices; if it differs, nothing is sent"
        )
        send.add_argument(
            "--supersede",
            action="store_true",
            default=None,
            help="cancel open deliveries of the same action on these devices",
        )
        send.add_argument("--note", metavar="TEXT", help="a note that is stored with the command")

    def _any_request(self) -> None:
        call = self._verb("call", subcommands.call, "Sign and send any request, and print its answer as JSON.")
        _request(call)
        text = "Print the headers of a signed request, with the admin key, one a line: for curl -H @FILE."
        _request(self._verb("sign", subcommands.sign, f"{text} With --url, print a complete curl command."))


def _request(parser: ArgumentParser) -> None:
    parser.add_argument("method", type=arguments.method, metavar="METHOD")
    parser.add_argument("target", type=arguments.path, metavar="TARGET", help="path and query exactly as sent")
    parser.add_argument(
        "--body", type=arguments.content, default=NO_BODY, metavar="FILE", help="the body, JSON; - is standard input"
    )


def _between(parser: ArgumentParser) -> None:
    for name, text in (("--since", "from this time on"), ("--until", "before this time")):
        parser.add_argument(
            name, type=arguments.moment, metavar="TIME", help=f"{text}: 2h (ago), or 2026-01-01T00:00:00Z"
        )


def _limit(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=arguments.positive, default=100, metavar="N", help="how many at most; default 100"
    )
