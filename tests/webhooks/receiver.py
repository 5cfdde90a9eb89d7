"""A receiver of webhooks over a real socket, and the dispatcher's lane that sends to it."""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import standardwebhooks
import uvloop

from nexmdm.common import database
from nexmdm.webhooks.lane import Lane
from tests.support import feed

Answer = Callable[["Handler", "Received"], None]


@dataclass(frozen=True)
class Received:
    """One request that a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The id of the event."""
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """Return the event, verified by the specification's own library. Raises WebhookVerificationError."""
        return standardwebhooks.Webhook(secret).verify(self.body, self.headers)


def status(code: int, **headers: str) -> Answer:
    """Answer with a status."""

    def answer(handler: "Handler", _: Received) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def reset(handler: "Handler", _: Received) -> None:
    """Reset the connection without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def endless(handler: "Handler", _: Received) -> None:
    """Answer 200 with a body that has no end."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    try:
        while True:
            handler.wfile.write(bytes(65_536))
    except OSError:
        pass


class Handler(BaseHTTPRequestHandler):
    """Stores each request, and answers it as the receiver says."""

    protocol_version = "HTTP/1.1"
    server: "Receiver"

    def do_POST(self) -> None:
        """Take one request."""
        received = Received(
            self.path,
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(int(self.headers["content-length"])),
        )
        answer = self.server.note(received)
        try:
            answer(self, received)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@dataclass
class _State:
    received: list[Received] = field(default_factory=list)
    script: list[Answer] = field(default_factory=list)
    always: Answer = field(default_factory=lambda: status(204))
    connections: int = 0


class Receiver(ThreadingHTTPServer):
    """A receiver on 127.0.0.1. It answers by `script`, one answer after the other, then always by `always`."""

    daemon_threads = True

    def __init__(self) -> None:
        self.state = _State()
        self.released = threading.Event()
        self.arrived = threading.Condition()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}/hook"

    @property
    def received(self) -> list[Received]:
        """All requests, in the order of their arrival."""
        return self.state.received

    @property
    def ids(self) -> list[str]:
        """The ids of the events that came, in the order of their arrival."""
        return [one.id for one in self.received]

    @property
    def types(self) -> list[str]:
        """The types of the events that came."""
        return [str(json.loads(one.body)["type"]) for one in self.received]

    def note(self, received: Received) -> Answer:
        """Store a request; return how to answer it."""
        with self.arrived:
            self.state.received.append(received)
            self.arrived.notify_all()
            return self.state.script.pop(0) if self.state.script else self.state.always

    def hang(self, handler: "Handler", received: Received) -> None:
        """Give no answer until the receiver is released."""
        self.released.wait(30)
        status(200)(handler, received)

    def wait_for(self, number: int) -> None:
        """Wait until this number of requests has come."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.received) >= number, timeout=15), self.ids

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count the connection."""
        self.state.connections += 1
        super().process_request(request, client_address)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        receiver.shutdown()
        receiver.server_close()
        thread.join()


def _wait_until_all_is_readable() -> None:
    """Wait until no older write transaction is open in the cluster, such as that of an ANALYZE by the autovacuum."""
    ends_at = time.monotonic() + feed.READABLE_WITHIN
    while database.row(
        "SELECT EXISTS (SELECT FROM nexmdm_event WHERE xid >= pg_snapshot_xmin(pg_current_snapshot()))"
    ) == (True,):
        assert time.monotonic() < ends_at, "an older write transaction is still open"


def send_once() -> None:
    """Do what a dispatcher does for webhooks now, until nothing is due."""

    _wait_until_all_is_readable()

    async def run() -> None:
        await Lane().run_once()

    uvloop.run(run())


@contextmanager
def running_lane() -> Iterator[Lane]:
    """Run the lane of a dispatcher in a thread."""
    lanes: list[tuple[Lane, asyncio.AbstractEventLoop]] = []
    is_ready = threading.Event()

    async def run() -> None:
        lane = Lane()
        lanes.append((lane, asyncio.get_running_loop()))
        is_ready.set()
        await lane.run()

    thread = threading.Thread(target=lambda: uvloop.run(run()))
    thread.start()
    assert is_ready.wait(10)
    lane, loop = lanes[0]
    try:
        yield lane
    finally:
        loop.call_soon_threadsafe(lane.stop)
        thread.join(15)
        assert not thread.is_alive()
