"""Types of arguments that a shell completes with names from the server."""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, Final

import rich_click as click
from click.shell_completion import CompletionItem

from nexmdm.client import actions, arguments
from nexmdm.client.arguments import TAG, Value
from nexmdm.client.display import Terminal
from nexmdm.client.http_client import PAGE, FleetClient, Refused, Unreachable
from nexmdm.client.profiles.connection import NotConnected
from nexmdm.client.profiles.memory import LAST
from nexmdm.client.profiles.profile_file import ProfileError
from nexmdm.client.session import Session
from nexmdm.client.surroundings import REACH_NAMES
from nexmdm.client.verbs.shared import connect, surroundings

SECONDS: Final = 1.0
"""How long a completion may wait for an answer of the server, in seconds."""

MOST: Final = 100
Ask = Callable[[FleetClient, str], Iterable[str]]


class Asked(Value):
    """An argument that a shell completes with names from the server.

    If the server does not answer, there are no completions.
    """

    def __init__(self, name: str, parse: Callable[[str], Any], ask: Ask) -> None:
        super().__init__(name, parse)
        self._ask = ask

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the completions of the part after the last comma."""
        del param
        before, comma, start = incomplete.rpartition(",")
        try:
            with closing(_session(ctx).client) as client:
                found = [one for one in self._ask(client, start) if one.lower().startswith(start.lower())]
        except (NotConnected, ProfileError, Refused, Unreachable, LookupError, TypeError, ValueError):
            found = []
        return [CompletionItem(f"{before}{comma}{one}") for one in found]


class ActionName(click.ParamType[str]):
    """The name of an action. A shell completes it with the actions of this version."""

    name = "action"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the actions that begin with `incomplete`."""
        del ctx, param
        known = actions.catalogue().values()
        return [CompletionItem(one.name, help=one.description) for one in known if one.name.startswith(incomplete)]


def _session(context: click.Context) -> Session:
    wish: dict[str, str | None] = {}
    for one in (context.find_root(), context):
        wish |= {name: value for name in REACH_NAMES if (value := one.params.get(name))}
    quiet = Terminal(io.StringIO(), io.StringIO())
    return connect(surroundings(context), wish, quiet, {}, answer_seconds=SECONDS)


def _as_it_is(text: str) -> str:
    return text


def _devices(client: FleetClient, start: str) -> Iterator[str]:
    yield LAST
    for row in client.items("/admin/devices", MOST, q=start or None)[0]:
        if row["retired_at"] is None:
            yield row["alias"] or row["hardware_id"]


def _tags(client: FleetClient, start: str) -> set[str]:
    del start
    return known_tags(client)


def known_tags(client: FleetClient) -> set[str]:
    """Return the tags of the newest devices."""
    return {tag for row in client.items("/admin/devices", PAGE)[0] for tag in row["tags"]}


def _targets(client: FleetClient, start: str) -> Iterator[str]:
    if start.startswith(TAG):
        yield from (TAG + tag for tag in _tags(client, start))
        return
    yield from ("all", TAG)
    yield from _devices(client, start)


def _commands(client: FleetClient, start: str) -> list[str]:
    del start
    return [LAST, *(row["request_id"] for row in client.items("/admin/commands", MOST)[0])]


def _labels(client: FleetClient, start: str) -> Iterator[str]:
    del start
    for row in client.items("/admin/enrollment-tokens", MOST)[0]:
        if row["label"] and row["revoked_at"] is None:
            yield row["label"]


DEVICE: Final = Asked("device", _as_it_is, _devices)
TOKEN: Final = Asked("token", _as_it_is, _labels)
COMMAND: Final = Asked("command", _as_it_is, _commands)
TAG_FILTER: Final = Asked("tag", _as_it_is, _tags)
TAG_NAME: Final = Asked("tag", arguments.tag, _tags)
TARGET: Final = Asked("target", arguments.target, _targets)
ACTION: Final = ActionName()
