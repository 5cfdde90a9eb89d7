"""nexmdm webhook: from its command line to the database, with the real API."""

import io
import re
import shlex
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import pytest
from pytest_django import Settings

from nexmdm.client.events.feed import EventFeed
from nexmdm.client.events.receiver import Receiver
from nexmdm.models import AuditEntry, Webhook
from tests.support import feed
from tests.support.actors import Admin, Client
from tests.support.fleet_command import InProcess, Ran, run
from tests.support.processes import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

URL: Final = "https://hooks.example.com/nexmdm"
SECRET: Final = re.compile(r"whsec_[0-9A-Za-z+/]{42,}={0,2}")


class Terminal(io.StringIO):
    """The input or output of a terminal."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    """A transport to a server with an empty database."""
    return InProcess(client)


@pytest.fixture
def webhook(network: InProcess) -> Callable[..., Ran]:
    """Run `webhook` with these words."""

    def call(*words: str, **surroundings: Any) -> Ran:
        return run("webhook", *words, transport=network, **surroundings)

    return call


@pytest.fixture
def made(webhook: Callable[..., Ran]) -> dict[str, Any]:
    """A webhook with a description."""
    found: dict[str, Any] = webhook("add", URL, "--description", "Night shift", "--json").json
    return found


def test_add_prints_the_secret_alone_and_says_that_it_is_shown_only_now(webhook: Callable[..., Ran]) -> None:
    ran = webhook("add", URL, "--types", "command.*, device.enrolled", "--tags", "lobby,floor-1", "--description", "x")
    assert ran.status == 0
    assert SECRET.fullmatch(ran.out.removesuffix("\n"))
    found = Webhook.objects.get()
    assert (found.url, found.types, found.tags) == (URL, ["command.*", "device.enrolled"], ["lobby", "floor-1"])
    assert str(found.pk) in ran.err
    assert "This is the webhook's secret. The server shows the secret only now" in ran.err
    assert ran.out.strip() not in ran.err


def test_a_webhook_without_types_and_tags_gets_all_events_from_now_on(
    webhook: Callable[..., Ran], network: InProcess, admin: Admin
) -> None:
    admin.enrol("HW-1")
    made = webhook("add", URL, "--json").json
    assert (made["types"], made["tags"], made["paused"]) == ([], [], False)
    assert SECRET.fullmatch(made["secret"])
    admin.enrol("HW-2")
    feed.wait_until_readable()
    left = run("events", "--after", made["cursor"], "--types", "device.*", transport=network).out
    assert ("HW-1" in left, "HW-2" in left) == (False, True)


def test_list_and_show_have_every_form_and_no_secret(webhook: Callable[..., Ran], made: dict[str, Any]) -> None:
    for words in (("list",), ("show", made["id"])):
        for form in ("table", "wide", "json", "yaml", "csv"):
            ran = webhook(*words, "-o", form)
            assert (ran.status, URL in ran.out, made["secret"] in ran.out) == (0, True, False)
    assert webhook("list").out.splitlines()[0].split() == ["id", "url", "paused", "types", "tags", "description"]
    assert webhook("show", made["id"], "--json").json == {name: made[name] for name in made if name != "secret"}


def test_an_empty_list_says_so_and_a_long_one_that_there_are_more(webhook: Callable[..., Ran]) -> None:
    empty = webhook("list")
    assert (empty.status, empty.err) == (0, "There is no webhook.\n")
    for number in range(2):
        webhook("add", f"{URL}/{number}")
    ran = webhook("list", "--limit", "1", "--json")
    assert [row["url"] for row in ran.json] == [f"{URL}/1"]
    assert "There are more than these 1." in ran.err


@pytest.mark.parametrize("name", ["{id}", "{start}", URL, "Night shift", "NIGHT SHIFT"])
def test_a_webhook_is_named_by_id_start_url_or_description(
    webhook: Callable[..., Ran], made: dict[str, Any], name: str
) -> None:
    webhook("add", f"{URL}/other", "--description", "Day shift")
    Webhook.objects.filter(description="Day shift").update(id="ffffffff-b000-7abc-8def-0123456789ab")
    name = name.format(id=made["id"].upper(), start=made["id"][:8])
    assert webhook("show", name, "--json").json["id"] == made["id"]


def test_a_name_that_fits_no_webhook_or_several_changes_nothing(
    webhook: Callable[..., Ran], made: dict[str, Any]
) -> None:
    other = webhook("add", URL, "--json").json
    several = webhook("pause", URL)
    assert several.status == 1
    assert all(one in several.err for one in (f"2 webhooks have the name '{URL}':", made["id"], other["id"]))
    unknown = webhook("pause", "Nigth shift")
    assert "No webhook has the id, URL or description 'Nigth shift'. Did you mean Night shift?" in unknown.err
    assert not Webhook.objects.filter(paused=True).exists()


def test_pause_and_resume_show_the_state(webhook: Callable[..., Ran], made: dict[str, Any]) -> None:
    assert webhook("pause", made["id"], "--json").json["paused"] is True
    assert Webhook.objects.get().paused
    assert re.search(r"^paused +no$", webhook("resume", made["id"]).out, re.MULTILINE)
    assert not Webhook.objects.get().paused


def test_change_replaces_what_is_given_and_leaves_the_rest(webhook: Callable[..., Ran], made: dict[str, Any]) -> None:
    def changed(*words: str) -> tuple[Any, ...]:
        ran = webhook("change", made["id"], *words)
        assert ran.status == 0, ran.err
        row = Webhook.objects.get()
        return row.url, row.types, row.tags, row.description

    assert changed("--types", "device.*") == (URL, ["device.*"], [], "Night shift")
    assert changed("--tags", "lobby") == (URL, ["device.*"], ["lobby"], "Night shift")
    assert changed("--send-to", f"{URL}/2") == (f"{URL}/2", ["device.*"], ["lobby"], "Night shift")
    assert changed("--all-types", "--no-tags") == (f"{URL}/2", [], [], "Night shift")


@pytest.mark.parametrize(
    "words", [(), ("--types", "device.*", "--all-types"), ("--tags", "a", "--no-tags"), ("--types", "")]
)
def test_a_change_that_cannot_be_meant_is_refused_before_any_request(
    webhook: Callable[..., Ran], network: InProcess, made: dict[str, Any], words: tuple[str, ...]
) -> None:
    network.seen.clear()
    assert (webhook("change", made["id"], *words).status, network.seen) == (2, [])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("add", "http://hooks.example.com/"), "https"),
        (("add", "https://127.0.0.1/"), "127.0.0.1"),
        (("add", URL, "--types", "device.enroled"), "device.enrolled"),
        (("add", URL, "--tags", "a b"), "tags"),
    ],
)
def test_a_refusal_names_the_field_and_the_reason(
    webhook: Callable[..., Ran], words: tuple[str, ...], text: str
) -> None:
    ran = webhook(*words)
    assert (ran.status, ran.out, text in ran.err) == (1, "", True)
    assert not Webhook.objects.exists()


def test_replay_moves_the_place_and_says_how_to_go_back(
    webhook: Callable[..., Ran], network: InProcess, admin: Admin, made: dict[str, Any]
) -> None:
    admin.enrol("HW-1")
    feed.wait_until_readable()
    now = webhook("replay", made["id"], "--after", "now", "--json")
    assert now.json["cursor"] != made["cursor"]
    back = re.search(r"To move the webhook back to its earlier place: manage\.py fleet (.+)\n", now.err)
    assert back is not None
    assert run(*back[1].split(), "--json", transport=network).json["cursor"] == made["cursor"]
    assert webhook("replay", made["id"], "--after", "oldest").status == 0
    assert webhook("replay", made["id"]).status == 2
    expired = webhook("replay", made["id"], "--after", "MDAwMDAwMDAwMDAwMDAwMCAxIDEgMA")
    assert (expired.status, "cursor_expired" in expired.err) == (1, True)


def test_rotate_secret_prints_the_new_secret_alone(webhook: Callable[..., Ran], made: dict[str, Any]) -> None:
    ran = webhook("rotate-secret", made["id"])
    assert SECRET.fullmatch(ran.out.removesuffix("\n"))
    assert ran.out.strip() != made["secret"]
    assert (
        "For 24 hours, the server also signs with the earlier secret. This is the webhook's secret. The server shows "
        "the secret only now"
    ) in ran.err
    assert made["secret"] not in ran.err


def test_delete_asks_unless_yes_is_given(
    webhook: Callable[..., Ran], made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = webhook("delete", made["id"])
    assert (without.status, "Not done, because it is not confirmed: delete 1 webhook" in without.err) == (2, True)
    for line, status in (("2", 1), ("1", 0)):
        monkeypatch.setattr("sys.stdin", Terminal(f"{line}\n"))
        asked = Terminal()
        assert webhook("delete", "Night shift", err=asked).status == status
        assert asked.getvalue().startswith(f"delete 1 webhook: {URL}. Type 1 to confirm: ")
        assert Webhook.objects.exists() == bool(status)
    webhook("add", URL)
    confirmed = webhook("delete", URL, "--yes")
    assert (confirmed.status, "The webhook is deleted." in confirmed.err) == (0, True)
    assert not Webhook.objects.exists()


def test_attempts_of_a_new_webhook_are_none_and_a_test_without_a_dispatcher_says_so(
    webhook: Callable[..., Ran], made: dict[str, Any]
) -> None:
    assert webhook("attempts", made["id"]).err == "There is no attempt.\n"
    ran = webhook("test", made["id"])
    assert ran.status == 1
    assert (
        f"No dispatcher has sent the test event yet. To look again: manage.py fleet webhook attempts {made['id']}"
        in ran.err
    )


PAGE: Final = ROOT / "docs" / "operations" / "events.md"
UNACKNOWLEDGED: Final = "webhook test chat"
"""The example that needs a dispatcher."""


def test_a_webhook_with_tags_names_the_types_that_it_never_gets(network: InProcess) -> None:
    ran = run("webhook", "add", URL, "--types", "command.finished,device.*", "--tags", "kiosk", transport=network)
    assert "events about no device are never sent, such as command.finished." in ran.err
    assert "never sent" not in run("webhook", "add", URL, "--types", "command.*", transport=network).err


def test_every_example_of_the_page_works(
    network: InProcess, admin: Admin, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE = [ip_network("127.0.0.0/8")]
    admin.enrol("HW-3", alias="tab-03")
    feed.wait_until_readable()
    secret = tmp_path / "secret"
    secret.write_text(run("webhook", "add", URL, "--description", "other", transport=network).out)
    place = admin.get("/admin/events?after=now").json["next_cursor"]
    for name in ("nexmdm.client.events.feed.EventFeed.read", "nexmdm.client.events.receiver.Receiver.run"):
        monkeypatch.setattr(name, interrupted_if_endless(name))
    lines = re.findall(r"^nexmdm (.*?)(?: > \S+)?(?: +#.*)?$", PAGE.read_text(), re.MULTILINE)
    assert len(lines) >= 20
    for line in lines:
        words = [{"$CURSOR": place, "secret": str(secret)}.get(word, word) for word in shlex.split(line)]
        if words[:2] == ["webhook", "listen"]:
            words += ["--port", "0"]  # Another program may use the port of the page.
        ran = run(*words, transport=network)
        assert (line, ran.status, ran.err if ran.status else "") == (line, 0, "") or line == UNACKNOWLEDGED


def interrupted_if_endless(name: str) -> Any:
    """Return a function that is interrupted by Ctrl-C where it would wait for what may never happen."""
    original = EventFeed.read

    def read(self: EventFeed, limit: int, *, wait_seconds: float = 0) -> list[dict[str, Any]]:
        if wait_seconds:
            raise KeyboardInterrupt
        return original(self, limit)

    def listen(self: Receiver) -> None:
        self._server.server_close()
        raise KeyboardInterrupt

    return read if name.endswith("read") else listen


def test_no_secret_reaches_the_audit(webhook: Callable[..., Ran], made: dict[str, Any]) -> None:
    rotated = webhook("rotate-secret", made["id"], "--json").json["secret"]
    written = str(list(AuditEntry.objects.values()))
    assert (made["secret"] in written, rotated in written) == (False, False)
