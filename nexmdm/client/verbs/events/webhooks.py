"""The verb `webhook` with its own verbs, such as `add`, `list` and `test`."""

from collections.abc import Iterator
from typing import Final

import rich_click as click

from nexmdm.client import rows
from nexmdm.client.events import webhook_names
from nexmdm.client.events.feed import NOW
from nexmdm.client.http_client import FleetClient
from nexmdm.client.rows import Json
from nexmdm.client.session import DONE, FAILED, Session
from nexmdm.client.verbs import answers, shared
from nexmdm.client.verbs.confirmation import confirm
from nexmdm.client.verbs.events.event_types import TYPES
from nexmdm.client.verbs.events.events import PLACE
from nexmdm.client.verbs.events.listening import listen
from nexmdm.client.verbs.values import TAG_FILTER, Asked


def _ids(client: FleetClient, start: str) -> Iterator[str]:
    del start
    for row in webhook_names.newest_webhooks(client):
        yield row["id"]


WEBHOOK: Final = Asked("webhook", str, _ids)
_NAME: Final = click.argument("name", type=WEBHOOK, metavar="WEBHOOK")
_TYPES: Final = click.option(
    "--types", type=TYPES, metavar="TYPE,…", help="Only events of these types, such as device.*"
)
_TAGS: Final = click.option(
    "--tags", type=TAG_FILTER, metavar="TAG,…", help="Only events about devices that have one of these tags."
)
_ABOUT_NO_DEVICE: Final = ("command.", "audit.", "webhook.")
"""The beginnings of the event types whose events are about no device."""


@click.group("webhook")
def webhook() -> None:
    """Create and control webhooks, to which the server sends events.

    WEBHOOK is the id of a webhook, the start of the id, the URL or the description.
    """


webhook.add_command(listen)


@webhook.command("add")
@shared.write
@click.argument("destination", metavar="URL")
@_TYPES
@_TAGS
@click.option(
    "--description", metavar="TEXT", help="A note on the webhook's purpose, which is also a name for the webhook."
)
def add(session: Session, destination: str, types: str | None, tags: str | None, description: str | None) -> int:
    """Create a webhook, and print the secret alone on a line, so that a shell can capture the secret.

    From now on, the server sends each event to the webhook. The receiver checks the signatures with the secret.
    """
    fields = answers.given(types=_listed(types), tags=_listed(tags), description=description)
    made = session.client.post(webhook_names.PATH, {"url": destination, **fields})
    if never := _never_sent(made):
        session.terminal.hint(f"With tags, events about no device are never sent, such as {', '.join(never)}.")
    return _show_secret(session, made, f"The webhook {made['id']} sends events to {made['url']}.")


@webhook.command("list")
@shared.read
@shared.listing
def list_webhooks(session: Session, limit: int) -> int:
    """List webhooks, newest first."""
    found, more = session.client.items(webhook_names.PATH, limit)
    return answers.show_list(session, rows.WEBHOOKS, found, more=more, one="webhook")


@webhook.command("show")
@shared.read
@_NAME
def show(session: Session, name: str) -> int:
    """Show one webhook: where it sends, what it sends, and why it is paused or fails."""
    return answers.show(session, session.client.get(_path(session, name)))


@webhook.command("change")
@shared.write
@_NAME
@click.option("--send-to", metavar="URL", help="The new URL.")
@_TYPES
@click.option("--all-types", is_flag=True, help="Send all types.")
@_TAGS
@click.option("--no-tags", is_flag=True, help="Send events about all devices, and events about no device.")
def change(
    session: Session,
    name: str,
    send_to: str | None,
    types: str | None,
    tags: str | None,
    *,
    all_types: bool,
    no_tags: bool,
) -> int:
    """Change the URL, the types or the tags of a webhook. The new types or tags replace the present ones."""
    if (types is not None and all_types) or (tags is not None and no_tags):
        raise click.UsageError("Use either --types or --all-types. Use either --tags or --no-tags.")
    wanted = answers.given(
        url=send_to,
        types=[] if all_types else _listed(types),
        tags=[] if no_tags else _listed(tags),
    )
    if not wanted:
        raise click.UsageError("No change was given. See --help.")
    return answers.show(session, session.client.patch(_path(session, name), wanted))


@webhook.command("pause")
@shared.write
@_NAME
def pause(session: Session, name: str) -> int:
    """Pause a webhook. It keeps its place in the feed."""
    return answers.show(session, session.client.patch(_path(session, name), {"paused": True}))


@webhook.command("resume")
@shared.write
@_NAME
def resume(session: Session, name: str) -> int:
    """Let a paused webhook continue at its place in the feed."""
    return answers.show(session, session.client.patch(_path(session, name), {"paused": False}))


@webhook.command("test")
@shared.write
@_NAME
def test(session: Session, name: str) -> int:
    """Send a test event to a webhook, and show the answer of its receiver.

    If the receiver does not acknowledge the event, the exit status is 1.
    """
    path = _path(session, name)
    tested = session.client.post(f"{path}/test")
    attempt = tested["attempt"]
    if session.terminal.is_structured or attempt is None:
        answers.show(session, tested)
    else:
        answers.show(session, attempt)
    if attempt is None:
        attempts_of = f"{session.program} webhook attempts {path.rpartition('/')[2]}"
        session.terminal.complain(f"No dispatcher has sent the test event yet. To look again: {attempts_of}")
        return FAILED
    return DONE if attempt["delivered"] else FAILED


@webhook.command("replay")
@shared.write
@_NAME
@click.option(
    "--after", required=True, type=PLACE, metavar="CURSOR",
    help=f"A cursor that `events` printed, or `{NOW}`, or `oldest`.",
)  # fmt: skip
def replay(session: Session, name: str, after: str) -> int:
    """Move a webhook to a cursor. An earlier cursor sends events again. A later cursor skips events."""
    path = _path(session, name)
    before = session.client.get(path)
    replayed = session.client.post(f"{path}/replay", {"after": after})
    answers.show(session, replayed)
    back = f"{session.program} webhook replay {before['id']} --after {before['cursor']}"
    session.terminal.hint(f"To move the webhook back to its earlier place: {back}")
    return DONE


@webhook.command("rotate-secret")
@shared.write
@_NAME
def rotate_secret(session: Session, name: str) -> int:
    """Give a webhook a new secret, and print the secret alone on a line. For 24 hours, both secrets are valid."""
    made = session.client.post(f"{_path(session, name)}/rotate-secret")
    return _show_secret(session, made, "For 24 hours, the server also signs with the earlier secret.")


@webhook.command("attempts")
@shared.read
@shared.listing
@_NAME
def attempts(session: Session, name: str, limit: int) -> int:
    """List the newest attempts of a webhook to send an event, with the answers of its receiver."""
    found, more = session.client.items(f"{_path(session, name)}/attempts", limit)
    return answers.show_list(session, rows.WEBHOOK_ATTEMPTS, found, more=more, one="attempt")


@webhook.command("delete")
@shared.write
@_NAME
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(session: Session, name: str, *, yes: bool) -> int:
    """Delete a webhook with its secret and its place in the feed. To stop a webhook for a time, use `pause`."""
    path = _path(session, name)
    if not yes:
        confirm(session, "delete", 1, [session.client.get(path)], one="webhook")
    status = answers.show(session, session.client.delete(path))
    session.terminal.hint("The webhook is deleted. The answer shows it as it was.")
    return status


def _path(session: Session, name: str) -> str:
    return f"{webhook_names.PATH}/{webhook_names.webhook_id(session.client, name)}"


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _never_sent(made: Json) -> list[str]:
    """Return those of its chosen event types that a webhook never gets.

    A webhook with tags gets no event that is about no device.
    """
    return [name for name in made["types"] if name.startswith(_ABOUT_NO_DEVICE)] if made["tags"] else []


def _show_secret(session: Session, made: Json, note: str) -> int:
    if session.terminal.form != "table":
        answers.show(session, made)
    else:
        session.terminal.line(made["secret"])
    advice = (
        "This is the webhook's secret. The server shows the secret only now. Store the secret where the receiver can "
        "read it."
    )
    session.terminal.hint(f"{note} {advice}")
    return DONE
