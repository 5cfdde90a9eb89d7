"""The verbs for enrollment tokens."""

from typing import Final

import rich_click as click

from nexmdm.client import arguments, display, rows
from nexmdm.client.session import DONE, Session
from nexmdm.client.verbs import shared, values
from nexmdm.client.verbs.answers import given, show, show_list

_PATH: Final = "/admin/enrollment-tokens"


@click.command("enroll-token")
@shared.write
@click.option("--label", help="A note on its purpose.")
@click.option("--max-uses", type=int, metavar="N", help="How many phones may register with it; default 1.")
@click.option(
    "--expires-in",
    type=arguments.SECONDS,
    metavar="TIME",
    help="How long the token is valid: 600, 10m, 12h or 7d; default 1d.",
)
@click.option("--tag", "tags", multiple=True, help="A tag for the phones that register with it; may be repeated.")
@click.option("--re-enroll", is_flag=True, help="Also valid for phones that are enrolled already.")
def enroll_token(
    session: Session,
    label: str | None,
    max_uses: int | None,
    expires_in: int | None,
    tags: tuple[str, ...],
    *,
    re_enroll: bool,
) -> int:
    """Make an enrollment token and print it, alone on a line, so that a shell can capture it."""
    body = given(label=label, max_uses=max_uses, expires_in_seconds=expires_in)
    body |= given(tags=list(tags) or None, re_enroll=re_enroll or None)
    made = session.client.post(_PATH, body)
    text = made["enrollment_token"]
    if session.terminal.form != "table":
        return show(session, made)
    session.terminal.line(text)
    phones = "1 phone can register" if made["max_uses"] == 1 else f"{made['max_uses']} phones can register"
    until = display.shown("expires_at", made["expires_at"])
    session.terminal.hint(f"With this token {phones} until {until}: POST {session.client.url}/v1/register")
    return DONE


@click.command("enroll-tokens")
@shared.read
@shared.listing
def enroll_tokens(session: Session, limit: int) -> int:
    """List enrollment tokens, newest first."""
    found, more = session.client.items(_PATH, limit)
    return show_list(session, rows.TOKENS, found, more=more, one="enrollment token", described=rows.token)


@click.command("revoke-token")
@shared.write
@click.argument("name", type=values.TOKEN, metavar="TOKEN")
def revoke_token(session: Session, name: str) -> int:
    """Revoke an enrollment token: phones can no longer use it.

    TOKEN is its label, its id, the start of its id, or the token itself.
    """
    return show(session, session.client.post(f"{_PATH}/{session.names.token_id(name)}/revoke"))
