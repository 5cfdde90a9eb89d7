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
from tests.support import feed
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
    feed.wait_until_readable()
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
    run("change", "front", "--no-alias", transport=network)
    ran = events(network)
    assert [line.split()[2] for line in ran.out.splitlines()] == ["HW-1", "front", "HW-1"]
    assert phone.device_id not in changed + ran.out


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
    assert {row["device_id"] for row in rows(mine)} == {phone.device_id}
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


def test_events_that_wait_for_an_older_transaction_are_mentioned(network: InProcess, admin: Admin) -> None:
    place = cursor(events(network, "--after", "now"))
    with feed.open_write_transaction() as older:
        admin.enrol("HW-1")
        ran = run("events", "--json", "--after", place, transport=network)
        assert (ran.status, ran.out) == (0, "")
        assert "Newer events wait for an older transaction of the database, which is still open." in ran.err
        older.commit()
    assert types(events(network, "--json", "--after", cursor(ran))) == ["device.enrolled"]


def test_an_expired_cursor_is_answered_with_what_to_do(network: InProcess, admin: Admin) -> None:
    admin.enrol("HW-1")
    later = cursor(events(network))
    old = "MDAwMDAwMDAwMDAwMDAwMCAxIDEgMA"
    for words in ((), ("--follow",)):
        ran = events(network, "--after", old, *words)
        assert (ran.status, ran.out) == (1, "")
        assert "Refused (410 cursor_expired)" in ran.err
        assert "`manage.py fleet events --after oldest` begins with the oldest event that still exists." in ran.err
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
    """A network on which a step is done before each request for events, which may be the answer; then comes Ctrl-C."""

    def __init__(self, network: InProcess, *steps: Step) -> None:
        self.network = network
        self.steps = list(steps)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Do the next step, then answer."""
        if request.url.path == "/admin/events":
            if not self.steps:
                raise KeyboardInterrupt
            answer = self.steps.pop(0)()
            if answer is not None:
                return answer
        return self.network.handle_request(request)


def nothing() -> None:
    """Let the request pass."""


def refused() -> httpx.Response:
    raise httpx.ConnectError("Connection refused")


def lost() -> httpx.Response:
    raise httpx.ReadTimeout("timed out")


def busy() -> httpx.Response:
    problem = {"code": "database_unavailable", "detail": "The database does not answer."}
    return httpx.Response(503, json=problem, headers={"retry-after": "7"})


def proxy_without_server() -> httpx.Response:
    return httpx.Response(502, text="<html>Bad Gateway</html>")


@pytest.fixture
def enrolling(admin: Admin) -> Callable[[str], Step]:
    """Make steps, each of which enrolls a device."""

    def enrol(name: str) -> Step:
        def step() -> None:
            admin.enrol(name)
            feed.wait_until_readable()

        return step

    return enrol


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client wait for events a moment only."""
    monkeypatch.setattr("nexmdm.client.verbs.events.events.LONGEST_WAIT_SECONDS", 0.05)


def test_follow_prints_what_happens_from_now_on_until_ctrl_c(
    network: InProcess, admin: Admin, short_waits: None, enrolling: Callable[[str], Step]
) -> None:
    admin.enrol("before")
    ran = events(Scripted(network, nothing, enrolling("one"), nothing, enrolling("two")), "--follow", "--json")
    assert ran.status == 0
    names = [run("device", row["device_id"], "--json", transport=network).json["hardware_id"] for row in rows(ran)]
    assert names == ["one", "two"]
    found = CONTINUE.search(ran.err)
    assert found is not None
    assert found[1] == f"--after {rows(ran)[-1]['cursor']} --follow --json"


def test_follow_continues_after_a_cursor_and_ends_after_limit(
    network: InProcess, admin: Admin, short_waits: None
) -> None:
    for number in range(4):
        admin.enrol(f"HW-{number}")
    whole = rows(events(network, "--json"))
    ran = events(network, "--follow", "--json", "--after", whole[0]["cursor"], "--limit", "2")
    assert [row["id"] for row in rows(ran)] == [row["id"] for row in whole[1:3]]
    assert (ran.status, cursor(ran)) == (0, rows(ran)[-1]["cursor"])


def test_follow_waits_for_events_on_the_server(network: InProcess, admin: Admin) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(request.url.params["wait_seconds"])
        assert request.extensions["timeout"]["read"] > float(asked[-1])
        return httpx.Response(200, json={"items": [], "next_cursor": "abc", "caught_up": True})

    assert events(httpx.MockTransport(answer), "--follow").status == 0
    assert asked == ["30", "30"]


def test_follow_survives_a_restart_of_the_server_and_misses_nothing(
    network: InProcess, short_waits: None, enrolling: Callable[[str], Step], slept: list[float]
) -> None:
    away = (refused, enrolling("two"), refused, proxy_without_server, lost, busy)
    steps = (nothing, enrolling("one"), *away, enrolling("three"), nothing)
    ran = events(Scripted(network, *steps), "--follow", "--json")
    assert (ran.status, len(rows(ran)), len({row["id"] for row in rows(ran)})) == (0, 3, 3)
    first, again, other, *_ = ran.err.splitlines()
    assert first == "No answer from http://127.0.0.1:8000: Connection refused. Trying again until it answers."
    assert (again, other[:9]) == ("The server answers again.", "No answer")
    assert ran.err.count("The server answers again.") == 2
    assert len(slept) == 5
    assert all(0.5 <= pause <= 30 for pause in slept)
    assert slept[-1] >= 7


def test_pauses_between_tries_grow_to_half_a_minute(network: InProcess, short_waits: None, slept: list[float]) -> None:
    assert events(Scripted(network, nothing, *[refused] * 12), "--follow").status == 0
    assert slept[0] <= 1 < slept[3] < slept[5]
    assert max(slept) <= 30
    assert min(slept[6:]) >= 15


def test_follow_without_any_answer_ends_and_a_later_refusal_says_how_to_continue(
    network: InProcess, short_waits: None, enrolling: Callable[[str], Step], slept: list[float]
) -> None:
    first = events(Scripted(network, refused), "--follow")
    assert (first.status, slept) == (3, [])
    assert "Is the server running?" in first.err

    def unsigned() -> httpx.Response:
        return httpx.Response(401, json={"code": "invalid_signature", "detail": "The signature is wrong."})

    ran = events(Scripted(network, nothing, enrolling("one"), unsigned), "--follow", "--json")
    assert (ran.status, cursor(ran)) == (1, rows(ran)[-1]["cursor"])


class Closed(io.StringIO):
    """The output of a program whose reader has ended."""

    def write(self, _: str) -> int:
        """Fail."""
        raise BrokenPipeError

    def fileno(self) -> int:
        """Return a descriptor that may be replaced."""
        return self.spare

    spare = -1


def test_follow_ends_when_the_reader_of_its_output_ends(
    network: InProcess, admin: Admin, short_waits: None, tmp_path: Path
) -> None:
    admin.enrol("HW-1")
    with (tmp_path / "out").open("w") as file:
        closed = Closed()
        closed.spare = file.fileno()
        assert run("events", "--follow", "--after", "oldest", transport=network, out=closed).status == 141


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


def test_a_terminal_shows_states_in_colours_on_one_line(
    network: InProcess, phone: Phone, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    request_id = admin.command("ping", to=phone).json["request_id"]
    phone.report(request_id, "failed", message="[red]m", via="push")
    screen = Screen()
    run("events", "--types", "delivery.settled", transport=network, out=screen)
    (line,) = screen.getvalue().splitlines()
    assert "\x1b[31mfailed: [red]m\x1b[0m" in line


@pytest.mark.parametrize(
    ("event_type", "data", "essence"),
    [
        ("delivery.settled", {"state": "expired", "late": True, "result": {"status": "succeeded", "message": None}},
         "expired, late succeeded"),
        ("delivery.settled", {"state": "cancelled", "withdrawn_by": "revocation", "result": None, "late": False},
         "cancelled, by revocation"),
        ("command.finished", {"action": "ring", "outcome": "partial", "device_count": 3,
                              "counts": {"succeeded": 2, "expired": 1, "failed": 0}},
         "partial, ring to 3 devices: 2 succeeded, 1 expired"),
        ("device.updated", {"alias": None, "tags": []}, "alias=-, tags=-"),
        ("device.push_dead", {"kind": "fid"}, "kind=fid"),
        ("webhook.paused", {"why": "no answer", "tries": 3}, "why=no answer, tries=3"),
        ("of.tomorrow", {"new": {"a": [1, True]}}, "new=a=1, yes"),
        ("command.finished", {}, "None, None to None devices: none"),
    ],
)  # fmt: skip
def test_the_essence_of_data_is_on_the_line(event_type: str, data: dict[str, Any], essence: str) -> None:
    assert lines.essence_of({"type": event_type, "data": data}) == essence


def test_the_client_knows_the_types_of_the_server() -> None:
    assert set(EventType) <= set(lines.TYPES)
