"""The verbs for profiles: `login`, `logout` and `profiles`."""

import getpass
import sys
from contextlib import closing

import rich_click as click

from nexmdm.client import arguments, failures, rows
from nexmdm.client.display import Format, Terminal
from nexmdm.client.http_client import FleetClient, on_loopback
from nexmdm.client.names import Names
from nexmdm.client.profiles import connection, profile_file
from nexmdm.client.profiles.connection import NotConnected
from nexmdm.client.profiles.memory import Memory
from nexmdm.client.profiles.profile_file import ProfileError
from nexmdm.client.session import DONE, FAILED, WRONG_USAGE, Session
from nexmdm.client.verbs.shared import surroundings, terminal_of

_PROFILE = click.option("--profile", metavar="NAME", help="The name of the profile. Without this option: `default`.")


def _name(context: click.Context, profile: str | None) -> str:
    return profile_file.checked_name(profile or surroundings(context).wish.get("profile") or profile_file.DEFAULT)


@click.command("login")
@_PROFILE
@click.option("--url", type=arguments.URL, help="The server. Without this option, the program asks for the server.")
@click.option("--no-keyring", is_flag=True, help="Store the secrets in the file of profiles, which only you can read.")
@click.option("--no-check", is_flag=True, help="Save the profile without a call to the server.")
@click.pass_context
def login(context: click.Context, profile: str | None, url: str | None, *, no_keyring: bool, no_check: bool) -> None:
    """Save a server's address, admin key and signing secret as a profile.

    The program stores the secrets in the keyring of this machine. If no keyring works, the program stores the secrets
    in a file that only you can read.

    Without a terminal, the admin key and the signing secret are the next two lines of standard input.
    """
    terminal = terminal_of(context)
    try:
        name = _name(context, profile)
        url = (url or surroundings(context).wish.get("url") or _asked_url()).rstrip("/")
        key = connection.sendable("The admin key", _secret("Admin key (ADMIN_KEY): "))
        secret = connection.sendable("The signing secret", _secret("Signing secret (HMAC_SECRET): "))
        if url.startswith("http:") and not on_loopback(url):
            terminal.hint(f"Warning: {url} does not use TLS. The admin key and every answer are sent unencrypted.")
        if not no_check and (status := _check(context, terminal, name, url, key, secret)):
            terminal.complain("The profile was not saved.")
            context.exit(status)
        saved = profile_file.save(name, url, key, secret, use_keyring=not no_keyring)
    except (NotConnected, ProfileError) as error:
        terminal.complain(str(error))
        context.exit(WRONG_USAGE)
    except OSError as error:
        terminal.complain(f"{profile_file.path()} cannot be written: {error.strerror or error}")
        context.exit(FAILED)
    place = "the keyring" if saved.secrets == profile_file.IN_KEYRING else str(profile_file.path())
    terminal.hint(f"Saved the profile {name!r}. Its secrets are in {place}.")


def _asked_url() -> str:
    found: str = click.prompt("Server (as https://mdm.example.com)", type=arguments.URL, err=True)
    return found


def _secret(question: str) -> str:
    """Return a secret that the admin types. Without a terminal, return the next line of standard input."""
    return getpass.getpass(question) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")


def _check(context: click.Context, terminal: Terminal, name: str, url: str, key: str, secret: str) -> int:
    """Send one request to check the address and the secrets. Return the exit status."""
    around = surroundings(context)
    with closing(FleetClient(url, key=key, secret=secret, transport=around.transport)) as client:
        names = Names(client, Memory(name, client.url))
        session = Session(client, terminal, names, around.program, ("the admin key", "the signing secret"), {})

        def call() -> int:
            client.get("/admin/summary")
            return DONE

        return failures.outcome(session, call)


@click.command("logout")
@_PROFILE
@click.pass_context
def logout(context: click.Context, profile: str | None) -> None:
    """Remove a profile and its secrets."""
    try:
        name = _name(context, profile)
        profile_file.remove(name)
    except (ProfileError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        context.exit(FAILED)
    sys.stderr.write(f"Removed the profile {name!r}.\n")


@click.command("profiles")
@click.option("-o", "--output", "form", type=click.Choice(["table", "wide", "json", "csv", "yaml"]), default="table")
@click.pass_context
def profiles(context: click.Context, form: Format) -> None:
    """List the profiles, with their servers and the places of their secrets. No secret is shown."""
    try:
        found = profile_file.load_all().values()
    except ProfileError as error:
        sys.stderr.write(f"{error}\n")
        context.exit(FAILED)
    terminal = terminal_of(context, form)
    shown = [{"name": one.name, "url": one.url, "secrets": one.secrets} for one in found]
    if terminal.is_structured:
        terminal.value(shown)
    else:
        terminal.table(rows.PROFILES, shown)
