"""manage.py fleet, run in this process against the application, or against any other transport."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from django.core.management import call_command

from tests.support.actors import Answer, Client


@dataclass(slots=True)
class InProcess(httpx.BaseTransport):
    """Sends a request to the real ASGI application instead of a socket; `after` sees each answer before the client."""

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
class Ran:
    """The result of a run of the command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output as JSON."""
        return json.loads(self.out)


def run(*arguments: str, transport: httpx.BaseTransport) -> Ran:
    """Run `manage.py fleet …`."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    try:
        call_command("fleet", *arguments, transport=transport, stdout=out, stderr=err)
    except SystemExit as end:
        status = int(str(end.code))
    return Ran(status, out.getvalue(), err.getvalue())
