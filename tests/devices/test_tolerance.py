"""An invalid reading never makes a phone's request fail: it is repaired or dropped, with a warning and a log line."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from commands.models import Delivery, Report
from devices import tokens
from devices.models import Device, EnrollmentToken, Presence
from nexmdm.common.tolerance import field_warnings
from nexmdm.common.tolerance.repair import INFORMS, Reading
from nexmdm.common.types import DeviceBody
from tests.support.actors import Admin, Answer, Client, Phone
from tests.support.moments import in_one_batch

Json = Any

GOOD: Json = {"battery_pct": 50, "charging": True, "network": "wifi", "site": "north"}
"""An earlier status of the phone."""


@pytest.fixture(autouse=True)
def forget_logged_fields() -> Iterator[None]:
    """Let no test begin in the second of another test's log line."""
    field_warnings._collapsed.clear()
    yield
    field_warnings._collapsed.clear()


@pytest.fixture
def request_id(admin: Admin, phone: Phone) -> str:
    """A command that is open for the phone."""
    return str(admin.command("reboot", to=phone).json["request_id"])


def status_of(phone: Phone) -> Json:
    return Presence.objects.get(device_id=phone.device_id).last_status


def warned(answer: Answer) -> list[str]:
    """The fields that an answer warns of, and "" for one whose warning does not describe the change."""
    assert answer.status == 200, answer.body
    return [".".join(one["loc"][1:]) if one["msg"] else "" for one in answer.json.get("warnings", [])]


def counted(route: str, field: str) -> float:
    return REGISTRY.get_sample_value("nexmdm_invalid_fields_total", {"route": route, "field": field}) or 0


def nested(depth: int) -> bytes:
    """A body with a status whose innermost object is at this depth (the status itself is at 1)."""
    return ('{"status":' + '{"a":' * depth + "1" + "}" * depth + "}").encode()


REPAIRED: list[tuple[Json, Json, list[str]]] = [
    ({"battery_pct": 83.0}, {"battery_pct": 83}, []),
    ({"battery_pct": "83"}, {"battery_pct": 83}, []),
    ({"battery_pct": " 83.0 "}, {"battery_pct": 83}, []),
    ({"battery_pct": 83.5}, {"battery_pct": 83}, ["status.battery_pct"]),
    ({"battery_pct": "83.9"}, {"battery_pct": 83}, ["status.battery_pct"]),
    ({"uptime_seconds": 1234.5}, {"uptime_seconds": 1234}, ["status.uptime_seconds"]),
    ({"uptime_seconds": "9223372036854775807"}, {"uptime_seconds": 2**63 - 1}, []),
    ({"network": "WIFI"}, {"network": "wifi"}, []),
    ({"network": "5g"}, {"network": "5g"}, []),
    ({"network": "vpn"}, {"network": "vpn"}, []),
    ({"network": 5}, {"network": "5"}, []),
    ({"network": "N" * 33}, {"network": "n" * 32}, ["status.network"]),
    ({"foreground_app": "a" * 300}, {"foreground_app": "a" * 256}, ["status.foreground_app"]),
    ({"foreground_app": "a\0\ud800"}, {"foreground_app": "a\ufffd\ufffd"}, ["status.foreground_app"]),
    ({"foreground_app": "\0" * 300}, {"foreground_app": "\ufffd" * 256}, ["status.foreground_app"]),
    ({"note": "a\0b"}, {"note": "a\ufffdb"}, ["status.note"]),
    ({"note": [{"\0": "\udfff"}]}, {"note": [{"\ufffd": "\ufffd"}]}, ["status.note"]),
    ({"no\0te": 1}, {"no\ufffdte": 1}, ["status.…"]),
    ({"\ud800": None}, {"\ufffd": None}, ["status.…"]),
    ({"\0": "\0", "\0\0": 1}, {"\ufffd": "\ufffd", "\ufffd\ufffd": 1}, ["status.…", "status.…"]),
]


@pytest.mark.parametrize(("sent", "kept", "warnings"), REPAIRED)
def test_a_reading_is_repaired_if_the_repair_is_harmless(
    phone: Phone, request_id: str, sent: Json, kept: Json, warnings: list[str]
) -> None:
    answer = phone.heartbeat(status={"charging": True, **sent}, agent_version="2")
    assert warned(answer) == warnings
    assert [command["request_id"] for command in answer.json["commands"]] == [request_id]
    assert status_of(phone) == {"charging": True, **kept}


NO_BATTERIES: list[Json] = [255, -1, -(2**31), 101, -0.5, True, "full", "8_3", "٨٣", [83], {}, 1e300, 10**30]
DROPPED: list[Json] = [
    *({"battery_pct": value} for value in NO_BATTERIES),
    {"uptime_seconds": 2**63},
    {"free_storage_mb": -1},
    {"charging": 1},
    {"charging": "true"},
    {"network": ["wifi"]},
    {"network": False},
    {"foreground_app": {"package": "a"}},
    {"count": 2**63},
    {"count": {"deep": [1, [-(10**25)]]}},
    {"load": 1e19},
]


@pytest.mark.parametrize("sent", DROPPED)
def test_a_reading_that_cannot_be_repaired_is_dropped_alone(phone: Phone, request_id: str, sent: Json) -> None:
    answer = phone.heartbeat(status={"site": "north", **sent})
    assert warned(answer) == [f"status.{name}" for name in sent]
    assert all(one["msg"].endswith("; dropped") for one in answer.json["warnings"])
    assert [command["request_id"] for command in answer.json["commands"]] == [request_id]
    assert status_of(phone) == {"site": "north"}


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5000])
def test_a_number_beyond_all_ranges_is_dropped_alone(phone: Phone, number: str) -> None:
    body = f'{{"status": {{"load": {number}, "battery_pct": {number}, "site": "north"}}, "later": {number}}}'
    assert warned(phone.send("/v1/heartbeat", body.encode())) == ["status.battery_pct", "status.load"]
    assert status_of(phone) == {"site": "north"}


def test_a_reading_that_is_null_was_not_sent(phone: Phone) -> None:
    status = dict.fromkeys(
        ["battery_pct", "charging", "network", "uptime_seconds", "free_storage_mb", "foreground_app"]
    )
    answer = phone.heartbeat(status={**status, "site": None}, agent_version=None)
    assert (warned(answer), status_of(phone)) == ([], {"site": None})
    phone.heartbeat(status=None)
    assert status_of(phone) == {"site": None}


@pytest.mark.parametrize(
    "body",
    [
        b'{"status": []}',
        b'{"status": "fine"}',
        b'{"status": 5}',
        json.dumps({"status": {"a": "x" * 8185}}).encode(),
        json.dumps({"status": {"a": "é" * 4093}}, ensure_ascii=False).encode(),
        json.dumps({"status": {"foreground_app": "x" * 9000}}).encode(),
        json.dumps({"status": {"battery_pct": 10**25, "a": "\ud800" * 2800}}).encode(),
        nested(17),
        nested(900),
        nested(2000),
        b'{"status": {"battery_pct": ' + b"[" * 30_000 + b"]" * 30_000 + b"}}",
    ],
)
def test_a_status_beyond_its_limits_is_dropped_as_a_whole_and_the_earlier_one_stays(
    phone: Phone, request_id: str, body: bytes
) -> None:
    phone.heartbeat(status=GOOD)
    answer = phone.send("/v1/heartbeat", body)
    assert warned(answer) == ["status"]
    assert [command["request_id"] for command in answer.json["commands"]] == [request_id]
    assert status_of(phone) == GOOD


def test_a_repair_that_makes_a_status_too_large_drops_it(phone: Phone) -> None:
    status = {"foreground_app": 7, "a": "x" * (8192 - len('{"foreground_app":7,"a":""}'))}
    assert warned(phone.heartbeat(status=status)) == ["status"]


@pytest.mark.parametrize("push_token", ["", "p" * 4097, "p\0", "p\ud800", 5, [], {"token": "p"}, True])
def test_a_push_token_is_dropped_and_never_changed(phone: Phone, push_token: object) -> None:
    phone.heartbeat(push_token="fcm-1")
    assert warned(phone.heartbeat(push_token=push_token, status={"site": "north"})) == ["push_token"]
    assert Device.objects.get().push_token == "fcm-1"
    assert status_of(phone) == {"site": "north"}


def test_a_null_push_token_deletes_it_next_to_a_bad_reading(phone: Phone) -> None:
    phone.heartbeat(push_token="fcm-1")
    assert warned(phone.heartbeat(push_token=None, status={"battery_pct": 255})) == ["status.battery_pct"]
    assert Device.objects.get().push_token is None


@pytest.mark.parametrize(
    ("sent", "kept", "warnings"),
    [
        (34, "34", []),
        (2.5, "2.5", []),
        ("a" * 129, "a" * 128, ["agent_version"]),
        ("2\0", "2\ufffd", ["agent_version"]),
        (["2"], "1", ["agent_version"]),
        (True, "1", ["agent_version"]),
    ],
)
def test_a_version_is_repaired_or_the_earlier_one_stays(
    phone: Phone, sent: object, kept: str, warnings: list[str]
) -> None:
    phone.heartbeat(agent_version="1")
    assert warned(phone.heartbeat(agent_version=sent)) == warnings
    assert Presence.objects.get().agent_version == kept


def test_undeclared_fields_are_not_checked(phone: Phone) -> None:
    body = b'{"later": {"\\ud800": 1e400, "a": ' + b"[" * 9000 + b"]" * 9000 + b'}, "\\udfff": "\\u0000"}'
    answer = phone.send("/v1/heartbeat", body)
    assert (answer.status, "warnings" in answer.json) == (200, False)


def test_a_heartbeat_that_fits_has_no_warnings(phone: Phone) -> None:
    assert set(phone.heartbeat(status=GOOD, push_token="fcm-1", agent_version="2").json) == {
        "server_time", "next_heartbeat_seconds", "commands", "has_more",
    }  # fmt: skip


def test_ten_fields_are_named_and_all_are_counted(phone: Phone) -> None:
    before = counted("/v1/heartbeat", "status.*")
    answer = phone.heartbeat(status={f"count_{number}": 2**63 for number in range(25)})
    assert len(answer.json["warnings"]) == 10
    assert counted("/v1/heartbeat", "status.*") - before == 25


def test_a_warning_shows_no_key_that_may_be_a_secret(phone: Phone) -> None:
    answer = phone.heartbeat(status={phone.device_token: 2**63})
    assert answer.json["warnings"][0]["loc"] == ["body", "status", "…"]


def test_bad_readings_in_a_flush_do_not_disturb_the_others(admin: Admin) -> None:
    phones = [admin.enrol(f"phone-{number}") for number in range(3)]
    statuses: list[Json] = [GOOD, {**GOOD, "battery_pct": 255}, GOOD]
    answers = in_one_batch(
        *((phone.device_token, {"status": status}) for phone, status in zip(phones, statuses, strict=True))
    )
    assert [warned(answer) for answer in answers] == [[], ["status.battery_pct"], []]
    assert status_of(phones[1]) == {name: value for name, value in GOOD.items() if name != "battery_pct"}


def test_a_bad_reading_with_a_new_token_has_a_warning_too(phone: Phone) -> None:
    """The first heartbeat with a rotated token takes another path through the server."""
    rotated = phone.rotate().json["device_token"]
    answer = phone.send("/v1/heartbeat", {"status": {"battery_pct": 255, "site": "north"}}, rotated)
    assert (warned(answer), status_of(phone)) == (["status.battery_pct"], {"site": "north"})


def test_a_byte_order_mark_is_ignored(admin: Admin, phone: Phone, request_id: str) -> None:
    mark = b"\xef\xbb\xbf"
    assert phone.send("/v1/heartbeat", mark + b'{"status": {"battery_pct": 7}}').status == 200
    assert phone.send("/v1/heartbeat", mark + b'{"status": {"battery_pct": 8, "a": "\\ud800"}}').status == 200
    assert status_of(phone) == {"battery_pct": 8, "a": "\ufffd"}
    report = json.dumps({"request_id": request_id, "status": "received"}).encode()
    assert phone.send("/v1/action-result", mark + report).status == 200
    assert admin.post("/admin/enrollment-tokens", mark + b'{"label": "marked"}').json["label"] == "marked"


@pytest.mark.parametrize(
    ("field", "sent", "kept", "warnings"),
    [
        ("os_version", 34, "34", []),
        ("os_version", 14.1, "14.1", []),
        ("manufacturer", "m" * 129, "m" * 128, ["manufacturer"]),
        ("model", "X\0", "X\ufffd", ["model"]),
        ("model", ["X"], "", ["model"]),
        ("os_version", None, "", []),
        ("push_token", "p" * 4097, None, ["push_token"]),
        ("push_token", "p\0", None, ["push_token"]),
        ("push_token", 17, None, ["push_token"]),
        ("push_token", None, None, []),
        ("alias", None, None, []),
    ],
)
def test_a_phone_registers_with_any_values_of_its_details(
    admin: Admin, client: Client, field: str, sent: object, kept: str | None, warnings: list[str]
) -> None:
    answer = Phone(client, "imei-1").register(admin.enrollment_token(), **{field: sent})
    assert warned(answer) == warnings
    assert ("warnings" in answer.json) == bool(warnings)
    assert getattr(Device.objects.get(), field) == kept
    assert EnrollmentToken.objects.get().uses == 1


@pytest.mark.parametrize("alias", ["a\0", "a\ud800"])
def test_an_alias_is_never_repaired(admin: Admin, client: Client, alias: str) -> None:
    answer = Phone(client, "imei-1").register(admin.enrollment_token(), alias=alias, os_version=34)
    assert (answer.status, answer.json["errors"][0]["loc"]) == (422, ["body", "alias"])
    assert Device.objects.count() == 0


def output_of(size: int) -> Json:
    return {"a": "x" * (size - len('{"a":""}'))}


@pytest.mark.parametrize(
    ("field", "sent", "kept", "warned_of"),
    [
        ("message", "m" * 1001, "m" * 1000, True),
        ("message", "\0", "\ufffd", True),
        ("message", 5, "5", False),
        ("message", ["done"], "", True),
        ("output", output_of(16 * 1024 + 1), None, True),
        ("output", ["a"], None, True),
        ("output", "a", None, True),
        ("output", {"a": "\0", "\udfff": [1]}, {"a": "\ufffd", "\ufffd": [1]}, True),
        ("output", {"a": 2**63}, None, True),
        ("output", {"a": 1e19}, None, True),
        ("output", {"a": [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}, None, True),
        ("device_finished_at", "yesterday", None, True),
        ("device_finished_at", "2026-01-01", None, True),
        ("device_finished_at", "2026-01-01T00:00:00", None, True),
        ("device_finished_at", "2026-02-30T00:00:00Z", None, True),
        ("device_finished_at", "2026-01-01T00:00:00\u221202:00", None, True),
        ("device_finished_at", "0001-01-01T00:00:00+14:00", None, True),
        ("device_finished_at", "9999-12-31T23:59:59-14:00", None, True),
        ("device_finished_at", "1767225600", None, True),
        ("device_finished_at", 1767225600, None, True),
        ("device_finished_at", True, None, True),
        ("via", "sms", None, True),
        ("via", 1, None, True),
    ],
)
def test_a_report_counts_with_any_values_of_its_other_fields(
    phone: Phone, request_id: str, field: str, sent: object, kept: object, warned_of: bool
) -> None:
    name = field.removeprefix("device_")
    answer = phone.report(request_id, "succeeded", **{name: sent})
    assert warned(answer) == [name] * warned_of
    assert (answer.json["state"], Delivery.objects.get().state) == ("succeeded", "succeeded")
    assert getattr(Report.objects.get(), field) == kept


def test_bad_readings_are_counted_by_field_and_logged_in_one_line_a_second(
    phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("nexmdm.common.tolerance.field_warnings.time.monotonic", lambda: now)
    before = counted("/v1/heartbeat", "status.battery_pct")
    with capture_logs() as lines:
        for _ in range(3):
            phone.heartbeat(status={"battery_pct": 255})
        now += 1
        phone.heartbeat(status={"battery_pct": 255})
    assert counted("/v1/heartbeat", "status.battery_pct") - before == 4
    found = [line for line in lines if line["event"] == "device.invalid_field"]
    assert [(line["route"], line["field"], line["device_id"], line["count"]) for line in found] == [
        ("/v1/heartbeat", "status.battery_pct", phone.device_id, count) for count in (1, 3)
    ]


def test_bad_readings_of_unknown_callers_are_neither_counted_nor_logged(phone: Phone) -> None:
    before = counted("/v1/heartbeat", "status.battery_pct")
    token = tokens.parse(tokens.DEVICE_PREFIX, phone.device_token)
    assert token is not None
    wrong = tokens.make(tokens.DEVICE_PREFIX, token.id, bytes(32)).text
    with capture_logs() as lines:
        answer = phone.send("/v1/heartbeat", {"status": {"battery_pct": 255}}, wrong)
    assert (answer.status, answer.code) == (401, "invalid_token")
    assert counted("/v1/heartbeat", "status.battery_pct") == before
    assert [line for line in lines if line["event"] == "device.invalid_field"] == []


def fields_that_inform(document: Json) -> list[tuple[str, str]]:
    """The path and the name of each field of a phone's body that only informs, according to the document."""
    found = []
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        body = document["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
        for name, field in body.get("properties", {}).items():
            if field.get("description", "").startswith("Informs:"):
                found.append((path, name))
    return found


def test_no_field_that_informs_by_the_document_refuses_a_request(admin: Admin, phone: Phone, request_id: str) -> None:
    token = admin.enrollment_token()
    accepted: dict[str, tuple[str, Json]] = {
        "/v1/register": (token, {"hardware_id": "imei-1"}),
        "/v1/heartbeat": (phone.device_token, {}),
        "/v1/action-result": (phone.device_token, {"request_id": request_id, "status": "running"}),
    }
    found = fields_that_inform(admin.client.request("GET", "/openapi.json").json)
    assert {path for path, _ in found} == accepted.keys()
    for path, name in found:
        bearer, body = accepted[path]
        assert warned(phone.send(path, {**body, name: [[]]}, bearer)) == [name], path


def test_a_text_without_a_limit_stops_the_start() -> None:
    class Endless(DeviceBody):
        note: Annotated[str, INFORMS]

    with pytest.raises(TypeError, match="must have a max_length"):
        TypeAdapter(Reading[Endless])


def test_a_field_without_a_role_stops_the_start() -> None:
    class Forgetful(DeviceBody):
        told: Annotated[int, INFORMS]
        forgotten: str

    with pytest.raises(TypeError, match=r"Forgetful\.forgotten has no role"):
        TypeAdapter(Reading[Forgetful])


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(categories=None)),
    st.text(st.characters(categories=None), min_size=250, max_size=300),
    st.sampled_from(["\0", "\ud800", "", "wifi", "83", 83.5, 255, -1, 2**63, 10**400]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(categories=None), max_size=40), inner),
    max_leaves=30,
) | st.integers(10, 1200).map(lambda depth: json.loads("[" * min(depth, 900) + "]" * min(depth, 900)))
READINGS = ["battery_pct", "charging", "network", "uptime_seconds", "free_storage_mb", "foreground_app", "other"]
STATUSES = ANYTHING | st.fixed_dictionaries({}, optional=dict.fromkeys(READINGS, ANYTHING))
EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def test_a_heartbeat_with_any_content_is_recorded_and_gets_its_commands(phone: Phone, request_id: str) -> None:
    @EXAMPLES
    @given(st.fixed_dictionaries({}, optional={"status": STATUSES, "push_token": ANYTHING, "agent_version": ANYTHING}))
    def recorded(body: Json) -> None:
        answer = phone.heartbeat(**body)
        assert answer.status == 200, (answer.body, body)
        assert [command["request_id"] for command in answer.json["commands"]] == [request_id]
        assert len(answer.json.get("warnings", [])) <= 10

    recorded()


def test_a_report_with_any_content_next_to_its_status_counts(admin: Admin, phone: Phone) -> None:
    names = ["message", "output", "finished_at", "via", "later"]

    @EXAMPLES
    @given(st.fixed_dictionaries({}, optional=dict.fromkeys(names, ANYTHING)))
    def counts(body: Json) -> None:
        request_id = admin.command(to=phone).json["request_id"]
        answer = phone.report(request_id, "succeeded", **body)
        assert (answer.status, answer.json["state"]) == (200, "succeeded"), body

    counts()


def test_a_registration_with_any_details_succeeds(admin: Admin, client: Client) -> None:
    names = ["push_token", "manufacturer", "model", "os_version", "agent_version", "later"]
    enrollment_token = admin.enrollment_token(max_uses=2)

    @EXAMPLES
    @given(st.fixed_dictionaries({}, optional=dict.fromkeys(names, ANYTHING)))
    def enrolled(body: Json) -> None:
        assert Phone(client, "imei-1").register(enrollment_token, **body).status == 200, body

    enrolled()
