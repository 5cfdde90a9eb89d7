"""Where webhooks may go: the URL, the addresses of its host, TLS."""

import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pytest_django import Settings

from tests.support.actors import Admin, Phone
from tests.webhooks.conftest import Hook
from tests.webhooks.receiver import Receiver, receiving, send_once, status
from tests.webhooks.test_sending import make_due, tag

PRIVATE = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.1", "224.0.0.1",
    "255.255.255.255", "198.18.0.1", "192.0.2.1", "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]",
    "[ff02::1]", "[fec0::1]", "[2001:db8::1]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a00:1]",
    "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001:0:1::1]", "[::127.0.0.1]",
]  # fmt: skip
SPELLED = ["2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "10.0.0.010", "1", "example.0x1", "127.0.0.1."]
MALFORMED = [
    "http://example.com/", "ftp://example.com/", "//example.com/", "example.com", "https://", "https:///path",
    "https://user@example.com/", "https://user:secret@example.com/", "https://example.com/#part", "https://example.com:0/",
    "https://example.com:65536/", "https://example.com:port/", "https://exämple.com/", "https://example.com/ä",
    "https://example.com/a b", "https://example.com/\n", "https://example.com\\@127.0.0.1/", "https://%31%32%37.0.0.1/",
    "https://[::1%25eth0]/", "https://[::1", "https://[v1.a]/", "https://localhost/", "https://a.localhost./",
    "https://-a.example/", "https://a..example/",
]  # fmt: skip
ALLOWED = [
    "https://example.com", "https://example.com:8443/path?query=1", "HTTPS://EXAMPLE.com/", "https://example.com./",
    "https://93.184.215.14/", "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/", "https://xn--exmple-cua.com/",
    "https://[64:ff9b::5db8:d70e]/", "https://hooks_1.example.com/%20?a=b%0a",
]  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize(
    "url",
    [f"https://{host}/" for host in (*PRIVATE, *SPELLED)] + MALFORMED,
    ids=lambda url: url.encode("unicode_escape"),
)
def test_a_url_that_shows_a_forbidden_destination_is_refused(admin: Admin, url: str) -> None:
    answer = admin.post("/admin/webhooks", {"url": url})
    assert (answer.status, answer.code) == (422, "invalid_request"), answer
    assert answer.json["errors"][0]["loc"] == ["body", "url"]
    assert "secret" not in answer.body.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("url", ALLOWED)
def test_an_https_url_of_a_public_host_is_accepted(admin: Admin, url: str) -> None:
    assert admin.post("/admin/webhooks", {"url": url}).status == 200


@pytest.mark.django_db
def test_networks_that_the_setting_names_are_allowed_and_http_only_on_loopback(
    admin: Admin, settings: Settings
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("127.0.0.0/8")]

    def outcome(url: str) -> int:
        return admin.post("/admin/webhooks", {"url": url}).status

    assert outcome("https://10.1.2.3/") == outcome("https://[::ffff:10.1.2.3]/") == 200
    assert outcome("http://127.0.0.1:8080/") == outcome("https://127.0.0.1/") == outcome("http://localhost/") == 200
    assert outcome("http://10.1.2.3/") == outcome("https://10.2.0.1/") == outcome("https://[::1]/") == 422
    assert outcome("http://example.com/") == outcome("http://93.184.215.14/") == 422


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that lets the resolver find other addresses at each look-up; it returns the look-ups."""
    real = socket.getaddrinfo
    asked: list[str] = []

    def fake(*answers: list[str]) -> list[str]:
        script = list(answers)

        def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if host != "hooks.example.com":
                return real(host, port, *args, **kwargs)
            asked.append(host)
            addresses = script.pop(0) if len(script) > 1 else script[0]
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [found for address in addresses for found in real(address, port, type=socket.SOCK_STREAM)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return fake


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("addresses", [[one.strip("[]")] for one in PRIVATE] + [["93.184.215.14", "10.0.0.1"]])
def test_a_host_with_a_private_address_is_a_failed_attempt_without_a_connection(
    admin: Admin, phone: Phone, resolve: Callable[..., list[str]], addresses: list[str]
) -> None:
    resolve(addresses)
    webhook_id = admin.post("/admin/webhooks", {"url": "https://hooks.example.com/"}).json["id"]
    tag(admin, phone, "kiosk")
    send_once()
    (attempt,) = admin.get(f"/admin/webhooks/{webhook_id}/attempts").json["items"]
    assert (attempt["delivered"], attempt["http_status"]) == (False, None)
    assert "not a public address" in attempt["error"]


@pytest.mark.django_db(transaction=True)
def test_a_host_that_is_not_found_is_a_failed_attempt(
    admin: Admin, phone: Phone, resolve: Callable[..., list[str]]
) -> None:
    resolve([])
    webhook_id = admin.post("/admin/webhooks", {"url": "https://hooks.example.com/"}).json["id"]
    tag(admin, phone, "kiosk")
    send_once()
    (attempt,) = admin.get(f"/admin/webhooks/{webhook_id}/attempts").json["items"]
    assert attempt["error"] == "the host was not found: Name or service not known"


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> Receiver:
    """The receiver, which speaks TLS with a certificate of hooks.example.com that this process trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.example.com")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example.com")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = tmp_path / "certificate.pem", tmp_path / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    return receiver


@pytest.mark.django_db(transaction=True)
def test_the_address_is_resolved_once_and_the_certificate_verified_against_the_name(
    admin: Admin, phone: Phone, make_hook: Callable[..., Hook], secure: Receiver, resolve: Callable[..., list[str]]
) -> None:
    """A resolver that answers with another address at a second look-up cannot move the connection."""
    asked = resolve(["127.0.0.1"], ["127.0.0.2"])
    hook = make_hook(url=f"https://hooks.example.com:{secure.server_port}/hook")
    tag(admin, phone, "kiosk")
    send_once()
    assert (asked, len(secure.received)) == (["hooks.example.com"], 1)
    assert secure.received[0].headers["host"] == f"hooks.example.com:{secure.server_port}"
    assert hook.attempts[0]["delivered"] is True


@pytest.mark.django_db(transaction=True)
def test_a_certificate_of_another_name_is_a_failed_attempt(
    admin: Admin, phone: Phone, make_hook: Callable[..., Hook], secure: Receiver
) -> None:
    hook = make_hook(url=f"https://127.0.0.1:{secure.server_port}/hook")
    tag(admin, phone, "kiosk")
    send_once()
    assert "certificate" in hook.attempts[0]["error"].lower()
    assert secure.received == []


@pytest.mark.django_db(transaction=True)
def test_a_host_that_moves_to_a_private_address_is_refused_at_the_next_attempt(
    admin: Admin, phone: Phone, make_hook: Callable[..., Hook], secure: Receiver, resolve: Callable[..., list[str]]
) -> None:
    resolve(["127.0.0.1"], ["10.0.0.1"])
    hook = make_hook(url=f"https://hooks.example.com:{secure.server_port}/hook")
    tag(admin, phone, "a")
    send_once()
    tag(admin, phone, "b")
    send_once()
    assert [attempt["delivered"] for attempt in hook.attempts] == [False, True]
    assert "not a public address" in hook.attempts[0]["error"]


@pytest.mark.django_db(transaction=True)
def test_a_redirect_is_not_followed(admin: Admin, phone: Phone, hook: Hook, receiver: Receiver) -> None:
    with receiving() as elsewhere:
        receiver.state.script = [status(307, Location=elsewhere.url)]
        tag(admin, phone, "kiosk")
        send_once()
        assert (elsewhere.received, hook.attempts[0]["http_status"]) == ([], 307)


@pytest.mark.django_db(transaction=True)
def test_a_network_that_is_no_longer_allowed_is_refused_at_the_next_attempt(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, settings: Settings
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE = []
    tag(admin, phone, "kiosk")
    send_once()
    assert receiver.received == []
    assert hook.attempts[0]["error"].startswith("the URL must not lead to 127.0.0.1")
    settings.WEBHOOK_ALLOW_PRIVATE = [ipaddress.ip_network("127.0.0.0/8")]
    make_due()
    send_once()
    assert len(receiver.received) == 1
