"""docs/operations/recipes/chat.py: events of a webhook become messages of a chat."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

import pytest

from tests.support import served, webhook_requests
from tests.support.webhook_requests import DEVICE

SECRET: Final = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENROLLED: Final = webhook_requests.body("device.enrolled", device_id=DEVICE, alias="<tab> & 3", tags=[])
PARTIAL: Final = webhook_requests.body(
    "command.finished",
    request_id="r-1",
    action="ring",
    outcome="partial",
    counts={"succeeded": 2, "failed": 1, "late": 0},
)


class Chat:
    """A chat with an incoming webhook."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.statuses: list[int] = []
        self.url = ""
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = chat.statuses.pop(0) if chat.statuses else 200
                if status == 200:
                    chat.texts.append(content["text"])
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        self.handler = Handler


@pytest.fixture
def chat() -> Iterator[Chat]:
    found = Chat()
    with served.serving(found.handler) as found.url:
        yield found


@pytest.fixture
def port(chat: Chat) -> Iterator[int]:
    """The port on which the program listens."""
    number = webhook_requests.free_port()
    variables = {"WEBHOOK_SECRET": SECRET, "CHAT_URL": f"{chat.url}/hook", "PORT": str(number)}
    with webhook_requests.program("docs/operations/recipes/chat.py", **variables) as process:
        yield number
        webhook_requests.interrupt(process)
    assert process.returncode == 0


def test_an_event_is_one_message_also_if_it_comes_twice(chat: Chat, port: int) -> None:
    for webhook_id, body in (("1-0", ENROLLED), ("1-0", ENROLLED), ("2-0", PARTIAL)):
        assert webhook_requests.post(port, SECRET, body, webhook_id=webhook_id)[0] == 204
    assert chat.texts == ["&lt;tab&gt; &amp; 3 is enrolled", "ring ended as partial: 2 succeeded, 1 failed (r-1)"]


def test_what_the_chat_need_not_know_is_acknowledged(chat: Chat, port: int) -> None:
    succeeded = webhook_requests.body("command.finished", action="ring", outcome="succeeded", counts={})
    for body in (succeeded, webhook_requests.body("of.tomorrow")):
        assert webhook_requests.post(port, SECRET, body)[0] == 204
    assert chat.texts == []


def test_a_chat_that_is_busy_or_broken_gets_the_message_later(chat: Chat, port: int) -> None:
    chat.statuses = [429, 500]
    assert [webhook_requests.post(port, SECRET, ENROLLED)[0] for _ in range(4)] == [503, 503, 204, 204]
    assert len(chat.texts) == 1


def test_a_message_that_the_chat_never_takes_stops_no_later_one(chat: Chat, port: int) -> None:
    chat.statuses = [400]
    assert webhook_requests.post(port, SECRET, ENROLLED, webhook_id="1-0")[0] == 204
    assert webhook_requests.post(port, SECRET, PARTIAL, webhook_id="2-0")[0] == 204
    assert len(chat.texts) == 1


@pytest.mark.parametrize(
    "request_",
    [
        {"secret": "whsec_" + "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"},
        {"sent": PARTIAL},
        {"headers": {"webhook-timestamp": "1"}},
        {"headers": {"webhook-signature": None}},
    ],
)
def test_a_request_that_nexmdm_did_not_sign_now_posts_nothing(chat: Chat, port: int, request_: dict[str, Any]) -> None:
    assert webhook_requests.post(port, **{"secret": SECRET, "body": ENROLLED} | request_)[0] == 401
    assert chat.texts == []
