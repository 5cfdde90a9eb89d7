"""Signed admin requests: the content that a signature covers; every other request gets the same refusal."""

import hmac
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from types import SimpleNamespace
from typing import Final
from uuid import uuid4

import pytest
import structlog
from pytest_django import Settings

from commands.models import Command
from nexmdm.api.application import api
from nexmdm.auth import signing
from nexmdm.models import AuditEntry, StoredAnswer
from tests.support.actors import Admin, Answer, Client, Phone

NOW: Final = 1767225600
SECRET: Final = "nxs_test_Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZg"
KEY: Final = "0123456789abcdef"
BODY: Final = b'{"action":"ping","target":{"all":true}}'

VECTORS: Final = {
    "A": (
        ("8f14e45fceea167a5a36dedd4bea2543", "POST", "/admin/command", BODY),
        "149b4add9a5c20985b3ca0ae510f7e4c615bfcd9edd9861edcc27ac99537adf3",
    ),
    "B": (
        ("", "GET", "/admin/requests?limit=50&status=failed", b""),
        "ea91a0e3c8450fb1b40d3d85cf77f442b561f81d751331de562a06944ad095fc",
    ),
    "C": (
        ("", "GET", "/admin/devices/a%2Fb", b""),
        "6d8b9766f48d993e63cc9f35e6f454a1c31dfa96ea022d005053f90c85a3e2fa",
    ),
    "D": (
        (KEY, "POST", "/admin/command", '{"action":"launch_app","name":"Café ✓"}'.encode()),
        "5af7537738635ded8bebb226a7a259da6738852e677a7e5c4b0b58a4026c4c17",
    ),
}

Signed = dict[str, str]
Tamper = Callable[[Signed], Signed | list[tuple[str, str]]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the server's clock at NOW."""
    monkeypatch.setattr("nexmdm.auth.signature_verification.time.time", lambda: float(NOW))


def signed(admin: Admin, method: str = "POST", target: str = "/admin/command", body: bytes = BODY) -> Signed:
    return signing.headers(
        key=admin.key,
        secret=admin.secret,
        timestamp=NOW,
        idempotency_key="" if method == "GET" else KEY,
        method=method,
        target=target,
        body=body,
    )


def assert_refused(answer: Answer) -> None:
    assert (answer.status, answer.code) == (401, "invalid_signature")
    assert answer.headers["www-authenticate"] == "NXD1"
    assert not Command.objects.exists()
    assert not AuditEntry.objects.filter(path="/admin/command").exists()


@pytest.mark.parametrize(("request_parts", "signature"), VECTORS.values(), ids=VECTORS)
def test_the_published_vectors_are_correct(request_parts: tuple[str, str, str, bytes], signature: str) -> None:
    key, method, target, body = request_parts
    message = signing.string_to_sign(str(NOW), key, method, target.encode(), body)
    assert signing.sign(SECRET, message) == signature


@pytest.mark.parametrize(("request_parts", "signature"), VECTORS.values(), ids=VECTORS)
def test_a_client_signs_like_the_vectors(request_parts: tuple[str, str, str, bytes], signature: str) -> None:
    key, method, target, body = request_parts
    headers = signing.headers(
        key="admin", secret=SECRET, timestamp=NOW, idempotency_key=key, method=method, target=target, body=body
    )
    assert headers["X-Signature"] == f"v1={signature}"
    assert headers.get("Idempotency-Key", "") == key


@pytest.mark.parametrize(
    ("vector", "status", "code"),
    [("A", 200, None), ("B", 404, "not_found"), ("C", 404, "not_found"), ("D", 422, "invalid_request")],
)
def test_the_server_accepts_the_signatures_of_the_published_vectors(
    admin: Admin, client: Client, phone: Phone, clock: None, settings: Settings, vector: str, status: int, code: str
) -> None:
    (key, method, target, body), signature = VECTORS[vector]
    settings.HMAC_SECRETS = [SECRET]
    headers = {"X-Admin": admin.key, "X-Timestamp": str(NOW), "X-Signature": f"v1={signature}"}
    headers |= {"Idempotency-Key": key} if key else {}
    answer = client.request(method, target, body or None, headers)
    assert (answer.status, answer.code) == (status, code)
    assert Command.objects.count() == (vector == "A")


def test_the_idempotency_key_of_a_get_is_not_signed(admin: Admin, client: Client, clock: None) -> None:
    headers = signed(admin, "GET", "/admin/summary", b"") | {"Idempotency-Key": KEY}
    assert client.request("GET", "/admin/summary", None, headers).status == 200


def test_a_correctly_signed_request_is_carried_out(admin: Admin, client: Client, phone: Phone, clock: None) -> None:
    answer = client.request("POST", "/admin/command", BODY, signed(admin))
    assert answer.status == 200
    assert str(Command.objects.get().id) == answer.json["request_id"]


def without(name: str) -> Tamper:
    return lambda headers: {header: value for header, value in headers.items() if header != name}


def altered(name: str, alter: Callable[[str], str]) -> Tamper:
    return lambda headers: headers | {name: alter(headers[name])}


def repeated(name: str) -> Tamper:
    return lambda headers: [*headers.items(), (name, headers[name])]


TAMPERED: Final[dict[str, Tamper]] = {
    **{f"without {name}": without(name) for name in ("X-Admin", "X-Timestamp", "X-Signature", "Idempotency-Key")},
    **{f"{name} twice": repeated(name) for name in ("X-Admin", "X-Timestamp", "X-Signature", "Idempotency-Key")},
    **{
        f"{name} not ASCII": altered(name, lambda value: value[:-1] + "é")
        for name in ("X-Admin", "X-Timestamp", "X-Signature", "Idempotency-Key")
    },
    "another admin key": altered("X-Admin", lambda key: key[:-1] + ("a" if key[-1] != "a" else "b")),
    "an empty admin key": altered("X-Admin", lambda _: ""),
    "the beginning of the admin key": altered("X-Admin", lambda key: key[:-1]),
    "another idempotency key": altered("Idempotency-Key", lambda key: key[:-1] + "0"),
    "a later timestamp than signed": altered("X-Timestamp", lambda timestamp: str(int(timestamp) + 1)),
    "a timestamp with a fraction": altered("X-Timestamp", lambda timestamp: timestamp + ".0"),
    "a timestamp with a sign": altered("X-Timestamp", lambda timestamp: "+" + timestamp),
    "a timestamp in other digits": altered("X-Timestamp", lambda timestamp: timestamp.replace("1", "\u00b9")),
    "an endless timestamp": altered("X-Timestamp", lambda _: "9" * 5000),
    "a signature without v1=": altered("X-Signature", lambda signature: signature.removeprefix("v1=")),
    "a signature of another version": altered("X-Signature", lambda signature: "v2=" + signature[3:]),
    "an upper-case signature": altered("X-Signature", lambda signature: "v1=" + signature[3:].upper()),
    "a signature cut short": altered("X-Signature", lambda signature: signature[:-1]),
    "a signature with one wrong digit": altered(
        "X-Signature", lambda signature: signature[:-1] + ("0" if signature[-1] != "0" else "1")
    ),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_a_header_missing_wrong_or_repeated_is_refused(
    admin: Admin, client: Client, phone: Phone, clock: None, tamper: Tamper
) -> None:
    assert_refused(client.request("POST", "/admin/command", BODY, tamper(signed(admin))))


SENT_OTHERWISE: Final = {
    "another method": ("PATCH", "/admin/devices/{phone}", BODY),
    "another path": ("POST", "/admin/enrollment-tokens", BODY),
    "a query that was not signed": ("POST", "/admin/command?limit=1", BODY),
    "another spelling of the same path": ("POST", "/admin/comm%61nd", BODY),
    "one byte more in the body": ("POST", "/admin/command", BODY + b" "),
    "one byte changed in the body": ("POST", "/admin/command", BODY.replace(b"ping", b"lock")),
    "no body": ("POST", "/admin/command", b""),
}


@pytest.mark.parametrize(("method", "target", "body"), SENT_OTHERWISE.values(), ids=SENT_OTHERWISE)
def test_the_signature_covers_method_target_and_body(
    admin: Admin, client: Client, phone: Phone, clock: None, method: str, target: str, body: bytes
) -> None:
    target = target.replace("{phone}", phone.device_id)
    assert_refused(client.request(method, target, body or None, signed(admin)))


def test_the_query_is_signed_as_it_is_sent(admin: Admin, client: Client, clock: None) -> None:
    target = "/admin/devices?q=caf%C3%A9&limit=5"
    headers = signed(admin, "GET", target, b"")
    assert client.request("GET", target, None, headers).status == 200
    assert_refused(client.request("GET", "/admin/devices?limit=5&q=caf%C3%A9", None, headers))
    assert_refused(client.request("GET", "/admin/devices?q=caf%c3%a9&limit=5", None, headers))


def test_an_unknown_secret_is_refused(admin: Admin, client: Client, phone: Phone) -> None:
    assert_refused(Admin(client, admin.key, "x" * 43).command(to=phone))
    assert_refused(Admin(client, admin.key, admin.key).command(to=phone))
    assert_refused(Admin(client, admin.secret, admin.secret).command(to=phone))


@pytest.mark.parametrize("offset", [-300, -299, 0, 299, 300])
def test_a_timestamp_within_300_seconds_passes(
    admin: Admin, client: Client, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    monkeypatch.setattr("nexmdm.auth.signature_verification.time.time", lambda: float(NOW - offset))
    assert client.request("GET", "/admin/summary", None, signed(admin, "GET", "/admin/summary", b"")).status == 200


@pytest.mark.parametrize("offset", [-301, -86_400, 301, 10**9])
def test_a_timestamp_further_off_is_refused(
    admin: Admin, client: Client, phone: Phone, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    monkeypatch.setattr("nexmdm.auth.signature_verification.time.time", lambda: float(NOW - offset))
    assert_refused(client.request("POST", "/admin/command", BODY, signed(admin)))


def test_keys_and_signatures_are_compared_in_constant_time_with_each_that_is_valid(
    admin: Admin, client: Client, clock: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ADMIN_KEYS, settings.HMAC_SECRETS = [admin.key, "old-key"], [admin.secret, "old-secret"]
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("nexmdm.auth.signature_verification.hmac", SimpleNamespace(compare_digest=compare))
    headers = signed(admin, "GET", "/admin/summary", b"")
    assert client.request("GET", "/admin/summary", None, headers).status == 200
    key, signature = headers["X-Admin"].encode(), headers["X-Signature"].encode()
    assert [one for one, _ in compared] == [key, key, signature, signature]
    assert [other for _, other in compared][:2] == [admin.key.encode(), b"old-key"]


def test_two_keys_and_two_secrets_of_one_principal_are_valid_at_the_same_time(
    admin: Admin, client: Client, phone: Phone, settings: Settings
) -> None:
    settings.ADMIN_KEYS = ["new-key", "old-key"]
    settings.HMAC_SECRETS = ["new-secret", "old-secret"]
    pairs = [("new-key", "new-secret"), ("new-key", "old-secret"), ("old-key", "new-secret"), ("old-key", "old-secret")]
    answers = [Admin(client, *pair).command(to=phone) for pair in pairs]
    assert [answer.status for answer in answers] == [200] * 4
    assert set(Command.objects.values_list("issued_by", flat=True)) == {"admin"}


def test_a_request_repeated_with_the_other_key_is_a_replay(
    admin: Admin, client: Client, phone: Phone, settings: Settings
) -> None:
    settings.ADMIN_KEYS = [admin.key, "old-key"]
    body = {"action": "ping", "target": {"all": True}}
    first = admin.post("/admin/command", body, idempotency_key=KEY)
    again = Admin(client, "old-key", admin.secret).post("/admin/command", body, idempotency_key=KEY)
    assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")
    assert Command.objects.count() == 1


def test_a_key_that_was_taken_out_of_use_is_refused(
    admin: Admin, client: Client, phone: Phone, settings: Settings
) -> None:
    settings.ADMIN_KEYS, settings.HMAC_SECRETS = ["new-key"], ["new-secret"]
    assert_refused(Admin(client, admin.key, "new-secret").command(to=phone))
    assert_refused(Admin(client, "new-key", admin.secret).command(to=phone))


@pytest.mark.parametrize("body", [b"no json", b'{"action":', b"\xff", b'{"surprise":1}'])
def test_the_signature_is_checked_before_the_body(admin: Admin, client: Client, body: bytes) -> None:
    assert_refused(client.request("POST", "/admin/command", body, {"Idempotency-Key": KEY}))
    assert admin.post("/admin/command", body).status in (400, 422)


def test_the_signature_is_checked_before_the_idempotency_key(admin: Admin, client: Client, clock: None) -> None:
    headers = signed(admin) | {"Idempotency-Key": "short"}
    assert_refused(client.request("POST", "/admin/command", BODY, headers))


def routes() -> Iterator[tuple[str, str]]:
    """Every route under /admin of the API, with an invented id in each path."""
    for prefix, router in api._routers:
        for path, view in router.path_operations.items():
            names = path.replace("{tag:tag}", "floor-2").replace("{", "}").split("}")
            filled = "".join(part if index % 2 == 0 else str(uuid4()) for index, part in enumerate(names))
            if prefix == "/admin":
                yield from ((method, prefix + filled) for operation in view.operations for method in operation.methods)


def test_every_route_under_admin_requires_a_signature(client: Client, db: None) -> None:
    found = list(routes())
    assert len(found) > 15
    for method, target in found:
        answer = client.request(method, target, None if method == "GET" else {})
        assert (answer.status, answer.code) == (401, "invalid_signature"), target
    assert not StoredAnswer.objects.exists()


def test_head_is_not_allowed_under_admin(admin: Admin, client: Client) -> None:
    targets = [target for method, target in routes() if method == "GET"]
    for target in targets:
        answer = client.request("HEAD", target, None, admin.headers("HEAD", target, b""))
        assert (answer.status, answer.headers["allow"].find("GET") >= 0) == (405, True), target


def test_the_answer_does_not_show_why_a_signature_was_refused(
    admin: Admin, client: Client, phone: Phone, clock: None
) -> None:
    answers = [client.request("POST", "/admin/command", BODY, tamper(signed(admin))) for tamper in TAMPERED.values()]
    assert len({answer.body for answer in answers}) == 1


REASONS: Final = {
    "without X-Admin": "header_missing",
    "X-Signature twice": "header_repeated",
    "X-Timestamp not ASCII": "header_not_ascii",
    "another admin key": "key",
    "an endless timestamp": "timestamp",
    "a signature cut short": "signature_form",
    "a signature with one wrong digit": "signature",
}


@pytest.mark.parametrize(("tampered", "reason"), REASONS.items())
def test_the_reason_why_a_signature_was_refused_is_in_the_log_and_in_a_metric(
    admin: Admin, client: Client, clock: None, monkeypatch: pytest.MonkeyPatch, tampered: str, reason: str
) -> None:
    def counted() -> float:
        lines = client.request("GET", "/metrics").body.decode().splitlines()
        name = f'nexmdm_admin_denied_total{{reason="{reason}"}} '
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    written = BytesIO()
    before = counted()
    monkeypatch.setattr("nexmdm.http.refusals.log", structlog.wrap_logger(structlog.BytesLogger(written)))
    assert_refused(client.request("POST", "/admin/command", BODY, TAMPERED[tampered](signed(admin))))
    line = json.loads(written.getvalue())
    assert (line["event"], line["reason"], line["address"]) == ("request.refused", reason, "127.0.0.1")
    assert counted() == before + 1
