"""The verb `lost`, which locks and wipes a lost phone."""

import rich_click as click

from nexmdm.client import display
from nexmdm.client.arguments import Target
from nexmdm.client.names import LOST
from nexmdm.client.rows import Json
from nexmdm.client.session import DONE, Session
from nexmdm.client.verbs import following, sending, shared, values
from nexmdm.client.verbs.answers import given
from nexmdm.client.verbs.audience import Audience
from nexmdm.client.verbs.confirmation import confirm


@click.command("lost")
@shared.write
@shared.waiting
@click.argument("name", type=values.DEVICE, metavar="DEVICE")
@click.option("--note", metavar="TEXT", help="A note that is stored with both commands.")
@shared.YES
def lost(session: Session, name: str, note: str | None, timeout: int | None, *, yes: bool, wait: bool) -> int:
    """Lock and wipe a lost phone.

    The phone gets a `lock`, then a `wipe`, and has four weeks to begin each of them. The server retires the device when
    the phone reports that the wipe succeeded. Do not revoke the device before that. A revocation would
    withdraw both commands.

    A retired device has no alias any more. Without --note, the note of both commands contains the alias.
    """
    device = session.client.get(f"/admin/devices/{session.names.device_id(name)}")
    if note is None and device["alias"]:
        note = LOST + device["alias"]
    body = {"target": {"device_ids": [device["device_id"]]}, "expect_count": 1, **given(note=note)}
    # The rules for `wipe` are stricter. If the server would refuse `wipe`, the client sends neither command.
    plan = session.client.post("/admin/command", {**body, "action": "wipe", "dry_run": True})
    audience = Audience(Target(everything=False, tags=(), names=(name,)), body["target"], [device])
    sending.warn_of_silence(session, audience, {**body, "action": "wipe"}, plan)
    if not yes:
        confirm(session, "lock and wipe", 1, [device])
    lock = session.client.post("/admin/command", {**body, "action": "lock"})
    try:
        wipe = session.client.post("/admin/command", {**body, "action": "wipe"})
        session.names.use("command", wipe["request_id"])
        session.names.keep()
    finally:
        # Not before the wipe is sent: the output may have ended, for example in a pipe to `head`.
        if not session.terminal.is_structured:
            session.terminal.line(f"Sent lock {lock['request_id']}.")
    return _show(session, device, lock, wipe, seconds=timeout, wait=wait)


def _show(session: Session, device: Json, lock: Json, wipe: Json, *, seconds: int | None, wait: bool) -> int:
    terminal, called = session.terminal, device["alias"] or device["hardware_id"]
    if terminal.is_structured and not wait:
        terminal.value({"device": device, "lock": lock, "wipe": wipe})
        return DONE
    if not terminal.is_structured:
        terminal.line(f"Sent wipe {wipe['request_id']}.")
    seen = display.shown("last_seen_at", device["last_seen_at"]) if device["last_seen_at"] else "never"
    terminal.hint(f"{called} (last seen: {seen}) has until {wipe['expires_at']} to begin.")
    terminal.hint(
        "When the phone reports that the wipe succeeded, the server retires the device. Do not revoke the device "
        "before that."
    )
    terminal.hint(f"The device then has no alias, but keeps its hardware id: {device['hardware_id']}.")
    if wait or seconds is not None:
        return following.follow(session, wipe, seconds=seconds)
    terminal.hint(f"To follow the command: `{session.program} command {wipe['request_id']} --wait`.")
    return DONE
