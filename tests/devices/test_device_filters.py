"""The filters of the list of devices: each alone, together, and their refusals."""

from typing import Any

import pytest

from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass

pytestmark = pytest.mark.django_db

DAY = 86_400


def found(admin: Admin, query: str) -> list[str]:
    """The hardware ids of the devices that a list shows, in alphabetical order."""
    answer = admin.get(f"/admin/devices?{query}")
    assert answer.status == 200, answer.body
    return sorted(item["hardware_id"] for item in answer.json["items"])


@pytest.fixture
def reported(admin: Admin) -> list[Phone]:
    """Three phones of two models, two versions of the system, and two of the agent."""
    return [
        admin.enrol("a", model="Pixel 8", os_version="15", agent_version="1.2.0"),
        admin.enrol("b", model="Pixel 8 Pro", os_version="15", agent_version="1.2.1"),
        admin.enrol("c", model="Pixel 8", os_version="14", agent_version="1.2.0"),
    ]


@pytest.mark.parametrize(
    ("query", "devices"),
    [
        ("model=Pixel%208", ["a", "c"]), ("model=pixel%208", []), ("model=Pixel", []), ("model=Pixel%25", []),
        ("os_version=15", ["a", "b"]), ("os_version=1", []),
        ("agent_version=1.2.1", ["b"]), ("agent_version=1.2", []),
        ("model=Pixel%208&os_version=15&agent_version=1.2.0", ["a"]), ("model=Pixel%208&agent_version=1.2.1", []),
        ("model=Pixel%208&q=c", ["c"]), ("model=Pixel%208&status=online", []),
        ("model=Pixel%208&status=never&push=none", ["a", "c"]),
    ],
)  # fmt: skip
def test_devices_are_listed_by_what_they_report_exactly(
    admin: Admin, reported: list[Phone], query: str, devices: list[str]
) -> None:
    assert found(admin, query) == devices


def test_an_empty_text_names_the_devices_that_reported_none(admin: Admin, reported: list[Phone]) -> None:
    admin.enrol("bare", os_version="15")
    assert [found(admin, f"{name}=") for name in ("model", "os_version", "agent_version")] == [["bare"], [], ["bare"]]


def test_an_agent_that_was_updated_is_found_by_its_new_version(admin: Admin, reported: list[Phone]) -> None:
    reported[0].heartbeat(agent_version="1.3")
    assert (found(admin, "agent_version=1.3"), found(admin, "agent_version=1.2.0")) == (["a"], ["c"])


def test_a_filter_applies_to_all_pages(admin: Admin, reported: list[Phone]) -> None:
    first = admin.get("/admin/devices?model=Pixel%208&limit=1").json
    second = admin.get(f"/admin/devices?model=Pixel%208&limit=1&cursor={first['next_cursor']}").json
    assert [page["items"][0]["hardware_id"] for page in (first, second)] == ["c", "a"]
    assert second["next_cursor"] is None


def test_silence_counts_from_the_last_heartbeat_or_if_there_is_none_from_the_enrollment(admin: Admin) -> None:
    never, silent, present = [admin.enrol(name) for name in ("never", "silent", "present")]
    silent.heartbeat()
    let_pass(days=2, seconds=1)
    present.heartbeat()
    admin.enrol("new")
    assert found(admin, f"not_seen_for_seconds={2 * DAY}") == ["never", "silent"]
    assert found(admin, f"not_seen_for_seconds={2 * DAY + 60}") == []
    never.heartbeat()
    assert found(admin, f"not_seen_for_seconds={DAY}") == ["silent"]
    assert found(admin, "not_seen_for_seconds=0") == ["never", "new", "present", "silent"]


def test_the_filter_by_silence_misses_no_device_and_combines_with_other_filters(admin: Admin) -> None:
    phones = [admin.enrol(name, model="One") for name in ("active", "revoked", "retired")]
    for phone in phones:
        phone.heartbeat()
    admin.post(f"/admin/devices/{phones[1].device_id}/revoke")
    admin.post(f"/admin/devices/{phones[2].device_id}/retire")
    let_pass(hours=1, seconds=1)
    query = "not_seen_for_seconds=3600"
    assert found(admin, query) == ["active", "retired", "revoked"]
    assert [found(admin, f"{query}&status={status}") for status in ("online", "offline", "revoked", "retired")] == [
        [], ["active"], ["revoked"], ["retired"],
    ]  # fmt: skip
    assert found(admin, f"{query}&model=Two") == []


@pytest.mark.parametrize(
    "query",
    [
        "not_seen_for_seconds=-1", "not_seen_for_seconds=1.5", "not_seen_for_seconds=1h", "not_seen_for_seconds=",
        "not_seen_for_seconds=315360001", "not_seen_for_seconds=99999999999999999999", "model=a%00b",
        f"model={'x' * 129}", "os_version=%00", "agent_version=%00", "push=fail", "manufacturer=Acme",
    ],
)  # fmt: skip
def test_an_invalid_filter_is_refused(admin: Admin, query: str) -> None:
    answer = admin.get(f"/admin/devices?{query}")
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert answer.json["errors"][0]["loc"] == ["query", query.partition("=")[0]]


def test_the_longest_silence_that_can_be_asked_for_is_ten_years(admin: Admin, phone: Phone) -> None:
    assert found(admin, f"not_seen_for_seconds={3650 * DAY}") == []


def test_each_filter_is_described_in_the_document(admin: Admin) -> None:
    document = admin.client.request("GET", "/openapi.json").json
    parameters = document["paths"]["/admin/devices"]["get"]["parameters"]
    described: dict[str, Any] = {one["name"]: one for one in parameters if "name" in one}
    for name in ("model", "os_version", "agent_version", "not_seen_for_seconds", "push"):
        assert described[name]["description"]
    assert "failing" in str(described["push"]["schema"])
    assert "315360000" in str(described["not_seen_for_seconds"]["schema"])
