"""The outermost layer: who calls, how large and how slow a request may be, and that no HTML error leaves the API.

It refuses before any other code runs: a bad Host, and a request target that is no path (400), oversized headers (431)
and bodies (413), slow bodies (408), bodies that are compressed or not JSON (415). What it lets through arrives with its
body read, and the caller's address and scheme set.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Self

import structlog
from django.conf import settings
from django.http.request import split_domain_port, validate_host
from uuid_utils import uuid7

from nexmdm.common import addresses, problems
from nexmdm.common.overload.shared_bytes import SharedBytes
from nexmdm.common.problems import Problem
from nexmdm.http import refusals

log = structlog.get_logger()

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS_LIMIT: Final = 16 * 1024
BODY_LIMITS: Final = (("/v1/", 64 * 1024), ("/admin/", 1024 * 1024), ("/django-admin/", 1024 * 1024))
OTHER_BODY_LIMIT: Final = 64 * 1024
LARGE: Final = 64 * 1024
LARGE_BODIES: Final = SharedBytes(64 * 1024 * 1024)
"""What bodies above LARGE may take while they come in: any client may send them, as well as an admin."""

BODY_SECONDS: Final = 10
DRAIN_LIMIT: Final = 4 * 1024 * 1024
"""How much of a refused body is read and thrown away, so that an honest client gets to read the answer."""

DRAIN_SECONDS: Final = 2
REFUSED_BODY: Final = "nexmdm.refused_body"
"""In the scope of a request whose body the protocol has refused: the problem to answer. The body ends there."""

HOPS: Final = 32
"""How many entries of X-Forwarded-For are read, from its end. Earlier ones are not the trusted proxies' own."""

FORWARDED: Final = "nexmdm.forwarded"
"""Set in the scope of a request whose client address comes from a trusted proxy."""

ANOTHER_TARGET: Final = "nexmdm.another_target"
"""Set by the protocol in the scope of a request whose target is no path: `path` holds only a part of it."""

SHOWN: Final = 64
"""The length to which a refused header's value is cut in the answer."""

_UNSHOWN: Final = re.compile(r"[^A-Za-z0-9!#$%&'*+.^_`|~/;=, -]")
_LOWEST_REFUSAL: Final = 400
"""The lowest status of a refusal. (A member of HTTPStatus takes a heartbeat a tenth of a microsecond to look up.)"""

_DIGITS: Final = 12
_CORRELATION_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_FORMS: Final = "/django-admin/"


class _Refused(Exception):
    """The guard refuses the request with a problem; `drain` if some of its body is still to come."""

    def __init__(self, problem: Problem, *, drain: bool = False) -> None:
        self.problem = problem
        self.drain = drain


class _ClientGone(Exception):
    """The client left before its request was complete; nobody waits for an answer."""


@dataclass(frozen=True, slots=True)
class Headers:
    """The request's headers that the guard looks at, by lower-case name."""

    values: dict[bytes, list[bytes]]
    size: int

    @classmethod
    def of(cls, scope: Scope) -> "Headers":
        """Read a scope's headers."""
        values: dict[bytes, list[bytes]] = {}
        size = 0
        for name, value in scope["headers"]:
            values.setdefault(name, []).append(value)
            size += len(name) + len(value) + 4
        return cls(values, size)

    def last(self, name: bytes) -> bytes:
        """Return the last value of a header, or nothing."""
        found = self.values.get(name)
        return found[-1] if found else b""


class Guard:
    """An ASGI application around the others."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers.of(scope)
        answer = _Answer(scope, send, _correlation_id(headers))
        scope["nexmdm.correlation_id"] = answer.correlation_id
        scope["nexmdm.headers"] = headers
        structlog.contextvars.bind_contextvars(correlation_id=answer.correlation_id)
        try:
            _admit(scope, headers)
            body = await _read(scope, headers, receive)
            await self._app(scope, _replay(body, receive), answer.send)
        except _ClientGone:
            return
        except _Refused as refused:
            await answer.refuse(refused.problem, receive if refused.drain else None)
        except asyncio.CancelledError:
            # The server has waited long enough for its requests, and is going.
            if not answer.started:
                await answer.refuse(problems.STOPPING, None)
        except Exception as error:
            log.exception("request.failed", error=type(error).__name__)
            if not answer.started:
                await answer.refuse(problems.INTERNAL, None)


class _Answer:
    """The way out: adds the correlation id, puts the status of the answer into the scope, and has refusals logged."""

    def __init__(self, scope: Scope, send: Send, correlation_id: str) -> None:
        self._scope = scope
        self._send = send
        self._refused = 0
        self.correlation_id = correlation_id

    @property
    def started(self) -> bool:
        """Whether an answer has begun."""
        return "nexmdm.status" in self._scope

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            status = self._scope["nexmdm.status"] = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-correlation-id", self.correlation_id.encode())]
            if status >= _LOWEST_REFUSAL:
                self._refused = status
                _add_demanded(message)
        elif self._refused:
            refusals.note(self._scope, self._refused, message.get("body", b""))
            self._refused = 0
        await self._send(message)

    async def refuse(self, problem: Problem, receive: Receive | None) -> None:
        """Answer with a problem; first with all of it, then throw away what still comes, then close."""
        refusals.facts(self._scope).code = problem.code
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
    """Add the headers that this status demands (Retry-After, WWW-Authenticate), if the answer lacks them."""
    names = {name.lower() for name, _ in message["headers"]}
    for name, value in problems.demanded(message["status"]).items():
        if (encoded := name.lower().encode()) not in names:
            message["headers"].append((encoded, value.encode()))


def _correlation_id(headers: Headers) -> str:
    given = headers.last(b"x-correlation-id")
    return given.decode() if _CORRELATION_ID.fullmatch(given) else uuid7().hex


def _admit(scope: Scope, headers: Headers) -> None:
    _set_caller(scope, headers)
    if headers.size > HEADERS_LIMIT:
        raise _Refused(problems.general(431, f"The headers take more than {HEADERS_LIMIT} bytes."), drain=True)
    if ANOTHER_TARGET in scope:
        raise _Refused(problems.TARGET_IS_NO_PATH, drain=True)
    hosts = headers.values.get(b"host", [])
    if len(hosts) != 1 or not _is_served(hosts[0], tuple(settings.ALLOWED_HOSTS)):
        detail = "This host name is not served here. Set ALLOWED_HOSTS to allow it."
        raise _Refused(Problem(400, "invalid_host", detail), drain=True)


@lru_cache(maxsize=256)
def _is_served(host: bytes, allowed: tuple[str, ...]) -> bool:
    domain, _ = split_domain_port(host.decode("latin-1"))
    return bool(domain) and validate_host(domain, allowed)


def _set_caller(scope: Scope, headers: Headers) -> None:
    """Set the client's canonical address; address and scheme are taken from the headers of trusted proxies only."""
    client = scope.get("client")
    if client is None:  # a Unix socket's, or one that is already gone
        scope["client"] = ("", 0)
    elif ":" in client[0]:
        scope["client"] = (addresses.canonical(client[0]), client[1])
    if not settings.TRUSTED_PROXIES or not addresses.is_trusted_proxy(scope["client"][0]):
        return
    entries = b",".join(headers.values.get(b"x-forwarded-for", [])).decode("latin-1").split(",")
    if (named := _nearest_untrusted(reversed(entries))) is not None:
        scope["client"] = (named, 0)
        scope[FORWARDED] = True
    if headers.last(b"x-forwarded-proto").strip().lower() == b"https":
        scope["scheme"] = "https"


def _nearest_untrusted(entries: Iterable[str]) -> str | None:
    """Return the first address that is not a trusted proxy's, else the last one before an entry that is no address."""
    nearest = None
    for entry in islice(entries, HOPS):
        parsed = addresses.parse(entry.strip())
        if parsed is None:
            break
        nearest = str(parsed)
        if not addresses.is_trusted_proxy(nearest):
            break
    return nearest


async def _read(scope: Scope, headers: Headers, receive: Receive) -> bytes:
    """Return the whole body, within its limits of size and time."""
    limit = _body_limit(scope["path"])
    declared = headers.last(b"content-length")
    if declared and (not declared.isdigit() or len(declared) > _DIGITS or int(declared) > limit):
        raise _Refused(_too_large(limit), drain=True)
    if not declared and b"transfer-encoding" not in headers.values:
        return await _collect(scope, receive, limit)
    try:
        body = await _in_time(_collect(scope, receive, limit))
    except TimeoutError:
        detail = f"The body did not arrive within {BODY_SECONDS} s."
        raise _Refused(problems.general(408, detail, Connection="close")) from None
    if REFUSED_BODY in scope:
        raise _Refused(scope[REFUSED_BODY], drain=True)
    if body and (b"content-encoding" in headers.values or not _is_json(headers)):
        _check_media(scope["path"], headers)
    return body


def _check_media(path: str, headers: Headers) -> None:
    """Refuse a compressed body, and where only JSON is read, a body of another type."""
    if b"content-encoding" in headers.values:
        encodings = b", ".join(headers.values[b"content-encoding"])
        if not {one.strip().lower() for one in encodings.split(b",")} <= {b"", b"identity"}:
            detail = f"The body came with Content-Encoding: {_shown(encodings)}. Send it as it is, without that header."
            raise _Refused(problems.general(415, detail))
    if not path.startswith(_FORMS) and not _is_json(headers):
        sent = _shown(headers.last(b"content-type"))
        came = f"with Content-Type: {sent}" if sent else "without a Content-Type"
        raise _Refused(problems.general(415, f"The body came {came}. Send it as Content-Type: application/json."))


def _shown(value: bytes) -> str:
    """Return the start of a header's value, with only the characters that media types have."""
    text = value[:SHOWN].decode("latin-1").strip()
    return _UNSHOWN.sub("?", text) + ("…" if len(value) > SHOWN else "")


def _body_limit(path: str) -> int:
    for start, limit in BODY_LIMITS:
        if path.startswith(start):
            return limit
    return OTHER_BODY_LIMIT


async def _in_time(collecting: Coroutine[Any, Any, bytes]) -> bytes:
    """Do what asyncio.timeout does, at a quarter of its cost: nearly every body is there already."""
    task, expired = asyncio.current_task(), False
    assert task is not None

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(BODY_SECONDS, expire)
    try:
        return await collecting
    except asyncio.CancelledError:
        if expired and task.uncancel() == 0:
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


async def _collect(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return a body; nearly every one is small, and comes in one piece."""
    piece, more = _piece(await receive(), 0, limit)
    return await _collect_on(scope, receive, limit, piece, more) if more or len(piece) > LARGE else piece


async def _collect_on(scope: Scope, receive: Receive, limit: int, piece: bytes, more: bool) -> bytes:
    pieces, size = [piece], len(piece)
    with BodyMemoryBudget(addresses.counting_key(scope["client"][0])) as budget:
        while True:
            if size > LARGE:
                budget.take(size)
            if not more:
                return b"".join(pieces)
            piece, more = _piece(await receive(), size, limit)
            pieces.append(piece)
            size += len(piece)


def _piece(message: Message, before: int, limit: int) -> tuple[bytes, bool]:
    """Return what came of a body, of which so many bytes came before, and whether there is more."""
    if message["type"] == "http.disconnect":
        raise _ClientGone
    piece: bytes = message.get("body", b"")
    if before + len(piece) > limit:
        raise _Refused(_too_large(limit), drain=True)
    return piece, message.get("more_body", False)


class BodyMemoryBudget:
    """The room that one large body takes of LARGE_BODIES while it comes in."""

    __slots__ = ("_client", "_mine")

    def __init__(self, client: str) -> None:
        self._client = client
        self._mine = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        LARGE_BODIES.change(self._client, -self._mine)

    def take(self, size: int) -> None:
        """Take this much in all."""
        if not LARGE_BODIES.fit(self._client, size - self._mine):
            raise _Refused(problems.general(503, "Too many large bodies are coming in. Try again shortly."), drain=True)
        LARGE_BODIES.change(self._client, size - self._mine)
        self._mine = size


def _too_large(limit: int) -> Problem:
    return problems.general(413, f"The body may take {limit} bytes at most here.")


def _is_json(headers: Headers) -> bool:
    return headers.last(b"content-type").partition(b";")[0].strip().lower() == b"application/json"


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
    """Return a receive() that first gives the body that was read, then what the server has to say (a disconnect)."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
