"""The limits on the connections of a web worker, and the answer to a connection over a limit.

Each connection needs a descriptor and some kilobytes before the server knows its client. So there is a limit for each
address, and a limit for all addresses together.
"""

import asyncio
import resource
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import structlog
from django.conf import settings
from prometheus_client import Counter, Gauge
from uuid_utils import uuid7
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.server import ServerState

from nexmdm.common import addresses, problems
from nexmdm.common.problems import Problem
from nexmdm.http import refusals
from nexmdm.http.pipelining import Turns

log = structlog.get_logger()

REFUSED_SECONDS: Final = 1
"""The time in seconds that a refused connection waits for a request, and for its client to read the answer."""

REFUSED_TOGETHER: Final = 100
"""The largest number of refused connections that wait at the same time. Further connections get their answer and are
closed immediately.
"""

REFUSED_BYTES: Final = 256 * 1024
"""The number of bytes from a refused connection that are read and dropped before the connection is closed."""

DESCRIPTORS_KEPT: Final = 100
"""The number of descriptors that are kept for files, sockets and the log. Connections of clients and of the database do
not use these descriptors.
"""

_NOTE_SECONDS: Final = 0.25
_PER_ADDRESS: Final = "address"
_IN_TOTAL: Final = "total"

OPEN = Gauge("nexmdm_connections", "Open connections of all web workers.", multiprocess_mode="livesum")
REFUSED = Counter("nexmdm_connections_refused", "Refused connections, by the limit that caused the refusal.", ["bound"])
for _bound in (_PER_ADDRESS, _IN_TOTAL):
    REFUSED.labels(_bound)

_TOO_MANY: Final = {
    _PER_ADDRESS: problems.general(
        503, "Too many connections come from this address. Close some connections, then try again."
    ),
    _IN_TOTAL: problems.general(503, "Too many connections are open. Try again in a few seconds."),
}


class Bounds(NamedTuple):
    """The largest numbers of open connections of a worker: in total, and for each address."""

    total: int
    per_address: int


def bounds() -> Bounds:
    """Return the limits from MAX_CONNECTIONS and MAX_CONNECTIONS_PER_ADDRESS.

    If the limit on open files is too low for these settings, both limits are lower.
    """
    total, per_address = settings.MAX_CONNECTIONS, settings.MAX_CONNECTIONS_PER_ADDRESS
    limit = _file_limit()
    if limit is None:
        return Bounds(total, per_address)
    room = max(1, limit - DESCRIPTORS_KEPT - settings.DATABASE_POOL_SIZE - REFUSED_TOGETHER)
    if room >= total:
        return Bounds(total, per_address)
    return Bounds(room, max(1, per_address * room // total))


def report_lowered() -> None:
    """Log a warning if the limit on open files lowers the limits on connections."""
    lowered = bounds()
    if lowered.total < settings.MAX_CONNECTIONS:
        log.warning(
            "connections.bounds_lowered",
            file_limit=_file_limit(),
            max_connections=lowered.total,
            max_connections_per_address=lowered.per_address,
            hint=f"For MAX_CONNECTIONS={settings.MAX_CONNECTIONS}, raise the file limit (ulimit -n, LimitNOFILE=).",
        )


def _file_limit() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class Connections:
    """The open connections of one server, counted in total and by address. `turns` starts their pipelined requests."""

    def __init__(self) -> None:
        self.turns = Turns()
        self._bounds = bounds()
        self._total = 0
        self._by_address: dict[str, int] = {}
        self._refused = 0
        self._noting = False

    def enter(self, transport: asyncio.Transport, client: tuple[str, int] | None) -> str | None:
        """Count a connection, and return the name for leave(). Over a limit, refuse the connection and return None.

        Connections from a Unix socket and from trusted proxies count only in total.
        """
        exempt = client is None or (settings.TRUSTED_PROXIES and addresses.is_trusted_proxy(client[0]))
        name = "" if exempt or client is None else addresses.counting_key(client[0])
        if self._total >= self._bounds.total:
            self._refuse(transport, _IN_TOTAL)
            return None
        count = self._by_address.get(name, 0)
        if name and count >= self._bounds.per_address:
            self._refuse(transport, _PER_ADDRESS)
            return None
        self._total += 1
        self._by_address[name] = count + 1
        self._note_soon()
        return name

    def leave(self, name: str) -> None:
        """Stop counting the connection with this name."""
        self._total -= 1
        count = self._by_address[name] - 1
        if count:
            self._by_address[name] = count
        else:
            del self._by_address[name]
        self._note_soon()

    def _refuse(self, transport: asyncio.Transport, bound: str) -> None:
        REFUSED.labels(bound).inc()
        if self._refused >= REFUSED_TOGETHER:
            _write_too_many(transport, bound)
            transport.close()
            return
        self._refused += 1
        transport.set_protocol(RefusedConnection(transport, bound, self))

    def forget_refused(self) -> None:
        """Stop counting a refused connection."""
        self._refused -= 1

    def _note_soon(self) -> None:
        # Set the gauge later. With several processes, a gauge is in a file, and is slow to write.
        if not self._noting:
            self._noting = True
            asyncio.get_running_loop().call_later(_NOTE_SECONDS, self._note)

    def _note(self) -> None:
        self._noting = False
        OPEN.set(self._total)


_connections: Final[WeakKeyDictionary[ServerState, Connections]] = WeakKeyDictionary()


def of(server: ServerState) -> Connections:
    """Return the connections of this server."""
    found = _connections.get(server)
    if found is None:
        found = _connections[server] = Connections()
    return found


class RefusedConnection(asyncio.Protocol):
    """A connection over a limit. It gets one answer after its request, or after REFUSED_SECONDS, and is then closed."""

    def __init__(self, transport: asyncio.Transport, bound: str, connections: Connections) -> None:
        self._transport = transport
        self._bound = bound
        self._connections = connections
        self._answered = False
        self._drained = 0
        self._timer = asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._end)

    def data_received(self, data: bytes) -> None:
        """Answer, and drop all further data. If data were unread when the connection is closed, the client might lose
        the answer.
        """
        self._answer()
        self._drained += len(data)
        if self._drained > REFUSED_BYTES:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Stop counting this connection."""
        self._timer.cancel()
        self._connections.forget_refused()

    def _answer(self) -> None:
        if not self._answered:
            self._answered = True
            _write_too_many(self._transport, self._bound)

    def _end(self) -> None:
        self._answer()
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()


def _write_too_many(transport: asyncio.Transport, bound: str) -> None:
    write_problem(transport, _TOO_MANY[bound], f"connections: {bound}")


def write_problem(transport: asyncio.Transport, problem: Problem, reason: str) -> None:
    """Write the last answer of a connection, log it, and end the stream. The client may still send data.

    `reason` is for the log.
    """
    if transport.is_closing():
        return
    correlation_id = uuid7().hex
    client = get_remote_addr(transport)
    refusals.note_unread(problem, client[0] if client else "", correlation_id, reason)
    body = problem.body()
    headers = problem.all_headers() | {
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Correlation-ID": correlation_id,
    }
    head = [f"HTTP/1.1 {problem.status} {problem.title}", *(f"{name}: {value}" for name, value in headers.items())]
    transport.write("\r\n".join([*head, "", ""]).encode() + body)
    transport.write_eof()
