"""The fake FCM answers by its table, over a real socket, to the credentials that it issued."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import orjson
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import Request
from google.oauth2 import service_account

from loadtest.fake_fcm.replies import FCM_ERROR
from loadtest.fake_fcm.server import FcmStandin

GOOD = "ok-1"
SCOPE = "https://www.googleapis.com/auth/firebase.messaging"


@pytest.fixture
def standin() -> Iterator[FcmStandin]:
    with FcmStandin() as standin:
        yield standin


@pytest.fixture
def client(standin: FcmStandin) -> Iterator[httpx.Client]:
    """A client with an access token got by the real OAuth flow."""
    with httpx.Client(base_url=standin.base_url, trust_env=False) as client:
        client.headers["Authorization"] = f"Bearer {access_token(standin.service_account())}"
        yield client


def access_token(account: dict[str, str]) -> str:
    make: Any = service_account.Credentials.from_service_account_info
    credentials = make(account, scopes=[SCOPE])
    with requests.Session() as session:
        credentials.refresh(Request(session))
    return str(credentials.token)


def message(push_token: str = GOOD, **fields: Any) -> dict[str, Any]:
    android = {"priority": "high", "ttl": "600s"}
    return {"message": {"token": push_token, "data": {"request_id": "r-1"}, "android": android, **fields}}


def send(client: httpx.Client, body: Any, project: str = "nexmdm-standin") -> httpx.Response:
    return client.post(f"/v1/projects/{project}/messages:send", json=body)


def fcm_error(answer: httpx.Response) -> str | None:
    details = answer.json()["error"].get("details", [])
    return next((detail["errorCode"] for detail in details if detail["@type"] == FCM_ERROR), None)


@pytest.mark.parametrize(
    ("push_token", "status", "name", "code", "retry_after"),
    [
        ("unregistered-1", 404, "NOT_FOUND", "UNREGISTERED", None),
        ("mismatch-1", 403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH", None),
        ("forbidden-1", 403, "PERMISSION_DENIED", None, None),
        ("missing-1", 404, "NOT_FOUND", None, None),
        ("invalid-1", 400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", None),
        ("quota-1", 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", None),
        ("quota7-1", 429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "7"),
        ("unavailable-1", 503, "UNAVAILABLE", "UNAVAILABLE", None),
        ("unavailable30-1", 503, "UNAVAILABLE", "UNAVAILABLE", "30"),
        ("internal-1", 500, "INTERNAL", "INTERNAL", None),
        ("unauthenticated-1", 401, "UNAUTHENTICATED", None, None),
    ],
)
def test_the_push_token_chooses_the_refusal(
    client: httpx.Client, push_token: str, status: int, name: str, code: str | None, retry_after: str | None
) -> None:
    answer = send(client, message(push_token))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"], fcm_error(answer)) == (status, status, name, code)
    assert answer.headers.get("Retry-After") == retry_after


@pytest.mark.parametrize("push_token", ["ok-1", "slow1-1", "any:other_token", "unregisteredbutnot-1", "phone7-1"])
def test_any_other_push_token_gets_a_message_id(client: httpx.Client, standin: FcmStandin, push_token: str) -> None:
    answer = send(client, message(push_token))
    assert answer.status_code == 200
    assert answer.json() == {"name": standin.journal.sends()[0].message_id}


def test_message_ids_are_unique(client: httpx.Client) -> None:
    assert len({send(client, message()).json()["name"] for _ in range(5)}) == 5


def test_a_flaky_push_token_recovers_by_itself(client: httpx.Client) -> None:
    tokens = ["flaky2-a", "flaky2-a", "flaky2-b", "flaky2-a"]
    assert [send(client, message(token)).status_code for token in tokens] == [503, 503, 503, 200]


def test_garbage_is_a_200_that_is_no_json(client: httpx.Client) -> None:
    answer = send(client, message("garbage-1"))
    assert answer.status_code == 200
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(answer.content)


@pytest.mark.parametrize(
    ("push_token", "status", "body"),
    [
        ("blank401-1", 401, b""),
        ("html404-1", 404, b"<!DOCTYPE"),
        ("html302-1", 302, b"<!DOCTYPE"),
        ("blank-1", 404, b""),
    ],
)
def test_a_front_end_answers_with_a_status_and_no_json(
    client: httpx.Client, push_token: str, status: int, body: bytes
) -> None:
    answer = send(client, message(push_token))
    assert answer.status_code == status
    assert answer.content.startswith(body)
    assert bool(answer.content) is bool(body)


def test_a_malformed_push_token_is_named_as_fcm_names_it(client: httpx.Client) -> None:
    answer = send(client, message("malformed-1"))
    error = answer.json()["error"]
    assert (answer.status_code, error["status"], fcm_error(answer)) == (400, "INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert error["details"][1]["fieldViolations"][0]["field"] == "message.token"


def test_a_reset_cuts_the_connection_without_an_answer(client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadError, match="reset"):
        send(client, message("reset-1"))


@pytest.mark.parametrize("override", ["hang", "slow60000"])
def test_a_close_cuts_waiting_connections(standin: FcmStandin, override: str) -> None:
    standin.override = override

    async def hang() -> None:
        async with aiohttp.ClientSession() as session:
            sending = asyncio.create_task(session.post(f"{standin.base_url}/v1/projects/p/messages:send"))
            await asyncio.to_thread(standin.journal.wait_for, 1)
            assert not sending.done()
            async with asyncio.timeout(20):
                await asyncio.to_thread(standin.close)
            with pytest.raises(aiohttp.ClientConnectionError):
                await sending

    asyncio.run(hang())


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("message.token", message("")),
        ("message.token", {}),
        ("message.token", [1]),
        ("message.data", message(data={"count": 1})),
        ("message.data", message(data={"google.x": "reserved"})),
        ("message.data", message(data={"text": "é" * 2048})),
        ("message.android.priority", message(android={"priority": "urgent", "ttl": "600s"})),
        ("message.android.ttl", message(android={"priority": "high", "ttl": 600})),
        ("message.android.ttl", message(android={"priority": "high", "ttl": "2419201s"})),
        ("message.android.priority", message(android=None)),
    ],
)
def test_a_misshapen_message_is_an_invalid_argument(client: httpx.Client, field: str, body: Any) -> None:
    answer = send(client, body)
    assert (answer.status_code, fcm_error(answer)) == (400, "INVALID_ARGUMENT")
    assert field in answer.json()["error"]["message"]


def test_another_project_is_not_found_without_an_error_about_the_push_token(client: httpx.Client) -> None:
    answer = send(client, message(), project="another")
    assert (answer.status_code, fcm_error(answer)) == (404, None)


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer made-up", "Basic made-up"])
def test_only_issued_access_tokens_are_accepted(client: httpx.Client, authorization: str) -> None:
    client.headers["Authorization"] = authorization
    answer = send(client, message())
    assert (answer.status_code, answer.json()["error"]["status"]) == (401, "UNAUTHENTICATED")


def test_a_revoked_access_token_is_refused_and_a_new_one_accepted(client: httpx.Client, standin: FcmStandin) -> None:
    standin.revoke_access_tokens()
    refused = send(client, message())
    client.headers["Authorization"] = f"Bearer {access_token(standin.service_account())}"
    assert (refused.status_code, send(client, message()).status_code) == (401, 200)
    assert standin.access_tokens.issued == 2


def test_an_expired_access_token_is_refused(client: httpx.Client, standin: FcmStandin) -> None:
    standin.expires_in_seconds = 0
    client.headers["Authorization"] = f"Bearer {access_token(standin.service_account())}"
    assert send(client, message()).status_code == 401


def test_an_assertion_by_another_account_or_key_is_refused(standin: FcmStandin) -> None:
    account = standin.service_account()
    with pytest.raises(RefreshError, match="invalid_grant"):
        access_token(account | {"client_email": "somebody@else.example"})
    with pytest.raises(RefreshError, match="invalid_grant"):
        access_token(account | {"private_key": other_key()})


def other_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*pem).decode()


def test_the_oauth_endpoint_can_be_down(standin: FcmStandin) -> None:
    standin.oauth_down = True
    with pytest.raises(RefreshError):
        access_token(standin.service_account())


def test_an_override_answers_everything_until_it_is_withdrawn(client: httpx.Client, standin: FcmStandin) -> None:
    standin.override = "unavailable9"
    answer = send(client, message("unregistered-1"))
    standin.override = None
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "9")
    assert send(client, message()).status_code == 200


@pytest.mark.parametrize("word", ["down", "503", "", "unavailable-"])
def test_an_unknown_override_is_refused(standin: FcmStandin, word: str) -> None:
    with pytest.raises(ValueError, match="override cannot be"):
        standin.override = word


def test_the_journal_keeps_each_send_in_order_with_its_answer(client: httpx.Client, standin: FcmStandin) -> None:
    for push_token in ("ok-1", "unregistered-2"):
        send(client, message(push_token, data={"request_id": push_token}))
    first, second = standin.journal.wait_for(2)
    assert (first.push_token, first.request_id, first.answer, first.status) == ("ok-1", "ok-1", "ok", 200)
    assert (second.answer, second.status, second.message_id) == ("unregistered", 404, "")
    assert first.message["android"] == {"priority": "high", "ttl": "600s"}
    assert first.at <= second.at
    assert first.monotonic <= second.monotonic


def test_waiting_for_a_missing_send_reports_how_many_sends_came(client: httpx.Client, standin: FcmStandin) -> None:
    send(client, message("ok-1"))
    with pytest.raises(TimeoutError, match="0 of 1"):
        standin.journal.wait_for(1, timeout=0, matching=lambda send: send.push_token == "ok-2")


def test_another_process_can_control_the_fake_and_read_the_journal(client: httpx.Client) -> None:
    orders = {"override": "quota", "delay_ms": 1, "oauth_down": True, "expires_in_seconds": 60}
    assert client.post("/control", json=orders).json() == orders
    assert send(client, message()).status_code == 429
    client.post("/control", json={"override": None, "revoke_access_tokens": True})
    assert send(client, message()).status_code == 401
    journal = client.get("/journal", params={"since": 1}).json()
    assert (journal["total"], [send["answer"] for send in journal["sends"]]) == (2, ["unauthenticated"])


@pytest.mark.parametrize(
    "orders", [{"overide": "hang"}, {"override": "nothing"}, {"delay_ms": "5"}, [], {"delay_ms": True}]
)
def test_an_unknown_order_changes_nothing(client: httpx.Client, standin: FcmStandin, orders: Any) -> None:
    answer = client.post("/control", json=orders)
    assert (answer.status_code, standin.override, standin.delay_ms) == (400, None, 0)


def test_as_a_program_it_writes_credentials_and_stops_on_a_signal(tmp_path: Path) -> None:
    credentials, journal = tmp_path / "account.json", tmp_path / "journal.jsonl"
    command = [sys.executable, "-m", "loadtest.fake_fcm.server", "--credentials", str(credentials)]
    command += ["--journal", str(journal)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        base_url = program.stdout.readline().strip()
        token = access_token(orjson.loads(credentials.read_bytes()))
        with httpx.Client(base_url=base_url, trust_env=False, headers={"Authorization": f"Bearer {token}"}) as client:
            assert send(client, message()).status_code == 200
        program.send_signal(signal.SIGTERM)
        assert program.wait(10) == 0
    assert credentials.stat().st_mode & 0o777 == 0o600
    assert [orjson.loads(line)["request_id"] for line in journal.read_bytes().splitlines()] == ["r-1"]
