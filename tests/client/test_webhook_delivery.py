"""From the server's dispatcher to nexmdm webhook listen and the recipe for a chat: real requests over real sockets."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any, Final

import pytest
from pytest_django import Settings

from nexmdm.models import DispatcherSeen
from tests.recipes.test_chat import Chat
from tests.support import feed, served, webhook_requests
from tests.support.actors import Admin, Client
from tests.support.fleet_command import InProcess, Ran, run
from tests.webhooks.receiver import running_lane, send_once

pytestmark = pytest.mark.django_db(transaction=True)

LISTEN: Final = ("-m", "nexmdm.client", "webhook", "listen", "--port")


@pytest.fixture
def webhook(client: Client, admin: Admin, settings: Settings) -> Callable[..., Ran]:
    """Run `webhook` with these words; the server may send to loopback."""
    settings.WEBHOOK_ALLOW_PRIVATE = [ip_network("127.0.0.0/8")]

    def call(*words: str) -> Ran:
        return run("webhook", *words, transport=InProcess(client))

    return call


@pytest.fixture
def port() -> int:
    return webhook_requests.free_port()


@contextmanager
def listening(port: int, secret: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run `webhook listen` in the block."""
    with webhook_requests.program(*LISTEN, str(port), *words, NEXMDM_WEBHOOK_SECRET=secret) as process:
        webhook_requests.wait_for(port)
        yield process


def printed(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """End the receiver, and return the events that it printed as JSON."""
    out, _ = webhook_requests.interrupt(process)
    return [json.loads(line) for line in out.splitlines()]


def send() -> None:
    feed.wait_until_readable()
    send_once()


def test_listen_prints_what_the_server_sends_as_the_feed_has_it(
    webhook: Callable[..., Ran], admin: Admin, port: int
) -> None:
    made = webhook("add", f"http://127.0.0.1:{port}/", "--types", "device.*,command.*", "--json").json
    phone = admin.enrol("HW-1", alias="tab-03")
    admin.command("ping", to=phone)
    with listening(port, made["secret"], "--json") as process:
        send()
        found = printed(process)
    expected = [event for event in feed.all_events(admin) if event["type"] in ("device.enrolled", "command.issued")]
    assert found == [event | {"again": False} for event in expected]


def test_a_replayed_event_is_shown_as_one_that_came_before(
    webhook: Callable[..., Ran], admin: Admin, port: int
) -> None:
    made = webhook("add", f"http://127.0.0.1:{port}/", "--types", "device.*", "--json").json
    admin.enrol("HW-1")
    with listening(port, made["secret"], "--json") as process:
        send()
        webhook("replay", made["id"], "--after", "oldest")
        send()
        assert [event["again"] for event in printed(process)] == [False, True]


def test_both_secrets_verify_after_a_rotation_and_another_one_is_refused(
    webhook: Callable[..., Ran], admin: Admin, port: int
) -> None:
    made = webhook("add", f"http://127.0.0.1:{port}/", "--types", "device.*", "--json").json
    renewed = webhook("rotate-secret", made["id"]).out.strip()
    other = webhook("add", "https://hooks.example.com/", "--types", "rollout.*").out.strip()
    webhook("replay", made["id"], "--after", "oldest")
    for secret, status in ((made["secret"], 204), (renewed, 204), (other, 401)):
        admin.enrol(f"HW-{secret}"[:20])
        with listening(port, secret):
            send()
        assert webhook("attempts", made["id"], "--json").json[0]["http_status"] == status


def test_fail_makes_the_server_try_again_later(webhook: Callable[..., Ran], admin: Admin, port: int) -> None:
    made = webhook("add", f"http://127.0.0.1:{port}/", "--types", "device.*", "--json").json
    admin.enrol("HW-1")
    with listening(port, made["secret"], "--fail", "503", "--json") as process:
        send()
        assert len(printed(process)) == 1
    shown = webhook("attempts", made["id"]).out.splitlines()
    assert shown[0].split()[:4] == ["at", "delivered", "http_status", "type"]
    assert shown[1].split()[1:4] == ["no", "503", "device.enrolled"]


def test_test_shows_the_answer_of_the_receiver(webhook: Callable[..., Ran], port: int) -> None:
    made = webhook("add", f"http://127.0.0.1:{port}/", "--json").json
    DispatcherSeen.objects.create(name="host:1", circuit="closed")
    with running_lane():
        with listening(port, made["secret"]) as process:
            good = webhook("test", made["id"])
            out, _ = webhook_requests.interrupt(process)
        refused = webhook("test", made["id"], "--json")
    assert (good.status, refused.status) == (0, 1)
    assert "webhook.test" in out
    assert {line.split()[0]: line.split()[1] for line in good.out.splitlines()}["http_status"] == "204"
    assert (refused.json["attempt"]["delivered"], refused.json["attempt"]["http_status"]) == (False, None)


def test_the_recipe_for_a_chat_posts_what_the_server_sends(
    webhook: Callable[..., Ran], admin: Admin, port: int
) -> None:
    made = webhook("add", f"http://127.0.0.1:{port}/", "--types", "device.*", "--json").json
    admin.enrol("HW-1", alias="tab-03")
    chat = Chat()
    with served.serving(chat.handler) as url:
        variables = {"WEBHOOK_SECRET": made["secret"], "CHAT_URL": url, "PORT": str(port)}
        with webhook_requests.program("docs/operations/recipes/chat.py", **variables):
            webhook_requests.wait_for(port)
            send()
    assert chat.texts == ["tab-03 is enrolled"]
