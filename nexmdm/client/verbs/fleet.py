"""The verbs about the whole fleet: `summary`, `push-health` and `audit`."""

from typing import Any

import rich_click as click

from nexmdm.client import arguments, rows
from nexmdm.client.display import PEOPLE
from nexmdm.client.session import DONE, Session
from nexmdm.client.verbs import shared, values
from nexmdm.client.verbs.answers import show, show_list


@click.command("summary")
@shared.read
def summary(session: Session) -> int:
    """Show the summary of the fleet."""
    return show(session, session.client.get("/admin/summary"))


@click.command("push-health")
@shared.read
@click.option(
    "--by",
    type=click.Choice(["model", "manufacturer", "os_version", "agent_version"]),
    default="model",
    help="The field of the devices to compare; default: model.",
)
@click.option(
    "--since", type=arguments.MOMENT, metavar="TIME",
    help="From this time on: 2h ago, yesterday, 2026-11-29, …; default: a day ago.",
)  # fmt: skip
def push_health(session: Session, by: str, since: str | None) -> int:
    """Compare the results of pushes by model, manufacturer or version, the worst first.

    The rows are in the order of the share of accepted pushes that brought the command to the phone. The smallest share
    comes first.
    """
    found = sorted(session.client.get("/admin/push-health", by=by, since=since)["items"], key=rows.push_health_rank)
    if not found and session.terminal.form in PEOPLE:
        session.terminal.hint("There are no devices and no pushes.")
        return DONE
    columns = rows.push_health_columns(by)
    return show_list(session, columns, found, more=False, one="device", described=rows.push_health(by))


@click.command("audit")
@shared.read
@shared.listing
@click.option("--action", help="The action: wipe, retire, cancel, …")
@click.option("--device", type=values.DEVICE, metavar="DEVICE", help="Entries about this device.")
@click.option("--command", type=values.COMMAND, metavar="COMMAND", help="Entries about this command.")
@click.option("--principal", metavar="NAME", help="The name of the admin, in upper or lower case.")
@click.option("--status", type=int, metavar="N", help="The status of the answer: 200, 422, …")
@shared.between
def audit(
    session: Session, limit: int, device: str | None, command: str | None, principal: str | None, **filters: Any
) -> int:
    """List the signed writes, carried out or refused, newest first."""
    names = session.names
    found, more = session.client.items(
        "/admin/audit",
        limit,
        device_id=names.device_id(device) if device is not None else None,
        request_id=names.command_id(command) if command is not None else None,
        principal=principal.lower() if principal is not None else None,
        **filters,
    )
    if session.terminal.form == "table":
        texts = [row["summary"]["target"] or "" for row in found]
        called = names.of_devices(dict.fromkeys(one for text in texts for one in rows.device_ids(text)))
        found = [rows.with_names(row, called) for row in found]
    return show_list(session, rows.AUDIT, found, more=more, one="entry", described=rows.audit_entry)
