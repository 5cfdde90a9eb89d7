"""The proxy configurations of docs/operations/proxy, run by the real nginx and Caddy in front of a real server."""

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Final

import httpx
import pytest

from loadtest.testbed.serving import READY, Serving, wait_for
from nexmdm.auth import signing
from tests.support.processes import ROOT

NAME: Final = "mdm.example.com"
CONFIGURATIONS: Final = ROOT / "docs" / "operations" / "proxy"
PATH: Final = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
NGINX_MAIN: Final = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    # So that one machine can call from many addresses, of IPv6 too.
    set_real_ip_from 127.0.0.1;
    real_ip_header X-Test-Address;
    include {folder}/nexmdm.conf;
}}
"""


Kind = Callable[[Path, str, int, int], list[str]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def nginx(folder: Path, upstream: str, port: int, plain_port: int) -> list[str]:
    text = (CONFIGURATIONS / "nginx.conf").read_text()
    text = text.replace("127.0.0.1:8000", upstream).replace("listen 443 ", f"listen 127.0.0.1:{port} ")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{plain_port};").replace("listen [::]", "# ")
    text = text.replace(f"/etc/letsencrypt/live/{NAME}", str(folder))
    (folder / "nexmdm.conf").write_text(text)
    (folder / "nginx.conf").write_text(NGINX_MAIN.format(folder=folder))
    return ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def caddy(folder: Path, upstream: str, port: int, plain_port: int) -> list[str]:
    text = (CONFIGURATIONS / "Caddyfile").read_text().replace("127.0.0.1:8000", upstream)
    ports = f"\tadmin off\n\thttp_port {plain_port}\n\thttps_port {port}\n"
    text = text.replace("\tservers {", f"{ports}\tservers {{", 1)
    text = text.replace(f"{NAME} {{\n", f"{NAME} {{\n\ttls {folder}/fullchain.pem {folder}/privkey.pem\n")
    (folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def kind(request: pytest.FixtureRequest) -> Kind:
    configured: Kind = request.param
    if shutil.which(configured.__name__, path=PATH) is None:
        pytest.skip(f"{configured.__name__} is not installed")
    return configured


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as name:
        folder = Path(name)
        subprocess.run(
            [
                "/usr/bin/env", "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}",
                "-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem"),
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        yield folder


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[Serving]:
    serving = Serving(folder / "data", ALLOWED_HOSTS=f"{NAME},127.0.0.1", TRUSTED_PROXIES="127.0.0.1")
    yield serving.until_it_says(READY)
    assert serving.interrupt() == 0


@contextmanager
def proxied(kind: Kind, folder: Path, upstream: str) -> Iterator[httpx.Client]:
    """Run a proxy; yield a client that knows the proxy's name and trusts its certificate."""
    port = free_port()
    argv = kind(folder, upstream, port, free_port())
    with (folder / "proxy.log").open("wb") as log:
        environment = {"HOME": str(folder), "PATH": PATH}
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=subprocess.STDOUT)
    trust = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
    try:
        wait_for(lambda: accepts(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "proxy.log").read_text()
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trust, headers={"Host": NAME}) as client:
            client.event_hooks = {"request": [lambda sent: sent.extensions.update(sni_hostname=NAME)]}
            yield client
    finally:
        process.terminate()
        process.wait(10)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def proxy(kind: Kind, folder: Path, serving: Serving) -> Iterator[httpx.Client]:
    with proxied(kind, folder, serving.url.removeprefix("http://")) as client:
        yield client


def signed(proxy: httpx.Client, serving: Serving, method: str, target: str, **headers: str) -> httpx.Response:
    secrets, body = serving.secrets, b"" if method == "GET" else b"{}"
    signature = signing.headers(
        key=secrets["ADMIN_KEY"],
        secret=secrets["HMAC_SECRET"],
        timestamp=int(time.time()),
        idempotency_key="" if method == "GET" else token_hex(16),
        method=method,
        target=target,
        body=body,
    )
    kind = {"Content-Type": "application/json"}
    return proxy.request(method, target, content=body, headers=signature | kind | headers)


def is_a_problem(answer: httpx.Response, status: int, code: str) -> bool:
    """Return whether an answer is one of the API's problems: its form, its code, and the headers that every answer
    has.
    """
    problem = answer.headers["content-type"] == "application/problem+json" and answer.json()
    known = {"type", "title", "status", "code", "detail"}
    return bool(
        problem
        and (answer.status_code, problem["status"], problem["code"], set(problem)) == (status, status, code, known)
        and answer.headers["x-correlation-id"]
    )


def test_a_phone_registers_and_sends_heartbeats_through_the_proxy(proxy: httpx.Client, serving: Serving) -> None:
    token = signed(proxy, serving, "POST", "/admin/enrollment-tokens").json()["enrollment_token"]
    bearer = {"Authorization": f"Bearer {token}"}
    phone = proxy.post("/v1/register", json={"hardware_id": token[:20]}, headers=bearer).json()
    answer = proxy.post("/v1/heartbeat", json={}, headers={"Authorization": f"Bearer {phone['device_token']}"})
    assert (answer.status_code, answer.json()["commands"]) == (200, [])
    assert "max-age" in answer.headers["strict-transport-security"]


@pytest.mark.parametrize(
    ("target", "status"),
    [("/admin/devices?q=a%2Fb&limit=5", 200), ("/admin/devices/a%2Fb", 404), ("/admin//devices", 404)],
)
def test_a_target_arrives_as_it_was_signed(proxy: httpx.Client, serving: Serving, target: str, status: int) -> None:
    assert signed(proxy, serving, "GET", target).status_code == status


def test_an_address_that_a_client_invents_is_ignored(proxy: httpx.Client, serving: Serving) -> None:
    signed(proxy, serving, "POST", "/admin/enrollment-tokens", **{"X-Forwarded-For": "203.0.113.9"})
    (entry,) = signed(proxy, serving, "GET", "/admin/audit?limit=1").json()["items"]
    assert entry["address"] == "127.0.0.1"


def test_the_admin_site_knows_that_it_is_behind_https(proxy: httpx.Client) -> None:
    token = proxy.get("/django-admin/login/").cookies["csrftoken"]
    form = {"username": "nobody", "password": "wrong", "csrfmiddlewaretoken": token}
    headers = {"Origin": f"https://{NAME}", "Cookie": f"csrftoken={token}"}
    # Django accepts the form only from its own origin, scheme included: a 403 would mean that it assumes http.
    assert proxy.post("/django-admin/login/", data=form, headers=headers).status_code == 200


@pytest.mark.parametrize(("path", "size"), [("/v1/heartbeat", 64 * 1024 + 1), ("/admin/command", 1024 * 1024 + 1)])
def test_a_body_over_the_limit_gets_problem_details(proxy: httpx.Client, path: str, size: int) -> None:
    body = b"{" + b" " * (size - 2) + b"}"
    answer = proxy.post(path, content=body, headers={"Content-Type": "application/json"})
    assert is_a_problem(answer, 413, "payload_too_large")


@pytest.mark.parametrize("headers", [{"X-Long": "x" * 20_000}, {"X-One": "x" * 9_000, "X-Two": "x" * 9_000}])
def test_headers_over_the_limit_get_problem_details(proxy: httpx.Client, headers: dict[str, str]) -> None:
    assert is_a_problem(proxy.get("/healthz", headers=headers), 431, "headers_too_large")


NO_GOOD_TO_NGINX: Final[dict[str, tuple[bytes, int, str]]] = {
    "no request": (b"RUBBISH\r\n\r\n", 400, "invalid_request"),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400, "invalid_request"),
    "no version of HTTP": (b"GET / HTTP/7.5\r\nHost: %b\r\n\r\n", 400, "invalid_request"),
    "no escape": (b"GET /%%zz HTTP/1.1\r\nHost: %b\r\n\r\n", 400, "invalid_request"),
    "no length": (b"POST / HTTP/1.1\r\nHost: %b\r\nContent-Length: x\r\n\r\n", 400, "invalid_request"),
    "no encoding": (b"POST / HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "invalid_request"),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: %b\r\n\r\n", 405, "method_not_allowed"),
    "CONNECT": (b"CONNECT / HTTP/1.1\r\nHost: %b\r\n\r\n", 405, "method_not_allowed"),
    "CONNECT to elsewhere": (b"CONNECT %b:443 HTTP/1.1\r\nHost: %b\r\n\r\n", 400, "invalid_request"),
    "a path of the configuration": (b"GET /.bad-request HTTP/1.1\r\nHost: %b\r\n\r\n", 400, "invalid_request"),
    "a long target": (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: %b\r\n\r\n", 431, "headers_too_large"),
}


@pytest.mark.parametrize(("request_", "status", "code"), NO_GOOD_TO_NGINX.values(), ids=NO_GOOD_TO_NGINX)
def test_refusals_of_nginx_itself_are_problem_details_and_never_html(
    kind: Kind, folder: Path, proxy: httpx.Client, request_: bytes, status: int, code: str
) -> None:
    answer = said_to(folder, proxy, request_.replace(b"%b", NAME.encode()).replace(b"%%", b"%"))
    assert (answer.status_code >= 400, b"<" in answer.content) == (True, False)
    if kind is nginx:
        assert is_a_problem(answer, status, code)
        assert ("allow" in answer.headers) == (status == 405)


BROKEN_CHUNKS: Final = {
    "no length": b"zz\r\n{}\r\n0\r\n\r\n",
    "more than its length": b"2\r\n{}{}\r\n0\r\n\r\n",
    "no length in the second": b"2\r\n{}\r\n-1\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("body", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
def test_a_body_of_broken_chunks_is_the_callers_fault(folder: Path, proxy: httpx.Client, body: bytes) -> None:
    head = f"POST /v1/heartbeat HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\n"
    answer = said_to(folder, proxy, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + body)
    assert is_a_problem(answer, 400, "invalid_request")


@pytest.mark.parametrize(
    ("address", "neighbour", "another"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
        ("2001:db8:0a0a:0a0a::1", "2001:db8:0a0a:0a0a::2", "2001:db8:0a0a:0a0b::1"),
    ],
)
def test_nginx_limits_the_simultaneous_requests_of_one_address(
    kind: Kind, folder: Path, address: str, neighbour: str, another: str
) -> None:
    if kind is not nginx:
        pytest.skip("Caddy has nothing for it")
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        proxied(nginx_for_three, folder, "{}:{}".format(*silent.getsockname())) as proxy,
        ExitStack() as under_way,
    ):
        for _ in range(3):
            connection = under_way.enter_context(connected(folder, proxy))
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Test-Address: {address}\r\n\r\n".encode())
            under_way.enter_context(silent.accept()[0])  # by now nginx has counted the request
        refused = proxy.get("/", headers={"X-Test-Address": neighbour})
        with pytest.raises(httpx.ReadTimeout):
            proxy.get("/", headers={"X-Test-Address": another}, timeout=1)
    assert is_a_problem(refused, 503, "overloaded")
    assert "address" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) >= 1


def nginx_for_three(folder: Path, upstream: str, port: int, plain_port: int) -> list[str]:
    argv = nginx(folder, upstream, port, plain_port)
    configuration = folder / "nexmdm.conf"
    text = configuration.read_text()
    assert "limit_conn nexmdm_clients 500;" in text
    configuration.write_text(text.replace("limit_conn nexmdm_clients 500;", "limit_conn nexmdm_clients 3;"))
    return argv


@contextmanager
def connected(folder: Path, proxy: httpx.Client) -> Iterator[ssl.SSLSocket]:
    """Open a connection to the proxy."""
    trust = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
    with (
        socket.create_connection(("127.0.0.1", proxy.base_url.port or 443), timeout=10) as plain,
        trust.wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        yield connection


def said_to(folder: Path, proxy: httpx.Client, request: bytes) -> httpx.Response:
    """Send these bytes, which no HTTP client would send; return the answer."""
    with connected(folder, proxy) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())


def test_without_a_server_behind_it_the_proxy_answers_with_problem_details(kind: Kind, folder: Path) -> None:
    with proxied(kind, folder, f"127.0.0.1:{free_port()}") as proxy:
        answer = proxy.get("/healthz")
    assert is_a_problem(answer, 503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
