"""nexmdm events: one line for each event, as it is and as it happens, with the cursor from which to continue."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from django.core.management import call_command

from nexmdm.client.events import lines
from nexmdm.common.event_feed.events import EventType
from tests.support.actors import Admin, Client, Phone
from tests.support.fleet_command import InProcess, Ran, run

pytestmark = pytest.mark.django_db(transaction=True)

CONTINUE: Final = re.compile(r"^To continue: manage\.py fleet events (--after[ =](\S+).*)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the last names of this test in its own folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    """A transport to a server with an empty database."""
    return InProcess(client)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the client, which take no time."""
    found: list[float] = []
    monkeypatch.setattr("nexmdm.client.verbs.events.events.time.sleep", found.append)
    return found


def events(network: httpx.BaseTransport, *words: str) -> Ran:
    return run("events", *words, transport=network)


def rows(ran: Ran) -> list[dict[str, Any]]:
    """Return the events that were printed as JSON."""
    return [json.loads(line) for line in ran.out.splitlines()]


def types(ran: Ran) -> list[str]:
    return [row["type"] for row in rows(ran)]


def cursor(ran: Ran) -> str:
    """Return the cursor from which the message on standard error continues."""
    found = CONTINUE.search(ran.err)
    assert found is not None, ran.err
    return found[2]


def test_each_event_is_a_line_with_time_type_device_essence_and_request(network: InProcess, admin: Admin) -> None:
    phone = admin.enrol("HW-1", alias="tab-03")
    request_id = admin.command("ping", to=phone).json["request_id"]
    phone.report(request_id, "received", via="push")
    phone.report(request_id, "failed", message="no \x1b permission", via="push")
    call_command("dispatch", once=True)
    admin.post("/admin/command", {"action": "ping", "target": {"tags": ["nobody"]}})
    lines = events(network).out.splitlines()
    assert [line[:20][-1] for line in lines] == ["Z"] * 6
    found = [re.sub(" {2,}", "  ", line[20:].strip()) for line in lines]
    assert found == [
        "device.enrolled  tab-03",
        f"command.issued  -  ping to 1 device by admin  {request_id}",
        f"delivery.received  tab-03  by push  {request_id}",
        f"delivery.settled  tab-03  failed: no \ufffd permission  {request_id}",
        f"command.finished  -  failed, ping to 1 device: 1 failed  {request_id}",
        "audit.refused  -  422 empty_audience POST /admin/command by admin",
    ]


def test_columns_of_lines_stand_below_each_other(network: InProcess, admin: Admin) -> None:
    phone = admin.enrol("HW-1", alias="tab-03")
    for _ in range(2):
        admin.command("ping", to=phone)
    issued = [line for line in events(network).out.splitlines() if "command.issued" in line]
    assert len({line.index("ping to") for line in issued}) == 1


def test_a_device_without_alias_has_its_hardware_id_and_a_changed_one_its_new_name(
    network: InProcess, admin: Admin
) -> None:
    phone = admin.enrol("HW-1")
    assert "HW-1" in events(network, "--types", "device.enrolled").out
    run("change", "HW-1", "--alias", "front", "--tag", "lobby", transport=network)
    changed = events(network, "--types", "device.updated").out
    assert re.search(r"device\.updated +front  alias=front, tags=lobby$", changed.rstrip())
    assert phone.device_id not in changed


def test_names_are_read_with_few_requests_and_an_unreadable_name_is_an_id(network: InProcess, admin: Admin) -> None:
    phone = admin.enrol("HW-1")
    for _ in range(3):
        admin.command("ping", to=phone, expires_in_seconds=60)
        phone.report(admin.get("/admin/commands").json["items"][0]["request_id"], "succeeded", via="push")
    events(network)
    assert [request.url.path for request in network.seen].count("/admin/devices") == 1

    def without_devices(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/admin/devices"):
            return httpx.Response(503, json={"code": "overloaded", "detail": "Busy."})
        return network.handle_request(request)

    ran = events(httpx.MockTransport(without_devices))
    assert (ran.status, phone.device_id in ran.out) == (0, True)


def test_json_is_one_object_a_line_and_each_cursor_misses_nothing(network: InProcess, admin: Admin) -> None:
    for number in range(4):
        admin.enrol(f"HW-{number}")
    ran = events(network, "--json")
    found = rows(ran)
    assert list(found[0]) == ["id", "type", "at", "device_id", "request_id", "data", "cursor"]
    for place, row in enumerate(found):
        again = [later["id"] for later in rows(events(network, "--json", "--after", row["cursor"]))]
        after = [later["id"] for later in found[place + 1 :]]
        assert again[len(again) - len(after) :] == after
        assert set(again) <= {one["id"] for one in found}
    assert found[-1]["cursor"] == cursor(ran)
    assert events(network, "-o", "json").out == ran.out


def test_limit_and_cursor_read_the_feed_in_parts(network: InProcess, admin: Admin) -> None:
    for number in range(5):
        admin.enrol(f"HW-{number}")
    whole = [row["id"] for row in rows(events(network, "--json"))]
    first = events(network, "--json", "--limit", "2")
    assert "There are more than these 2." in first.err
    second = events(network, "--json", "--limit", "2", "--after", cursor(first))
    rest = events(network, "--json", "--after", cursor(second))
    assert [row["id"] for part in (first, second, rest) for row in rows(part)] == whole
    assert "There are more" not in rest.err
    assert len(whole) == 5


def test_a_long_feed_is_read_in_pages(network: InProcess, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexmdm.client.events.feed.PAGE", 2)
    for number in range(5):
        admin.enrol(f"HW-{number}")
    assert types(events(network, "--json")) == ["device.enrolled"] * 5
    assert [request.url.params["limit"] for request in network.seen] == ["1", "2", "2"]


def test_types_and_device_choose_events_and_stay_in_the_advice(network: InProcess, admin: Admin) -> None:
    phone, other = admin.enrol("HW-1", alias="front desk"), admin.enrol("HW-2")
    admin.command("ping", to=[phone, other])
    phone.heartbeat()
    assert types(events(network, "--json", "--types", "command.*, device.revoked")) == ["command.issued"]
    mine = events(network, "--json", "--device", "front desk", "--types", "device.*")
    assert [row["device_id"] for row in rows(mine)] == [phone.device_id]
    found = CONTINUE.search(mine.err)
    assert found is not None
    assert found[1].endswith(" --types 'device.*' --device 'front desk' --json")


def test_now_begins_with_what_happens_later_and_oldest_is_the_default(network: InProcess, admin: Admin) -> None:
    admin.enrol("HW-1")
    later = events(network, "--after", "now")
    assert (later.status, later.out) == (0, "")
    assert "No event matches --after now." in later.err
    admin.enrol("HW-2")
    assert len(rows(events(network, "--json", "--after", cursor(later)))) == 1
    assert events(network, "--json", "--after", "oldest").out == events(network, "--json").out


def test_an_empty_feed_says_so(network: InProcess) -> None:
    ran = events(network)
    assert (ran.status, ran.out) == (0, "")
    assert ran.err.startswith("There is no event.\n")


def test_an_expired_cursor_is_answered_with_what_to_do(network: InProcess, admin: Admin) -> None:
    admin.enrol("HW-1")
    later = cursor(events(network))
    old = "MDAwMDAwMDAwMDAwMDAwMCAxIDEgMA"
    for words in ((), ("--follow",)):
        ran = events(network, "--after", old, *words)
        assert (ran.status, ran.out) == (1, "")
        assert "Refused (410 cursor_expired)" in ran.err
        assert "`manage.py fleet events --after oldest` begins with the oldest event that is kept." in ran.err
        assert "To continue" not in ran.err
    assert later != old


@pytest.mark.parametrize("words", [("--after", "a b"), ("--types", ","), ("--limit", "0"), ("-o", "csv")])
def test_wrong_words_are_refused_before_any_request(network: InProcess, words: tuple[str, ...]) -> None:
    assert (events(network, *words).status, network.seen) == (2, [])


def test_a_type_that_does_not_exist_is_answered_with_the_types(network: InProcess) -> None:
    ran = events(network, "--types", "device.enroled")
    assert (ran.status, "device.enrolled" in ran.err) == (1, True)


Step = Callable[[], httpx.Response | None]


class Scripted(httpx.BaseTransport):
    """A network on which something happens before each request for events: a step, which may also be the answer."""

    def __init__(self, network: InProcess, *steps: Step) -> None:
        self.network = network
        self.steps = list(steps)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Do the next step, then answer."""
        if request.url.path == "/admin/events" and (self.steps or stop()):
            answer = self.steps.pop(0)()
            if answer is not None:
                return answer
        return self.network.handle_request(request)


def stop() -> None:
    raise KeyboardInterrupt


def refused() -> None:
    raise httpx.ConnectError("Connection refused")


def lost() -> None:
    raise httpx.ReadTimeout("timed out")


def nothing() -> None:
    """Let the request pass."""


def busy() -> httpx.Response:
    return httpx.Response(503, json={"code": "database_unavailable", "detail": "Later."}, headers={"retry-after": "7"})


def test_follow_prints_events_as_they_happen_until_ctrl_c(network: InProcess, admin: Admin) -> None:
    admin.enrol("before")
    scripted = Scripted(network, nothing, lambda: admin.enrol("one") and None, lambda: admin.enrol("two") and None)
    ran = events(no_wait(scripted), "--follow", "--json")
    assert ran.status == 0
    assert types(ran) == ["device.enrolled"] * 2
    found = CONTINUE.search(ran.err)
    assert found is not None
    assert found[1] == f"--after {rows(ran)[-1]['cursor']} --follow --json"
    waited = [request.url.params.get("wait_seconds") for request in network.seen]
    assert waited == ["0", "0", "0"]


class no_wait(httpx.BaseTransport):  # noqa: N801
    """A network that asks the server not to wait, so that a test is quick. It checks that the client did ask so."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        return self.inner.handle_request(request)
