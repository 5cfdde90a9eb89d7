"""HTTP/1.1 of a web worker: uvicorn's protocol, with further limits.

The guard limits the requests that reach the application. Without the limits here, uvicorn would keep a head of any size
and parse any number of pipelined requests. It would also wait without limit for a request, and for a client to read.

This module uses private parts of uvicorn: `cycle`, `pipeline`, `flow`, and fields of a RequestResponseCycle. It also
requires that on_response_complete() starts a waiting request. So pyproject.toml pins uvicorn's minor version. If this
version changes, first run tests/http/test_protocol.py, which names these parts.
"""

import asyncio
import logging
import random
import select
from typing import Any, Final

import httptools
from prometheus_client import Counter
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nexmdm.common import request_facts
from nexmdm.common.problems import Problem
from nexmdm.http import connection_bounds, pipelining
from nexmdm.http.connection_bounds import write_problem
from nexmdm.http.connection_timer import (
    HEAD_SECONDS,
    LAST_SECONDS,
    LINGER_SECONDS,
    TAKEN_SECONDS,
    ConnectionTimer,
)
from nexmdm.http.guard import guard
from nexmdm.http.pipelining import PORTION, PORTION_LINES, UNPARSED
from nexmdm.http.protocol_errors import BROKEN_BODY, NO_HTTP, NO_UPGRADE, TOO_LARGE, TOO_MANY_AHEAD, TOO_SLOW

HEAD_LIMIT: Final = 64 * 1024
"""The largest number of bytes of an unfinished head. The guard has a lower limit for complete heads."""

WIRE_LIMIT: Final = 8 * 1024 * 1024
"""The largest number of bytes after a head, with framing and trailers. The guard counts the body without them."""

CUT = Counter("nexmdm_connections_cut", "Connections ended because of the client, by reason.", ["reason"])
for _reason in (
    "silent", "head too slow", "head too large", "no HTTP", "upgrade", "broken body", "body without end",
    "too many requests ahead", "answer not taken",
):  # fmt: skip
    CUT.labels(_reason)
HELD = Counter("nexmdm_connections_held", "Pauses in reading from a connection with too many waiting requests.")


class Protocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connection_bounds.of(self.server_state)
        self._counted_as: str | None = None
        self.logger = logging.getLogger("uvicorn.protocol")  # nexmdm/config/logging.py lets it log errors only
        self._in_head = False
        self._in_body = False
        self._head_bytes = 0
        self._wire_bytes = 0
        self._unparsed = b""
        self._catching_up = False
        self._head_timer = ConnectionTimer(self.loop, self._give_head_up)
        self._taken_timer = ConnectionTimer(self.loop, self._give_answer_up)
        self._taken_seconds: float = TAKEN_SECONDS
        self._served: RequestResponseCycle | None = None
        self._linger_timer = ConnectionTimer(self.loop, self._close_if_idle)
        self._stopping = False
        self._refusal: tuple[Problem, str] | None = None
        self._deaf = False
        self._drained = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, or refuse a connection over a limit."""
        super().connection_made(transport)
        self._counted_as = self._connections.enter(transport, self.client)
        if self._counted_as is None:
            self.connections.discard(self)
            return
        self.flow = pipelining.Flow(transport, self._may_read)
        self._head_timer.start(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the connection has ended."""
        super().connection_lost(exc)
        if self._served is not None:
            # uvicorn notifies only the last request, and this request may still wait for the request in progress.
            self._served.disconnected = True
            request_facts.of(self._served.scope).client_has_left = True  # type: ignore[arg-type]
        self._deaf = True
        self._keep(b"")
        self._head_timer.stop()
        self._taken_timer.stop()
        self._linger_timer.stop()
        if self._counted_as is not None:
            self._connections.leave(self._counted_as)
            self._counted_as = None

    def data_received(self, data: bytes) -> None:
        """Parse the data. If the limits of pipelining.py are reached, keep the remaining data unparsed."""
        if self._deaf:
            self._throw_away(len(data))
        elif self._unparsed or self.pipeline:
            self._keep(self._unparsed + data)
        elif len(data) <= PORTION and data.count(b"\n") <= PORTION_LINES:
            parsed = self._parse(data)
            if self.pipeline or parsed < len(data):
                self._parse_portions(data[parsed:])
        else:
            self._parse_portions(data)

    def _parse_portions(self, data: bytes) -> None:
        """Parse portions of `data`, until a request waits or no data is left. Keep the data that is left."""
        start = 0
        while start < len(data) and not self._deaf and not self._is_full():
            start += self._parse(pipelining.portion_of(data, start))
        self._keep(data[start:])
        if self._unparsed or self._is_full():
            self.flow.pause_reading()
            self._head_timer.stop()
        if self.pipeline:
            HELD.inc()

    def _parse(self, portion: bytes) -> int:
        """Parse a portion, but nothing after the head of an upgrade request. Return the number of parsed bytes."""
        self._unset_keepalive_if_required()
        parsed = len(portion)
        try:
            self.parser.feed_data(portion)
        except httptools.HttpParserUpgrade as upgrade:
            parsed = upgrade.args[0]
        except httptools.HttpParserError:
            if self._in_body:
                self._refuse("broken body", BROKEN_BODY)
            else:
                self._refuse("no HTTP", NO_HTTP)
            return parsed
        if self._in_head:
            self._head_bytes += parsed
            if self._head_bytes > HEAD_LIMIT:
                self._refuse("head too large", TOO_LARGE)
                return parsed
        elif self._in_body:
            self._wire_bytes += parsed
            if self._wire_bytes > WIRE_LIMIT:
                CUT.labels("body without end").inc()
                self._deaf = True
                self.transport.abort()
                return parsed
        if (self._in_head or self._is_idle()) and not self._head_timer.runs:
            self._head_timer.start(HEAD_SECONDS)
        return parsed

    def _is_full(self) -> bool:
        """Return whether reading must pause: a request waits for an earlier request, or much of a body is unread."""
        return bool(self.pipeline) or (not self._is_idle() and len(self.cycle.body) > HIGH_WATER_LIMIT)

    def _may_read(self) -> bool:
        """Parse the data that was read but not parsed yet. Return whether more data may be read."""
        if self._catching_up:
            return False
        if self._unparsed:
            self._catching_up = True
            self._parse_portions(self._unparsed)
            self._catching_up = False
        if self._unparsed or self._is_full():
            return False
        if self._in_head and not self._head_timer.runs:
            self._head_timer.start(HEAD_SECONDS)
        return True

    def _keep(self, rest: bytes) -> None:
        """Keep `rest` as the data that is not parsed yet. If no more data will be parsed, drop `rest`."""
        rest = b"" if self._deaf else rest
        UNPARSED.change(self._counted_as or "", len(rest) - len(self._unparsed))
        self._unparsed = rest
        if rest and self.pipeline and not UNPARSED.fit(self._counted_as or "", 0):
            self._refuse("too many requests ahead", TOO_MANY_AHEAD)

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Ignore trailers: they would be added to headers that were checked already.

        This method repeats uvicorn's code. Calls of uvicorn's method would cost half a microsecond for each heartbeat.
        """
        if self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """End a head, and start its request."""
        self._in_head = False
        self._wire_bytes = 0
        self._head_timer.stop()
        if self.parser.should_upgrade() and _announces_body(self.headers):
            # httptools would treat the body as bytes of another protocol, and the body would be lost.
            self._refuse("upgrade", NO_UPGRADE)
        else:
            super().on_headers_complete()
            self._in_body = True
            if self.url[:1] != b"/" or b"#" in self.url:
                request_facts.of(self.scope).is_another_target = True  # type: ignore[arg-type]
            if self._stopping:
                self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """End a request."""
        if self._in_body:
            self._in_body = False
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the next request. If no request waits, continue to parse and to read."""
        if not (self.flow.read_paused or self._in_head or self._deaf):
            super().on_response_complete()
            return
        self._catching_up = True
        super().on_response_complete()
        self._catching_up = False
        if not self.transport.is_closing():
            self._go_on()

    def _go_on(self) -> None:
        self.flow.resume_reading()
        if not self._is_idle():
            return
        if self._refusal is not None:
            self._end_with(*self._refusal)
        elif self._in_head:
            # uvicorn's timer for idle connections is shorter than the time that a head may take.
            self._unset_keepalive_if_required()

    def shutdown(self) -> None:
        """Finish requests in progress and requests on their way. Do not wait for a client that does not read its
        answer.
        """
        self._stopping = True
        if self._is_idle():
            self._linger_timer.start(LINGER_SECONDS * random.uniform(1, 2))
        else:
            super().shutdown()
        self._taken_seconds = LAST_SECONDS
        self._taken_timer.start(self._taken_seconds)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if the client has not read the last answer."""
        self._close()

    def pause_writing(self) -> None:
        """Stop writing until the client has read the written data. If this takes too long, the connection is closed."""
        super().pause_writing()
        self._taken_timer.start(self._taken_seconds)

    def resume_writing(self) -> None:
        """Continue to write."""
        super().resume_writing()
        self._taken_timer.stop()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._served = cycle
        if self._catching_up:
            self._connections.turns.wait(lambda: self._start_in_turn(cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def _start_in_turn(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if not self.transport.is_closing():
            super()._start_asgi_task(cycle, app)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self.transport.is_closing() or not self._is_idle():
            return  # The connection closes by itself: now, or after its answer.
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
            self._refuse("head too slow", TOO_SLOW)
        else:
            CUT.labels("silent").inc()
            self.transport.close()

    def _give_answer_up(self) -> None:
        if self.transport.get_write_buffer_size():
            CUT.labels("answer not taken").inc()
            self.transport.abort()

    def _close(self) -> None:
        self._give_answer_up()
        self.transport.close()

    def _refuse(self, reason: str, problem: Problem) -> None:
        """Parse no more data. After the answers to earlier requests, answer with `problem` and close the connection."""
        CUT.labels(reason).inc()
        self._deaf = True
        self._keep(b"")
        self._head_timer.stop()
        if self._in_body:
            self._refuse_body(problem)
            return
        self._refusal = problem, reason
        if self._is_idle():
            self._end_with(problem, reason)

    def _refuse_body(self, problem: Problem) -> None:
        """Answer an incomplete request with `problem`, unless this request already has an answer."""
        if self._is_idle():
            self._close()
            return
        request_facts.of(self.cycle.scope).refused_body = problem  # type: ignore[arg-type]
        self.cycle.keep_alive = False
        self.cycle.more_body = False
        self.cycle.message_event.set()

    # Close a little later: a close with unread data may drop the answer before its client has read it.
    def _end_with(self, problem: Problem, reason: str) -> None:
        write_problem(self.transport, problem, reason)
        self.loop.call_later(guard.DRAIN_SECONDS, self._close)

    def _throw_away(self, size: int) -> None:
        self._drained += size
        if self._drained > guard.DRAIN_LIMIT:
            self.transport.close()


def _announces_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)
