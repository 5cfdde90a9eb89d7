"""No request gets an answer of 500 or above, and the published OpenAPI document describes each answer."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_django import Settings
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok, Result
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks

from tests.support.actors import Admin, Answer, Client, Phone

Json = Any
Operation = APIOperation[Any, Any, Any, Any]

CHECKS: Final = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
PART_OF_EXAMPLES: Final = 7
"""Each of the two dozen operations gets this part of the profile's examples."""

TEXTS: Final = [
    rb'"\u0000"', rb'"a\u0000b"', rb'"\ud800"', rb'"\udfff\ud800"', b'"\xed\xa0\x80"', b'"\xff"', b'"\0"', b'""',
    b'" "', b'"' + b"x" * 5000 + b'"', b'"' + "\U0010ffff".encode() * 200 + b'"', b'"0001-01-01T00:00:00+23:59"',
    b'"9999-12-31T23:59:59-23:59"', b'"2026-02-30T25:61:61Z"', b'"1767225600"',
    b'"0192F0C1-B000-7ABC-8DEF-0123456789AB"',
]  # fmt: skip
NUMBERS: Final = [
    *(str(number).encode() for number in (2**31, 2**63, -(2**63) - 1, 2**64, 10**30)),
    b"9" * 5000, b"1e300", b"1e400", b"-1e400", b"-0", b"1.0", b"0.1", b"NaN", b"Infinity", b"-Infinity",
]  # fmt: skip
OBJECTS: Final = [
    b"", b"null", b"true", b"{}", b"[]", b"[{}]", b"[1,]", b"{", b'{"":1}', b'{"a":1,"a":2}', b'{"__proto__":{}}',
    rb'{"\u0000":1}', rb'{"\ud800":1}',
    *(b"[" * depth + b"]" * depth for depth in (15, 16, 17, 300, 20_000)),
    *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (15, 16, 17, 300, 9_000)),
]  # fmt: skip
TWISTED: Final = st.sampled_from([*TEXTS, *NUMBERS, *OBJECTS])
"""JSON, or similar text, that parsers and databases fail on."""

TWISTED_QUERY: Final = st.sampled_from([
    "%00", "a%00b", "%ed%a0%80", "%ff", "%", "%zz", "", "-1", "1.5", "NaN", "1e9", "9" * 30, "null", "%27%22%3c",
    "x" * 3000,
])  # fmt: skip
TWISTED_HEADERS: Final = st.sampled_from([
    {}, {}, {}, {"Content-Type": "application/json; charset=utf-16"}, {"Content-Type": "text/plain"},
    {"Accept": "text/html"}, {"Content-Encoding": "gzip"}, {"X-Correlation-ID": "\xff"}, {"Range": "bytes=0-1"},
    {"X-Forwarded-For": "\xff, 10.0.0.1"}, {"Cookie": "sessionid=\xff"}, {"Accept-Language": "\0"},
    {"Authorization": "Bearer \xff"}, {"X-Timestamp": "\xb2"},
])  # fmt: skip


def _whole(found: Result[Operation, Any]) -> Operation:
    assert isinstance(found, Ok), found
    return found.ok()


_DOCUMENT: Final = schemathesis.openapi.from_dict(Client().request("GET", "/openapi.json").json)
OPERATIONS: Final = {found.label: found for found in map(_whole, _DOCUMENT.get_all_operations())}
_MARK: Final = "here the twisted value goes"


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its credential; `case` is its origin."""

    case: Case[Any]
    target: str
    body: bytes | None
    headers: dict[str, str]


@dataclass(slots=True)
class World:
    """A client for each kind of credential, and an object for each kind of id."""

    admin: Admin
    phone: Phone
    ids: dict[str, str]
    bodies: dict[str, Json]

    def send(self, request: Request) -> Answer:
        """Send a request with the credential that its operation requires."""
        operation = request.case.operation.definition.raw
        schemes = {name for one in operation.get("security", []) for name in one}
        given = {}
        if "SignedRequest" in schemes:
            given = self.admin.headers(request.case.method, request.target, request.body or b"")
        elif "EnrollmentBearer" in schemes:
            given = {"Authorization": f"Bearer {self.admin.enrollment_token(re_enroll=True)}"}
        elif "DeviceBearer" in schemes:
            given = {"Authorization": f"Bearer {self.phone.device_token}"}
        return self.admin.client.request(request.case.method, request.target, request.body, given | request.headers)


@pytest.fixture
def world(admin: Admin, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    """A phone with a command, without limits and waits."""
    settings.ADMIN_RATE_LIMIT = settings.ADMIN_READ_RATE_LIMIT = settings.AUTH_FAILURE_RATE_LIMIT = "1000000/s"
    monkeypatch.setattr("nexmdm.common.shutdown.is_requested", lambda: True)
    phone = admin.enrol("phone-1", alias="till 1")
    made = admin.post("/admin/enrollment-tokens", {}).json
    request_id = admin.command("ping", to=phone).json["request_id"]
    webhook = admin.post("/admin/webhooks", {"url": "https://hooks.example.com/"}).json
    ids = {
        "device_id": phone.device_id,
        "request_id": request_id,
        "token_id": made["id"],
        "tag": "floor-1",
        "webhook_id": webhook["id"],
    }
    bodies = {
        "heartbeat": {"status": {"battery_pct": 50, "note": "a"}, "push_token": "ok-1", "agent_version": "1"},
        "register": {"hardware_id": "phone-2", "alias": "till 2", "push_token": "ok-2", "model": "a"},
        "actionResult": {"request_id": request_id, "status": "running", "output": {"a": 1}, "message": "a"},
        "issueCommand": {
            "action": "launch_app",
            "params": {"package": "a", "extras": {"a": 1}},
            "target": {"device_ids": [phone.device_id]},
            "note": "a",
        },
        "changeDevice": {"alias": "till 3", "tags": ["a"]},
        "changeTag": {"add": [phone.device_id], "remove": [phone.device_id]},
        "createEnrollmentToken": {"label": "a", "max_uses": 2, "tags": ["a"], "expires_in_seconds": 60},
        "createWebhook": {"url": "https://hooks.example.com/a?b=c", "types": ["device.*"], "tags": ["a"]},
        "changeWebhook": {"url": "https://hooks.example.com/a", "paused": True, "types": ["device.*"], "tags": ["a"]},
        "replayWebhook": {"after": webhook["cursor"]},
    }
    return World(admin, phone, ids, bodies)


@st.composite
def hostile(draw: st.DrawFn, cases: st.SearchStrategy[Case[Any]], world: World) -> Request:
    """A request of the document, a similar request, or a valid request; with hostile values in some places."""
    case = draw(cases)
    path = case.path
    for name, value in (case.path_parameters or {}).items():
        kind = draw(st.sampled_from(["real", "real", "real", "made up", "twisted"]))
        text = {"real": world.ids[name], "made up": quote(str(value), safe=""), "twisted": draw(TWISTED_QUERY)}[kind]
        path = path.replace(f"{{{name}}}", text or "0")
    pairs = [urlencode(case.query or {}, doseq=True, errors="replace")] if draw(st.booleans()) else []
    names = [parameter.name for parameter in case.operation.query]
    if names and draw(st.integers(0, 3)) == 0:
        pairs.append(f"{draw(st.sampled_from(names))}={draw(TWISTED_QUERY)}")
    query = "&".join(filter(None, pairs))
    body = None
    if case.method not in ("GET", "HEAD"):
        good = world.bodies.get(case.operation.definition.raw["operationId"], {})
        body = draw(bodies(draw(st.sampled_from([case.body, good, good]))))
    return Request(case, f"{path}?{query}" if query else path, body, draw(TWISTED_HEADERS))


@st.composite
def bodies(draw: st.DrawFn, body: Json) -> bytes:
    """The body as JSON: unchanged, or with a hostile value in one place, under a new key, under a repeated key, or
    alone.
    """
    if not isinstance(body, dict | list):
        body = {}
    kind = draw(st.sampled_from(["as it is", "in a place", "in a place", "as a key", "twice", "altogether"]))
    twisted = draw(TWISTED)
    if kind == "altogether":
        return twisted
    if kind == "in a place":
        return _encoded(_marked(body, draw(st.sampled_from(list(_places(body)))))).replace(_encoded(_MARK), twisted)
    if kind in ("as a key", "twice") and isinstance(body, dict):
        key = draw(st.sampled_from([*body, "status", "params"])) if kind == "twice" else "extra"
        return _encoded({_MARK: 0, **body}).replace(_encoded(_MARK) + b": 0", _encoded(key) + b":" + twisted)
    return _encoded(body)


def _encoded(value: Json) -> bytes:
    return json.dumps(value, default=str).encode()


def _places(value: Json, way: tuple[Json, ...] = ()) -> Iterator[tuple[Json, ...]]:
    """The path of each value in a body, and the paths of some possible values."""
    yield way
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*way, key))
    if not way:
        yield from (
            ("status",),
            ("status", "note"),
            ("output",),
            ("output", "a"),
            ("params",),
            ("params", "extras"),
            ("note",),
        )


def _marked(value: Json, way: tuple[Json, ...]) -> Json:
    if not way:
        return _MARK
    key, *rest = way
    if isinstance(value, list) and isinstance(key, int):
        return [_marked(inner, tuple(rest)) if place == key else inner for place, inner in enumerate(value)]
    within = value if isinstance(value, dict) else {}
    return within | {key: _marked(within.get(key), tuple(rest))}


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_request_is_answered_as_the_document_says(
    world: World, label: str, record_property: Callable[[str, Any], None]
) -> None:
    operation = OPERATIONS[label]
    cases = st.one_of([operation.as_strategy(mode) for mode in _modes(operation)])
    sent = 0

    @settings(
        max_examples=settings().max_examples // PART_OF_EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile(cases, world))
    def answered(request: Request) -> None:
        nonlocal sent
        answer = world.send(request)
        sent += 1
        assert answer.status < 500, (answer.body, request)
        request.case.validate_response(_as_httpx(request.case, answer), checks=CHECKS)

    answered()
    record_property("requests", sent)


def _modes(operation: Operation) -> list[GenerationMode]:
    takes = operation.query or operation.path_parameters or operation.body
    return [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if takes else [GenerationMode.POSITIVE]


def _as_httpx(case: Case[Any], answer: Answer) -> httpx.Response:
    request = httpx.Request(case.method, "http://localhost/")
    response = httpx.Response(answer.status, headers=answer.headers, content=answer.body, request=request)
    response.elapsed = timedelta()
    return response
