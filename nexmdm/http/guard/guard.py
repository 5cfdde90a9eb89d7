"""The guard: the outermost layer of the application. It sets the client's address and checks each request.

The guard refuses these requests:
- a wrong Host, or a request target that is not a path (400)
- a body that arrives too slowly (408)
- a body that is too large (413)
- a body that is compressed or not JSON (415)
- headers that are too large (431)

All other requests reach the application with their whole body. Every error of the application is answered with problem
details.
"""

import asyncio
import re
import time
from functools import lru_cache
from typing import Final

import structlog
from django.conf import settings
from django.http.request import split_domain_port, validate_host
from uuid_utils import uuid7

from nexmdm.common import problems, request_facts
from nexmdm.common.asgi_types import App, Message, Receive, Scope, Send
from nexmdm.common.headers import Headers
from nexmdm.common.problems import Problem
from nexmdm.common.request_facts import RequestFacts
from nexmdm.http import refusals
from nexmdm.http.guard.body import read_body
from nexmdm.http.guard.client_address import set_client
from nexmdm.http.guard.errors import ClientGone, Refused

log = structlog.get_logger()

HEADERS_LIMIT: Final = 16 * 1024
DRAIN_LIMIT: Final = 4 * 1024 * 1024
"""The number of bytes of a refused body that are read and dropped, so that an honest client can read the answer."""

DRAIN_SECONDS: Final = 2

_LOWEST_REFUSAL: Final = 400
"""The lowest status of a refusal, as a number. A member of HTTPStatus would take longer to look up."""
_CORRELATION_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Guard:
    """The ASGI application around the application `app`."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the ASGI lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = request_facts.of(scope)
        facts.headers = headers = Headers.of(scope)
        facts.correlation_id = correlation_id = _correlation_id(headers)
        answer = _Answer(scope, facts, send)
        structlog.contextvars.bind_contextvars(correlation_id=correlation_id)
        try:
            _admit(scope, facts)
            body = await read_body(scope, headers, receive)
            await self._app(scope, _replay(body, receive), answer.send)
        except ClientGone:
            return
        except Refused as refused:
            await answer.refuse(refused.problem, receive if refused.drain else None)
        except asyncio.CancelledError:
            # The server is stopping and has waited too long for this request.
            if not answer.started:
                await answer.refuse(problems.STOPPING, None)
        except Exception as error:
            log.exception("request.failed", error=type(error).__name__)
            if not answer.started:
                await answer.refuse(problems.INTERNAL, None)


class _Answer:
    """The answer to one request. It adds the correlation id, records the status, and logs refusals."""

    def __init__(self, scope: Scope, facts: RequestFacts, send: Send) -> None:
        self._scope = scope
        self._facts = facts
        self._send = send
        self._refused = 0

    @property
    def started(self) -> bool:
        """Whether the answer has begun."""
        return self._facts.status != 0

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            status = self._facts.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-correlation-id", self._facts.correlation_id.encode()),
            ]
            if status >= _LOWEST_REFUSAL:
                self._refused = status
                _add_demanded(message)
        elif self._refused:
            refusals.note(self._scope, self._refused, message.get("body", b""))
            self._refused = 0
        await self._send(message)

    async def refuse(self, problem: Problem, receive: Receive | None) -> None:
        """Answer with a problem. If `receive` is given, read and drop the rest of the request, and close the
        connection.
        """
        self._facts.code = problem.code
        body = problem.body()
        headers = problem.all_headers() | {"Content-Length": str(len(body))}
        if receive is not None:
            headers["Connection"] = "close"
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": encoded})
        shown = b"" if self._scope["method"] == "HEAD" else body
        await self.send({"type": "http.response.body", "body": shown, "more_body": receive is not None})
        if receive is not None:
            await _drain(receive)
            await self.send({"type": "http.response.body", "body": b""})


def _add_demanded(message: Message) -> None:
    names = {name.lower() for name, _ in message["headers"]}
    for name, value in problems.demanded(message["status"]).items():
        if (encoded := name.lower().encode()) not in names:
            message["headers"].append((encoded, value.encode()))


def _correlation_id(headers: Headers) -> str:
    given = headers.last(b"x-correlation-id")
    return given.decode() if _CORRELATION_ID.fullmatch(given) else uuid7().hex


def _admit(scope: Scope, facts: RequestFacts) -> None:
    headers = facts.headers
    set_client(scope, headers)
    if headers.size > HEADERS_LIMIT:
        raise Refused(problems.general(431, f"The headers are larger than {HEADERS_LIMIT} bytes."), drain=True)
    if facts.is_another_target:
        raise Refused(problems.TARGET_IS_NO_PATH, drain=True)
    hosts = headers.values.get(b"host", [])
    if len(hosts) != 1 or not _is_served(hosts[0], tuple(settings.ALLOWED_HOSTS)):
        detail = (
            "The host name of this request is not in ALLOWED_HOSTS. To allow this host name, add it to ALLOWED_HOSTS."
        )
        raise Refused(Problem(400, "invalid_host", detail), drain=True)


@lru_cache(maxsize=256)
def _is_served(host: bytes, allowed: tuple[str, ...]) -> bool:
    domain, _ = split_domain_port(host.decode("latin-1"))
    return bool(domain) and validate_host(domain, allowed)


async def _drain(receive: Receive) -> None:
    size, until = 0, time.monotonic() + DRAIN_SECONDS
    while size < DRAIN_LIMIT:
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                message = await receive()
        except TimeoutError:
            return
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        size += len(message.get("body", b""))


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a function that first returns the body that was read, and then the next messages of the server."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
