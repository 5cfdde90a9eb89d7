"""HTTP/1.1 as a web worker speaks it: uvicorn's, with bounds where that has none.

The guard bounds what reaches the application. Before it, uvicorn would wait for ever for a request that does not come,
and keep whatever comes as its head; after it, wait for ever for a client that does not take its answer.
"""

import asyncio
import logging
import random
import select
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import Counter
from uuid_utils import uuid7
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nexmdm import guard, problems, refusals
from nexmdm.problems import Problem

HEAD_SECONDS: Final = 10
"""How long the head of a request may take, counted from the opening of the connection or its first byte."""

HEAD_LIMIT: Final = 64 * 1024
"""How many bytes of an unfinished head are kept; what is whole by then, the guard judges by its own limit."""

WIRE_LIMIT: Final = 8 * 1024 * 1024
"""How many bytes may come after a head, framing and trailers included; what is left as a body, the guard counts."""

TAKEN_SECONDS: Final = 30
"""How long an answer may wait for a client that takes nothing of it."""

LAST_SECONDS: Final = 5
"""The same, once the worker is stopping."""

LINGER_SECONDS: Final = 0.25
"""How long an idle connection stays open at least when the worker stops, and twice as long at most: a client may have
written a request by then that is still on its way, and to close on it would cut it. Each is closed at a moment of its
own, for uvloop reads nothing more of those that it closes in one round, which with many of them takes milliseconds."""

CUT = Counter("nexmdm_connections_cut", "Connections ended because of what their client did, by what.", ["reason"])

_TOO_LARGE: Final = problems.general(431, f"The headers take more than {guard.HEADERS_LIMIT} bytes.")
_TOO_SLOW: Final = problems.general(408, f"The headers did not arrive within {HEAD_SECONDS} s.")
_NO_HTTP: Final = Problem(400, "invalid_request", "This is not a request of HTTP/1.1.")
_NO_UPGRADE: Final = Problem(400, "invalid_request", "Only HTTP/1.1 is spoken here: leave the Upgrade header away.")


class _Timer:
    """A call that comes due unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._handle: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float) -> None:
        self.stop()
        self._handle = self._loop.call_later(seconds, self._due)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        self._call()


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = logging.getLogger("uvicorn.protocol")  # nexmdm/logs.py lets it log errors only
        self._in_head = False
        self._head_bytes = 0
        self._wire_bytes = 0
        self._head_timer = _Timer(self.loop, self._give_head_up)
        self._taken_timer = _Timer(self.loop, self._give_answer_up)
        self._taken_seconds: float = TAKEN_SECONDS
        self._served: RequestResponseCycle | None = None
        self._linger_timer = _Timer(self.loop, self._close_if_idle)
        self._stopping = False
        self._refused = False
        self._drained = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request."""
        super().connection_made(transport)
        self._head_timer.start(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        if self._served is not None:
            # uvicorn tells the last request only, which may be one that waits behind this one.
            self._served.disconnected = True
        self._head_timer.stop()
        self._taken_timer.stop()
        self._linger_timer.stop()

    def data_received(self, data: bytes) -> None:
        """Read on; keep no more of an unfinished head than its limit, and wait for its end only so long."""
        if self._refused:
            self._throw_away(len(data))
            return
        goes_on = self._in_head
        super().data_received(data)
        if self._in_head:
            self._head_bytes = self._head_bytes + len(data) if goes_on else 0
            if self._head_bytes > HEAD_LIMIT:
                self._refuse("head too large", _TOO_LARGE)
                return
        if self.cycle is not None and self.cycle.more_body:
            self._wire_bytes += len(data)
            if self._wire_bytes > WIRE_LIMIT:
                CUT.labels("body without end").inc()
                self.transport.abort()
                return
        if not self._head_timer.runs and (self._in_head or self._is_idle()):
            self._head_timer.start(HEAD_SECONDS)

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; but no trailer, which would join them when they have been judged already."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End a head, and begin to serve its request."""
        self._in_head = False
        self._wire_bytes = 0
        self._head_timer.stop()
        if self.parser.should_upgrade() and _announces_body(self.headers):
            # httptools takes it for another protocol's bytes, and it would be lost.
            self._refuse("upgrade", _NO_UPGRADE)
        else:
            super().on_headers_complete()
            if b"#" in self.url or not self.url.startswith(b"/"):
                self.scope[guard.ANOTHER_TARGET] = True  # type: ignore[typeddict-unknown-key]
            if self._stopping and self.cycle is not None:
                self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """End a request."""
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is no HTTP, and close."""
        CUT.labels("no HTTP").inc()
        self._write_problem(_NO_HTTP, "no HTTP")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing of a wish to upgrade: uvicorn would recommend a library."""

    def shutdown(self) -> None:
        """Finish what is under way or on its way; but not for a client that takes nothing of its answer."""
        self._stopping = True
        if self._is_idle():
            self._linger_timer.start(LINGER_SECONDS * random.uniform(1, 2))
        else:
            super().shutdown()
        self._taken_seconds = LAST_SECONDS
        self._taken_timer.start(self._taken_seconds)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one whose client has not taken its answer, without waiting for that."""
        self._give_answer_up()
        super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        """Wait for the client to take what was written, but only so long."""
        super().pause_writing()
        self._taken_timer.start(self._taken_seconds)

    def resume_writing(self) -> None:
        """Write on."""
        super().resume_writing()
        self._taken_timer.stop()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self.transport.is_closing() or not self._is_idle():
            return  # It closes by itself: now, or with its answer.
        if self._in_head or self._has_unread():
            self._linger_timer.start(LINGER_SECONDS / 10)
        else:
            self.transport.close()

    def _has_unread(self) -> bool:
        wire = select.poll()
        wire.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(wire.poll(0))

    def _give_head_up(self) -> None:
        if not self._is_idle():
            self._head_timer.start(HEAD_SECONDS)  # The next request may have to wait for the answer to this one.
        elif self._in_head:
            self._refuse("head too slow", _TOO_SLOW)
        else:
            CUT.labels("silent").inc()
            self.transport.close()

    def _give_answer_up(self) -> None:
        if self.transport.get_write_buffer_size():
            CUT.labels("answer not taken").inc()
            self.transport.abort()

    def _refuse(self, reason: str, problem: Problem) -> None:
        """Answer, and close a little later: at once, unread bytes would take the answer away from its client."""
        CUT.labels(reason).inc()
        self._refused = True
        self._head_timer.stop()
        if self._is_idle():
            self._write_problem(problem, reason)
        self.loop.call_later(guard.DRAIN_SECONDS, self.transport.close)

    def _write_problem(self, problem: Problem, reason: str) -> None:
        """Answer a request that does not reach the guard, and log the refusal."""
        correlation_id = uuid7().hex
        refusals.note_unread(problem, self.client[0] if self.client else "", correlation_id, reason)
        self.transport.write(_encoded(problem, correlation_id))

    def _throw_away(self, size: int) -> None:
        self._drained += size
        if self._drained > guard.DRAIN_LIMIT:
            self.transport.close()


def _announces_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)


def _encoded(problem: Problem, correlation_id: str) -> bytes:
    """Return an answer with which its connection ends."""
    body = problem.body()
    headers = problem.all_headers() | {
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Correlation-ID": correlation_id,
    }
    head = [f"HTTP/1.1 {problem.status} {problem.title}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*head, "", ""]).encode() + body
