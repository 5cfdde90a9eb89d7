"""Refusals: each is one line in the log, and on its device; equal refusals are counted, and no line contains a
secret.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from typing import Any, Final
from unittest.mock import AsyncMock, Mock
from uuid import UUID

import pytest
import structlog
from asgiref.sync import async_to_sync
from django.db import OperationalError
from django.db.models.functions import Now
from pytest_django import Settings

from devices import tokens
from devices.models import Device, EnrollmentToken, LastRefusal
from nexmdm.http import refusals
from tests.support.actors import Admin, Answer, Client, Phone, Visitor
from tests.support.moments import let_pass

Line = dict[str, Any]


@dataclass
class Log:
    """The log lines of refusals."""

    written: BytesIO = field(default_factory=BytesIO)

    @property
    def text(self) -> str:
        return self.written.getvalue().decode()

    @property
    def lines_so_far(self) -> list[Line]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def lines(self) -> list[Line]:
        """The lines, once all waiting refusals are looked up and logged."""
        async_to_sync(refusals.drain)()
        return self.lines_so_far

    @property
    def line(self) -> Line:
        (line,) = self.lines
        return line


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    for module in ("refusals", "refused_devices"):
        monkeypatch.setattr(f"nexmdm.http.{module}.log", structlog.wrap_logger(structlog.BytesLogger(log.written)))
    return log


def assert_describes(line: Line, answer: Answer, **more: Any) -> None:
    """Assert that a line describes this answer, and contains exactly these further fields."""
    fields = {key: value for key, value in line.items() if key not in ("at", "level", "event")}
    assert (line["event"], line["level"]) == ("request.refused", "warning")
    assert fields == {
        "correlation_id": answer.headers["x-correlation-id"],
        "status": answer.status,
        "code": more.get("code") or answer.code,
        "address": "127.0.0.1",
        "count": 1,
        **more,
    }


def last_refusal(admin: Admin, phone: Phone) -> Any:
    async_to_sync(refusals.drain)()
    return admin.get(f"/admin/devices/{phone.device_id}").json["last_refusal"]


def with_another_secret(phone: Phone) -> str:
    """A well-formed token with this phone's id and another secret."""
    return tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text


BY_THE_GUARD: Final[dict[str, tuple[str, str, Any, dict[str, str], int, str]]] = {
    "a host": ("GET", "/healthz", None, {"Host": "evil.example"}, 400, "invalid_host"),
    "a host, asked for its headers": ("HEAD", "/healthz", None, {"Host": "evil.example"}, 400, "invalid_host"),
    "headers": ("GET", "/healthz", None, {"X-Padding": "x" * 17_000}, 431, "headers_too_large"),
    "a size": ("POST", "/v1/heartbeat", b"{}", {"Content-Length": "99999999"}, 413, "payload_too_large"),
    "a type": ("POST", "/admin/command", b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    "an encoding": ("POST", "/v1/register", b"{}", {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
}  # fmt: skip


@pytest.mark.parametrize("refused", BY_THE_GUARD.values(), ids=BY_THE_GUARD)
def test_a_refusal_of_the_guard_is_one_line(client: Client, log: Log, refused: Any) -> None:
    method, path, body, headers, status, code = refused
    answer = client.request(method, path, body, headers)
    assert answer.status == status
    assert_describes(log.line, answer, code=code, method=method, route=path)


BY_THE_API: Final[dict[str, tuple[str, str, Any, dict[str, str]]]] = {
    "a path": ("GET", "/nothing", None, {"route": "unmatched", "code": "not_found"}),
    "an id": ("GET", "/admin/devices/4711", None, {"route": "unmatched", "code": "not_found"}),
    "a method": ("PUT", "/healthz", None, {"route": "/healthz", "code": "method_not_allowed"}),
    "a heartbeat": ("POST", "/v1/heartbeat", {}, {"route": "/v1/heartbeat", "code": "invalid_token"}),
    "a report": ("POST", "/v1/action-result", {}, {"route": "/v1/action-result", "code": "invalid_token"}),
    "a registration": ("POST", "/v1/register", {}, {"route": "/v1/register", "code": "invalid_enrollment_token"}),
    "a signature": (
        "GET", "/admin/summary", None,
        {"route": "/admin/summary", "code": "invalid_signature", "reason": "header_missing"},
    ),
}  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize(("method", "path", "body", "fields"), BY_THE_API.values(), ids=BY_THE_API)
def test_a_refusal_of_the_api_is_one_line(
    client: Client, log: Log, method: str, path: str, body: Any, fields: dict[str, str]
) -> None:
    answer = client.request(method, path, body, {"X-Correlation-ID": "order-4711"})
    assert answer.headers["x-correlation-id"] == "order-4711"
    assert_describes(log.line, answer, method=method, **fields)


@pytest.mark.django_db(transaction=True)
def test_a_refusal_of_the_admin_site_and_its_files_is_one_line(log: Log) -> None:
    forged = Visitor("192.0.2.1").request(
        "POST", "/django-admin/login/", b"username=x", {"Content-Type": "application/x-www-form-urlencoded"}
    )
    unknown = Client().request("GET", "/static/nothing.css")
    first, second = log.lines
    assert_describes(first, forged, code="forbidden", method="POST", route="/django-admin/", address="192.0.2.1")
    assert_describes(second, unknown, method="GET", route="/static/")


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make PostgreSQL unreachable."""
    monkeypatch.setattr("django.db.connection.ensure_connection", Mock(side_effect=OperationalError("refused")))


def test_a_503_is_one_line(client: Client, settings: Settings, log: Log, no_database: None) -> None:
    admin = Admin(client, settings.ADMIN_KEYS[0], settings.HMAC_SECRETS[0])
    refused, unready = admin.get("/admin/summary"), client.request("GET", "/readyz")
    first, second = log.lines
    assert_describes(
        first, refused, code="database_unavailable", method="GET", route="/admin/summary", principal="admin"
    )
    assert_describes(second, unready, code="not_ready", method="GET", route="/readyz")


def test_an_answer_without_an_error_has_no_line(admin: Admin, phone: Phone, log: Log) -> None:
    assert phone.heartbeat().status == admin.get("/admin/summary").status == 200
    assert log.lines == []


def test_a_signed_request_is_logged_with_its_principal_and_the_place_of_its_error(
    admin: Admin, log: Log, settings: Settings
) -> None:
    wrong = admin.post("/admin/command", {"action": "ping", "target": {"tags": ["!"]}})
    settings.ADMIN_RATE_LIMIT = "1/d"
    answers = [wrong, *(admin.post("/admin/enrollment-tokens", {}) for _ in range(2))]
    first, second = log.lines
    where = {"method": "POST", "principal": "admin"}
    assert_describes(first, answers[0], route="/admin/command", reason="body.target.tags.0", **where)
    assert_describes(second, answers[2], route="/admin/enrollment-tokens", reason="writes", **where)


def refused_requests_of(phone: Phone, admin: Admin) -> dict[str, Answer]:
    """Requests that are refused although the token is the phone's, by their code."""
    token = {"Authorization": f"Bearer {phone.device_token}"}
    send = phone.client.request
    return {
        "invalid_json": phone.send("/v1/heartbeat", b"{"),
        "invalid_request": phone.send("/v1/action-result", {}),
        "unknown_request": phone.report("0192f0c1-b000-7abc-8def-0123456789ab", "succeeded"),
        "payload_too_large": send("POST", "/v1/heartbeat", b"{}", token | {"Content-Length": "99999999"}),
        "unsupported_media_type": send("POST", "/v1/heartbeat", b"{}", token | {"Content-Encoding": "br"}),
        "invalid_host": send("POST", "/v1/heartbeat", b"{}", token | {"Host": "evil.example"}),
        "not_found": phone.send("/v1/heartbeats", {}),
        "method_not_allowed": send("GET", "/v1/heartbeat", None, token),
    }


def test_a_refused_phone_is_logged_with_its_device_id_for_every_reason(admin: Admin, phone: Phone, log: Log) -> None:
    answers = refused_requests_of(phone, admin)
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    answers["device_revoked"] = phone.heartbeat()
    assert {code: answer.code for code, answer in answers.items()} == {code: code for code in answers}
    lines = log.lines
    assert {line["code"]: line["correlation_id"] for line in lines} == {
        code: answer.headers["x-correlation-id"] for code, answer in answers.items()
    }
    assert {line["device_id"] for line in lines} == {phone.device_id}


def test_a_rotated_token_identifies_its_device_too(phone: Phone, log: Log) -> None:
    rotated = phone.rotate().json["device_token"]
    phone.send("/v1/heartbeat", b"{", rotated)
    assert log.line["device_id"] == phone.device_id
    Device.objects.update(next_expires_at=Now() - timedelta(hours=1))
    phone.send("/v1/heartbeat", b"{", rotated)
    assert "device_id" not in log.lines[1]


@pytest.mark.parametrize("body", [b"{", {}])
def test_a_token_with_another_secret_names_no_device(admin: Admin, phone: Phone, log: Log, body: Any) -> None:
    phone.send("/v1/heartbeat", body, with_another_secret(phone))
    assert phone.device_id not in json.dumps(log.line)
    assert last_refusal(admin, phone) is None


def test_a_refused_registration_is_logged_with_its_enrollment_token_and_the_device_with_that_hardware_id(
    admin: Admin, phone: Phone, log: Log
) -> None:
    text = admin.enrollment_token(max_uses=2)
    token_id = str(EnrollmentToken.objects.latest("id").id)
    known = Phone(Client("192.0.2.7"), "phone-1").register(text)
    misspelt = Phone(Client(), "").register(text)
    EnrollmentToken.objects.filter(id=token_id).update(expires_at=Now() - timedelta(hours=1))
    expired = Phone(Client(), "phone-2").register(text)
    invented = Phone(Client(), "phone-2").register(tokens.make("nxe_", UUID(token_id), bytes(32)).text)
    lines = {line["correlation_id"]: line for line in log.lines}
    fields = [lines[answer.headers["x-correlation-id"]] for answer in (known, misspelt, expired, invented)]
    assert [(line["code"], line.get("enrollment_token_id"), line.get("device_id")) for line in fields] == [
        ("hardware_known", token_id, phone.device_id),
        ("invalid_request", token_id, None),
        ("enrollment_token_expired", token_id, None),
        ("invalid_enrollment_token", None, None),
    ]
    assert fields[0]["address"] == "192.0.2.7"


def test_phones_refused_with_one_enrollment_token_have_separate_lines(admin: Admin, log: Log) -> None:
    phones, bearer = admin.enrol_fleet(2), {"Authorization": f"Bearer {admin.enrollment_token(max_uses=2)}"}
    send_together(
        *((Client(), "POST", "/v1/register", {"hardware_id": phone.hardware_id}, bearer) for phone in phones),
    )
    assert {line["device_id"] for line in log.lines} == {phone.device_id for phone in phones}
    assert [last_refusal(admin, phone)["code"] for phone in phones] == ["hardware_known"] * 2


def send_together(*requests: tuple[Client, str, str, Any, dict[str, str]]) -> list[Answer]:
    """Send requests one after the other from one running loop."""

    async def sent() -> list[Answer]:
        return [await client.arequest(*request) for client, *request in requests]

    return async_to_sync(sent)()


def addressed(addresses: Sequence[str], path: str = "/nothing") -> list[Answer]:
    return send_together(*((Client(address), "GET", path, None, {}) for address in addresses))


def fields(lines: list[Line]) -> list[tuple[str | None, int]]:
    return [(line.get("address"), line["count"]) for line in lines]


def test_equal_refusals_are_one_line_and_a_second_one_with_their_count(log: Log) -> None:
    answers = addressed(["192.0.2.1"] * 50)
    assert fields(log.lines_so_far) == [("192.0.2.1", 1)]
    first, rest = log.lines
    assert rest["count"] == 49
    ids = [answer.headers["x-correlation-id"] for answer in answers]
    assert [first["correlation_id"], rest["correlation_id"]] == ids[:2]


def test_other_codes_and_addresses_have_separate_lines(db: None, log: Log) -> None:
    addressed(["192.0.2.1", "192.0.2.2", "192.0.2.1"])
    addressed(["192.0.2.1"], "/admin/summary")
    assert sorted((line["address"], line["code"], line["count"]) for line in log.lines) == [
        ("192.0.2.1", "invalid_signature", 1), ("192.0.2.1", "not_found", 1), ("192.0.2.1", "not_found", 1),
        ("192.0.2.2", "not_found", 1),
    ]  # fmt: skip


def test_one_clients_ipv6_addresses_and_all_spellings_of_one_address_are_equal(log: Log) -> None:
    addressed(["2001:db8::1", "2001:DB8:0:0:ffff::2", "::ffff:8.8.4.4", "8.8.4.4", "2001:db8:0:1::1"])
    assert fields(log.lines_so_far) == [("2001:db8::1", 1), ("8.8.4.4", 1), ("2001:db8:0:1::1", 1)]
    assert fields(log.lines)[3:] == [("2001:db8::ffff:0:0:2", 1), ("8.8.4.4", 1)]


def test_a_phone_that_changes_its_address_is_one_phone_and_two_behind_one_address_are_two(
    admin: Admin, log: Log
) -> None:
    one, two = admin.enrol("one"), admin.enrol("two")
    senders = [(one, "192.0.2.1"), (two, "192.0.2.1"), (one, "192.0.2.2"), (two, "192.0.2.1"), (one, "192.0.2.1")]
    send_together(
        *((Client(address), "POST", "/v1/heartbeat", b"{", bearer(phone)) for phone, address in senders),
    )
    counts = Counter[str]()
    for line in log.lines:
        counts[line["device_id"]] += line["count"]
    assert counts == {one.device_id: 3, two.device_id: 2}


def bearer(phone: Phone) -> dict[str, str]:
    return {"Authorization": f"Bearer {phone.device_token}"}


@dataclass
class Clock:
    """The time by which lines and look-ups are due."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("common.collapsed_log", "common.timers", "http.refusals", "http.refused_devices"):
        monkeypatch.setattr(f"nexmdm.{module}.time", clock)
    return clock


def test_a_lasting_flood_is_one_line_a_second_with_the_first_id_and_ends_when_it_ends(log: Log, clock: Clock) -> None:
    seconds = []
    for _ in range(4):
        seconds.append([answer.headers["x-correlation-id"] for answer in addressed(["192.0.2.1"] * 5)])
        clock.now += 1.01
    lines = log.lines
    assert [line["count"] for line in lines] == [1, 4, 5, 5, 5]
    first, *others = seconds
    assert [line["correlation_id"] for line in lines] == [*first[:2], *(ids[0] for ids in others)]


def test_a_flood_of_addresses_shares_a_line_for_each_code_and_nothing_grows(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals._lines, "_most", 3)
    addressed([f"192.0.2.{number}" for number in range(100)])
    assert len(refusals._lines._lines) == 4
    assert fields(log.lines) == [("192.0.2.0", 1), ("192.0.2.1", 1), ("192.0.2.2", 1), (None, 1), (None, 96)]


def test_invented_tokens_over_the_limit_of_a_look_up_are_logged_by_their_address(
    phone: Phone, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.http.refused_devices.CLAIMS", 3)
    invented = [tokens.make(tokens.DEVICE_PREFIX, UUID(int=number), bytes(32)).text for number in range(10)]
    send_together(
        *((Client(), "POST", "/v1/heartbeat", b"{", {"Authorization": f"Bearer {text}"}) for text in invented)
    )
    assert len(refusals._devices._waiting) <= 3
    assert sum(line["count"] for line in log.lines) == 10


def test_no_secret_is_in_any_line(admin: Admin, phone: Phone, log: Log) -> None:
    enrollment = admin.enrollment_token()
    signature = admin.headers("GET", f"/admin/devices?{phone.device_token}=1", b"")
    send = phone.client.request
    send("GET", f"/admin/devices?{phone.device_token}=1", None, signature)
    send("GET", f"/admin/devices/{enrollment}", None, signature)
    send("GET", f"/{phone.device_token}", None, {"Authorization": f"Bearer {phone.command_key}"})
    send("POST", "/v1/heartbeat", {phone.device_token: 1, "push_token": 4}, {"Authorization": f"Bearer {enrollment}"})
    phone.send("/v1/register", {phone.device_token: enrollment, "hardware_id": 1}, enrollment)
    send("POST", "/v1/heartbeat", b"{}", {"Content-Type": phone.device_token, "Host": phone.command_key})
    admin.post("/admin/command", {phone.device_token: 1, "action": phone.command_key})
    assert sum(line["count"] for line in log.lines) == 7
    secrets = (enrollment, phone.device_token, phone.command_key, admin.key, admin.secret, signature["X-Signature"])
    assert [secret for secret in secrets if secret in log.text] == []


def test_the_last_refusal_of_a_device_has_time_route_and_code(admin: Admin, phone: Phone) -> None:
    assert last_refusal(admin, phone) is None
    phone.send("/v1/action-result", {})
    shown = last_refusal(admin, phone)
    (listed,) = admin.get("/admin/devices").json["items"]
    assert listed["last_refusal"] == shown
    assert set(shown) == {"at", "route", "code"}
    assert (shown["route"], shown["code"]) == ("/v1/action-result", "invalid_request")


def test_the_last_refusal_is_that_of_the_device_that_has_the_hardware(admin: Admin, phone: Phone) -> None:
    assert Phone(Client(), "phone-1").register(admin.enrollment_token()).code == "hardware_known"
    assert last_refusal(admin, phone)["code"] == "hardware_known"
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    let_pass(minutes=2)
    assert Phone(Client(), "phone-1").register(admin.enrollment_token()).code == "device_revoked"
    assert last_refusal(admin, phone)["code"] == "device_revoked"


def test_a_503_is_no_last_refusal(admin: Admin, phone: Phone, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.check_in.WAITING_LIMIT", 0)
    assert phone.heartbeat().code == "overloaded"
    assert last_refusal(admin, phone) is None
    assert log.line["code"] == "overloaded"


def test_a_device_is_written_once_a_minute_at_most_and_then_with_its_last_refusal(
    admin: Admin, phone: Phone, clock: Clock
) -> None:
    phone.send("/v1/heartbeat", b"{")
    first = last_refusal(admin, phone)
    for target in ("/v1/action-result", "/v1/nothing"):
        seconds_pass(clock, 20)
        phone.send(target, {})
        assert last_refusal(admin, phone)["code"] == first["code"] == "invalid_json"
    seconds_pass(clock, 61)
    async_to_sync(refusals._devices._work)()
    assert (last_refusal(admin, phone)["code"], LastRefusal.objects.count()) == ("not_found", 1)


def seconds_pass(clock: Clock, seconds: float) -> None:
    clock.now += seconds
    let_pass(seconds=seconds)


def test_an_older_refusal_never_replaces_a_later_one(admin: Admin, phone: Phone, clock: Clock) -> None:
    phone.send("/v1/heartbeat", b"{")
    clock.now += 600
    later = LastRefusal(device_id=phone.device_id, at=Now(), route="/v1/register", code="hardware_known")
    later.save()
    let_pass(minutes=5)
    assert last_refusal(admin, phone)["code"] == "hardware_known"


@pytest.mark.parametrize("error", [OperationalError("gone"), LookupError("gone")])
def test_a_refusal_is_answered_and_logged_even_if_its_device_cannot_be_looked_up_or_written(
    phone: Phone, log: Log, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("nexmdm.http.refused_devices.run_in_db_thread", AsyncMock(side_effect=error))
    assert phone.send("/v1/heartbeat", b"{").code == "invalid_json"
    unknown, refused = log.lines
    assert (unknown["event"], unknown["detail"]) == ("refusals.not_looked_up", "gone")
    assert (refused["code"], "device_id" in refused) == ("invalid_json", False)


@pytest.mark.django_db(transaction=True)
def test_a_worker_looks_up_logs_and_writes_by_itself(phone: Phone, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals._devices._timer, "_call", refusals._devices._begin)

    async def worker() -> None:
        await phone.client.arequest("POST", "/v1/heartbeat", b"{", bearer(phone))
        async with asyncio.timeout(10):
            while refusals._devices._waiting or refusals._devices._last:  # noqa: ASYNC110  (it notifies nobody)
                await asyncio.sleep(0)

    async_to_sync(worker)()
    (line,) = log.lines_so_far
    assert line["device_id"] == phone.device_id
    assert LastRefusal.objects.get().code == line["code"] == "invalid_json"


def test_neither_an_answer_nor_the_end_of_the_process_waits_long_for_a_look_up(
    phone: Phone, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("nexmdm.http.refused_devices.run_in_db_thread", never)
    monkeypatch.setattr("nexmdm.http.refused_devices.DRAIN_SECONDS", 0.01)
    assert phone.send("/v1/heartbeat", b"{").code == "invalid_json"
    assert (log.line["code"], "device_id" in log.line) == ("invalid_json", False)


def test_a_refusal_that_cannot_be_logged_is_still_answered(
    client: Client, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.http.refusals._log", Mock(side_effect=RuntimeError))
    assert client.request("GET", "/nothing").code == "not_found"
    assert log.line["error"] == "RuntimeError"
