"""The client's network over real sockets: kept connections, and each way in which a call can fail."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from nexmdm.client.http_client import FleetClient, Unreachable
from nexmdm.client.network import proxies
from tests.support.fleet_command import run

OK: Final = b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"x":1}'
Serve = Callable[[socket.socket], None]


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """Serve connections, one after the other, each by its own function. Return `127.0.0.1:port`."""
    with ExitStack() as stack:

        def serve(*each: Serve) -> str:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server.settimeout(20)

            def work() -> None:
                for one in each:
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(20)
                        one(connection)

            thread = threading.Thread(target=work)
            thread.start()
            stack.callback(thread.join, 20)
            return f"127.0.0.1:{server.getsockname()[1]}"

        yield serve


def answering(*answers: bytes) -> Serve:
    """Give each request on a connection an answer, then close it."""

    def serve(connection: socket.socket) -> None:
        for answer in answers:
            while not connection.recv(65_536).endswith(b"\r\n\r\n"):
                pass
            connection.sendall(answer)

    return serve


def client(url: str, answer_seconds: float = 20) -> FleetClient:
    return FleetClient(url, key="key", secret="secret", answer_seconds=answer_seconds)


def test_a_connection_is_kept_for_the_next_request(served: Callable[..., str]) -> None:
    with client(f"http://{served(answering(OK, OK))}") as admin:
        assert admin.get("/admin/summary") == admin.get("/admin/summary") == {"x": 1}


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(served: Callable[..., str]) -> None:
    with client(f"http://{served(answering(OK), answering(OK))}") as admin:
        assert admin.get("/admin/summary") == {"x": 1}
        (kept,) = admin._transport._idle  # type: ignore[attr-defined]
        assert kept.sock.recv(1, socket.MSG_PEEK) == b""
        assert admin.post("/admin/command") == {"x": 1}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "Remote end closed connection"),
        (b"220 mail.example.com ESMTP\r\n", "the server's answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "IncompleteRead"),
    ],
)
@pytest.mark.parametrize(("method", "perhaps_done"), [("GET", False), ("POST", True)])
def test_an_incomplete_answer_is_lost_and_only_a_write_may_have_been_carried_out(
    served: Callable[..., str], answer: bytes, said: str, method: str, perhaps_done: bool
) -> None:
    with client(f"http://{served(answering(answer))}") as admin, pytest.raises(Unreachable, match=said) as lost:
        admin.call(method, "/admin/command")
    assert lost.value.perhaps_done is perhaps_done


def test_an_answer_that_does_not_come_in_time_is_lost(served: Callable[..., str]) -> None:
    address = served(lambda connection: connection.recv(65_536) and connection.recv(1))
    with client(f"http://{address}", 0.1) as admin, pytest.raises(Unreachable, match="timed out") as lost:
        admin.post("/admin/command")
    assert lost.value.perhaps_done


@pytest.mark.parametrize(
    ("url", "said"),
    [("http://127.0.0.1:1", "Connection refused"), (f"http://{'x' * 70}.example", "cannot be the name of a host")],
)
def test_a_request_that_was_not_sent_is_not_carried_out(url: str, said: str) -> None:
    with client(url) as admin, pytest.raises(Unreachable, match=said) as failed:
        admin.post("/admin/command")
    assert not failed.value.perhaps_done


def test_a_server_without_tls_gets_another_message_than_one_that_is_away(served: Callable[..., str]) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    ran = run("summary", "--url", f"https://{served(refuse)}", transport=None)
    assert ran.status == 3
    assert (
        "The server does not speak TLS as expected. Check whether the address begins correctly with http:// or "
        "https://, and check the port."
    ) in ran.err


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a file with a certificate and its key, for 127.0.0.1, from an authority that only this test knows."""
    file = tmp_path / "server.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    words += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", str(file)]
    subprocess.run([*words[:-1], str(tmp_path / "public.pem")], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "public.pem").read_text())
    return file


def over_tls(certificate: Path, serve: Serve) -> Serve:
    """Serve a connection over TLS; a client that refuses the certificate ends it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def secured(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as inner:
                serve(inner)
        except OSError:
            return

    return secured


def test_a_certificate_is_verified_and_ssl_cert_file_names_an_authority(
    served: Callable[..., str], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secured = over_tls(certificate, answering(OK))
    url = f"https://{served(secured, secured)}"
    ran = run("summary", "--url", url, transport=None)
    assert ran.status == 3
    assert "the server's certificate cannot be verified" in ran.err
    assert "set SSL_CERT_FILE" in ran.err
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with client(url) as admin:
        assert admin.get("/admin/summary") == {"x": 1}


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Name a proxy in the environment, as on a company's machine."""

    def name(proxy: str) -> None:
        for variable in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(variable, proxy)

    return name


def test_a_proxy_of_the_environment_opens_a_tunnel_to_an_https_server(
    served: Callable[..., str], proxied: Callable[[str], None]
) -> None:
    seen: list[bytes] = []

    def refuse(connection: socket.socket) -> None:
        seen.append(connection.recv(65_536))
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    proxied(f"http://me:pass%20word@{served(refuse)}")
    with client("https://mdm.example.com") as admin, pytest.raises(Unreachable, match="403 Forbidden") as failed:
        admin.post("/admin/command")
    assert not failed.value.perhaps_done
    assert seen[0].startswith(b"CONNECT mdm.example.com:443 HTTP/1.")
    assert b"Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk" in seen[0]


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1"])
def test_a_proxy_of_another_kind_is_named_with_what_to_do(proxied: Callable[[str], None], proxy: str) -> None:
    proxied(proxy)
    with client("https://mdm.example.com") as admin, pytest.raises(Unreachable, match="is not an HTTP proxy") as failed:
        admin.get("/admin/summary")
    assert "NO_PROXY" in failed.value.advice


def test_servers_without_tls_or_in_no_proxy_are_called_directly(
    served: Callable[..., str], proxied: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxied("http://127.0.0.1:1")
    with client(f"http://{served(answering(OK))}") as admin:
        assert admin.get("/admin/summary") == {"x": 1}
    monkeypatch.setenv("no_proxy", "mdm.example.com")
    assert proxies.proxy_for("mdm.example.com", None) is None
