"""The examples of the document: each request is sent unchanged and succeeds, and its answer equals the example.

`WRITE_EXAMPLES=1 .venv/bin/python -m pytest tests/api/test_examples.py` records the answers that are missing or differ.
"""

import json
import os
import re
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db import OperationalError
from jsonschema import Draft202012Validator
from pytest_django import Settings

from loadtest.fake_fcm.server import FcmStandin
from nexmdm.api.openapi.examples import FILE, OPERATIONS, PATH, PROBLEMS
from nexmdm.client.phone import sign
from nexmdm.common import database
from nexmdm.common.postgresql import direct
from nexmdm.common.postgresql.connection import Connection
from nexmdm.models import DispatcherSeen
from nexmdm.webhooks.receivers import Outcome, Receivers
from tests.support import feed
from tests.support.actors import Admin, Answer, Client, Phone
from tests.support.moments import let_pass
from tests.webhooks.receiver import running_lane

Json = dict[str, Any]

FIRST_TOKEN: Final = "0192f0c1-a000-7abc-8def-000000000001"
SIGNING_KEY: Final = "nxk_test_c2lnbmluZy1tYXN0ZXIta2V5LWRvLW5vdC11c2U"
WITHOUT_EXAMPLES: Final = {"headHealthz", "headReadyz", "readMetrics"}
CHANGING: Final = {
    "signature",
    "correlation_id",
    "next_heartbeat_seconds",
    "latency_ms",
    "next_cursor",
    "cursor",
    "p50_ms",
    "p95_ms",
    "uptime_ratio",
}
A_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
A_MESSAGE_ID: Final = re.compile(r"projects/[^/]+/messages/\S+")
AN_EVENT: Final = re.compile(r"[0-9a-f]+-\d+-\d+")


def steady(value: Any, name: str = "") -> Any:
    """Return JSON with a placeholder for each value that differs in every run."""
    if isinstance(value, dict):
        return {key: steady(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [steady(inner) for inner in value]
    if name in CHANGING:
        return type(value).__name__
    if isinstance(value, str) and A_TIME.fullmatch(value.replace("+00:00", "Z")):
        return "a time"
    if isinstance(value, str) and A_MESSAGE_ID.fullmatch(value):
        return "a message id"
    if name == "id" and isinstance(value, str) and AN_EVENT.fullmatch(value):
        return "an event"
    return re.sub(r"\d+", "0", value) if name == "detail" and isinstance(value, str) else value


def compact(value: Any, indent: str = "") -> str:
    """Return JSON text in which everything that fits into one line is on one line."""
    text = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(text) <= 110 or not isinstance(value, dict | list):
        return text
    deeper = f"{indent}  "
    keys = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    inner = value.values() if isinstance(value, dict) else value
    lines = ",\n".join(f"{deeper}{key}{compact(one, deeper)}" for key, one in zip(keys, inner, strict=True))
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n{lines}\n{indent}{end}"


def record(change: Callable[[Json], None]) -> None:
    """Write answers into the file of examples, if WRITE_EXAMPLES is set."""
    if os.environ.get("WRITE_EXAMPLES"):
        found = json.loads(FILE.read_text(encoding="utf-8"))
        change(found)
        FILE.write_text(f"{compact(found)}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def document() -> Json:
    """The document as it is served."""
    found: Json = Client().request("GET", "/openapi.json").json
    return found


def operations(document: Json) -> dict[str, tuple[str, str, Json]]:
    """Method, path and description of each operation."""
    return {
        described["operationId"]: (method.upper(), path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    }


def content(place: Json) -> Json:
    found: Json = place["content"]["application/json"]
    return found


def validator(document: Json, schema: Json) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def numbered(first: str) -> Iterator[UUID]:
    return (UUID(int=UUID(first).int + number) for number in count())


@pytest.fixture
def steady_ids_and_secrets(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """Make each run of the examples equal: the same ids, tokens and keys."""
    made, asked = chain(islice(numbered(FIRST_TOKEN), 3), numbered(PATH["device_id"])), numbered(PATH["request_id"])
    secrets = (bytes(range(start, start + 32)) for start in count())
    monkeypatch.setattr("devices.enrollment.uuid7", partial(next, made))
    monkeypatch.setattr("commands.issuing.uuid7", partial(next, asked))
    monkeypatch.setattr("nexmdm.webhooks.queries.uuid7", partial(next, numbered(PATH["webhook_id"])))
    monkeypatch.setattr("devices.credentials.secrets", SimpleNamespace(token_bytes=lambda _: next(secrets)))
    settings.SECRET_KEY, settings.COMMAND_SIGNING_KEYS = "the secret key of the documentation", [SIGNING_KEY]
    settings.PUBLIC_URL, settings.AGENT_COMPONENT = "https://mdm.example.com", "com.example.agent/.AdminReceiver"


@dataclass
class Scenario:
    """Runs examples of the document, and stores the answers."""

    document: Json
    admin: Admin
    answers: dict[str, Json] = field(default_factory=dict)

    def run(self, operation_id: str, *names: str, bearer: str = "") -> None:
        """Run the examples with these names, or all examples of an operation, as an admin or with a bearer token."""
        method, path, described = operations(self.document)[operation_id]
        target = path.format_map({one["name"]: one.get("example") for one in self.parameters(described)})
        for name in names or OPERATIONS[operation_id]:
            body = content(described["requestBody"])["examples"][name]["value"] if self.has_body(described) else None
            answer = self.send(method, f"{target}?{name}" if "=" in name else target, body, bearer)
            assert answer.status == 200, (operation_id, name, answer.body)
            validator(self.document, content(described["responses"]["200"])["schema"]).validate(answer.json)
            self.answers.setdefault(operation_id, {})[name] = answer.json

    def parameters(self, described: Json) -> list[Json]:
        return [one for one in described["parameters"] if one.get("in") == "path"]

    def has_body(self, described: Json) -> bool:
        return "requestBody" in described and "examples" in content(described["requestBody"])

    def send(self, method: str, target: str, body: Any, bearer: str) -> Answer:
        if target.startswith("/admin/"):
            return self.admin.call(method, target, body)
        return self.admin.client.request(method, target, body, {"Authorization": f"Bearer {bearer}"})

    def told(self, operation_id: str, name: str, key: str) -> str:
        return str(self.answers[operation_id][name][key])


def run_webhooks(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the examples of webhooks with a receiver that acknowledges everything."""

    async def acknowledge(*_: Any) -> Outcome:
        return Outcome(204, "", 38)

    monkeypatch.setattr(Receivers, "post", acknowledge)
    DispatcherSeen.objects.create(name="host:1", circuit="closed")
    for operation_id in ("createWebhook", "listWebhooks", "readWebhook", "changeWebhook", "replayWebhook"):
        scenario.run(operation_id)
    with running_lane():
        scenario.run("sendWebhookTest")
    for operation_id in ("listWebhookAttempts", "rotateWebhookSecret", "deleteWebhook"):
        scenario.run(operation_id)


@pytest.mark.django_db(transaction=True)
def test_the_examples_of_all_operations_run_one_after_the_other(
    document: Json, admin: Admin, fcm: FcmStandin, steady_ids_and_secrets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = Scenario(document, admin)
    run = scenario.run
    run("createEnrollmentToken")
    run("register", bearer=scenario.told("createEnrollmentToken", "a_batch", "enrollment_token"))
    phone = scenario.told("register", "all_it_knows", "device_token")
    for operation_id in ("changeDevice", "changeTag"):
        run(operation_id)
    run("heartbeat", "nothing_new", "with_a_warning", bearer=phone)
    let_pass(minutes=50)
    run("issueCommand", "launch_app")
    call_command("dispatch", once=True)
    run("heartbeat", "with_status", bearer=phone)
    run("actionResult", bearer=phone)
    for operation_id in ("readCommand", "listCommands", "listDeliveries", "readDelivery", "cancelCommand"):
        run(operation_id)
    run("issueCommand", *list(OPERATIONS["issueCommand"])[1:])
    for operation_id in ("listDevices", "readDevice", "readDevicePresence", "summary", "listPushHealth", "listAudit"):
        run(operation_id)
    run("listEnrollmentTokens")
    feed.all_events(admin)
    run("listEvents")
    run_webhooks(scenario, monkeypatch)
    scenario.send("POST", "/v1/heartbeat", {}, phone)  # The device must have the commands to withdraw.
    for operation_id in ("revokeEnrollmentToken", "revokeDevice", "reinstateDevice", "healthz", "readyz"):
        run(operation_id)
    run("rotate", bearer=phone)
    run("retireDevice")

    def change(found: Json) -> None:
        for operation_id, answers in scenario.answers.items():
            for name, answer in answers.items():
                example = found["operations"][operation_id][name]
                if "answer" not in example or steady(example["answer"]) != steady(answer):
                    example["answer"] = answer

    record(change)
    assert scenario.answers.keys() == operations(document).keys() - WITHOUT_EXAMPLES
    recorded = json.loads(FILE.read_text(encoding="utf-8"))["operations"]
    shown = {
        operation_id: {name: one["answer"] for name, one in named.items()} for operation_id, named in recorded.items()
    }
    assert steady(scenario.answers) == steady(shown)


def test_a_phone_can_verify_the_command_of_the_examples() -> None:
    registered = OPERATIONS["register"]["all_it_knows"]["answer"]
    (envelope,) = OPERATIONS["heartbeat"]["with_status"]["answer"]["commands"]
    assert sign(registered["command_key"], registered["device_id"], envelope) == envelope["signature"]


def test_every_example_of_the_document_fits_its_schema(document: Json) -> None:
    described = [one for _, _, one in operations(document).values()]
    places = [answer for one in described for answer in one["responses"].values() if "content" in answer]
    places += [one["requestBody"] for one in described if "requestBody" in one]
    places += document["components"]["responses"].values()
    media = [one for place in places for one in place["content"].values() if "examples" in one]
    for one in media:
        for example in one["examples"].values():
            validator(document, one["schema"]).validate(example["value"])
    assert len(media) > 50


def test_an_operation_has_an_example_of_its_body_and_of_its_answer(document: Json) -> None:
    for operation_id in operations(document).keys() - WITHOUT_EXAMPLES:
        _, path, described = operations(document)[operation_id]
        assert content(described["responses"]["200"])["examples"], operation_id
        if "requestBody" in described and described["requestBody"]["required"]:
            assert content(described["requestBody"])["examples"], operation_id
        assert all(PATH[name] for name in re.findall(r"{(\w+)}", path))


@dataclass
class World:
    """The actors of a test of an error."""

    admin: Admin
    phone: Phone
    settings: Settings
    patch: pytest.MonkeyPatch

    @property
    def client(self) -> Client:
        """The client that all actors use."""
        return self.admin.client

    def heartbeat(self, body: Any, **headers: str) -> Answer:
        """Send a body as this phone's heartbeat."""
        bearer = {"Authorization": f"Bearer {self.phone.device_token}"}
        return self.client.request("POST", "/v1/heartbeat", body, bearer | headers)

    def register(self, hardware_id: str = "phone-2", **token: Any) -> Answer:
        """Let another phone register with a new enrollment token."""
        return Phone(self.client, hardware_id).register(self.admin.enrollment_token(**token))


@pytest.fixture
def world(admin: Admin, phone: Phone, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(admin, phone, settings, monkeypatch)


def _expired(world: World) -> Answer:
    token = world.admin.enrollment_token(expires_in_seconds=60)
    let_pass(seconds=61)
    return Phone(world.client, "phone-2").register(token)


def _exhausted(world: World) -> Answer:
    token = world.admin.enrollment_token()
    Phone(world.client, "phone-2").register(token)
    return Phone(world.client, "phone-3").register(token)


def _revoked(world: World) -> Answer:
    made = world.admin.post("/admin/enrollment-tokens", {}).json
    world.admin.post(f"/admin/enrollment-tokens/{made['id']}/revoke")
    return Phone(world.client, "phone-2").register(made["enrollment_token"])


def _device_revoked(world: World) -> Answer:
    world.admin.post(f"/admin/devices/{world.phone.device_id}/revoke")
    return world.phone.heartbeat()


def _alias_taken(world: World) -> Answer:
    world.admin.enrol("phone-2", alias="front-desk")
    return world.admin.call("PATCH", f"/admin/devices/{world.phone.device_id}", {"alias": "front-desk"})


def _in_flight(world: World) -> Answer:
    with Connection.connect(**direct.parameters()) as another:
        another.execute("SELECT pg_advisory_lock(hashtextextended('idempotency:admin:order-4711-attempt', 0))")
        return world.admin.post("/admin/enrollment-tokens", {}, idempotency_key="order-4711-attempt")


def _reused(world: World) -> Answer:
    world.admin.post("/admin/enrollment-tokens", {}, idempotency_key="order-4711-attempt")
    return world.admin.post("/admin/enrollment-tokens", {"max_uses": 2}, idempotency_key="order-4711-attempt")


def _too_slow(world: World) -> Answer:
    async def waited_for_it(collecting: Coroutine[Any, Any, bytes]) -> bytes:
        collecting.close()
        raise TimeoutError

    world.patch.setattr("nexmdm.http.guard.body._in_time", waited_for_it)
    return world.heartbeat({})


def _rate_limited(world: World) -> Answer:
    world.settings.ADMIN_READ_RATE_LIMIT = "1/m"
    world.admin.get("/admin/summary")
    return world.admin.get("/admin/summary")


def _broken(world: World) -> Answer:
    world.patch.setattr("nexmdm.monitoring.fleet_summary.summary", lambda: 1 / 0)
    return world.admin.get("/admin/summary")


def _cursor_expired(world: World) -> Answer:
    cursor = feed.read(world.admin).json["next_cursor"]
    database.execute("DELETE FROM nexmdm_eventmark")
    return feed.read(world.admin, after=cursor)


def _device_retired(world: World) -> Answer:
    world.admin.post(f"/admin/devices/{world.phone.device_id}/retire")
    return world.admin.post(f"/admin/devices/{world.phone.device_id}/reinstate")


def _overloaded(world: World) -> Answer:
    world.patch.setattr("devices.check_in.WAITING_LIMIT", 0)
    return world.phone.heartbeat()


def _no_database(world: World) -> Answer:
    def refuse() -> None:
        raise OperationalError

    with world.patch.context() as patch:
        patch.setattr("django.db.connection.ensure_connection", refuse)
        return world.phone.heartbeat()


PROVOKED: Final[dict[str, Callable[[World], Answer]]] = {
    "invalid_host": lambda world: world.client.request("GET", "/healthz", None, {"Host": "elsewhere.example"}),
    "invalid_json": lambda world: world.heartbeat(b'{"status": {"battery_pct": NaN}}'),
    "idempotency_key_required": lambda world: world.admin.post("/admin/enrollment-tokens", {}, idempotency_key="1"),
    "invalid_signature": lambda world: world.client.request("GET", "/admin/summary"),
    "invalid_token": lambda world: Phone(world.client, "", device_token="nxd_").heartbeat(),
    "invalid_enrollment_token": lambda world: Phone(world.client, "phone-2").register("nxe_"),
    "enrollment_token_expired": _expired,
    "enrollment_token_exhausted": _exhausted,
    "enrollment_token_revoked": _revoked,
    "device_revoked": _device_revoked,
    "device_retired": _device_retired,
    "cursor_expired": _cursor_expired,
    "not_found": lambda world: world.admin.get(f"/admin/devices/{PATH['device_id']}"),
    "unknown_request": lambda world: world.phone.report(PATH["request_id"], "succeeded"),
    "request_timeout": _too_slow,
    "hardware_known": lambda world: world.register(world.phone.hardware_id),
    "alias_taken": _alias_taken,
    "audience_changed": lambda world: world.admin.command("ping", expect_count=20),
    "idempotency_in_flight": _in_flight,
    "payload_too_large": lambda world: world.heartbeat(b" " * (64 * 1024 + 1)),
    "unsupported_media_type": lambda world: world.heartbeat(b"{}", **{"Content-Type": "text/plain"}),
    "invalid_request": lambda world: world.admin.command("ping", expires_in_second=60),
    "unknown_devices": lambda world: world.admin.command("ping", to={"device_ids": [PATH["device_id"]]}),
    "empty_audience": lambda world: world.admin.command("ping", to={"tags": ["lobby"]}),
    "push_payload_too_large": lambda world: world.admin.command("message", params={"title": "", "body": "x" * 4096}),
    "idempotency_key_reused": _reused,
    "rate_limited": _rate_limited,
    "headers_too_large": lambda world: world.heartbeat({}, Cookie="x" * 16 * 1024),
    "internal": _broken,
    "overloaded": _overloaded,
    "database_unavailable": _no_database,
}


@pytest.mark.parametrize("code", PROVOKED)
def test_the_example_of_an_error_is_how_it_is_answered(world: World, code: str) -> None:
    problem = PROVOKED[code](world).json
    record(lambda found: found["problems"].update({code: problem}))
    assert problem["code"] == code
    assert steady(problem) == steady(PROBLEMS[code])


def test_every_error_of_the_document_has_an_example_that_was_provoked(document: Json) -> None:
    told = {
        code
        for answer in document["components"]["responses"].values()
        for code in answer["content"]["application/problem+json"]["examples"]
    }
    assert told == PROVOKED.keys() == PROBLEMS.keys()
