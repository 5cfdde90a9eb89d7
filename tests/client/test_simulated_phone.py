"""The simulated phone follows the agent's rules: which envelopes it trusts, carries out and reports."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from commands.actions import CATALOGUE
from nexmdm.client.phone import ACTIONS, Agent, Credentials, Outcome, Phone, Refusal, Report, sign
from nexmdm.client.simulated_phone import SimulatedPhone

DEVICE_ID = "0192f0c1-a2b3-7d4e-8f90-a1b2c3d4e5f6"
COMMAND_KEY = "dc9436fa48f9627fb9b60096bf7e5807aba27f180d7cb012361ece39a553f8f9"
ENVELOPE = {
    "request_id": "0192f0c1-b000-7abc-8def-0123456789ab",
    "action": "launch_app",
    "params": '{"package":"com.example.app"}',
    "issued_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-01-01T00:10:00Z",
    "signature": "7d9a3990e02731fe0114f3f4ca17f658be5b955b89fc82bd90e8778d8721f11e",
}


class Clock:
    """A clock that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def agent() -> Agent:
    agent = Agent(DEVICE_ID, Credentials("nxd_old", COMMAND_KEY), clock=Clock())
    agent.set_server_time("2026-01-01T00:00:00Z")
    return agent


def signed(key: str = COMMAND_KEY, **fields: str) -> dict[str, str]:
    envelope = ENVELOPE | fields
    return envelope | {"signature": sign(key, DEVICE_ID, envelope)}


def test_the_phone_runs_every_action_of_the_catalogue() -> None:
    assert set(CATALOGUE) == ACTIONS


def test_the_signatures_are_those_of_the_contract() -> None:
    key = hmac.digest(b"nxk_test_c2lnbmluZy1tYXN0ZXIta2V5LWRvLW5vdC11c2U", f"NXK1\n{DEVICE_ID}\n1".encode(), "sha256")
    assert key.hex() == COMMAND_KEY
    assert sign(COMMAND_KEY, DEVICE_ID, ENVELOPE) == ENVELOPE["signature"]


def test_a_valid_envelope_is_carried_out_and_reported(agent: Agent) -> None:
    seen: list[Any] = []
    agent.perform = lambda *what: seen.append(what) or Outcome(output={"pid": 7})  # type: ignore[func-returns-value]
    report = agent.receive(ENVELOPE, "push")
    assert report == Report(ENVELOPE["request_id"], "succeeded", output={"pid": 7}, via="push")
    assert seen == [("launch_app", {"package": "com.example.app"})]


@pytest.mark.parametrize(
    "change",
    [
        {"action": "wipe"},
        {"params": "{}"},
        {"expires_at": "2027-01-01T00:00:00Z"},
        {"request_id": "0192f0c1-b000-7abc-8def-0123456789ac"},
        {"signature": ENVELOPE["signature"].upper()},
        {"signature": "é"},
        {"params": None},
    ],
)
def test_a_changed_envelope_is_refused_without_a_report(agent: Agent, change: dict[str, Any]) -> None:
    assert agent.receive(ENVELOPE | change, "push") is None
    assert (agent.refused, agent.executed) == (1, [])


@pytest.mark.parametrize("name", ENVELOPE)
def test_an_incomplete_envelope_is_refused(agent: Agent, name: str) -> None:
    assert agent.receive({key: value for key, value in ENVELOPE.items() if key != name}, "heartbeat") is None


def test_an_envelope_for_another_device_is_refused() -> None:
    other = Agent("0192f0c1-a2b3-7d4e-8f90-000000000000", Credentials("nxd_other", COMMAND_KEY))
    assert other.receive(ENVELOPE, "push") is None


def test_a_repeat_is_answered_by_the_last_report_and_not_carried_out_again(agent: Agent) -> None:
    first = agent.receive(ENVELOPE, "push")
    assert agent.receive(ENVELOPE, "heartbeat") == first
    assert agent.executed == [ENVELOPE["request_id"]]


def test_a_repeat_after_its_time_is_still_answered_by_the_last_report(agent: Agent) -> None:
    first = agent.receive(ENVELOPE, "push")
    agent.set_server_time("2026-01-02T00:00:00Z")
    assert agent.receive(ENVELOPE, "heartbeat") == first


def test_a_forged_repeat_is_refused(agent: Agent) -> None:
    agent.receive(ENVELOPE, "push")
    assert agent.receive(ENVELOPE | {"signature": "0" * 64}, "push") is None


@pytest.mark.parametrize(
    ("server_time", "status"),
    [("2026-01-01T00:09:59.999Z", "succeeded"), ("2026-01-01T00:10:00Z", "failed"), ("2027-01-01T00:00:00Z", "failed")],
)
def test_no_command_starts_after_its_time_by_the_servers_clock(agent: Agent, server_time: str, status: str) -> None:
    agent.set_server_time(server_time)
    report = agent.receive(ENVELOPE, "push")
    assert report is not None
    assert (report.status, bool(agent.executed)) == (status, status == "succeeded")


def test_server_time_continues_between_answers(agent: Agent) -> None:
    agent.clock.now = 600.0  # type: ignore[attr-defined]
    report = agent.receive(ENVELOPE, "push")
    assert report is not None
    assert (report.status, report.message) == ("failed", "expired")


def test_an_unknown_action_is_reported_failed(agent: Agent) -> None:
    report = agent.receive(signed(action="make_coffee"), "push")
    assert report is not None
    assert (report.status, report.message, agent.executed) == ("failed", "unknown action", [])


def test_a_deferred_command_is_tried_again(agent: Agent) -> None:
    outcomes = iter([Outcome("deferred"), Outcome()])
    agent.perform = lambda *_: next(outcomes)
    reports = [agent.receive(ENVELOPE, "heartbeat") for _ in range(3)]
    assert [report.status for report in reports if report] == ["deferred", "succeeded", "succeeded"]
    assert len(agent.executed) == 1


def test_both_keys_are_valid_until_the_new_one_is_used(agent: Agent) -> None:
    old, new = ENVELOPE, signed("n" * 64)
    assert not agent.trusts(new)
    agent.rotated(Credentials("nxd_new", "n" * 64))
    assert (agent.trusts(old), agent.trusts(new), agent.device_token) == (True, True, "nxd_new")
    agent.used("nxd_old")
    assert agent.trusts(old)
    agent.used("nxd_new")
    assert (agent.trusts(old), agent.trusts(new), agent.device_token) == (False, True, "nxd_new")


def test_rotating_again_replaces_an_unused_pair(agent: Agent) -> None:
    agent.rotated(Credentials("nxd_lost", "l" * 64))
    agent.rotated(Credentials("nxd_new", "n" * 64))
    assert (agent.trusts(signed("l" * 64)), agent.trusts(ENVELOPE), agent.device_token) == (False, True, "nxd_new")


class Server:
    """A server with prepared answers, which stores the requests."""

    retry_after: str | None = "3"

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[tuple[str, str, Any]] = []

    def run(self, play: Callable[[Phone], Awaitable[None]]) -> None:
        """Run a phone against this server."""
        asyncio.run(self._run(play))

    async def _run(self, play: Callable[[Phone], Awaitable[None]]) -> None:
        app = web.Application()
        app.router.add_post("/v1/{path:.+}", self._answer)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            phone = Phone(session, str(server.make_url("")).rstrip("/"))
            phone.agent = Agent(DEVICE_ID, Credentials("nxd_old", COMMAND_KEY), clock=Clock())
            phone.agent.set_server_time("2026-01-01T00:00:00Z")
            await play(phone)

    async def _answer(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        self.calls.append((path, request.headers["Authorization"], await request.json()))
        answer = self.answers[path]
        answer = answer.pop(0) if isinstance(answer, list) else answer
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        return web.json_response(answer, status=answer.get("status", 200), headers=headers)


def heartbeat_answer(*commands: dict[str, str], has_more: bool = False) -> dict[str, Any]:
    return {"server_time": "2026-01-01T00:00:00Z", "commands": list(commands), "has_more": has_more}


def test_a_check_in_reports_on_each_command_and_is_repeated_for_further_commands() -> None:
    more = signed(request_id="0192f0c1-b000-7abc-8def-0123456789ac")
    beats = [heartbeat_answer(ENVELOPE, ENVELOPE | {"signature": ""}, has_more=True), heartbeat_answer(more)]
    server = Server(heartbeat=beats, **{"action-result": {}})

    async def play(phone: Phone) -> None:
        assert await phone.check_in(status={"battery_pct": 50}) == 2

    server.run(play)
    assert [path for path, _, _ in server.calls] == ["heartbeat", "action-result"] * 2
    said = {"request_id": ENVELOPE["request_id"], "status": "succeeded", "via": "heartbeat"}
    assert [body for _, _, body in server.calls[:2]] == [{"status": {"battery_pct": 50}}, said]


def test_a_pushed_command_is_reported_on_once_trusted() -> None:
    server = Server(**{"action-result": {"duplicate": False}})

    async def play(phone: Phone) -> None:
        assert await phone.receive(ENVELOPE, "push") == {"duplicate": False}
        assert await phone.receive(ENVELOPE | {"action": "wipe"}, "push") is None

    server.run(play)
    assert [body["via"] for _, _, body in server.calls] == ["push"]


def test_a_rotated_phone_changes_to_the_new_token() -> None:
    new = {"device_token": "nxd_new", "command_key": "n" * 64}
    server = Server(heartbeat=heartbeat_answer(), **{"token/rotate": new})

    async def play(phone: Phone) -> None:
        await phone.rotate()
        await phone.rotate()
        await phone.heartbeat()
        await phone.rotate()

    server.run(play)
    bearers = [bearer.removeprefix("Bearer nxd_") for _, bearer, _ in server.calls]
    assert bearers == ["old", "old", "new", "new"]


def test_registration_gives_the_phone_its_credentials() -> None:
    given = {"device_id": DEVICE_ID, "device_token": "nxd_1", "command_key": COMMAND_KEY}
    server = Server(register=given | {"server_time": "2026-01-01T00:00:00Z"})

    async def play(phone: Phone) -> None:
        await phone.register("nxe_1", "serial-1", model="M")
        assert phone.agent.trusts(ENVELOPE)
        assert phone.agent.device_token == "nxd_1"

    server.run(play)
    assert server.calls == [("register", "Bearer nxe_1", {"hardware_id": "serial-1", "model": "M"})]


def test_a_refusal_carries_the_servers_code() -> None:
    server = Server(heartbeat={"status": 429, "code": "rate_limited", "detail": "slow down"})

    async def play(phone: Phone) -> None:
        with pytest.raises(Refusal, match="429 rate_limited: slow down") as caught:
            await phone.heartbeat()
        assert (caught.value.code, caught.value.retry_after_seconds) == ("rate_limited", 3)

    server.run(play)


@pytest.mark.parametrize(
    ("status", "changes", "flaw"),
    [
        (503, {}, ""),
        (404, {"retry_after": None}, ""),
        (503, {"retry_after": None}, "no Retry-After"),
        (429, {"retry_after": "0"}, "no Retry-After"),
        (503, {"content_type": "text/html"}, "text/html"),
        (503, {"problem": {"status": 503}}, "no code, or a status that differs from the HTTP status"),
        (
            503,
            {"problem": {"status": 500, "code": "overloaded"}},
            "no code, or a status that differs from the HTTP status",
        ),
    ],
)
def test_a_refusal_names_the_missing_parts_of_problem_details(status: int, changes: dict[str, Any], flaw: str) -> None:
    good = {"problem": {"status": status, "code": "c"}, "retry_after": "1", "content_type": "application/problem+json"}
    assert Refusal(status, **(good | changes)).flaw == flaw


def test_a_simulated_phone_shows_its_work_and_survives_errors_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexmdm.client.simulated_phone.RETRY_SECONDS", 0)
    given = {"device_id": DEVICE_ID, "device_token": "nxd_1", "command_key": COMMAND_KEY}
    in_time = signed(expires_at="2100-01-01T00:00:00Z")
    revoked = {"status": 403, "code": "device_revoked", "detail": "revoked"}
    beats = [heartbeat_answer(in_time), {"status": 503, "code": "overloaded", "detail": "busy"}, revoked]
    server = Server(register=given | {"server_time": "2026-01-01T00:00:00Z"}, heartbeat=beats, **{"action-result": {}})
    shown: list[str] = []

    async def play(phone: Phone) -> None:
        simulated = SimulatedPhone(phone._base_url, "localhost", "serial-1", "lobby", 0, shown.append)
        with pytest.raises(Refusal, match="403 device_revoked"):
            await simulated.live("nxe_1")

    server.retry_after = None
    server.run(play)
    assert server.calls[0] == (
        "register", "Bearer nxe_1", {"hardware_id": "serial-1", "model": "Simulated", "alias": "lobby"},
    )  # fmt: skip
    assert [path for path, _, _ in server.calls[1:]] == ["heartbeat", "action-result", "heartbeat", "heartbeat"]
    assert shown == [
        f"Registered as {DEVICE_ID}; a heartbeat every 0 s.",
        'launch_app {"package":"com.example.app"}: done',
        "Refused (503 overloaded: busy); trying again.",
    ]
