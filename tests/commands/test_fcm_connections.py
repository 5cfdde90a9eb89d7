"""The connections to FCM: the responses of a server, and their effect on the connection."""

import asyncio
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from commands.push import fcm_connections
from commands.push.fcm_connections import FcmConnections
from nexmdm.common.outgoing.http_connection import HttpResponse, NoResponse

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

WITH_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\nRETRY-AFTER: 7\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"
UNTIL_THE_END = b"HTTP/1.1 502 Bad Gateway\r\n\r\nbody"
AFTER_OTHERS = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\n\r\n" + WITH_LENGTH


class Server:
    """A server that answers each request with its next script, in the packets of that script."""

    def __init__(self, *scripts: tuple[bytes, ...], close_after: bool = False) -> None:
        self.scripts = list(scripts)
        self.close_after = close_after
        self.connections: list[int] = []
        """For each connection, how many requests came on it."""
        self.ended = asyncio.Event()
        """A client closed its connection."""
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.connections)
        self.connections.append(0)
        while request := await read_request(reader):
            self.connections[number] += 1
            self.requests.append(request)
            for packet in self.scripts.pop(0) if self.scripts else (WITH_LENGTH,):
                writer.write(packet)
                await writer.drain()
                await asyncio.sleep(0)
            if self.close_after:
                break
        writer.close()
        self.ended.set()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head + await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@asynccontextmanager
async def served(serve: Serve, *, limit: int = 5, tls: ssl.SSLContext | None = None) -> AsyncIterator[FcmConnections]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    origin = f"{'https' if tls else 'http'}://localhost:{server.sockets[0].getsockname()[1]}"
    connections = FcmConnections(origin, "/v1/projects/demo/messages:send", limit=limit)
    try:
        yield connections
    finally:
        connections.close()
        server.close()


async def post(connections: FcmConnections, body: bytes = b"{}") -> HttpResponse:
    async with asyncio.timeout(5):
        return await connections.post(lambda: body, "Bearer token")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (what is waited for sets no event)
            await asyncio.sleep(0)


def test_a_request_is_one_post_with_its_headers_and_its_body() -> None:
    async def run() -> bytes:
        server = Server()
        async with served(server.serve) as connections:
            await post(connections, b'{"message": {}}')
        return server.requests[0]

    head, body = uvloop.run(run()).split(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    assert (line, body) == (b"POST /v1/projects/demo/messages:send HTTP/1.1", b'{"message": {}}')
    assert fields[0].startswith(b"Host: localhost:")
    assert fields[1:] == [b"Authorization: Bearer token", b"Content-Type: application/json", b"Content-Length: 15"]


@given(data=st.data())
@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (WITH_LENGTH, (200, "", b"body")),
        (CHUNKED, (503, "7", b"body")),
        (UNTIL_THE_END, (502, "", b"body")),
        (AFTER_OTHERS, (200, "", b"body")),
    ],
    ids=["with a length", "chunked", "until the connection ends", "after interim responses"],
)
def test_a_response_is_the_same_in_any_packets(
    response: bytes, expected: tuple[int, str, bytes], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(response) - 1), max_size=6)))
    packets = tuple(response[start:end] for start, end in zip([0, *cuts], [*cuts, len(response)], strict=True))

    async def run() -> HttpResponse:
        server = Server(packets, close_after=response is UNTIL_THE_END)
        async with served(server.serve) as connections:
            return await post(connections)

    assert uvloop.run(run()) == expected


def test_requests_one_after_another_share_a_connection_and_many_take_no_more_than_the_limit() -> None:
    async def run() -> tuple[list[int], list[int]]:
        server = Server()
        async with served(server.serve, limit=3) as connections:
            for _ in range(4):
                await post(connections)
            alone = list(server.connections)
            await asyncio.gather(*(post(connections) for _ in range(30)))
        return alone, server.connections

    alone, together = uvloop.run(run())
    assert alone == [4]
    assert (len(together), sum(together)) == (3, 34)


@pytest.mark.parametrize(
    ("script", "close_after"),
    [
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody",), False),
        ((WITH_LENGTH,), True),
        ((WITH_LENGTH + WITH_LENGTH,), False),
        ((WITH_LENGTH + b"HTTP/1.1 2",), False),
        ((WITH_LENGTH, b"HTTP/1.1 200 OK\r\n"), False),
    ],
    ids=["it says close", "the server closes it", "two responses", "the start of another", "one without a request"],
)
def test_after_a_good_response_a_connection_is_kept_only_if_it_is_clean(
    script: tuple[bytes, ...], close_after: bool
) -> None:
    async def run() -> tuple[HttpResponse, HttpResponse, list[int]]:
        server = Server(script, close_after=close_after)
        async with served(server.serve) as connections:
            first = await post(connections)
            await server.ended.wait()
            await until(lambda: not connections._open)
            return first, await post(connections), server.connections

    first, second, requests = uvloop.run(run())
    assert first == second == (200, "", b"body")
    assert requests == [1, 1]


@pytest.mark.parametrize(
    ("packet", "close_after"),
    [
        (b"", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbody", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n", True),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1_100_000, False),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: x\r\n" * 100_000, False),
    ],
    ids=["nothing", "half a body", "no last chunk", "another protocol", "an upgrade", "a huge body", "endless headers"],
)
def test_an_incomplete_response_fails_only_its_own_request(packet: bytes, close_after: bool) -> None:
    async def run() -> tuple[HttpResponse, list[int]]:
        server = Server((packet,), close_after=close_after)
        async with served(server.serve) as connections:
            with pytest.raises(NoResponse):
                await post(connections)
            return await post(connections), server.connections

    response, requests = uvloop.run(run())
    assert (response, requests) == ((200, "", b"body"), [1, 1])


def test_a_cancelled_request_closes_its_connection() -> None:
    async def run() -> tuple[HttpResponse, list[int]]:
        server = Server(())
        async with served(server.serve, limit=1) as connections:
            hanging = asyncio.create_task(post(connections))
            await until(lambda: bool(server.requests))
            hanging.cancel()
            return await post(connections), server.connections

    response, requests = uvloop.run(run())
    assert (response, requests) == ((200, "", b"body"), [1, 1])


def test_a_body_that_cannot_be_made_sends_nothing_and_keeps_the_connection() -> None:
    def fail() -> bytes:
        raise LookupError("there is no body")

    async def run() -> list[int]:
        server = Server()
        async with served(server.serve, limit=1) as connections:
            with pytest.raises(LookupError):
                await connections.post(fail, "Bearer token")
            await post(connections)
        return server.connections

    assert uvloop.run(run()) == [1]


def test_an_idle_connection_is_closed_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcm_connections, "KEPT_SECONDS", 0.05)

    async def run() -> list[int]:
        server = Server()
        async with served(server.serve) as connections:
            await post(connections)
            async with asyncio.timeout(5):
                await server.ended.wait()
            await post(connections)
        return server.connections

    assert uvloop.run(run()) == [1, 1]


def test_many_new_connections_look_the_host_up_once_and_try_its_next_address_if_one_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = closed.getsockname()[1]

    class Looking(uvloop.Loop):
        asked = 0

        async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
            if host != "localhost":
                return await super().getaddrinfo(host, port, **options)
            Looking.asked += 1
            kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            return [(*kind, ("127.0.0.1", refusing)), (*kind, ("127.0.0.1", port))]

    async def run() -> list[int]:
        server = Server()
        async with served(server.serve, limit=20) as connections:
            await asyncio.gather(*(post(connections) for _ in range(20)))
        return server.connections

    with asyncio.Runner(loop_factory=Looking) as runner:
        assert sum(runner.run(run())) == 20
    assert Looking.asked == 1


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a self-signed certificate for a host name; return the file of the certificate and the file of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "certificate.pem").write_bytes(made.public_bytes(encoding))
    (folder / "key.pem").write_bytes(private)
    return folder / "certificate.pem", folder / "key.pem"


@pytest.mark.parametrize(
    ("name", "is_trusted", "error"),
    [
        ("localhost", True, None),
        ("localhost", False, "self-signed certificate"),
        ("fcm.example", True, "Hostname mismatch"),
    ],
)
def test_over_tls_the_certificate_must_be_trusted_and_be_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_trusted: bool, error: str | None
) -> None:
    chain, key = certificate(tmp_path, name)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(chain, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(chain) if is_trusted else str(tmp_path / "none.pem"))

    async def run() -> list[HttpResponse | BaseException]:
        async with served(Server().serve, tls=tls) as connections:
            return await asyncio.gather(*(post(connections) for _ in range(2)), return_exceptions=True)

    for outcome in uvloop.run(run()):
        if error is None:
            assert outcome == (200, "", b"body")
        else:
            assert isinstance(outcome, ssl.SSLCertVerificationError)
            assert error in str(outcome)
