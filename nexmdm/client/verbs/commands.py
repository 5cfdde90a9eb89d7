"""The verbs `commands`, `command`, `delivery` and `cancel`."""

from typing import Any, Final

import rich_click as click

from nexmdm.client import arguments, rows
from nexmdm.client.session import DONE, FAILED, Session
from nexmdm.client.verbs import following, shared, values
from nexmdm.client.verbs.answers import show, show_list
from nexmdm.client.verbs.devices import NEWEST_FIRST

_PATH: Final = "/admin/commands"


@click.command("commands")
@shared.read
@shared.listing
@click.option("--action", type=values.ACTION, help="The action: ping, lock, …")
@click.option(
    "--state", type=click.Choice(["open", "completed", "expired", "cancelled"]), help="The state of the command."
)
@click.option(
    "--outcome",
    type=click.Choice(["succeeded", "partial", "failed", "expired", "cancelled"]),
    help="How the command ended.",
)
@click.option("--device", type=values.DEVICE, metavar="DEVICE", help="Commands to this device.")
@shared.between
@NEWEST_FIRST
def commands(session: Session, limit: int, device: str | None, *, newest_first: bool, **filters: Any) -> int:
    """List the newest commands, in this order: failed, expired, partial, cancelled, open, succeeded."""
    device_id = session.names.device_id(device) if device is not None else None
    found, more = session.client.items(_PATH, limit, device_id=device_id, **filters)
    if not newest_first:
        found = sorted(found, key=rows.command_rank)
    return show_list(session, rows.COMMANDS, found, more=more, one="command", described=rows.command)


@click.command("command")
@shared.read
@shared.waiting
@click.argument("name", type=values.COMMAND, metavar="COMMAND")
@click.option("--not-succeeded", is_flag=True, help="Leave out the devices that succeeded in time.")
@click.option(
    "--limit",
    type=arguments.POSITIVE,
    metavar="N",
    help="The largest number of deliveries to show, the worst first; default 100.",
)
def command(
    session: Session, name: str, timeout: int | None, limit: int | None, *, wait: bool, not_succeeded: bool
) -> int:
    """Show one command with its deliveries, the worst first, and why devices did not finish the command."""
    found = session.client.command(session.names.command_id(name))
    shown = following.Shown(not_succeeded, limit)
    if wait or timeout is not None:
        return following.follow(session, found, seconds=timeout, shown=shown)
    following.show_command(session, found, shown)
    return DONE


@click.command("delivery")
@shared.read
@click.argument("command", type=values.COMMAND, metavar="COMMAND")
@click.argument("device", type=values.DEVICE, metavar="DEVICE")
def delivery(session: Session, command: str, device: str) -> int:
    """Show the timeline of a command on one device."""
    names = session.names
    path = f"{_PATH}/{names.command_id(command)}/deliveries/{names.device_id(device)}"
    found = session.client.get(path)
    if session.terminal.is_structured:
        return show(session, found)
    if session.terminal.form != "csv":
        session.terminal.fields({name: value for name, value in found.items() if name != "timeline"})
        session.terminal.line("")
    session.terminal.table(rows.EVENTS, [rows.event(row) for row in found["timeline"]])
    return DONE


@click.command("cancel")
@shared.write
@click.argument("name", type=values.COMMAND, metavar="COMMAND")
def cancel(session: Session, name: str) -> int:
    """Cancel the open deliveries of a command. If none was open, the exit status is 1."""
    cancelled = session.client.post(f"{_PATH}/{session.names.command_id(name)}/cancel")
    show(session, cancelled)
    if cancelled["cancelled"]:
        return DONE
    session.terminal.complain("No delivery was cancelled, because none was open.")
    return FAILED
