"""The program `nexmdm` with all its verbs. A verb's module is imported only if the verb is called."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Final, NamedTuple, NoReturn

import rich_click as click

from nexmdm.client.surroundings import REACH, Surroundings

_EXIT_STATUS: Final = """Exit status. 0: done, and with --wait every device succeeded. 1: refused, not found, nothing
was left to cancel, or with --wait some device did not succeed in time. 2: wrong usage. 3: the server gave no answer."""


class _Verb(NamedTuple):
    module: str
    name: str
    text: str


PANELS: Final = {
    "Devices": (
        _Verb("devices", "devices", "List devices, silent devices first."),
        _Verb("devices", "device", "Show one device."),
        _Verb("devices", "change", "Change or remove the alias and the tags of a device."),
        _Verb("devices", "tag", "Add a tag to devices, or remove a tag from devices."),
        _Verb("enrollment", "enroll-token", "Create an enrollment token, and print the token alone on a line."),
        _Verb("enrollment", "enroll-tokens", "List enrollment tokens, newest first."),
        _Verb("enrollment", "revoke-token", "Revoke an enrollment token. Phones can no longer use the token."),
    ),
    "Commands for devices": (
        _Verb("sending", "ping", "Send a ping, which tests the path to the devices and back."),
        _Verb("sending", "send", "Send a command."),
        _Verb("commands", "commands", "List the newest commands, failed commands first."),
        _Verb("commands", "command", "Show one command with its deliveries."),
        _Verb("commands", "delivery", "Show the timeline of a command on one device."),
        _Verb("commands", "cancel", "Cancel the open deliveries of a command."),
    ),
    "Lost phones": (
        _Verb("lost", "lost", "Lock and wipe a lost phone. After a successful wipe, the server retires the device."),
        _Verb("exclusion", "revoke", "Revoke a device immediately. Its open commands are cancelled."),
        _Verb("exclusion", "reinstate", "Reinstate a revoked device. Its old device token works again."),
        _Verb("exclusion", "retire", "Retire a device permanently. Its hardware may register again."),
    ),
    "Server": (
        _Verb("fleet", "summary", "Show the summary of the fleet."),
        _Verb(
            "fleet", "push-health", "Compare the results of pushes by model, manufacturer or version, the worst first."
        ),
        _Verb("fleet", "audit", "List the signed writes, carried out or refused, newest first."),
        _Verb("events.events", "events", "List the events of the fleet in order. With --follow, wait for new events."),
        _Verb("events.webhooks", "webhook", "Create and control webhooks, to which the server sends events."),
        _Verb("requests", "call", "Sign and send any request, and print its answer as JSON."),
        _Verb("requests", "sign", "Print the headers of a signed request, including the admin key."),
    ),
    "This client": (
        _Verb("logins", "login", "Save a server's address, admin key and signing secret as a profile."),
        _Verb("logins", "logout", "Remove a profile and its secrets."),
        _Verb("logins", "profiles", "List the profiles."),
        _Verb("completion", "completion", "Print the completion script for bash, zsh or fish."),
    ),
}
VERBS: Final = {verb.name: verb for verbs in PANELS.values() for verb in verbs}


class Program(click.RichGroup):
    """The group of all verbs for click. The help needs no import of a module with verbs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all verbs, in the order of the help."""
        del ctx
        return list(VERBS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the called verb. The error for an unknown verb names similar verbs."""
        name, listed, rest = super().resolve_command(ctx, args)
        if listed is None or listed.name is None:
            return name, listed, rest
        module = importlib.import_module(f"nexmdm.client.verbs.{VERBS[listed.name].module}")
        return name, getattr(module, listed.name.replace("-", "_")), rest


def _listed() -> Iterator[click.Command]:
    for panel, verbs in PANELS.items():
        for verb in verbs:
            yield click.RichCommand(name=verb.name, help=verb.text, panel=panel)


def _note(context: click.Context, /, **wish: str | None) -> None:
    context.obj.wish = wish


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    try:
        click.echo(f"nexmdm {metadata.version('nexmdm')}")
    except metadata.PackageNotFoundError:
        click.echo("nexmdm, run from a checkout")
    context.exit()


def make() -> Program:
    """Return the program with all its verbs."""
    found = Program(
        commands=list(_listed()),
        callback=click.pass_context(_note),
        help=(
            "Call a NexMDM server as an admin. The client signs each request. `nexmdm login` saves the server's "
            "address."
        ),
        epilog=_EXIT_STATUS,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    version = click.option(
        "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
    )
    for option in (version, *reversed(REACH)):
        option(found)
    return found


def run(arguments: Sequence[str], surroundings: Surroundings) -> NoReturn:
    """Run the program with `arguments`, and exit with its status."""
    make().main(list(arguments), prog_name=surroundings.program, obj=surroundings)
    raise AssertionError("main() returned, but click's standalone mode must exit the process")


def main() -> NoReturn:
    """Run `nexmdm` with the arguments of this process."""
    run(sys.argv[1:], Surroundings())
