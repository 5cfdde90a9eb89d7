"""The verbs for the whole fleet: its summary, and its audit."""

from typing import Any

import rich_click as click

from nexmdm.client import rows
from nexmdm.client.session import Session
from nexmdm.client.verbs import shared, values
from nexmdm.client.verbs.answers import show, show_list


@click.command("summary")
@shared.read
def summary(session: Session) -> int:
    """Show the summary of the fleet."""
    return show(session, session.client.get("/admin/summary"))


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
