"""The endpoints for operations: health, readiness, metrics, and the API's own document."""

import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from django.db import OperationalError
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.functions import Now
from pytest_django import Settings

from commands.push import circuit_breaker
from nexmdm.api.application import api
from nexmdm.config import secrets_file
from nexmdm.models import DispatcherSeen
from tests.support.actors import Admin, Client, Phone
from tests.support.feed import open_write_transaction
from tests.support.moments import let_pass

ROOT: Final = Path(__file__).resolve().parent.parent.parent
TOKEN: Final = "a-metrics-token-of-thirty-two-characters"


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make PostgreSQL unreachable."""

    def refuse() -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr("django.db.connection.ensure_connection", refuse)


@pytest.fixture
def fresh_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next scrape read the gauges again."""
    monkeypatch.setattr("nexmdm.monitoring.metrics._gauges._read_at", float("-inf"))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_answered_in_any_state_of_the_database(client: Client, no_database: None, method: str) -> None:
    assert client.request(method, "/healthz").status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_server_with_its_database_and_migrations_is_ready(client: Client, db: None, method: str) -> None:
    assert client.request(method, "/readyz").status == 200
    assert client.request("GET", "/readyz").json == {
        "status": "ok",
        "database": "ok",
        "migrations": "ok",
        "dispatcher": "never seen",
        "push": "unconfigured",
        "webhooks": "ok",
    }


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_server_without_its_database_is_not_ready(client: Client, no_database: None, method: str) -> None:
    answer = client.request(method, "/readyz")
    assert (answer.status, int(answer.headers["retry-after"]) >= 1) == (503, True)
    if method == "GET":
        assert (answer.json["status"], answer.json["database"]) == ("unavailable", "unavailable")


def test_a_server_whose_database_lacks_a_migration_is_not_ready(client: Client, db: None) -> None:
    MigrationRecorder.Migration.objects.filter(app="commands").latest("id").delete()
    answer = client.request("GET", "/readyz")
    assert (answer.status, answer.json["database"], answer.json["migrations"]) == (503, "ok", "1 missing")
    assert "retry-after" in answer.headers


def test_readiness_shows_when_a_dispatcher_was_last_seen(client: Client, db: None) -> None:
    seen = DispatcherSeen.objects.create(name="host:1", circuit=circuit_breaker.CLOSED)
    assert client.request("GET", "/readyz").json["dispatcher"] == "ok"

    DispatcherSeen.objects.update(last_seen_at=Now() - timedelta(minutes=5))
    seen.refresh_from_db()
    answer = client.request("GET", "/readyz")
    word, _, moment = answer.json["dispatcher"].rpartition(" ")
    assert (answer.status, word) == (200, "last seen")
    assert datetime.fromisoformat(moment) == seen.last_seen_at


def test_readiness_shows_the_state_of_pushing(client: Client, db: None, settings: Settings) -> None:
    settings.FIREBASE_SERVICE_ACCOUNT = {"project_id": "p"}
    assert client.request("GET", "/readyz").json["push"] == "ok"

    DispatcherSeen.objects.create(name="host:1", circuit=circuit_breaker.OPEN)
    answer = client.request("GET", "/readyz")
    assert (answer.status, answer.json["push"]) == (200, "circuit_open")

    DispatcherSeen.objects.create(name="host:2", circuit=circuit_breaker.CLOSED)
    assert client.request("GET", "/readyz").json["push"] == "ok"


@pytest.mark.parametrize(
    ("address", "status"),
    [("127.0.0.1", 200), ("127.0.0.2", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("192.0.2.1", 404), ("", 404)],
)
def test_metrics_without_a_token_are_for_loopback_clients(db: None, address: str, status: int) -> None:
    answer = Client(address).request("GET", "/metrics")
    assert answer.status == status
    assert (answer.code == "not_found") == (status == 404)


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Proto", "X-Forwarded-Host", "CF-Connecting-IP"],
)
@pytest.mark.parametrize("proxies", [[], ["10.0.0.0/8"]])
def test_metrics_without_a_token_are_refused_through_a_proxy_on_this_machine(
    client: Client, db: None, settings: Settings, header: str, proxies: list[str]
) -> None:
    settings.TRUSTED_PROXIES = [ip_network(one) for one in proxies]
    assert client.request("GET", "/metrics", None, {header: "127.0.0.1"}).code == "not_found"
    assert client.request("GET", "/metrics").status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Forwarded-For": "127.0.0.1"}, 200),
        ({"X-Forwarded-For": "::1", "X-Forwarded-Proto": "https", "Via": "1.1 caddy"}, 200),
        ({"X-Forwarded-For": "203.0.113.7"}, 404),
        ({"X-Forwarded-For": "203.0.113.7, 127.0.0.1"}, 404),
        ({"X-Forwarded-For": "unknown"}, 404),
        ({"Via": "1.1 caddy"}, 404),
        ({}, 200),
    ],
)
def test_metrics_through_a_trusted_proxy_are_for_the_loopback_clients_that_it_names(
    client: Client, db: None, settings: Settings, headers: dict[str, str], status: int
) -> None:
    settings.TRUSTED_PROXIES = [ip_network("127.0.0.1")]
    assert client.request("GET", "/metrics", None, headers).status == status


def test_metrics_without_a_token_are_refused_if_database_url_is_set(client: Client, settings: Settings) -> None:
    settings.EMBEDDED = False
    assert client.request("GET", "/metrics").code == "not_found"


@pytest.mark.parametrize("embedded", [True, False])
def test_metrics_with_a_token_are_for_its_bearer_from_any_address(db: None, settings: Settings, embedded: bool) -> None:
    settings.METRICS_TOKEN, settings.EMBEDDED = TOKEN, embedded
    assert Client("192.0.2.1").request("GET", "/metrics", None, {"Authorization": f"Bearer {TOKEN}"}).status == 200


@pytest.mark.parametrize("given", [None, "", TOKEN, f"Basic {TOKEN}", "Bearer ", f"Bearer {TOKEN}x", "Bearer é"])
def test_metrics_with_a_token_are_refused_to_all_other_clients(
    client: Client, db: None, settings: Settings, given: str | None
) -> None:
    settings.METRICS_TOKEN = TOKEN
    answer = client.request("GET", "/metrics", None, {} if given is None else {"Authorization": given})
    assert (answer.status, answer.code) == (401, "invalid_token")
    assert answer.headers["www-authenticate"] == "Bearer"


def samples(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_no_label_carries_an_id_or_free_text(admin: Admin, fresh_gauges: None) -> None:
    phone = admin.enrol("hardware-4711", alias="front-desk", push_token="push-token-1")
    request_id = admin.command("message", to=phone, params={"title": "hi", "body": "there"}).json["request_id"]
    phone.heartbeat(status={"foreground_app": "com.example.app"})
    phone.report(request_id, "succeeded", message="all is well")
    for target in (f"/admin/commands/{request_id}", f"/admin/devices/{phone.device_id}", "/admin/devices?q=front"):
        admin.get(target)
    admin.post("/admin/tags/floor-2", {"add": [phone.device_id]})
    for target in ("/surprise", "/admin/devices/surprise"):
        admin.client.request("GET", target)
    admin.client.request("SURPRISE", "/healthz")

    text = "\n".join(re.findall(r"\{.*\}", admin.client.request("GET", "/metrics").body.decode()))
    assert 'route="/v1/heartbeat"' in text
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}|[0-9a-f]{20}|nx[de]_", text)
    message = ("4711", "front", "push-token", "com.example", "well", "floor-2", "surprise", "SURPRISE", admin.key)
    assert [word for word in message if word in text] == []


def test_gauges_count_open_deliveries_and_devices_online(admin: Admin, phone: Phone, fresh_gauges: None) -> None:
    admin.command(to=[phone, admin.enrol("phone-2")])
    phone.heartbeat()
    lines = samples(admin.client.request("GET", "/metrics").body.decode())
    assert "nexmdm_open_deliveries 2.0" in lines
    assert 'nexmdm_devices{presence="online"} 1.0' in lines
    assert 'nexmdm_devices{presence="never"} 1.0' in lines
    assert "nexmdm_oldest_due_push_seconds 0.0" in lines


@pytest.mark.django_db(transaction=True)
def test_a_gauge_is_the_age_of_the_oldest_write_transaction(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def age() -> float:
        monkeypatch.setattr("nexmdm.monitoring.metrics._gauges._read_at", float("-inf"))
        lines = samples(client.request("GET", "/metrics").body.decode())
        (line,) = [line for line in lines if line.startswith("nexmdm_oldest_write_transaction_seconds ")]
        return float(line.rpartition(" ")[2])

    def age_of(session: psycopg.Connection[Any]) -> float:
        found = session.execute("SELECT extract(epoch FROM clock_timestamp() - now())::float8").fetchone()
        assert found is not None
        return float(found[0])

    with open_write_transaction() as session:
        writing = age_of(session)
        assert 0 < writing < age()
        session.rollback()
        age_of(session)  # This begins a transaction that only reads.
        assert age() < writing


def test_gauges_and_summary_count_the_devices_alike(admin: Admin, fresh_gauges: None) -> None:
    enrolled = {name: admin.enrol(name) for name in ("online", "offline", "never", "revoked", "retired", "wiped")}
    for name, phone in enrolled.items():
        if name not in ("online", "never"):
            phone.heartbeat()
    let_pass(hours=1)
    enrolled["online"].heartbeat()
    for name, verb in (("revoked", "revoke"), ("retired", "retire")):
        admin.post(f"/admin/devices/{enrolled[name].device_id}/{verb}")
    wiped = enrolled["wiped"]
    wiped.report(admin.command("wipe", to=wiped).json["request_id"], "succeeded")
    counted = {"online": 1, "offline": 1, "never": 1, "revoked": 1, "retired": 2}
    assert admin.get("/admin/summary").json["devices"] == counted
    lines = samples(admin.client.request("GET", "/metrics").body.decode())
    assert [line for line in lines if line.startswith("nexmdm_devices{")] == [
        f'nexmdm_devices{{presence="{name}"}} {float(count)}' for name, count in counted.items()
    ]


@pytest.mark.django_db
def test_requests_are_counted_by_route_method_and_status(client: Client) -> None:
    def counted() -> float:
        name = 'nexmdm_request_seconds_count{method="GET",route="/healthz",status="200"} '
        found = [line for line in samples(client.request("GET", "/metrics").body.decode()) if line.startswith(name)]
        return sum(float(line.removeprefix(name)) for line in found)

    client.request("GET", "/healthz")
    before = counted()
    client.request("GET", "/healthz")
    assert counted() == before + 1


def test_the_document_of_the_api_is_served(client: Client) -> None:
    answer = client.request("GET", "/openapi.json")
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "application/json")
    assert "/admin/command" in answer.json["paths"]
    assert {"/healthz", "/readyz", "/v1/heartbeat"} <= set(answer.json["paths"])


@pytest.mark.django_db(transaction=True)
def test_a_page_shows_the_document_with_all_files_that_it_loads(client: Client) -> None:
    answer = client.request("GET", "/docs")
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert b"/openapi.json" in answer.body
    loaded = re.findall(r'(?:src|href)="([^"]+)"', answer.body.decode())
    assert len(loaded) > 3
    for path in loaded:
        assert path.startswith("/static/"), path
        assert client.request("GET", path).status == 200, path


def test_the_page_may_not_load_anything_from_another_server(client: Client) -> None:
    policy = client.request("GET", "/docs").headers["content-security-policy"]
    sources = {source for directive in policy.split("; ") for source in directive.split(" ")[1:]}
    assert policy.startswith("default-src 'none'; ")
    assert sources <= {"'none'", "'self'", "'unsafe-inline'", "data:"}
    assert "script-src 'self';" in policy


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_client_that_has_the_document_gets_304(client: Client, method: str, path: str) -> None:
    first = client.request("GET", path)
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = client.request(method, path, None, {"If-None-Match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
        assert "content-length" not in again.headers
        assert again.headers["x-correlation-id"]
    other = client.request(method, path, None, {"If-None-Match": '"other"'})
    assert (other.status, other.headers["content-length"]) == (200, str(len(first.body)))


@pytest.mark.parametrize(("path", "made_by"), [("/openapi.json", "get_openapi_schema"), ("/docs", "docs")])
def test_a_document_is_made_once(client: Client, monkeypatch: pytest.MonkeyPatch, path: str, made_by: str) -> None:
    first = client.request("GET", path)
    monkeypatch.setattr(api, made_by, None)
    assert client.request("GET", path).body == first.body


ON_A_DATABASE_OF_ITS_OWN: Final = {
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
    **{name: f"{name}-of-more-than-thirty-two-characters" for name in secrets_file.NAMES},
}


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({"API_DOCS": "off"}, 404),
        (ON_A_DATABASE_OF_ITS_OWN, 404),
        (ON_A_DATABASE_OF_ITS_OWN | {"API_DOCS": "on"}, 200),
    ],
)
def test_the_documents_are_served_if_the_setting_is_on(environment: dict[str, str], status: int) -> None:
    asked = "print([Client().request('GET', path).status for path in ('/docs', '/openapi.json')])"
    program = [sys.executable, "-c", f"import nexmdm.asgi; from tests.support.actors import Client; {asked}"]
    done = subprocess.run(program, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str([status] * 2)


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_the_documents_are_only_read(client: Client, path: str) -> None:
    answer = client.request("POST", path, {})
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"
    assert client.request("HEAD", path).status == 200


UNITS: Final = sorted((ROOT / "docs" / "operations" / "systemd").glob("*.service"))
HARDENED: Final = {
    "LimitCORE": "0",
    "MemoryMax": "1G",
    "TasksMax": "128",
    "MemoryDenyWriteExecute": "yes",
    "RemoveIPC": "yes",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "CapabilityBoundingSet": "",
}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_a_part_under_systemd_has_limits_and_writes_no_secrets_to_disk(unit: Path) -> None:
    directives = dict(line.split("=", 1) for line in unit.read_text().splitlines() if re.match(r"[A-Z]\w+=", line))
    assert directives.items() >= HARDENED.items()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_systemd_rates_the_exposure_of_the_units_as_ok(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    program = ["systemd-analyze", "security", "--offline=true", "--threshold=16", str(unit)]
    judged = subprocess.run(program, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout.splitlines()[-1:]
