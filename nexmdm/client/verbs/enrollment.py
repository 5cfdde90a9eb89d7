"""The verbs `enroll-token`, `enroll-tokens` and `revoke-token`."""

import json
import os
from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, Final

import rich_click as click
import segno
from rich.console import Console

from nexmdm.client import arguments, display, rows
from nexmdm.client.failures import Unfulfilled
from nexmdm.client.session import DONE, Session
from nexmdm.client.verbs import shared, values
from nexmdm.client.verbs.answers import given, show, show_list

_PATH: Final = "/admin/enrollment-tokens"
_PICTURES: Final = ("png", "svg")
_PIXELS: Final = 8
"""The width of one module (a small square) of a QR code in a picture file, in pixels."""

_MARGIN: Final = 2
"""The margin of a QR code on a terminal, in modules.

The standard has a margin of 4 modules, which would need a wider terminal.
"""

_BLOCKS: Final[Mapping[tuple[int, int], str]] = {(0, 0): " ", (0, 1): "▄", (1, 0): "▀", (1, 1): "█"}
"""The character for an upper and a lower module of a QR code."""

_BLACK_ON_WHITE: Final = "\x1b[38;5;16;48;5;231m{}\x1b[0m"


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix[1:].lower() not in _PICTURES:
        raise ArgumentTypeError("must end in .png or .svg")
    return path


@click.command("enroll-token")
@shared.write
@click.option("--label", help="A note on the purpose of the token.")
@click.option("--max-uses", type=int, metavar="N", help="How many phones may register with the token; default 1.")
@click.option(
    "--expires-in",
    type=arguments.SECONDS,
    metavar="TIME",
    help="How long the token is valid: 600, 10m, 12h or 7d; default 1d.",
)
@click.option(
    "--tag", "tags", multiple=True, help="A tag for the phones that register with the token; may be repeated."
)
@click.option("--re-enroll", is_flag=True, help="The token is also valid for phones that are already registered.")
@click.option("--qr", is_flag=True, help="Draw the QR code for Android's setup wizard, on standard error.")
@click.option(
    "--qr-file", type=arguments.Value("path", _picture), metavar="FILE",
    help="Write the QR code into a new file, .png or .svg, which only you can read.",
)  # fmt: skip
def enroll_token(
    session: Session,
    expires_in: int | None,
    tags: tuple[str, ...],
    qr_file: Path | None,
    *,
    re_enroll: bool,
    qr: bool,
    **fields: Any,
) -> int:
    """Create an enrollment token, and print the token alone on a line, so that a shell can capture it.

    The QR code contains the token.
    """
    body = given(**fields, expires_in_seconds=expires_in, tags=list(tags) or None, re_enroll=re_enroll or None)
    with _new_file(qr_file) as file:
        made = session.client.post(_PATH, body)
        try:
            if qr or file is not None:
                code = _code(made.get("provisioning"))
                if file is not None and qr_file is not None:
                    _write(file, qr_file.suffix, code)
                if qr:
                    _draw(session.terminal.err, code)
        except Unfulfilled as error:
            session.client.post(f"{_PATH}/{made['id']}/revoke")
            raise Unfulfilled(f"{error}\nThe new enrollment token was revoked.") from error
    if qr_file is not None:
        session.terminal.hint(f"The QR code, which contains the token, is in {qr_file}.")
    return _show_token(session, made)


def _show_token(session: Session, made: rows.Json) -> int:
    if session.terminal.form != "table":
        return show(session, made)
    session.terminal.line(made["enrollment_token"])
    phones = "1 phone can register" if made["max_uses"] == 1 else f"{made['max_uses']} phones can register"
    until = display.shown("expires_at", made["expires_at"])
    session.terminal.hint(f"With this token, {phones} until {until} by POST {session.client.url}/v1/register")
    return DONE


@contextmanager
def _new_file(path: Path | None) -> Iterator[IO[bytes] | None]:
    """Create a file that only its owner can read. If the context ends with an error, remove the file.

    Raises Unfulfilled if the file exists or cannot be created.
    """
    if path is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise Unfulfilled(f"{path} exists already. Remove this file, or name another file.") from error
    except OSError as error:
        raise Unfulfilled(f"{path} cannot be created: {error.strerror}.") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _code(content: rows.Json | None) -> segno.QRCode:
    if content is None:
        raise Unfulfilled(
            "This server cannot create QR codes, because PUBLIC_URL or AGENT_COMPONENT is not set. Set both in the "
            "server's environment, then restart the server."
        )
    return segno.make(json.dumps(content, separators=(",", ":")), micro=False)


def _write(file: IO[bytes], suffix: str, code: segno.QRCode) -> None:
    try:
        code.save(file, kind=suffix[1:].lower(), scale=_PIXELS, light="#fff")
        file.flush()
    except OSError as error:
        raise Unfulfilled(f"The QR code could not be written: {error.strerror}.") from error


def _draw(terminal: IO[str], code: segno.QRCode) -> None:
    modules = [bytes(row) for row in code.matrix_iter(border=_MARGIN)]
    columns = len(modules)
    is_screen, width = terminal.isatty(), Console(file=terminal).width
    try:
        "".join(_BLOCKS.values()).encode(getattr(terminal, "encoding", None) or "utf-8")
    except UnicodeEncodeError as error:
        raise Unfulfilled(
            "The terminal cannot show block characters. Write the QR code into a file with --qr-file."
        ) from error
    if is_screen and width < columns:
        raise Unfulfilled(
            f"The QR code needs {columns} columns, and the terminal has {width}. Widen the terminal, or write the QR "
            "code into a file with --qr-file."
        )
    for upper, lower in zip_longest(modules[::2], modules[1::2], fillvalue=bytes(columns)):
        line = "".join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True))
        terminal.write((_BLACK_ON_WHITE.format(line) if is_screen else line) + "\n")


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
    """Revoke an enrollment token. Phones can no longer use the token.

    TOKEN is the label, the id, the start of the id, or the token itself.
    """
    return show(session, session.client.post(f"{_PATH}/{session.names.token_id(name)}/revoke"))
