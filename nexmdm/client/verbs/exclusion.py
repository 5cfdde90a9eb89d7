"""The verbs `revoke`, `retire` and `reinstate`."""

import rich_click as click

from nexmdm.client.session import DONE, Session
from nexmdm.client.verbs import shared, values
from nexmdm.client.verbs.answers import show
from nexmdm.client.verbs.confirmation import confirm


@click.command("revoke")
@shared.write
@click.argument("name", type=values.DEVICE, metavar="DEVICE")
@shared.YES
def revoke(session: Session, name: str, *, yes: bool) -> int:
    """Revoke a device immediately. Its open commands are cancelled.

    A revoked device gets no commands, and cannot be wiped. For a lost phone, use `lost`.
    """
    return _shut_out(session, name, "revoke", yes=yes)


@click.command("retire")
@shared.write
@click.argument("name", type=values.DEVICE, metavar="DEVICE")
@shared.YES
def retire(session: Session, name: str, *, yes: bool) -> int:
    """Retire a device permanently. Its hardware may register again."""
    return _shut_out(session, name, "retire", yes=yes)


def _shut_out(session: Session, name: str, verb: str, *, yes: bool) -> int:
    device_id = session.names.device_id(name)
    path = f"/admin/devices/{device_id}"
    if not yes:
        if verb == "revoke":
            lost = f"{session.program} lost"
            session.terminal.hint(
                f"A revoked device gets no commands, and cannot be wiped. For a lost phone, see `{lost} --help`."
            )
        confirm(session, verb, 1, [session.client.get(path)])
    found = session.client.post(f"{path}/{verb}")
    show(session, found)
    for one in found["withdrawn"]:
        session.terminal.hint(f"The open {one['action']} is withdrawn: {one['request_id']}.")
        if one["may_still_run"]:
            session.terminal.hint(
                f"The phone may already have the command: {one['request_id']} may still run. The server refuses the "
                "phone's report."
            )
    return DONE


@click.command("reinstate")
@shared.write
@click.argument("name", type=values.DEVICE, metavar="DEVICE")
def reinstate(session: Session, name: str) -> int:
    """Reinstate a revoked device. Its old device token works again. Show the commands that stay withdrawn."""
    found = session.client.post(f"/admin/devices/{session.names.device_id(name)}/reinstate")
    show(session, found)
    for one in found.get("withdrawn", ()):
        session.terminal.hint(
            f"The revocation withdrew this {one['action']}: {one['request_id']}. Send the command again if you need it."
        )
        if one["may_still_run"]:
            session.terminal.hint(f"The phone may already have the command: {one['request_id']} may still run.")
    return DONE
