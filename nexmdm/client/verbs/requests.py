"""The verbs `call` and `sign`, for requests that no other verb sends."""

import shlex
from collections.abc import Mapping
from typing import Any

import rich_click as click

from nexmdm.client import arguments
from nexmdm.client.arguments import NO_BODY, Content, Value
from nexmdm.client.session import DONE, Session
from nexmdm.client.verbs import shared


def _request(run: Any) -> Any:
    body = click.option(
        "--body", type=Value("file", arguments.content), default=NO_BODY, metavar="FILE",
        help="A file with the JSON body; - is standard input.",
    )  # fmt: skip
    target = click.argument("target", type=Value("target", arguments.path), metavar="TARGET")
    return click.argument("method", type=Value("method", arguments.method), metavar="METHOD")(target(body(run)))


@click.command("call")
@shared.write
@_request
def call(session: Session, method: str, target: str, body: Content) -> int:
    """Sign and send any request, and print its answer as JSON. TARGET is the path with the query, exactly as sent."""
    session.terminal.value(session.client.call(method, target, content=body.body))
    return DONE


@click.command("sign")
@shared.write
@_request
@click.pass_context
def sign(context: click.Context, /, session: Session, method: str, target: str, body: Content) -> int:
    """Print the headers of a signed request, including the admin key, one header on each line, as for curl -H @FILE.

    TARGET is the path with the query, exactly as sent. With --url, print a complete curl command.
    """
    headers = session.client.sign(method, target, body.body)
    if body.body:
        headers["Content-Type"] = "application/json"
    if session.terminal.is_structured:
        session.terminal.value(headers)
    elif context.params["url"] is not None or shared.surroundings(context).wish.get("url") is not None:
        session.terminal.line(_curl(method, session.client.url + target, headers, body))
    else:
        for name, value in headers.items():
            session.terminal.line(f"{name}: {value}")
    return DONE


def _curl(method: str, url: str, headers: Mapping[str, str], content: Content) -> str:
    words = ["curl", "--silent", "--show-error", "--globoff", "--path-as-is", "--request", method, url]
    for name, value in headers.items():
        words += ["--header", f"{name}: {value}"]
    if content.body:
        words += ["--data-binary", f"@{content.name}"]
    return shlex.join(words)
