"""nexmdm webhook listen: signatures are checked as the Standard Webhooks specification says, and events are printed."""

import http.client
import io
import json
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from standardwebhooks.webhooks import Webhook

from nexmdm.client.events import receiver, webhook_signature
from nexmdm.client.events.webhook_signature import BadSignature
from tests.support import webhook_requests
from tests.support.fleet_command import Ran, run
from tests.support.webhook_requests import AT, DEVICE

SECRET: Final = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER: Final = "whsec_" + "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
BODY: Final = webhook_requests.body("device.enrolled", device_id=DEVICE, alias="tab-03", tags=["lobby"])


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret that the receiver has."""
    monkeypatch.setenv("NEXMDM_WEBHOOK_SECRET", SECRET)


def listening(work: Callable[[int], Any], *words: str, out: io.StringIO | None = None) -> tuple[Ran, Any]:
    """Work with the port of a `webhook listen` that runs with these words in another thread. Return both results."""
    port = webhook_requests.free_port()
    ran: list[Ran] = []
    words = ("webhook", "listen", "--port", str(port), *words)
    thread = threading.Thread(target=lambda: ran.append(run(*words, transport=None, out=out)), daemon=True)
    thread.start()
    result = work(port)
    thread.join(20)
    assert ran, "it still listens"
    return ran[0], result


def sending(*requests: dict[str, Any]) -> Callable[[int], list[tuple[int, str]]]:
    """Send requests one after the other, each signed with its fields of webhook_requests.post()."""

    def send(port: int) -> list[tuple[int, str]]:
        return [webhook_requests.post(port, **{"secret": SECRET, "body": BODY} | one) for one in requests]

    return send


def test_a_signed_event_is_answered_204_and_printed_as_events_does() -> None:
    ran, answers = listening(sending({}), "--limit", "1")
    assert (ran.status, answers) == (0, [(204, "")])
    words = ran.out.split()
    assert words[1:] == ["device.enrolled", "tab-03", "tags=lobby"]
    assert "Listening on http://127.0.0.1:" in ran.err


def test_json_has_the_fields_of_the_feed_and_whether_it_came_before() -> None:
    ran, _ = listening(
        sending({"webhook_id": "7-0"}, {"webhook_id": "7-0"}, {"webhook_id": "8-0"}), "--json", "--limit", "3"
    )
    found = [json.loads(line) for line in ran.out.splitlines()]
    assert [(row["id"], row["again"]) for row in found] == [("7-0", False), ("7-0", True), ("8-0", False)]
    assert found[0] == {
        "id": "7-0", "type": "device.enrolled", "at": AT, "device_id": DEVICE, "request_id": None,
        "data": {"alias": "tab-03", "tags": ["lobby"]}, "again": False,
    }  # fmt: skip


def test_an_event_that_came_before_is_marked() -> None:
    ran, answers = listening(sending({"webhook_id": "7-0"}, {"webhook_id": "7-0"}), "--limit", "2")
    assert [line.endswith("(again)") for line in ran.out.splitlines()] == [False, True]
    assert [status for status, _ in answers] == [204, 204]


def test_fail_answers_each_event_with_a_status_and_prints_it() -> None:
    ran, answers = listening(sending({"webhook_id": "7-0"}, {"webhook_id": "7-0"}), "--fail", "503", "--limit", "2")
    assert answers == [(503, ""), (503, "")]
    assert ran.out.count("device.enrolled") == 2


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"secret": OTHER}, "webhook-signature does not match the body. Check that the secret is the webhook's secret"),
        ({"sent": b"{}"}, "webhook-signature does not match the body"),
        ({"age": timedelta(seconds=400)}, "s old, more than the allowed 300 s. Check the clock of this machine"),
        ({"age": timedelta(seconds=-400)}, "s in the future, more than the allowed 300 s"),
        ({"headers": {"webhook-id": None}}, "the header webhook-id is missing"),
        ({"headers": {"webhook-timestamp": None}}, "the header webhook-timestamp is missing"),
        ({"headers": {"webhook-signature": None}}, "the header webhook-signature is missing"),
        ({"headers": {"webhook-timestamp": "soon"}}, "webhook-timestamp is not a time in Unix seconds"),
        ({"headers": {"webhook-id": "other"}}, "webhook-signature does not match the body"),
        ({"headers": {"webhook-signature": "v1,"}}, "webhook-signature does not match the body"),
        ({"headers": {"webhook-signature": "v1a,AAAA é"}}, "webhook-signature does not match the body"),
    ],
)
def test_a_bad_signature_is_401_with_the_reason_and_prints_no_event(request_: dict[str, Any], reason: str) -> None:
    ran, answers = listening(sending(request_, {}), "--limit", "1")
    (status, text), good = answers
    assert (status, good) == (401, (204, ""))
    assert text.startswith("Bad signature: ")
    assert reason in text
    assert text in ran.err
    assert len(ran.out.splitlines()) == 1
    assert SECRET.removeprefix("whsec_") not in ran.out + ran.err + text


@pytest.mark.parametrize("seconds", [-299, 299])
def test_a_time_within_five_minutes_is_accepted(seconds: int) -> None:
    _, answers = listening(sending({"age": timedelta(seconds=-seconds)}), "--limit", "1")
    assert answers == [(204, "")]


def test_one_right_signature_of_two_is_enough() -> None:
    wrong, right = (webhook_requests.signed(secret, "7-0", BODY, datetime.now(UTC)) for secret in (OTHER, SECRET))
    first, second = (headers["webhook-signature"] for headers in (wrong, right))
    for both in (f"{first} {second}", f"v1a,AAAA {second} {first}"):
        headers = right | {"webhook-signature": both}
        _, answers = listening(sending({"webhook_id": "7-0", "headers": headers}), "--limit", "1")
        assert answers == [(204, "")]


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"type": "a", "timestamp": "b", "data": 1}', b"[" * 100_000])
def test_a_signed_body_that_is_no_event_is_refused(body: bytes) -> None:
    ran, answers = listening(sending({"body": body}, {}), "--limit", "1")
    assert [status for status, _ in answers] == [400, 204]
    assert "The body is not an event" in ran.err


def test_other_requests_and_large_bodies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "LARGEST_BODY", 1000)

    def work(port: int) -> list[int]:
        webhook_requests.wait_for(port)
        found = [webhook_requests.post(port, SECRET, b" " * 1001)[0]]
        for method, headers in (("GET", {}), ("POST", {"Transfer-Encoding": "chunked"})):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(method, "/", headers=headers)
            found.append(connection.getresponse().status)
            connection.close()
        webhook_requests.post(port, SECRET, BODY)
        return found

    assert listening(work, "--limit", "1")[1] == [413, 501, 411]


def test_a_client_that_sends_nothing_delays_no_event() -> None:
    def work(port: int) -> tuple[int, str]:
        webhook_requests.wait_for(port)
        with socket.create_connection(("127.0.0.1", port)):
            return webhook_requests.post(port, SECRET, BODY)

    assert listening(work, "--limit", "1")[1] == (204, "")


def test_texts_of_an_event_cannot_control_the_terminal() -> None:
    body = webhook_requests.body("device.\x1benrolled", device_id="\x1b[0m", alias="\x1b]0;a\x07")
    ran, _ = listening(sending({"body": body, "webhook_id": "a"}), "--limit", "1")
    assert "\x1b" not in ran.out


def test_the_secret_is_read_from_a_file_and_a_missing_or_wrong_one_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("NEXMDM_WEBHOOK_SECRET", OTHER)
    _, answers = listening(sending({}), "--limit", "1", "--secret-file", str(file))
    assert answers == [(204, "")]
    file.write_text("whsec_no base64 at all")
    for value, words, named in (
        ("", (), "The value of NEXMDM_WEBHOOK_SECRET is not the secret of a webhook"),
        (OTHER, ("--secret-file", str(file)), "The content of --secret-file is not the secret of a webhook"),
        (OTHER, ("--secret-file", str(tmp_path / "none")), "No such file"),
    ):
        monkeypatch.setenv("NEXMDM_WEBHOOK_SECRET", value)
        ran = run("webhook", "listen", *words, transport=None)
        assert ran.status == 2
        assert named in " ".join(ran.err.replace("│", " ").split())
        assert "no base64 at all" not in ran.err


def test_a_port_that_is_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = run("webhook", "listen", "--port", str(port), transport=None)
    assert (ran.status, ran.out) == (1, "")
    assert f"Port {port} of 127.0.0.1 cannot be used: Address already in use. Name another --port." in ran.err


def test_ctrl_c_ends_it_cleanly() -> None:
    with webhook_requests.program("-m", "nexmdm.client", "webhook", "listen", "--port", "0") as process:
        assert process.stderr is not None
        port = int(process.stderr.readline().split(":")[2].split("/")[0])
        assert webhook_requests.post(port, SECRET, BODY) == (204, "")
        out, err = webhook_requests.interrupt(process)
    assert (process.returncode, err) == (
        0,
        "Stopped. The server keeps the events that were not acknowledged, and sends them again.\n",
    )
    assert "tab-03" in out


def test_it_ends_when_the_reader_of_its_output_ends() -> None:
    with webhook_requests.program("-m", "nexmdm.client", "webhook", "listen", "--port", "0") as process:
        assert process.stderr is not None
        assert process.stdout is not None
        port = int(process.stderr.readline().split(":")[2].split("/")[0])
        process.stdout.close()
        assert webhook_requests.post(port, SECRET, BODY)[0] == 503
        assert process.wait(20) == 141


@pytest.mark.parametrize("secret", [SECRET, OTHER, SECRET.removeprefix("whsec_")])
def test_our_signature_is_that_of_the_reference_library(secret: str) -> None:
    at, body = datetime.now(UTC), '{"a": "é"}'
    theirs = Webhook(secret).sign("7-0", at, body)
    ours = webhook_signature.sign(webhook_signature.key_of(secret), "7-0", str(int(at.timestamp())), body.encode())
    assert theirs == f"v1,{ours}"
    headers = {"webhook-id": "7-0", "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": f"v1,{ours}"}
    assert Webhook(secret).verify(body, headers) == {"a": "é"}
    assert webhook_signature.verify(webhook_signature.key_of(secret), headers, body.encode(), at.timestamp()) == "7-0"
    with pytest.raises(BadSignature):
        webhook_signature.verify(webhook_signature.key_of(secret), headers, body.encode() + b" ", at.timestamp())
