"""HTTP/1.1 over a socket: silent, endless or unread connections are closed, and bad HTTP gets a problem."""

import asyncio
import inspect
import json
import socket
import tomllib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from io import BytesIO
from typing import Final, TypeVar, cast

import pytest
import structlog
import uvicorn
from asgiref.sync import async_to_sync
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from commands.models import Command
from nexmdm.asgi import application
from nexmdm.http import protocol
from nexmdm.http.guard import body
from nexmdm.http.protocol import Protocol
from tests.conftest import SOON
from tests.support.actors import Admin, Answer, Phone
from tests.support.processes import ROOT

T = TypeVar("T")

BUFFER: Final = 4096
HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
UPGRADE: Final = b"Upgrade: h2c\r\nConnection: Upgrade\r\n"
HEARTBEAT: Final = b"POST /v1/heartbeat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@dataclass(slots=True)
class Line:
    """A client's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    state: ServerState

    async def say(self, *pieces: bytes) -> None:
        """Send pieces, each separately; the server may not accept them."""
        with suppress(ConnectionError):
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()
                await asyncio.sleep(0)

    async def answer(self) -> Answer:
        """Read one answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    @property
    def reading(self) -> asyncio.Transport:
        """The side of the connection from which answers are read."""
        return cast("asyncio.Transport", self.writer.transport)

    async def begins(self) -> asyncio.Task[None]:
        """Wait until the server has begun to serve a request."""
        while not self.state.tasks:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0)
        (task,) = self.state.tasks
        return task

    async def ends(self) -> bool:
        """Wait for the end of the connection; return whether nothing came before it."""
        with suppress(ConnectionError):
            return await self.reader.read() == b""
        return True


def over_a_socket(talk: Callable[[Line], Awaitable[T]]) -> T:
    """Let a client talk to the application over a real connection, for at most 10 s."""

    async def served() -> T:
        config = uvicorn.Config(application, http=Protocol, ws="none", log_config=None)
        config.load()
        listener = socket.create_server(("127.0.0.1", 0))
        for side in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            listener.setsockopt(socket.SOL_SOCKET, side, BUFFER)
        loop = asyncio.get_running_loop()
        state = ServerState()
        server = await loop.create_server(lambda: Protocol(config, state, {}), sock=listener)
        async with server, asyncio.timeout(10):
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
                connection.connect(listener.getsockname())
                reader, writer = await asyncio.open_connection(sock=connection)
                try:
                    return await talk(Line(reader, writer, state))
                finally:
                    writer.transport.abort()

    return async_to_sync(served)()


def assert_last_problem(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["connection"] == "close"
    assert len(answer.headers["x-correlation-id"]) == 32


def test_a_request_may_come_byte_by_byte() -> None:
    async def talk(line: Line) -> Answer:
        request = HEALTH + b"\r\n"
        await line.say(*(request[place : place + 1] for place in range(len(request))))
        return await line.answer()

    assert over_a_socket(talk).json == {"status": "ok"}


def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    async def talk(line: Line) -> list[int]:
        await line.say(HEALTH + b"\r\n" + HEALTH.replace(b"healthz", b"nothing") + b"\r\n" + HEALTH + b"\r\n")
        return [(await line.answer()).status for _ in range(3)]

    assert over_a_socket(talk) == [200, 404, 200]


@pytest.mark.parametrize("separator", [b"", b"\r\nX-Padding: "])
def test_an_endless_head_is_431_and_not_kept(impatient: None, separator: bytes) -> None:
    async def talk(line: Line) -> tuple[Answer, bool]:
        await line.say(HEALTH + b"X-Padding: ")
        saying = asyncio.create_task(line.say(*([separator + b"x" * 10_000] * 2000)))
        answer = await line.answer()
        await saying
        return answer, await line.ends()

    answer, ended = over_a_socket(talk)
    assert_last_problem(answer, 431, "headers_too_large")
    assert ended


def test_a_head_that_stops_is_408(impatient: None) -> None:
    async def talk(line: Line) -> tuple[Answer, bool]:
        await line.say(HEALTH)
        return await line.answer(), await line.ends()

    answer, ended = over_a_socket(talk)
    assert_last_problem(answer, 408, "request_timeout")
    assert ended


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"\r\n\r\n"])
def test_a_connection_without_a_request_is_closed(impatient: None, sent: bytes) -> None:
    async def talk(line: Line) -> bool:
        await line.say(sent)
        return await line.ends()

    assert over_a_socket(talk)


@pytest.mark.parametrize("sent", [b"\r\n", b"G", HEALTH])
def test_an_answered_connection_is_not_kept_by_a_few_bytes(impatient: None, sent: bytes) -> None:
    async def talk(line: Line) -> tuple[int, bool]:
        await line.say(HEALTH + b"\r\n")
        first = await line.answer()
        await line.say(sent)
        with suppress(asyncio.IncompleteReadError):
            await line.answer()
        return first.status, await line.ends()

    assert over_a_socket(talk) == (200, True)


def test_a_body_is_waited_for_by_the_guard_not_by_the_protocol(
    impatient: None, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 10)

    async def talk(line: Line) -> Answer:
        await line.say(HEARTBEAT + b"Content-Length: 2\r\n\r\n{")
        await asyncio.sleep(3 * SOON)
        await line.say(b"]")
        return await line.answer()

    assert over_a_socket(talk).status == 401


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"CONNECT localhost HTTP/1.1\r\n\r\n",
        HEALTH.replace(b"/healthz", b"/\xff") + b"\r\n",
        HEALTH + b"Bad Header: x\r\n\r\n",
        HEARTBEAT + b"Content-Length: -1\r\n\r\n",
        HEARTBEAT + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_bad_http_gets_a_problem(sent: bytes) -> None:
    async def talk(line: Line) -> tuple[Answer, bool]:
        await line.say(sent)
        return await line.answer(), await line.ends()

    answer, ended = over_a_socket(talk)
    assert_last_problem(answer, 400, "invalid_request")
    assert ended


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> BytesIO:
    """The log of refusals."""
    written = BytesIO()
    monkeypatch.setattr("nexmdm.http.refusals.log", structlog.wrap_logger(structlog.BytesLogger(written)))
    return written


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (b"\0" * 100, "invalid_request", "no HTTP"),
        (HEALTH, "request_timeout", "head too slow"),
        (HEALTH + b"X-Padding: " + b"x" * 70_000, "headers_too_large", "head too large"),
        (HEARTBEAT + UPGRADE + b"Content-Length: 2\r\n\r\n{}", "invalid_request", "upgrade"),
    ],
)
def test_a_request_that_does_not_reach_the_guard_is_logged_with_the_id_of_its_answer(
    impatient: None, refused: BytesIO, capfd: pytest.CaptureFixture[str], sent: bytes, code: str, reason: str
) -> None:
    async def talk(line: Line) -> Answer:
        await line.say(*(sent[place : place + 10_000] for place in range(0, len(sent), 10_000)))
        return await line.answer()

    answer = over_a_socket(talk)
    line = json.loads(refused.getvalue())
    assert (line["event"], line["code"], line["reason"]) == ("request.refused", code, reason)
    assert (line["correlation_id"], line["status"]) == (answer.headers["x-correlation-id"], answer.status)
    assert (line["address"], line["count"]) == ("127.0.0.1", 1)
    assert "Invalid HTTP request" not in capfd.readouterr().out


@pytest.mark.parametrize("target", ["http://any{path}", "HTTPS://localhost{path}", "{path}#fragment", "{path}?a=b#c"])
@pytest.mark.parametrize(
    "path", ["/admin/summary", "/v1/heartbeat", "/healthz", "/metrics", "/django-admin/", "/nothing"]
)
def test_a_target_that_is_more_than_a_path_is_refused_on_every_route(
    admin: Admin, impatient: None, refused: BytesIO, path: str, target: str
) -> None:
    async def talk(line: Line) -> Answer:
        signed = admin.headers("GET", path, b"") | {"X-Correlation-ID": "order-4711", "Host": "localhost"}
        head = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
        await line.say(f"GET {target.format(path=path)} HTTP/1.1\r\n{head}\r\n".encode())
        return await line.answer()

    answer = over_a_socket(talk)
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert "target" in answer.json["detail"]
    assert answer.headers["x-correlation-id"] == "order-4711"
    assert json.loads(refused.getvalue())["correlation_id"] == "order-4711"


def test_a_number_sign_that_is_escaped_is_part_of_a_path(db: None) -> None:
    async def talk(line: Line) -> Answer:
        await line.say(HEALTH.replace(b"/healthz", b"/healthz?a=%23") + b"\r\n")
        return await line.answer()

    assert over_a_socket(talk).status == 422


@pytest.mark.parametrize("stopping", [False, True])
def test_an_answer_that_is_not_read_is_dropped_with_its_connection(
    impatient: None, monkeypatch: pytest.MonkeyPatch, stopping: bool
) -> None:
    monkeypatch.setattr(protocol, "TAKEN_SECONDS" if stopping else "LAST_SECONDS", 60)

    async def talk(line: Line) -> bytes:
        line.reading.pause_reading()
        await line.say(*([HEALTH.replace(b"healthz", b"openapi.json") + b"\r\n"] * 5))
        (connection,) = line.state.connections
        if stopping:
            connection.shutdown()
        while connection in line.state.connections:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0)
        line.reading.resume_reading()
        taken = b""
        with suppress(ConnectionError):
            while piece := await line.reader.read(65_536):
                taken += piece
        return taken

    taken = over_a_socket(talk)
    assert 0 < len(taken) < 100_000
    assert not taken.endswith(b"}")


def test_a_client_that_sends_expect_continue_is_refused_without_100(impatient: None) -> None:
    async def talk(line: Line) -> Answer:
        await line.say(HEARTBEAT + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
        return await line.answer()

    assert_last_problem(over_a_socket(talk), 413, "payload_too_large")


def test_a_client_that_sends_expect_continue_gets_100_for_an_allowed_body(db: None) -> None:
    async def talk(line: Line) -> tuple[bytes, Answer]:
        await line.say(HEARTBEAT + b"EXPECT: 100-Continue\r\nContent-Length: 2\r\n\r\n")
        asked = await line.reader.readuntil(b"\r\n\r\n")
        await line.say(b"{}")
        return asked, await line.answer()

    asked, answer = over_a_socket(talk)
    assert (asked, answer.status) == (b"HTTP/1.1 100 Continue\r\n\r\n", 401)


def test_an_endless_body_for_a_wrong_host_is_not_read_further(impatient: None) -> None:
    async def talk(line: Line) -> tuple[Answer, bool]:
        await line.say(HEARTBEAT.replace(b"localhost", b"evil.example") + b"Transfer-Encoding: chunked\r\n\r\n")
        saying = asyncio.create_task(line.say(*([b"2710\r\n" + b"x" * 10_000 + b"\r\n"] * 2000)))
        answer = await line.answer()
        await saying
        return answer, await line.ends()

    answer, ended = over_a_socket(talk)
    assert_last_problem(answer, 400, "invalid_host")
    assert ended


def test_a_trailer_is_no_header(phone: Phone) -> None:
    async def talk(line: Line) -> Answer:
        bearer = f"Authorization: Bearer {phone.device_token}\r\n".encode()
        await line.say(HEARTBEAT + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + bearer + b"\r\n")
        return await line.answer()

    assert over_a_socket(talk).code == "invalid_token"


@pytest.mark.parametrize("separator", [b"", b"\r\nX-Padding: "])
def test_endless_trailers_are_cut(monkeypatch: pytest.MonkeyPatch, separator: bytes) -> None:
    monkeypatch.setattr(protocol, "WIRE_LIMIT", 100_000)

    async def talk(line: Line) -> bool:
        await line.say(HEARTBEAT + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Padding: ")
        await line.say(*([separator + b"x" * 10_000] * 200))
        return await line.ends()

    assert over_a_socket(talk)


@pytest.mark.parametrize("wanted", [b"websocket", b"h2c"])
def test_an_upgrade_is_ignored_unless_its_body_would_be_lost(impatient: None, wanted: bytes) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: " + wanted + b"\r\n"

    async def talk(line: Line) -> tuple[int, Answer, bool]:
        await line.say(HEALTH + upgrade + b"\r\n")
        read = await line.answer()
        await line.say(HEARTBEAT + upgrade + b"Content-Length: 2\r\n\r\n{}")
        return read.status, await line.answer(), await line.ends()

    status, answer, ended = over_a_socket(talk)
    assert (status, ended) == (200, True)
    assert_last_problem(answer, 400, "invalid_request")
    assert "Upgrade" in answer.json["detail"]


def test_a_client_that_disconnects_at_any_byte_leaves_nothing_or_a_whole_command(admin: Admin, phone: Phone) -> None:
    body = json.dumps({"action": "ping", "target": {"all": True}}).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in admin.headers("POST", "/admin/command", body).items())
    lines += f"Content-Length: {len(body)}\r\n\r\n"
    head = HEARTBEAT.replace(b"/v1/heartbeat", b"/admin/command") + lines.encode()
    request = head + body

    async def gone_after(line: Line, size: int) -> None:
        await line.say(request[:size])
        serving = await line.begins() if size >= len(head) else None
        line.writer.transport.abort()
        if serving is not None:
            await serving

    for size in (1, len(head) - 1, len(head), len(request) - 1):
        over_a_socket(partial(gone_after, size=size))
        assert not Command.objects.exists()
    over_a_socket(partial(gone_after, size=len(request)))
    (command,) = Command.objects.all()
    assert [delivery.state for delivery in command.deliveries.all()] == ["pending"]


def test_a_request_in_transit_when_the_worker_stops_is_answered_and_ends_its_connection() -> None:
    async def talk(line: Line) -> tuple[Answer, Answer, bool]:
        await line.say(HEALTH + b"\r\n")
        first = await line.answer()
        (connection,) = line.state.connections
        connection.shutdown()
        await line.say(HEALTH + b"\r\n")
        return first, await line.answer(), await line.ends()

    first, last, ended = over_a_socket(talk)
    assert (first.status, first.headers.get("connection")) == (200, None)
    assert (last.status, last.headers["connection"], ended) == (200, "close", True)


def test_a_head_that_has_begun_to_arrive_when_the_worker_stops_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", SOON / 10)

    async def talk(line: Line) -> tuple[Answer, bool]:
        await line.say(HEALTH + b"\r\n")
        await line.answer()
        (connection,) = line.state.connections
        await line.say(HEALTH)
        while not cast("Protocol", connection)._in_head:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0)
        connection.shutdown()
        await asyncio.sleep(SOON)
        await line.say(b"\r\n")
        return await line.answer(), await line.ends()

    answer, ended = over_a_socket(talk)
    assert (answer.status, answer.headers["connection"], ended) == (200, "close", True)


def test_an_idle_connection_ends_soon_after_the_worker_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", SOON)

    async def talk(line: Line) -> bool:
        await line.say(HEALTH + b"\r\n")
        await line.answer()
        (connection,) = line.state.connections
        connection.shutdown()
        return await line.ends()

    assert over_a_socket(talk)


def test_uvicorn_has_the_private_parts_that_are_relied_on_and_is_pinned_to_the_version_that_has_them() -> None:
    async def talk(line: Line) -> tuple[set[str], set[str]]:
        await line.say(HEALTH + b"\r\n")
        await line.answer()
        (connection,) = line.state.connections
        return set(vars(connection)), set(vars(cast("Protocol", connection).cycle))

    of_connection, of_request = over_a_socket(talk)
    assert of_connection >= {"cycle", "pipeline", "flow", "headers", "parser", "connections", "server_state", "client"}
    assert of_request >= {
        "scope",
        "keep_alive",
        "more_body",
        "message_event",
        "body",
        "response_complete",
        "disconnected",
    }
    for method in ("_unset_keepalive_if_required", "_start_asgi_task", "on_response_complete", "shutdown"):
        assert callable(getattr(HttpToolsProtocol, method))
    assert inspect.getsource(HttpToolsProtocol.on_response_complete).count("_start_asgi_task") == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pinned,) = (one for one in project["optional-dependencies"]["server"] if one.startswith("uvicorn"))
    major, minor, *_ = map(int, version("uvicorn").split("."))
    assert pinned == f"uvicorn>={major}.{minor},<{major}.{minor + 1}"
