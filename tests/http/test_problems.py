"""The guard and the conventions: every refusal is a problem in JSON that a program can read."""

import asyncio
import gzip
import ipaddress
import json
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any, Final

import pytest
import structlog
from asgiref.sync import async_to_sync
from django.db import OperationalError
from pytest_django import Settings

from commands.models import Command
from nexmdm.asgi import application
from nexmdm.common.asgi_types import App
from nexmdm.common.overload import shared_bytes
from nexmdm.http.guard.body import LARGE_BODIES
from nexmdm.http.guard.guard import Guard
from nexmdm.models import AuditEntry
from tests.support.actors import Admin, Answer, Client, Phone

Message = dict[str, Any]
JSON: Final = (b"content-type", b"application/json")
CHUNKED: Final = (b"transfer-encoding", b"chunked")


def send_in_parts(
    path: str,
    *parts: bytes,
    method: str = "POST",
    headers: list[tuple[bytes, bytes]],
    then: Callable[[], Awaitable[Message]] | None = None,
    to: App = application,
) -> list[Message]:
    """Send a request whose body comes in parts; after the last part, call `then`. Return the answer."""
    more = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if then is None and more:
        more[-1]["more_body"] = False
    answered: list[Message] = []

    async def receive() -> Message:
        return more.pop(0) if more else await (then or asyncio.Event().wait)()  # type: ignore[return-value]

    async def send(message: Any) -> None:
        answered.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost"), *headers], "client": ("127.0.0.1", 40000), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    async_to_sync(to)(scope, receive, send)
    return answered


async def nothing_more() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def the_client_leaves() -> Message:
    return {"type": "http.disconnect"}


def answer_of(answered: list[Message]) -> Answer:
    start, *bodies = answered
    headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], headers, b"".join(message["body"] for message in bodies))


def assert_problem(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code), answer.body
    assert set(answer.json) - {"errors"} == {"type", "title", "status", "code", "detail"}
    assert (answer.json["type"], answer.json["status"]) == ("about:blank", status)
    assert answer.json["title"]
    assert answer.json["detail"].endswith(".")
    assert "x-correlation-id" in answer.headers
    assert b"<" not in answer.body
    assert b"Traceback" not in answer.body


UNKNOWN_PATHS: Final = (
    "/", "//", "/admin", "/admin/", "/admin/nothing", "/admin/command/", "/v1", "/v1/", "/v2/heartbeat", "/favicon.ico",
    "/%00", "/%ff%fe", "/admin/%2e%2e/healthz", "/admin/devices/%0a", "/<script>", "/ADMIN/devices", "/%C3%A9",
)  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN_PATHS)
def test_an_unknown_path_is_not_found(admin: Admin, client: Client, path: str) -> None:
    assert_problem(client.request("GET", path), 404, "not_found")
    assert_problem(client.request("POST", path, {}), 404, "not_found")
    assert_problem(admin.get(path), 404, "not_found")


@pytest.mark.django_db(transaction=True)
def test_an_unknown_static_file_is_not_found() -> None:
    for path in ("/static/nothing.css", "/static/", "/static/\0", "/static/../../manage.py", "/static/<b>"):
        answer = answer_of(send_in_parts(path, b"", method="GET", headers=[]))
        assert_problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "local host", "localhost:port", "é", "@"]
)
def test_a_host_that_is_not_served_is_refused(client: Client, host: str) -> None:
    for path in ("/healthz", "/nothing", "/django-admin/", "/static/x", "/v1/heartbeat", "/docs"):
        assert_problem(client.request("GET", path, None, {"Host": host}), 400, "invalid_host")


@pytest.mark.parametrize("hosts", [["evil.example", "localhost"], ["localhost", "evil.example"], ["localhost"] * 2])
def test_two_host_headers_are_refused(client: Client, hosts: list[str]) -> None:
    for path in ("/healthz", "/django-admin/login/"):
        answer = client.request("GET", path, None, [("Host", host) for host in hosts])
        assert_problem(answer, 400, "invalid_host")


def test_a_host_is_accepted_with_any_port(client: Client) -> None:
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000"):
        assert client.request("GET", "/healthz", None, {"Host": host}).status == 200


METHODS_REFUSED: Final = [
    ("GET", "/admin/command", "POST"), ("HEAD", "/admin/devices", "GET"), ("OPTIONS", "/admin/command", "POST"),
    ("PUT", "/admin/devices/{device}", "GET, PATCH"), ("DELETE", "/admin/devices/{device}", "GET, PATCH"),
    ("HEAD", "/admin/devices/{device}", "GET, PATCH"), ("GET", "/v1/heartbeat", "POST"),
    ("OPTIONS", "/v1/heartbeat", "POST"), ("HEAD", "/v1/register", "POST"), ("POST", "/healthz", "GET, HEAD"),
    ("BREW", "/readyz", "GET, HEAD"), ("TRACE", "/metrics", "GET"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "allowed"), METHODS_REFUSED)
def test_a_wrong_method_is_refused_with_the_allowed_ones(
    admin: Admin, phone: Phone, method: str, path: str, allowed: str
) -> None:
    target = path.replace("{device}", phone.device_id)
    for answer in (admin.call(method, target), admin.client.request(method, target)):
        assert_problem(answer, 405, "method_not_allowed")
        assert ", ".join(sorted(answer.headers["allow"].split(", "))) == allowed


@pytest.mark.parametrize(("path", "limit"), [("/v1/heartbeat", 64 * 1024), ("/admin/command", 1024 * 1024)])
def test_a_body_over_its_limit_is_refused_by_its_declared_size(client: Client, db: None, path: str, limit: int) -> None:
    declared = {"Content-Length": str(limit + 1), "Content-Type": "application/json"}
    assert_problem(client.request("POST", path, b"{}", declared), 413, "payload_too_large")
    assert client.request("POST", path, b" " * (limit - 2) + b"{}").status == 401


@pytest.mark.parametrize(("path", "limit"), [("/v1/heartbeat", 64 * 1024), ("/admin/command", 1024 * 1024)])
def test_a_body_that_grows_over_its_limit_in_chunks_is_refused(client: Client, path: str, limit: int) -> None:
    answered = send_in_parts(path, b" " * limit, b"{", b"}", headers=[JSON, CHUNKED])
    assert_problem(answer_of(answered), 413, "payload_too_large")


@pytest.mark.parametrize(("part", "peer"), [(1, "192.0.2.7"), (4, "127.0.0.1")])
def test_large_bodies_share_limited_memory_by_address_and_small_ones_are_always_accepted(
    db: None, monkeypatch: pytest.MonkeyPatch, part: int, peer: str
) -> None:
    client = Client(peer)
    monkeypatch.setattr(shared_bytes, "PART", part)
    monkeypatch.setattr(LARGE_BODIES, "total", 300_000 * part)
    answers: list[tuple[int, str | None]] = []

    async def another_one() -> Message:
        for size in (100_000, 200_000, 70_000):
            body = b" " * size
            answer = await client.arequest("POST", "/admin/command", body, {"Content-Type": "application/json"})
            answers.append((answer.status, answer.code))
        small = await client.arequest("POST", "/v1/heartbeat", b" " * 60_000 + b"{}")
        answers.append((small.status, small.code))
        return {"type": "http.request", "body": b"", "more_body": False}

    first = answer_of(send_in_parts("/admin/command", b" " * 200_000, headers=[JSON, CHUNKED], then=another_one))
    assert first.status == 401
    assert answers == [
        (401, "invalid_signature"),
        (503, "overloaded"),
        (401, "invalid_signature"),
        (401, "invalid_token"),
    ]
    assert client.request("POST", "/admin/command", b" " * 300_000).status == 401


def test_a_body_in_chunks_within_its_limit_is_read_whole(admin: Admin, phone: Phone) -> None:
    body = json.dumps({"action": "ping", "target": {"all": True}}).encode()
    signed = admin.headers("POST", "/admin/command", body)
    headers = [(name.lower().encode(), value.encode()) for name, value in signed.items()]
    answered = send_in_parts("/admin/command", body[:7], body[7:], headers=[JSON, CHUNKED, *headers])
    assert answer_of(answered).json["device_count"] == 1


def test_a_body_that_does_not_arrive_in_time_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexmdm.http.guard.body.BODY_SECONDS", 0.05)
    answered = send_in_parts("/v1/heartbeat", b"{", headers=[JSON, (b"content-length", b"2")], then=nothing_more)
    assert_problem(answer_of(answered), 408, "request_timeout")


def test_a_client_that_leaves_before_its_body_is_complete_gets_no_answer_and_changes_nothing(admin: Admin) -> None:
    answered = send_in_parts("/admin/command", b"{", headers=[JSON, (b"content-length", b"2")], then=the_client_leaves)
    assert answered == []
    assert not Command.objects.exists()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
def test_a_body_without_the_content_type_of_json_is_refused(admin: Admin, phone: Phone, content_type: str) -> None:
    body = b'{"action":"ping","target":{"all":true}}'
    headers = admin.headers("POST", "/admin/command", body) | {"Content-Type": content_type}
    assert_problem(admin.client.request("POST", "/admin/command", body, headers), 415, "unsupported_media_type")
    assert not Command.objects.exists()


@pytest.mark.parametrize(
    ("content_type", "shown"),
    [
        ("text/plain; charset=utf-8", "Content-Type: text/plain; charset=utf-8."),
        ("application/x-www-form-urlencoded", "Content-Type: application/x-www-form-urlencoded."),
        ("<script>\x01é", "Content-Type: ?script???."),
        ("x" * 5000, f"Content-Type: {'x' * 64}…."),
        (" ", "without a Content-Type."),
    ],
)
def test_a_body_of_another_type_is_refused_by_the_name_of_that_type(
    client: Client, content_type: str, shown: str
) -> None:
    answer = client.request("POST", "/v1/heartbeat", b"{}", {"Content-Type": content_type})
    assert_problem(answer, 415, "unsupported_media_type")
    assert shown in answer.json["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "x-gzip", "identity, gzip", "deflate, gzip", "?"])
@pytest.mark.parametrize(
    "path", ["/v1/heartbeat", "/v1/register", "/admin/command", "/nothing", "/django-admin/login/"]
)
def test_a_compressed_body_is_refused_by_the_name_of_its_encoding(client: Client, path: str, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    answer = client.request("POST", path, gzip.compress(b"{}"), headers)
    assert_problem(answer, 415, "unsupported_media_type")
    assert f"Content-Encoding: {encoding}." in answer.json["detail"]


@pytest.mark.parametrize("encodings", [["identity"], ["Identity"], [""], ["identity", "identity"]])
def test_a_body_with_content_encoding_identity_is_accepted(phone: Phone, encodings: list[str]) -> None:
    headers = [("Authorization", f"Bearer {phone.device_token}"), *(("Content-Encoding", one) for one in encodings)]
    assert phone.client.request("POST", "/v1/heartbeat", {}, headers).status == 200


def test_a_content_encoding_without_a_body_is_ignored(client: Client) -> None:
    assert client.request("GET", "/healthz", None, {"Content-Encoding": "gzip"}).status == 200


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_json_may_be_declared_with_a_charset_and_in_any_case(admin: Admin, phone: Phone, content_type: str) -> None:
    body = b'{"action":"ping","target":{"all":true}}'
    headers = admin.headers("POST", "/admin/command", body) | {"Content-Type": content_type}
    assert admin.client.request("POST", "/admin/command", body, headers).status == 200


def test_headers_of_more_than_16_kib_are_refused(client: Client) -> None:
    assert client.request("GET", "/healthz", None, {"X-Padding": "x" * 16_000}).status == 200
    assert_problem(client.request("GET", "/healthz", None, {"X-Padding": "x" * 16_400}), 431, "headers_too_large")
    many = [(f"X-{number}", "x") for number in range(2000)]
    assert_problem(client.request("GET", "/healthz", None, many), 431, "headers_too_large")


NOT_JSON: Final = {
    "text": b"ping", "cut short": b'{"action":', "two values": b"{}{}", "single quotes": b"{'action':'ping'}",
    "not UTF-8": b'{"action":"\xff"}', "Latin-1": '{"note":"Café"}'.encode("latin-1"),
    "two byte order marks": b"\xef\xbb\xbf" * 2 + b"{}",
    "NaN": b'{"action":"ping","target":{"all":true},"params":{"a":NaN}}', "infinity": b'{"a":Infinity}',
    "depth without end": b"[" * 60_000, "blank": b" ",
}  # fmt: skip


NOT_JSON_UNDER_ADMIN: Final = {
    "beyond a double": b'{"a":1e400,"b":1234567890123456789}', "a lone surrogate": b'{"note":"\\ud800"}',
    "depth beyond the parser": b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("body", NOT_JSON_UNDER_ADMIN.values(), ids=NOT_JSON_UNDER_ADMIN)
def test_a_body_that_only_a_tolerant_parser_can_read_is_refused_under_admin(
    admin: Admin, phone: Phone, body: bytes
) -> None:
    assert_problem(admin.post("/admin/command", body), 400, "invalid_json")
    assert phone.send("/v1/heartbeat", body).status == 200


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_a_body_that_is_not_json_is_refused(admin: Admin, phone: Phone, body: bytes) -> None:
    assert_problem(admin.post("/admin/command", body), 400, "invalid_json")
    assert_problem(phone.send("/v1/heartbeat", body), 400, "invalid_json")


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"ping"', b"true", b""])
def test_json_of_another_shape_does_not_fit_the_schema(admin: Admin, body: bytes) -> None:
    answer = admin.post("/admin/command", body)
    assert_problem(answer, 422, "invalid_request")
    assert [error["loc"] for error in answer.json["errors"]] == [["body"]]


def test_a_schema_error_says_where_and_what(admin: Admin, phone: Phone) -> None:
    body = {"action": "ping", "target": {"device_ids": ["x"]}, "expires_in_seconds": 0, "typo": 1}
    answer = admin.post("/admin/command", body)
    assert_problem(answer, 422, "invalid_request")
    where = [error["loc"] for error in answer.json["errors"]]
    assert where == [["body", "target", "device_ids", 0], ["body", "expires_in_seconds"], ["body", "typo"]]
    assert all(set(error) == {"loc", "msg"} and error["msg"] for error in answer.json["errors"])
    assert answer.json["errors"][0]["msg"] == "must be a UUID in lower case with hyphens"


MUCH_WRONG: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "ids": ("/admin/command", {"action": "ping", "target": {"device_ids": ["x"] * 200_000}}),
    "aliases": ("/admin/command", {"action": "ping", "target": {"aliases": [""] * 200_000}}),
    "tags": ("/admin/command", {"action": "ping", "target": {"tags": ["!"] * 200_000}}),
    "parameters": (
        "/admin/command",
        {"action": "ping", "params": {f"k{n}": 1 for n in range(50_000)}, "target": {"all": True}},
    ),
    "unknown fields": ("/admin/command", {f"k{n}": 1 for n in range(50_000)}),
    "unknown fields, one by one": ("/admin/command", {f"k{n}": 1 for n in range(102)}),
    "devices of a tag": ("/admin/tags/lobby", {"add": ["x"] * 25_000, "remove": ["x"] * 25_000}),
    "unknown names in the query": (f"/admin/devices?{'&'.join(f'k{n}' for n in range(900))}", {}),
}


@pytest.mark.parametrize(("target", "body"), MUCH_WRONG.values(), ids=MUCH_WRONG)
def test_a_refusal_stays_small_for_any_number_of_errors(admin: Admin, target: str, body: dict[str, Any]) -> None:
    answer = admin.post(target, body) if body else admin.get(target)
    assert_problem(answer, 422, "invalid_request")
    assert 1 <= len(answer.json["errors"]) <= 100
    assert len(answer.body) < 16 * 1024


def test_an_error_does_not_repeat_what_was_sent(admin: Admin) -> None:
    answer = admin.post("/admin/command", {"action": "<b>secret</b>", "target": {"aliases": [["<b>secret</b>"]]}})
    assert_problem(answer, 422, "invalid_request")
    assert b"secret" not in answer.body


def test_a_name_that_could_be_a_secret_is_not_repeated_either(admin: Admin) -> None:
    secret = admin.enrollment_token()
    query = admin.get(f"/admin/devices?limitt=1&{secret}=1")
    assert [error["loc"] for error in query.json["errors"]] == [["query", "limitt"], ["query", "…"]]
    body = admin.post("/admin/command", {"action": "ping", "target": {"all": True, secret: 1, "al": 1}, secret: 1})
    assert [error["loc"] for error in body.json["errors"]] == [
        ["body", "target", "…"], ["body", "target", "al"], ["body", "…"],
    ]  # fmt: skip
    assert secret.encode() not in query.body + body.body


def test_the_guard_refuses_before_credentials_are_checked(client: Client) -> None:
    text = {"Content-Type": "text/plain"}
    assert_problem(client.request("POST", "/admin/command", b"{}", text), 415, "unsupported_media_type")
    assert_problem(client.request("POST", "/v1/register", b"{}", text), 415, "unsupported_media_type")


@pytest.mark.parametrize("given", ["a", "Az09._-", "x" * 64])
def test_a_correlation_id_is_echoed(client: Client, given: str) -> None:
    for path in ("/healthz", "/nothing"):
        assert client.request("GET", path, None, {"X-Correlation-ID": given}).headers["x-correlation-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a/b", "a\n", "é", "<script>"])
def test_a_correlation_id_that_is_not_well_formed_is_replaced(client: Client, given: str) -> None:
    answers = [client.request("GET", "/healthz", None, {"X-Correlation-ID": given}) for _ in range(2)]
    first, second = (answer.headers["x-correlation-id"] for answer in answers)
    assert given not in (first, second)
    assert first != second
    assert 1 <= len(first) <= 64


@pytest.mark.django_db
def test_every_answer_carries_a_correlation_id(client: Client) -> None:
    requests: list[tuple[str, str, Any, dict[str, str]]] = [
        ("GET", "/healthz", None, {}), ("GET", "/nothing", None, {}), ("DELETE", "/healthz", None, {}),
        ("GET", "/admin/devices", None, {}), ("POST", "/v1/heartbeat", {}, {}), ("GET", "/docs", None, {}),
        ("POST", "/v1/heartbeat", b"x", {"Content-Type": "text/plain"}), ("GET", "/healthz", None, {"Host": "evil"}),
        ("POST", "/v1/heartbeat", b"x", {"Content-Length": "99999999"}), ("GET", "/metrics", None, {}),
        ("GET", "/healthz", None, {"X-Padding": "x" * 17_000}), ("GET", "/openapi.json", None, {}),
    ]  # fmt: skip
    answers = [client.request(*request) for request in requests]
    assert len({answer.headers["x-correlation-id"] for answer in answers}) == len(requests)


def test_the_log_lines_of_a_request_carry_its_correlation_id(
    admin: Admin, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = BytesIO()
    logger = structlog.wrap_logger(structlog.BytesLogger(written))
    monkeypatch.setattr("devices.check_in.log", logger)
    headers = {"Authorization": f"Bearer {phone.device_token}", "X-Correlation-ID": "order-4711"}
    admin.client.request("POST", "/v1/heartbeat", {}, headers)
    line = json.loads(written.getvalue())
    assert (line["event"], line["correlation_id"]) == ("heartbeat.upsert", "order-4711")


def audited_address(admin: Admin, headers: list[tuple[str, str]], *, peer: str) -> str:
    """The address of a signed write in the audit."""
    signed = admin.headers("POST", "/admin/enrollment-tokens", b"{}")
    answer = Client(peer).request("POST", "/admin/enrollment-tokens", {}, [*signed.items(), *headers])
    assert answer.status == 200, answer.body
    return str(AuditEntry.objects.latest("id").address)


def test_without_trusted_proxies_the_address_is_the_peers(admin: Admin) -> None:
    forwarded = [("X-Forwarded-For", "203.0.113.7"), ("Forwarded", "for=203.0.113.7"), ("X-Real-IP", "203.0.113.7")]
    assert audited_address(admin, forwarded, peer="192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (["203.0.113.7"], "203.0.113.7"),
        (["198.51.100.9, 203.0.113.7"], "203.0.113.7"),
        (["198.51.100.9", "203.0.113.7"], "203.0.113.7"),
        (["198.51.100.9, 203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        (["10.1.2.3"], "10.1.2.3"),
        (["2001:db8::1"], "2001:db8::1"),
        (["2001:DB8:0:0::0001"], "2001:db8::1"),
        (["::ffff:203.0.113.7"], "203.0.113.7"),
        (["203.0.113.7:4711"], "203.0.113.7"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["203.0.113.7", "::ffff:10.1.2.3"], "203.0.113.7"),
        (["203.0.113.7"] + ["10.1.2.3"] * 40, "10.1.2.3"),
        (["nonsense"], "10.0.0.1"),
        ([], "10.0.0.1"),
    ],
)
def test_a_trusted_proxy_names_the_nearest_address_that_is_not_one(
    admin: Admin, settings: Settings, forwarded: list[str], address: str
) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    headers = [("X-Forwarded-For", value) for value in forwarded]
    assert audited_address(admin, headers, peer="10.0.0.1") == address


@pytest.mark.parametrize(
    ("peer", "address"),
    [("::ffff:192.0.2.1", "192.0.2.1"), ("2001:DB8::0:1", "2001:db8::1"), ("fe80::1%eth0", "fe80::1")],
)
def test_the_audit_has_the_one_spelling_of_an_address(admin: Admin, peer: str, address: str) -> None:
    assert audited_address(admin, [], peer=peer) == address


def test_a_proxy_is_trusted_by_any_spelling_of_its_address(admin: Admin, settings: Settings) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    assert audited_address(admin, [("X-Forwarded-For", "203.0.113.7")], peer="::ffff:10.0.0.1") == "203.0.113.7"


def test_forwarded_addresses_are_ignored_unless_the_peer_is_trusted(admin: Admin, settings: Settings) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    assert audited_address(admin, [("X-Forwarded-For", "203.0.113.7")], peer="192.0.2.1") == "192.0.2.1"


def test_an_error_in_a_view_is_a_problem_without_a_trace(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("<secret>")

    monkeypatch.setattr("nexmdm.monitoring.fleet_summary.summary", broken)
    answer = admin.get("/admin/summary")
    assert_problem(answer, 500, "internal")
    assert b"secret" not in answer.body


def test_an_error_around_a_view_is_a_problem_without_a_trace(
    client: Client, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("<secret>")

    monkeypatch.setattr("nexmdm.auth.rate_limit_windows.get_usage", broken)
    assert_problem(client.request("GET", "/admin/summary"), 500, "internal")


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make PostgreSQL unreachable."""

    def refuse() -> None:
        raise OperationalError("connection refused: <host> <password>")

    monkeypatch.setattr("django.db.connection.ensure_connection", refuse)


@pytest.mark.parametrize(("method", "target"), [("GET", "/admin/devices"), ("POST", "/admin/command")])
def test_without_the_database_each_route_is_503_with_retry_after(
    client: Client, no_database: None, settings: Settings, method: str, target: str
) -> None:
    admin = Admin(client, settings.ADMIN_KEYS[0], settings.HMAC_SECRETS[0])
    answer = admin.call(method, target, {"action": "ping", "target": {"all": True}} if method == "POST" else None)
    assert_problem(answer, 503, "database_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert b"password" not in answer.body


@pytest.mark.parametrize(("method", "target"), [("GET", "/admin/devices"), ("POST", "/v1/heartbeat")])
def test_a_malformed_credential_is_refused_with_or_without_a_database(
    client: Client, no_database: None, method: str, target: str
) -> None:
    answer = client.request(method, target, None if method == "GET" else {})
    assert answer.status == 401
    assert answer.code in ("invalid_signature", "invalid_token")


@pytest.mark.parametrize(("status", "header"), [(429, "retry-after"), (503, "retry-after"), (401, "www-authenticate")])
def test_every_answer_has_the_header_that_its_status_requires(status: int, header: str) -> None:
    """This is so for each layer that makes an answer. Here it is code that does not know the header, as in Django's
    stack.
    """

    async def careless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b""})

    answered = send_in_parts("/django-admin/", b"", method="GET", headers=[], to=Guard(careless))
    assert answer_of(answered).headers[header] in ("1", "Bearer")


def test_the_answer_to_a_bad_credential_names_the_required_scheme(client: Client, db: None) -> None:
    wanted = {"/admin/command": "NXD1", "/v1/heartbeat": "Bearer", "/v1/register": "Bearer"}
    for target, scheme in wanted.items():
        answer = client.request("POST", target, {"hardware_id": "x"})
        assert (answer.status, answer.headers["www-authenticate"]) == (401, scheme)
