"""An HTTP proxy between an agent and the server. It records all calls and injects faults."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Self

import aiohttp
import orjson
from aiohttp import web

from nexmdm.client.phone import PROBLEM_TYPE, Envelope

REGISTER: Final = "/v1/register"
HEARTBEAT: Final = "/v1/heartbeat"
REPORT: Final = "/v1/action-result"
ROTATE: Final = "/v1/token/rotate"
PORTAL: Final = "/portal"

INTERVAL_SECONDS: Final = 2
"""The heartbeat interval of the agents under test, in seconds. It is short so that the kit is fast."""

_HOST: Final = "127.0.0.1"


@dataclass(slots=True)
class Call:
    """A request of the agent with its answer. `status` is None if the agent got no answer."""

    at: float
    """The time at which the request arrived, from time.monotonic()."""

    path: str
    bearer: str
    body: dict[str, Any]
    status: int | None = None
    answer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lost:
    """A fault: the connection ends without an answer. If `done` is true, the server has carried out the request."""

    done: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A fault: the proxy answers with problem details. `retry_after` is in seconds."""

    status: int
    code: str
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Portal:
    """A fault: the proxy answers as a captive portal, with a page or with a redirect to it."""

    status: int


Fault = Lost | Refusal | Portal


class Proxy:
    """The proxy of one agent. It listens while its context is open.

    These attributes change the answers to heartbeats:

    - `paces`: the values of `next_heartbeat_seconds` in the next answers.
    - `interval`: the value of `next_heartbeat_seconds` after `paces` is empty.
    - `offers`: lists of envelopes. Each of the next answers gets the envelopes of one list.
    - `hides_commands`: whether to remove the commands of the server. The removed commands are in `hidden`.
    """

    def __init__(self, upstream: str, session: aiohttp.ClientSession) -> None:
        self._upstream, self._session = upstream, session
        self.calls: list[Call] = []
        self.interval = INTERVAL_SECONDS
        self.paces: deque[int] = deque()
        self.offers: deque[list[Envelope]] = deque()
        self.hides_commands = False
        self.hidden: dict[str, Envelope] = {}
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._blocked: dict[str, Fault] = {}
        self._triggers: dict[str, list[tuple[str, Fault]]] = defaultdict(list)
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(application, access_log=None)
        self._site: web.TCPSite | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The server's address for the agent."""
        return f"http://{_HOST}:{self.port}"

    def fail(self, path: str, *faults: Fault) -> None:
        """Inject one fault into each of the next calls of `path`."""
        self._faults[path].extend(faults)

    def block(self, path: str, fault: Fault) -> None:
        """Inject a fault into every call of `path` until unblock()."""
        self._blocked[path] = fault

    def block_after(self, trigger: str, path: str, fault: Fault) -> None:
        """Block `path` after the next call of the path `trigger` that gets 200."""
        self._triggers[trigger].append((path, fault))

    def unblock(self, path: str) -> None:
        """Stop the fault of block() for `path`."""
        del self._blocked[path]

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Refuse all connections while this context is open."""
        assert self._site is not None
        await self._site.stop()
        try:
            yield
        finally:
            await self._listen()

    def to(self, path: str, *, since: float = 0) -> list[Call]:
        """Return the calls of `path` that arrived after `since`, a time of time.monotonic()."""
        return [call for call in self.calls if call.path == path and call.at > since]

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, _HOST, self.port)
        await self._site.start()
        self.port = int(self._runner.addresses[0][1])

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        call = Call(time.monotonic(), request.path, bearer, _object(raw))
        faults = self._faults[call.path]
        fault = self._blocked.get(call.path) or (faults.popleft() if faults else None)
        if isinstance(fault, Refusal):
            call.status = fault.status
            response = _problem(fault)
        elif isinstance(fault, Portal):
            call.status = fault.status
            response = self._portal(fault)
        elif fault == Lost(done=False):
            response = _cut(request)
        else:
            response = await self._forward(call, request, raw)
            if fault is not None:
                call.status, response = None, _cut(request)
        self.calls.append(call)
        response.force_close()
        return response

    def _portal(self, fault: Portal) -> web.Response:
        headers = {"Location": self.url + PORTAL} if fault.status == HTTPStatus.FOUND else {}
        text = "<!DOCTYPE html><title>Welcome to the hotel</title><p>Log in to use the internet."
        return web.Response(status=fault.status, text=text, content_type="text/html", headers=headers)

    async def _forward(self, call: Call, request: web.Request, raw: bytes) -> web.Response:
        headers = {key: value for key, value in request.headers.items() if key in ("Authorization", "Content-Type")}
        url = self._upstream + request.path_qs
        async with self._session.request(request.method, url, data=raw, headers=headers) as answer:
            content = await answer.read()
            call.status, call.answer = answer.status, _object(content)
            kept = {key: value for key, value in answer.headers.items() if key in ("Retry-After", "X-Correlation-ID")}
        if call.status == HTTPStatus.OK:
            self._edit(call)
            for path, fault in self._triggers.pop(call.path, []):
                self.block(path, fault)
        return web.Response(
            status=call.status, body=orjson.dumps(call.answer), headers=kept, content_type=answer.content_type
        )

    def _edit(self, call: Call) -> None:
        answer = call.answer
        if call.path == REGISTER:
            answer["heartbeat_interval_seconds"] = self.interval
        elif call.path == HEARTBEAT:
            answer["next_heartbeat_seconds"] = self.paces.popleft() if self.paces else self.interval
            if self.hides_commands:
                self.hidden |= {envelope["request_id"]: envelope for envelope in answer["commands"]}
                answer["commands"], answer["has_more"] = [], False
            if self.offers:
                answer["commands"] += self.offers.popleft()


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _problem(fault: Refusal) -> web.Response:
    title = HTTPStatus(fault.status).phrase
    detail = "The conformance kit answers this in the server's place."
    problem = {"type": "about:blank", "title": title, "status": fault.status, "code": fault.code, "detail": detail}
    headers = {"X-Correlation-ID": "conformance-kit"}
    if fault.retry_after:
        headers["Retry-After"] = str(fault.retry_after)
    if fault.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(status=fault.status, body=orjson.dumps(problem), headers=headers, content_type=PROBLEM_TYPE)


def _cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def pause(seconds: float) -> None:
    """Wait for `seconds` while the agent runs."""
    await asyncio.sleep(seconds)
