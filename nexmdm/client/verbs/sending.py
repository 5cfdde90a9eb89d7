"""The verbs `ping` and `send`."""

from typing import Any, Final

import rich_click as click

from nexmdm.client import actions, arguments, display
from nexmdm.client.arguments import Param, Target, Value
from nexmdm.client.display import PEOPLE
from nexmdm.client.http_client import Refused
from nexmdm.client.names import NotFound
from nexmdm.client.rows import Json
from nexmdm.client.session import DONE, Session
from nexmdm.client.suggestions import did_you_mean
from nexmdm.client.verbs import confirmation, following, shared, values
from nexmdm.client.verbs.answers import given, show
from nexmdm.client.verbs.audience import Audience

CONFIRMED_ALWAYS: Final = ("wipe",)
CONFIRMED_FOR_SEVERAL: Final = ("lock", "reboot")
_OF_WHAT_WAS_SENT: Final = ("request_id", "state", "issued_at", "expires_at", "dry_run")
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"))


@click.command("ping")
@shared.write
@shared.waiting
@click.argument("target", type=values.TARGET, metavar="TARGET")
def ping(session: Session, target: Target, timeout: int | None, *, wait: bool) -> int:
    """Send a ping, which tests the path to the devices and back."""
    return _send(session, target, {"action": "ping", "params": {}}, yes=True, wait=wait, timeout=timeout)


def _help() -> str:
    width = max(map(len, actions.catalogue()))
    lines = ["Send a command.", "", f"TARGET is {arguments.TARGET}.", "", "\b", "Actions, and the values for --param:"]
    for action in actions.catalogue().values():
        lines.append(f"  {action.name:<{width}}  {action.description}")
        lines += [f"  {'':<{width}}    {name}={kind}" for name, kind in action.parameters.items()]
    return "\n".join(lines)


@click.command("send", help=_help())
@shared.write
@shared.waiting
@click.argument("action", type=values.ACTION, metavar="ACTION")
@click.argument("target", type=values.TARGET, metavar="TARGET")
@click.option(
    "--param", type=Value("k=v", arguments.param), multiple=True, metavar="K=V",
    help="A parameter of the action, as JSON or as text; may be repeated.",
)  # fmt: skip
@click.option(
    "--expires-in", type=arguments.SECONDS, metavar="TIME",
    help="The time to begin: 600, 10m, 12h or 7d; default 10m, for reboot 1h, for lock and wipe 28d.",
)  # fmt: skip
@click.option("--priority", type=click.Choice(["high", "normal"]), help="The priority of the push; high by default.")
@click.option("--dry-run", is_flag=True, help="Check everything, and send nothing.")
@click.option(
    "--expect-count",
    type=int,
    metavar="N",
    help="The number of devices in the target. If the number is different, nothing is sent.",
)
@click.option("--supersede", is_flag=True, help="Cancel open deliveries of the same action on these devices.")
@click.option("--note", metavar="TEXT", help="A note that is stored with the command.")
@shared.YES
def send(
    session: Session,
    action: str,
    target: Target,
    param: tuple[Param, ...],
    timeout: int | None,
    *,
    dry_run: bool,
    wait: bool,
    yes: bool,
    **options: Any,
) -> int:
    """Send a command. For some actions, first ask the admin to confirm."""
    if dry_run and (wait or timeout is not None):
        raise click.UsageError("--dry-run does not work with --wait, because --dry-run sends nothing.")
    body = {"action": action, "params": {one.name: one.value for one in param}}
    body |= given(
        expires_in_seconds=options["expires_in"],
        priority=options["priority"],
        expect_count=options["expect_count"],
        supersede=options["supersede"] or None,
        note=options["note"],
        dry_run=dry_run or None,
    )
    return _send(session, target, body, yes=yes, wait=wait, timeout=timeout)


def _send(session: Session, target: Target, body: Json, *, yes: bool, wait: bool, timeout: int | None) -> int:
    audience = _audience(session, target)
    body["target"] = audience.body
    if audience.named and body["action"] in CONFIRMED_ALWAYS:
        body.setdefault("expect_count", len(audience.named))
    is_dry = body.get("dry_run", False)
    try:
        plan = None if is_dry else _confirm(session, audience, body, yes=yes)
        warn_of_silence(session, audience, body, plan)
        issued = session.client.post("/admin/command", body)
    except Refused as refused:
        if refused.code == "empty_audience" and target.tags:
            known = values.known_tags(session.client)
            meant = "".join(did_you_mean(tag, known) for tag in target.tags if tag not in known)
            session.terminal.complain(f"No active device has the tag {' or '.join(target.tags)}.{meant}")
        raise
    if is_dry:
        return _show_dry_run(session, issued)
    session.names.use("command", issued["request_id"])
    session.names.keep()  # Not later: the output may end early, for example in a pipe to `head`.
    if not wait and timeout is None:
        show(session, issued)
        if session.terminal.form in PEOPLE:
            session.terminal.hint(f"To follow the command: `{session.program} command @last --wait`.")
        return DONE
    session.terminal.hint(f"Waiting for command {issued['request_id']} (devices: {issued['device_count']}) …")
    return following.follow(session, issued, seconds=timeout)


def _audience(session: Session, target: Target) -> Audience:
    """Look up the devices of a target.

    Raises NotFound. If a name is also a tag, the message suggests the form `tag:NAME`.
    """
    try:
        return Audience.find(session.names, target)
    except NotFound as error:
        if tags := [name for name in target.names if name in values.known_tags(session.client)]:
            raise NotFound(f"{error} There is a tag with this name. To use the tag, write tag:{tags[0]}.") from error
        raise


def _confirm(session: Session, audience: Audience, body: Json, *, yes: bool) -> Json | None:
    """Ask before a command that is hard to undo. Return the answer to the dry run.

    The number of devices is added to `body` as `expect_count`. With `yes`, do not ask. Return None if the command needs
    no confirmation.
    """
    action = body["action"]
    if action not in CONFIRMED_ALWAYS + CONFIRMED_FOR_SEVERAL:
        return None
    plan = session.client.post("/admin/command", body | {"dry_run": True})
    count = plan["device_count"]
    if action in CONFIRMED_ALWAYS or count > 1:
        if not yes:
            confirmation.confirm(session, action, count, audience.examples(session.client, confirmation.SHOWN))
        body["expect_count"] = count
    return plan


def warn_of_silence(session: Session, audience: Audience, body: Json, plan: Json | None) -> None:
    """Print how many devices have been silent for longer than the time to begin.

    On these devices, the command will probably expire. If there are no such devices, print which named devices are
    offline. `plan` is the answer to a dry run of the command, or None.
    """
    seconds = body.get("expires_in_seconds") or actions.expires_in_seconds(body["action"])
    life = _length(seconds)
    try:
        audience = audience.described(session.client)
        silent, are_more = audience.silent(session.client, seconds)
        if not silent:
            _warn_of_offline(session, audience, life)
            return
        plan = plan or session.client.post("/admin/command", body | {"dry_run": True})
    except Refused:
        # An error here must not prevent the command. The server decides whether to refuse the command.
        return
    count = plan["device_count"]
    silent_ones = f"{silent} or more" if are_more else f"{silent}"
    were = "was" if count == 1 else "were"
    session.terminal.hint(
        f"{silent_ones} of {count} devices {were} last seen more than {life} ago, or never. The command expires in "
        f"{life}."
    )


def _warn_of_offline(session: Session, audience: Audience, life: str) -> None:
    offline, count = audience.offline(), len(audience.named)
    if not offline:
        return
    are = f"{len(offline)} of {count} devices {'is' if len(offline) == 1 else 'are'} offline"
    if count == 1:
        (one,) = offline
        seen = display.shown("last_seen_at", one["last_seen_at"])
        are = f"{one['alias'] or one['hardware_id']} is offline (last seen: {seen})"
    session.terminal.hint(f"{are}. A command reaches a phone only if the phone is online again within {life}.")


def _length(seconds: int) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{round(seconds / size)} {unit}"
    return f"{seconds} s"


def _show_dry_run(session: Session, issued: Json) -> int:
    if session.terminal.form in PEOPLE:
        session.terminal.line("Dry run: nothing was sent.")
        issued = {name: value for name, value in issued.items() if name not in _OF_WHAT_WAS_SENT}
    show(session, issued)
    return DONE
