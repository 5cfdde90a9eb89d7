"""The verbs `devices`, `device`, `change` and `tag`."""

from typing import Any, Final

import rich_click as click

from nexmdm.client import arguments, rows
from nexmdm.client.display import PEOPLE
from nexmdm.client.http_client import PAGE
from nexmdm.client.names import Json
from nexmdm.client.session import DONE, Session
from nexmdm.client.suggestions import did_you_mean
from nexmdm.client.verbs import shared, values
from nexmdm.client.verbs.answers import given, show, show_list

_PATH: Final = "/admin/devices"
_REPORTED: Final = "The value exactly as the device reported it."
NEWEST_FIRST: Final = click.option(
    "--newest-first", is_flag=True, help="Show the newest rows first, instead of rows with problems."
)


@click.command("devices")
@shared.read
@shared.listing
@click.option(
    "--status",
    type=click.Choice(["online", "offline", "never", "revoked", "retired"]),
    help="The presence of the device.",
)
@click.option("--push", type=click.Choice(["ok", "failing", "dead", "none"]), help="Whether pushes reach the device.")
@click.option("--tag", type=values.TAG_FILTER, help="A tag of the device.")
@click.option("--model", metavar="TEXT", help=_REPORTED)
@click.option("--os-version", metavar="TEXT", help=_REPORTED)
@click.option("--agent-version", metavar="TEXT", help=_REPORTED)
@click.option(
    "--not-seen-for", "not_seen_for_seconds", type=arguments.SECONDS, metavar="TIME",
    help=(
        "Devices without a heartbeat for this time (10m, 12h, 7d), including revoked and retired devices. If a "
        "device has sent no heartbeat, the time since the enrollment counts."
    ),
)  # fmt: skip
@click.option(
    "--q",
    metavar="TEXT",
    help="Part of an alias or a hardware id, in upper or lower case; or the start of a device id.",
)
@NEWEST_FIRST
def devices(session: Session, limit: int, *, newest_first: bool, **filters: Any) -> int:
    """List devices: silent devices first, then devices with failing pushes."""
    found, more = session.client.items(_PATH, limit, **filters)
    if not newest_first:
        found = _worst(session, limit, filters) if more else sorted(found, key=rows.device_rank)
    status = show_list(session, rows.DEVICES, found, more=more, one="device")
    if not found and (tag := filters["tag"]):
        known = values.known_tags(session.client)
        if meant := did_you_mean(tag, known - {tag}):
            session.terminal.hint(meant.strip())
    return status


def _worst(session: Session, limit: int, filters: dict[str, Any]) -> list[Json]:
    """Return up to `limit` devices, in the order of rows.device_rank: offline devices come first.

    For each presence, only the newest PAGE devices are compared.
    """
    found: list[Json] = []
    for presence in (filters["status"],) if filters["status"] else rows.PRESENCES:
        if len(found) < limit:
            listed, _ = session.client.items(_PATH, max(limit, PAGE), **filters | {"status": presence})
            found += sorted(listed, key=rows.device_rank)[: limit - len(found)]
    return found


@click.command("device")
@shared.read
@click.argument("name", type=values.DEVICE, metavar="DEVICE")
@click.option("--history", is_flag=True, help="Show when the device was online and offline, the oldest time first.")
@click.option(
    "--since", type=arguments.MOMENT, metavar="TIME",
    help="The beginning of --history: 2h ago, yesterday, 2026-11-29, …; default: the oldest stored time.",
)  # fmt: skip
def device(session: Session, name: str, *, history: bool, since: str | None) -> int:
    """Show one device, or the history of its presence."""
    if since is not None and not history:
        raise click.UsageError("--since works only with --history.")
    path = f"{_PATH}/{session.names.device_id(name)}"
    if not history:
        return show(session, session.client.get(path))
    return _show_history(session, session.client.get(f"{path}/presence", since=since))


def _show_history(session: Session, found: Json) -> int:
    if session.terminal.is_structured:
        session.terminal.value(found)
        return DONE
    session.terminal.table(rows.PRESENCE, list(map(rows.presence, found["items"])))
    if session.terminal.form in PEOPLE and not found["items"]:
        session.terminal.hint("There is no heartbeat in this time.")
    elif session.terminal.form in PEOPLE and found["uptime_ratio"] is not None:
        session.terminal.line(f"uptime {found['uptime_ratio']:.2%}")
    return DONE


@click.command("change")
@shared.write
@click.argument("name", type=values.DEVICE, metavar="DEVICE")
@click.option("--alias", metavar="NAME", help="The new alias.")
@click.option("--no-alias", is_flag=True, help="Remove the alias.")
@click.option("--tag", "tags", multiple=True, help="A new tag; may be repeated. The new tags replace all present tags.")
@click.option("--no-tags", is_flag=True, help="Remove all tags.")
def change(
    session: Session, name: str, alias: str | None, *, no_alias: bool, tags: tuple[str, ...], no_tags: bool
) -> int:
    """Change or remove the alias and the tags of a device."""
    if (alias is not None and no_alias) or (tags and no_tags):
        raise click.UsageError("Use either --alias or --no-alias. Use either --tag or --no-tags.")
    wanted: Json = {"alias": None} if no_alias else given(alias=alias)
    if tags or no_tags:
        wanted["tags"] = list(tags)
    if not wanted:
        raise click.UsageError("No change was given. See --help.")
    return show(session, session.client.patch(f"{_PATH}/{session.names.device_id(name)}", wanted))


class _SeveralValues(click.RichCommand):
    """A command of click in which one `--add` or `--remove` may have several values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option in front of each of its values, and parse the result."""
        option, repeated = None, []
        for position, word in enumerate(args):
            if word.startswith("-") or option is None:
                option = word if word in ("--add", "--remove") else None
            elif args[position - 1] != option:
                repeated.append(option)
            repeated.append(word)
        return super().parse_args(ctx, repeated)


@click.command("tag", cls=_SeveralValues)
@shared.write
@click.argument("tag", type=values.TAG_NAME, metavar="TAG")
@click.option("--add", multiple=True, type=values.DEVICE, metavar="DEVICE…", help="Devices that get the tag.")
@click.option("--remove", multiple=True, type=values.DEVICE, metavar="DEVICE…", help="Devices that lose the tag.")
def tag(session: Session, tag: str, add: tuple[str, ...], remove: tuple[str, ...]) -> int:
    """Add a tag to devices, or remove a tag from devices."""
    if not add and not remove:
        raise click.UsageError("No change was given. See --help.")
    named = {"add": add, "remove": remove}
    body = {way: [session.names.device_id(name) for name in names] for way, names in named.items() if names}
    session.terminal.fields(session.client.post(f"/admin/tags/{tag}", body))
    return DONE
