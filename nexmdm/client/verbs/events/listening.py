"""The verb `webhook listen`, which receives a webhook on this machine."""

import os
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Final

import rich_click as click

from nexmdm.client import arguments
from nexmdm.client.arguments import Value
from nexmdm.client.display import Format, Terminal
from nexmdm.client.events import webhook_signature
from nexmdm.client.events.device_names import DeviceNames
from nexmdm.client.events.lines import EventPrinter
from nexmdm.client.events.receiver import Receiver
from nexmdm.client.rows import Json
from nexmdm.client.session import DONE, FAILED, WRONG_USAGE
from nexmdm.client.verbs import shared

VARIABLE: Final = "NEXMDM_WEBHOOK_SECRET"
PORT: Final = 9000


def _secret_in(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ArgumentTypeError(str(error)) from error
    except UnicodeError as error:
        raise ArgumentTypeError("must be a file with the secret alone") from error


@click.command("listen")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=PORT, metavar="N",
    help=f"The port on 127.0.0.1; default: {PORT}; 0 means any free port.",
)  # fmt: skip
@click.option(
    "--secret-file", "secret", type=Value("file", _secret_in), metavar="FILE",
    help=f"A file with the webhook's secret. Default: the secret in {VARIABLE}.",
)  # fmt: skip
@click.option(
    "--fail", "fail_with", type=click.IntRange(400, 599), metavar="STATUS",
    help="Answer each event with this status, so that the server sends it again.",
)  # fmt: skip
@click.option("--limit", type=arguments.POSITIVE, metavar="N", help="End after this many events.")
@shared.LINES
@shared.JSON
@click.pass_context
def listen(
    context: click.Context,
    port: int,
    secret: str | None,
    fail_with: int | None,
    limit: int | None,
    form: Format,
    *,
    as_json: bool,
) -> None:
    """Receive a webhook's events on this machine, check their signatures, and print them until Ctrl-C.

    The server must allow webhooks to this machine. Set WEBHOOK_ALLOW_PRIVATE=127.0.0.0/8 in the server's environment.
    """
    terminal = shared.terminal_of(context, "json" if as_json else form)
    try:
        key = webhook_signature.key_of(secret or os.environ.get(VARIABLE, "").strip())
    except ValueError as error:
        source = "The content of --secret-file" if secret is not None else f"The value of {VARIABLE}"
        terminal.complain(f"{source} {error}. `webhook add` and `webhook rotate-secret` print the secret.")
        context.exit(WRONG_USAGE)
    context.exit(shared.printing(terminal, lambda: _listen(terminal, port, key, fail_with, limit)))


def _listen(terminal: Terminal, port: int, key: bytes, fail_with: int | None, limit: int | None) -> int:
    printer = EventPrinter(terminal, DeviceNames(None))

    def took(event: Json) -> None:
        printer.show([event])

    try:
        receiver = Receiver(port, key, took=took, refused=terminal.complain, fail_with=fail_with, limit=limit)
    except OSError as error:
        terminal.complain(f"Port {port} of 127.0.0.1 cannot be used: {error.strerror}. Name another --port.")
        return FAILED
    terminal.hint(f"Listening on {receiver.url} until Ctrl-C.")
    try:
        receiver.run()
    except KeyboardInterrupt:
        terminal.hint("Stopped. The server keeps the events that were not acknowledged, and sends them again.")
    return DONE
