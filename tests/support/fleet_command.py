"""manage.py fleet, run in this process against the application, or against any other transport."""

import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import IO, Any, Final

import httpx
import pytest
from django.conf import settings

from nexmdm.client import program
from nexmdm.client.network.transport import AnswerLost, NoConnection, Request, Response
from nexmdm.client.surroundings import Surroundings
from nexmdm.management.commands.fleet import PROGRAM, OwnServer
from tests.support.actors import Answer, Client

KEPT_IN: Final = ("XDG_CONFIG_HOME", "XDG_STATE_HOME")
"""Name the folders in which the client keeps profiles and the last names, also where a test does not."""


@dataclass(slots=True)
class InProcess(httpx.BaseTransport):
    """Sends a request to the real ASGI application instead of a socket; `after` gets each answer before the client."""

    client: Client
    after: Callable[[httpx.Request, Answer], None] | None = None
    seen: list[httpx.Request] = field(default_factory=list)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        self.seen.append(request)
        target, headers = request.url.raw_path.decode(), request.headers.multi_items()
        answer = self.client.request(request.method, target, request.read() or None, headers)
        if self.after is not None:
            self.after(request, answer)
        return httpx.Response(answer.status, headers=answer.headers, content=answer.body)


@dataclass(frozen=True, slots=True)
class Carrier:
    """The client's connection to a transport of httpx. The tests use httpx's transports instead of a network."""

    transport: httpx.BaseTransport

    def send(self, request: Request) -> Response:
        """Return the response to a request. Raises NoConnection and AnswerLost."""
        carried = httpx.Request(
            request.method,
            request.url + request.target,
            headers=dict(request.headers),
            content=request.content,
            extensions={"timeout": {"read": request.answer_seconds}},
        )
        try:
            response = self.transport.handle_request(carried)
        except httpx.ConnectError as error:
            raise NoConnection(str(error)) from error
        except httpx.RequestError as error:
            raise AnswerLost(str(error)) from error
        return Response(response.status_code, dict(response.headers), response.read())

    def close(self) -> None:
        """Leave the transport open: the next run uses it."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a run of the command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output as JSON."""
        return json.loads(self.out)


def run(
    *arguments: str, transport: httpx.BaseTransport | None, out: IO[str] | None = None, err: IO[str] | None = None
) -> Ran:
    """Run `manage.py fleet …`; without a transport, over sockets. `out` and `err` replace its outputs."""
    return _run(arguments, PROGRAM, OwnServer(), transport, out, err)


def run_nexmdm(
    *arguments: str, transport: httpx.BaseTransport | None, out: IO[str] | None = None, err: IO[str] | None = None
) -> Ran:
    """Run `nexmdm …`, which does not read the server's settings."""
    return _run(arguments, "nexmdm", None, transport, out, err)


def _run(
    arguments: Sequence[str],
    name: str,
    own: OwnServer | None,
    transport: httpx.BaseTransport | None,
    out: IO[str] | None,
    err: IO[str] | None,
) -> Ran:
    # (The server, which runs in this process, logs on the real standard output.)
    seen, said = io.StringIO(), io.StringIO()
    carrier = None if transport is None else Carrier(transport)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(err or said):
        for variable in KEPT_IN:
            patch.setenv(variable, os.environ.get(variable, str(settings.DATA_DIR / "client")))
        with pytest.raises(SystemExit) as end:
            program.run(arguments, Surroundings(name, own, carrier, out or seen))
    return Ran(int(str(end.value.code or 0)), seen.getvalue(), said.getvalue())
