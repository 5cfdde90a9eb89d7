"""The rate limits of calls and failures; every route for admins has a limit."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

import pytest
from django.core.cache import cache
from django.db import connection, connections
from django.urls import URLPattern, URLResolver, get_resolver, resolve
from prometheus_client import REGISTRY
from pytest_django import Settings

from commands import report_limit
from commands.models import Command, Delivery, Report
from devices import tokens
from nexmdm.api.application import api
from nexmdm.auth import rate_limit_windows, rate_limits
from nexmdm.common import database
from nexmdm.models import AuditEntry, StoredAnswer
from tests.support.actors import Admin, Answer, Client, Phone

METHODS: Final = ("GET", "POST", "PATCH", "PUT", "DELETE")
EXAMPLES: Final = {"uuidstr": str(UUID(int=7)), "tag": "lobby"}
"""Values that the converters of our routes accept."""


@pytest.fixture(autouse=True)
def no_counters(db: None) -> None:
    """Begin without counters: their table has no model, so tests that commit leave their counters behind."""
    cache.clear()


def routes(resolver: Any, before: str = "") -> Iterator[str]:
    """Every route of the URL configuration."""
    for entry in resolver.url_patterns:
        route = before + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from routes(entry, route)
        else:
            assert isinstance(entry, URLPattern)
            yield route


def concrete(route: str) -> str:
    """Return a path of this route."""
    path = "/" + re.sub(r"<(\w+):\w+>", lambda found: EXAMPLES[found[1]], route)
    assert resolve(path).route == route
    return path


# A route with two methods is in the list twice.
ADMIN_PATHS: Final = sorted({concrete(route) for route in routes(get_resolver()) if route.startswith("admin/")})


def every_method(client: Client, path: str) -> list[str]:
    """The methods of a path. All other methods get 405, and the answer lists the allowed methods."""
    answers = {method: client.request(method, path) for method in METHODS}
    taken = [method for method, answer in answers.items() if answer.status != 405]
    allowed = [set(answer.headers["allow"].split(", ")) for answer in answers.values() if answer.status == 405]
    assert taken
    assert allowed == [set(taken)] * len(allowed)
    return taken


def assert_unsigned(answer: Answer) -> None:
    assert (answer.status, answer.code) == (401, "invalid_signature")
    assert answer.headers["www-authenticate"] == "NXD1"


def test_these_tests_call_every_path_of_the_document() -> None:
    published = [path for path in api.get_openapi_schema()["paths"] if path.startswith("/admin/")]
    assert len(ADMIN_PATHS) == len(published) > 10


@pytest.mark.parametrize("path", ADMIN_PATHS)
def test_every_admin_route_requires_a_good_signature(admin: Admin, settings: Settings, path: str) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "1000/m"
    intruder = Admin(admin.client, admin.key, "not-the-secret-but-just-as-long-as-it-is")
    for method in every_method(admin.client, path):
        assert_unsigned(admin.client.request(method, path))
        assert_unsigned(intruder.call(method, path))
    assert not AuditEntry.objects.exists()


@pytest.mark.parametrize("path", ADMIN_PATHS)
def test_every_admin_route_is_limited(admin: Admin, settings: Settings, path: str) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "1000/m"
    settings.ADMIN_RATE_LIMIT = settings.ADMIN_READ_RATE_LIMIT = "1/d"
    admin.get("/admin/summary")
    admin.enrollment_token()
    for method in every_method(admin.client, path):
        answer = admin.call(method, path)
        assert (answer.status, answer.code) == (429, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 86_400
    assert (AuditEntry.objects.count(), StoredAnswer.objects.count()) == (1, 1)


@pytest.mark.parametrize("path", ADMIN_PATHS)
def test_every_signed_write_has_an_audit_entry_with_any_result(admin: Admin, settings: Settings, path: str) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "1000/m"
    writes = [method for method in every_method(admin.client, path) if method != "GET"]
    answers = [admin.call(method, path, {}) for method in writes]
    found = AuditEntry.objects.order_by("id").values_list("method", "path", "status")
    assert list(found) == [(method, path, answer.status) for method, answer in zip(writes, answers, strict=True)]


def test_over_the_limit_a_failure_is_429_with_retry_after(db: None, settings: Settings) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "3/d"
    intruder = Phone(Client("192.0.2.1"), "phone-1", device_token="nxd_wrong")
    answers = [intruder.heartbeat() for _ in range(5)]
    assert [answer.code for answer in answers] == ["invalid_token"] * 3 + ["rate_limited"] * 2
    assert all(1 <= int(answer.headers["retry-after"]) <= 86_400 for answer in answers[3:])


def test_a_good_credential_passes_from_an_address_that_has_failed_too_often(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "1/d"
    for _ in range(3):
        admin.client.request("POST", "/v1/heartbeat", {}, {"Authorization": "Bearer nxd_wrong"})
    assert phone.heartbeat().status == 200
    assert admin.get("/admin/summary").status == 200


def test_the_failures_of_one_address_do_not_count_for_another(db: None, settings: Settings) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "1/d"
    for _ in range(2):
        Phone(Client("192.0.2.1"), "phone-1", device_token="nxd_wrong").heartbeat()
    assert Phone(Client("192.0.2.2"), "phone-1", device_token="nxd_wrong").heartbeat().code == "invalid_token"


def fails(address: str, *, times: int = 1) -> list[str | None]:
    """Send this number of requests with a wrong token; return the codes of the answers."""
    phone = Phone(Client(address), "phone-1", device_token="nxd_wrong")
    return [phone.heartbeat().code for _ in range(times)]


@pytest.mark.parametrize(
    ("addresses", "counters"),
    [
        ([f"2001:db8:0:7:{number:x}::1" for number in range(1, 6)], 1),
        (["2001:db8::1", "2001:DB8::1", "2001:0db8:0000:0:0:0:0:1", "2001:db8::1%eth0", "2001:db8::"], 1),
        (["8.8.4.4", "::ffff:8.8.4.4", "::FFFF:0808:0404", "0:0:0:0:0:ffff:8.8.4.4", "::ffff:808:404"], 1),
        (["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8:0:1::1", "2001:db8:0:2::1"], 5),
    ],
)
def test_failures_are_counted_by_client_for_any_spelling_of_its_address(
    db: None, settings: Settings, addresses: list[str], counters: int
) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "4/d"
    codes = [code for address in addresses for code in fails(address)]
    assert codes == ["invalid_token"] * 4 + ["rate_limited" if counters == 1 else "invalid_token"]
    assert rows_of_counters() == counters


def test_failures_that_a_trusted_proxy_names_are_counted_by_client_too(db: None, settings: Settings) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "4/d"
    settings.TRUSTED_PROXIES = [ip_network("10.0.0.0/8")]
    spellings = ["8.8.4.4", "::ffff:8.8.4.4", "8.8.4.4:4711", "[::ffff:808:404]:4711", " 8.8.4.4 "]
    peers = ["10.0.0.1", "::ffff:10.0.0.2", "10.0.0.1", "::ffff:a00:1", "10.1.2.3"]
    answers = [
        Client(peer).request("GET", "/admin/summary", None, {"X-Forwarded-For": f"203.0.113.9, {spelling}"})
        for peer, spelling in zip(peers, spellings, strict=True)
    ]
    assert [answer.status for answer in answers] == [401] * 4 + [429]


def rows_of_counters() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM nexmdm_counter")
        (count,) = cursor.fetchone()
    return int(count)


def test_any_number_of_failing_addresses_takes_a_limited_number_of_counters_and_good_credentials_pass(
    admin: Admin, phone: Phone, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.auth.address_limits.COUNTED_ADDRESSES", 10)
    settings.AUTH_FAILURE_RATE_LIMIT = "3/d"
    cache.clear()
    codes = [code for number in range(50) for code in fails(f"198.51.100.{number}")]
    assert codes == ["invalid_token"] * 13 + ["rate_limited"] * 37
    assert rows_of_counters() == 11
    assert fails("198.51.100.1", times=3) == ["invalid_token", "invalid_token", "rate_limited"]
    beyond = Client("198.51.100.49")
    assert Phone(beyond, "phone-1", device_token=phone.device_token).heartbeat().status == 200
    assert Admin(beyond, admin.key, admin.secret).get("/admin/summary").status == 200


@pytest.mark.parametrize(("rate", "seconds"), [("3/s", 61), ("3/m", 61), ("3/2m", 121)])
def test_when_a_period_is_over_other_addresses_are_counted_one_by_one(
    db: None, settings: Settings, monkeypatch: pytest.MonkeyPatch, rate: str, seconds: float
) -> None:
    monkeypatch.setattr("nexmdm.auth.address_limits.COUNTED_ADDRESSES", 1)
    settings.AUTH_FAILURE_RATE_LIMIT = rate
    fails("192.0.2.1")
    assert rate_limits.failures._counted_as("192.0.2.2", rate) == rate_limits.failures._counted_as("192.0.2.3", rate)
    later = time.monotonic() + seconds
    monkeypatch.setattr("nexmdm.auth.address_limits.time", SimpleNamespace(monotonic=lambda: later))
    assert rate_limits.failures._counted_as("192.0.2.2", rate) == "192.0.2.2"


@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_a_bad_signature_counts_as_a_failure(admin: Admin, settings: Settings, wrong: str) -> None:
    settings.AUTH_FAILURE_RATE_LIMIT = "1/d"
    setattr(admin, wrong, "not-this-one-but-long-enough-to-be-one")
    assert [admin.get("/admin/summary").code for _ in range(2)] == ["invalid_signature", "rate_limited"]


def test_signed_writes_beyond_the_limit_are_429_and_do_nothing(admin: Admin, phone: Phone, settings: Settings) -> None:
    settings.ADMIN_RATE_LIMIT = "2/h"
    answers = [admin.command("ping", to=phone) for _ in range(3)]
    assert [answer.code for answer in answers] == [None, None, "rate_limited"]
    assert int(answers[2].headers["retry-after"]) >= 1
    assert Command.objects.count() == 2


def test_reads_have_a_limit_of_their_own(admin: Admin, settings: Settings) -> None:
    settings.ADMIN_READ_RATE_LIMIT = "1/h"
    assert [admin.get("/admin/summary").code for _ in range(2)] == [None, "rate_limited"]
    assert admin.post("/admin/enrollment-tokens", {}).status == 200


@pytest.mark.django_db(transaction=True)
def test_parallel_callers_are_counted_exactly() -> None:
    def count(_: int) -> int:
        try:
            return 1 if cache.add("shared", 1, 60) else cache.incr("shared")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as threads:
        counted = sorted(threads.map(count, range(200)))
    assert counted == list(range(1, 201))


def test_a_counter_starts_again_when_its_time_is_over(db: None) -> None:
    assert cache.add("mine", 1, 60)
    assert not cache.add("mine", 1, 60)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE nexmdm_counter SET expires_at = now()")
    assert (cache.get("mine"), rate_limit_windows.forget_expired()) == (None, 1)
    assert cache.add("mine", 1, 60)


def reports(phone: Phone, request_id: str, number: int) -> list[str | None]:
    """Send this number of reports; return the codes of the answers."""
    return [phone.report(request_id, "running", message=f"step {at}").code for at in range(number)]


def refused_reports() -> float:
    """Return the number of reports that /metrics shows as refused."""
    return REGISTRY.get_sample_value("nexmdm_reports_refused_total") or 0.0


def test_reports_of_a_device_beyond_the_limit_are_429_and_do_nothing(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    settings.DEVICE_RATE_LIMIT = "30/d"
    request_id = admin.command("ping", to=phone).json["request_id"]
    before = refused_reports()
    assert reports(phone, request_id, 32) == [None] * 30 + ["rate_limited"] * 2

    answer = phone.report(request_id, "succeeded")
    assert (answer.status, answer.code, answer.headers["content-type"]) == (
        429, "rate_limited", "application/problem+json",
    )  # fmt: skip
    assert 86_000 <= int(answer.headers["retry-after"]) <= 86_400
    assert refused_reports() == before + 3
    assert (Report.objects.count(), Delivery.objects.get().state) == (30, "received")


def test_several_processes_exceed_the_limit_of_reports_by_at_most_a_tenth_each(
    admin: Admin, phone: Phone, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DEVICE_RATE_LIMIT = "40/d"
    request_id = admin.command("ping", to=phone).json["request_id"]
    processes = [report_limit.ReportLimit() for _ in range(3)]
    taken = 0
    for _ in range(40):
        for process in processes:
            monkeypatch.setattr(report_limit, "reports", process)
            taken += reports(phone, request_id, 1) == [None]
    assert 40 <= taken <= 40 + 2 * 4


def test_a_device_below_a_twentieth_of_the_limit_of_reports_costs_no_statement(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    settings.DEVICE_RATE_LIMIT = "60/d"
    request_id = admin.command("ping", to=phone).json["request_id"]
    cache.clear()
    reports(phone, request_id, 3)
    assert database.row("SELECT count(*) FROM nexmdm_counter") == (0,)
    reports(phone, request_id, 1)
    assert database.row("SELECT count(*), max(value) FROM nexmdm_counter") == (1, 4)


def test_reports_on_unknown_requests_count_and_those_of_another_device_do_not(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    settings.DEVICE_RATE_LIMIT = "5/d"
    other = admin.enrol("phone-2")
    assert reports(phone, str(UUID(int=7)), 6) == ["unknown_request"] * 5 + ["rate_limited"]
    assert reports(other, str(UUID(int=7)), 5) == ["unknown_request"] * 5


def test_reports_without_the_devices_token_do_not_count_for_it(admin: Admin, phone: Phone, settings: Settings) -> None:
    settings.DEVICE_RATE_LIMIT = "5/d"
    request_id = admin.command("ping", to=phone).json["request_id"]
    forged = tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text
    intruder = Phone(phone.client, "phone-1", device_token=forged)
    assert reports(intruder, request_id, 10) == ["invalid_token"] * 10
    assert reports(phone, request_id, 6) == [None] * 5 + ["rate_limited"]


def test_the_limit_of_reports_starts_again_a_window_after_the_first_one(
    admin: Admin, phone: Phone, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DEVICE_RATE_LIMIT = "5/m"
    request_id = admin.command("ping", to=phone).json["request_id"]
    now = time.monotonic()
    monkeypatch.setattr("commands.report_limit.time.monotonic", lambda: now)
    assert reports(phone, request_id, 6)[-1] == "rate_limited"
    now += 59
    assert reports(phone, request_id, 1) == ["rate_limited"]
    now += 1
    database.execute("UPDATE nexmdm_counter SET expires_at = now()")
    assert reports(phone, request_id, 6) == [None] * 5 + ["rate_limited"]


def test_refused_writes_count_too_and_beyond_the_limit_they_are_429_without_an_entry(
    admin: Admin, settings: Settings
) -> None:
    settings.ADMIN_RATE_LIMIT = "3/h"
    refused = [
        admin.post("/admin/command", b"no json"),
        admin.command("dance", to={"all": True}),
        admin.post("/admin/enrollment-tokens", {}, idempotency_key="short"),
    ]
    assert [answer.status for answer in refused] == [400, 422, 400]
    before = AuditEntry.objects.count()
    for answer in (admin.post("/admin/command", b"no json"), admin.post("/admin/enrollment-tokens", {})):
        assert (answer.status, answer.code) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) > 3000
    assert AuditEntry.objects.count() == before
