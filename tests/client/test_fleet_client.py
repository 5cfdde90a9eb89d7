"""manage.py fleet, from its command line to the database. Only the socket in between is replaced."""

import io
import json
import os
import re
import shlex
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from django.db.models.functions import Now
from pytest_django import Settings

from commands.models import Attempt, Command, Delivery
from devices.models import Device, EnrollmentToken
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.client.display import FREE_TEXT, Format, Terminal
from nexmdm.client.program import VERBS
from nexmdm.client.rows import Columns
from tests.support import processes
from tests.support.actors import Admin, Answer, Client, Phone
from tests.support.fleet_command import InProcess, run
from tests.support.moments import let_pass

UNKNOWN = "0192f0c1-b000-7abc-8def-0123456789ab"


def failing(error: type[httpx.TransportError]) -> httpx.BaseTransport:
    """Return a network without any answer."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise error("Connection refused", request=request)

    return httpx.MockTransport(fail)


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    """A transport to a server with an empty database."""
    return InProcess(client)


def reporting(phones: list[Phone], status: str) -> Callable[[httpx.Request, Answer], None]:
    """A transport whose phones report on a command as soon as it is issued."""

    def report(request: httpx.Request, answer: Answer) -> None:
        if request.url.path == "/admin/command" and answer.status == 200:
            for phone in phones:
                phone.report(answer.json["request_id"], status, message=f"said {status}", via="heartbeat")

    return report


def test_enroll_token_prints_the_token_alone_and_a_phone_registers_with_it(network: InProcess) -> None:
    ran = run("enroll-token", "--label", "first phones", "--tag", "lobby", "--tag", "ground", transport=network)
    phone = Phone(network.client, "phone-1")
    assert phone.register(ran.out.removesuffix("\n")).status == 200
    assert "/v1/register" in ran.err
    token = EnrollmentToken.objects.get()
    assert (token.label, token.uses, token.tags, token.re_enroll) == ("first phones", 1, ["lobby", "ground"], False)


def test_enroll_token_accepts_uses_lifetime_and_the_right_to_enroll_again(network: InProcess) -> None:
    made = run(
        "enroll-token", "--max-uses", "20", "--expires-in", "2h", "--re-enroll", "--json", transport=network
    ).json
    token = EnrollmentToken.objects.get()
    assert (token.max_uses, token.re_enroll) == (20, True)
    assert (token.expires_at - token.created_at).total_seconds() == pytest.approx(7200, abs=5)
    assert made["enrollment_token"].startswith("nxe_")


def test_devices_are_columns_of_plain_text_in_a_pipe_and_json_on_request(network: InProcess, admin: Admin) -> None:
    phones = [admin.enrol(f"phone-{number}", alias=f"desk {number}") for number in range(3)]
    lines = run("devices", transport=network).out.splitlines()
    assert lines[0].split() == ["device_id", "alias", "presence", "last_seen_at", "push", "hardware_id", "tags"]
    assert [line.split()[0] for line in lines[1:]] == [phone.device_id for phone in reversed(phones)]
    assert "\x1b" not in "".join(lines)
    few = run("devices", "--q", "desk", "--limit", "2", "--json", transport=network)
    assert [row["alias"] for row in few.json] == ["desk 2", "desk 1"]
    assert "more" in few.err


def test_devices_are_filtered_by_reported_values_silence_and_failing_pushes(network: InProcess, admin: Admin) -> None:
    admin.enrol("phone-1", model="Pixel 8", os_version="15", agent_version="1.2", push_token="ok-1")
    let_pass(days=2)
    admin.enrol("phone-2", model="Pixel 8", os_version="14", agent_version="1.3", push_token="ok-2")
    Device.objects.filter(push_token="ok-2").update(push_failures=5)

    def found(*arguments: str) -> list[str]:
        return [row["hardware_id"] for row in run("devices", *arguments, "--json", transport=network).json]

    assert found("--model", "Pixel 8") == ["phone-2", "phone-1"]
    assert found("--os-version", "15") == found("--agent-version", "1.2") == ["phone-1"]
    assert found("--not-seen-for", "1d") == ["phone-1"]
    assert found("--not-seen-for", "3d") == found("--model", "") == []
    assert (found("--push", "failing"), found("--push", "ok")) == (["phone-2"], ["phone-1"])


def test_a_list_reads_as_many_pages_as_necessary(
    network: InProcess, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.client.http_client.PAGE", 2)
    for number in range(5):
        admin.enrol(f"phone-{number}")
    ran = run("devices", "--json", transport=network)
    assert [row["hardware_id"] for row in ran.json] == [f"phone-{number}" for number in (4, 3, 2, 1, 0)]
    assert len(network.seen) == 3


def test_a_device_and_the_summary_are_shown_field_by_field(network: InProcess, phone: Phone) -> None:
    phone.heartbeat(status={"battery_pct": 83})
    shown = run("device", phone.device_id, transport=network).out
    assert "battery_pct=83" in shown
    assert "presence" in shown
    assert run("summary", "--json", transport=network).json["devices"]["online"] == 1


def test_texts_of_a_phone_cannot_control_the_terminal(network: InProcess, admin: Admin) -> None:
    admin.enrol("phone\x1b]0;owned\x07", alias="red")
    Device.objects.update(alias="[red]\u202e")  # as an earlier version allowed
    ran = run("devices", transport=network)
    assert "\x1b" not in ran.out
    assert "\u202e" not in ran.out
    assert "[red]\ufffd" in ran.out


def test_ping_waits_until_the_phones_have_answered(network: InProcess, admin: Admin) -> None:
    phones = [admin.enrol("phone-1"), admin.enrol("phone-2")]
    network.after = reporting(phones, "succeeded")
    ran = run("ping", "all", "--wait", transport=network)
    assert ran.status == 0
    assert ran.out.count("said succeeded") == 2
    assert Command.objects.get().action == "ping"


def test_a_failure_on_a_phone_is_exit_status_1(network: InProcess, phone: Phone) -> None:
    network.after = reporting([phone], "failed")
    ran = run("send", "reboot", phone.device_id, "--wait", "--json", transport=network)
    assert ran.status == 1
    assert (ran.json["state"], ran.json["counts"]["failed"]) == ("completed", 1)
    assert ran.json["deliveries"][0]["result"]["message"] == "said failed"


def test_a_command_that_is_open_after_the_timeout_is_exit_status_1(network: InProcess, phone: Phone) -> None:
    ran = run("ping", phone.device_id, "--timeout", "0", transport=network)
    assert ran.status == 1
    assert "1 of 1 deliveries are still open" in ran.err


def test_waiting_continues_while_the_server_is_busy(
    network: InProcess, phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("nexmdm.client.http_client.time.sleep", slept.append)
    monkeypatch.setattr("nexmdm.auth.signature_verification.rate_limits.count_read", _busy_once(network))
    network.after = reporting([phone], "succeeded")
    assert run("ping", "all", "--wait", transport=network).status == 0
    assert slept == [7]


def _busy_once(network: InProcess) -> Callable[..., Any]:
    async def count_read(_: str) -> None:
        if len(network.seen) == 3:
            raise RateLimited(7)

    return count_read


@dataclass(slots=True)
class Interrupted(httpx.BaseTransport):
    """A transport that answers in place of the server after a command is issued, until its prepared answers are used
    up.
    """

    network: InProcess
    instead: list[httpx.Response | None]
    issued: bool = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request, or raise."""
        if not self.issued or not self.instead:
            self.issued |= request.method == "POST"
            return self.network.handle_request(request)
        if (answer := self.instead.pop()) is None:
            raise httpx.ConnectError("Connection refused", request=request)
        return answer


def test_waiting_continues_while_the_server_is_away(network: InProcess, phone: Phone, pauses: list[float]) -> None:
    network.after = reporting([phone], "succeeded")
    away = Interrupted(network, [None, httpx.Response(502, text="Bad Gateway"), None])
    assert run("ping", "all", "--wait", transport=away).status == 0
    assert pauses == [1, 1, 1]


@pytest.mark.parametrize(("instead", "status"), [(None, 3), (httpx.Response(404, text="Not here"), 1)])
def test_a_wait_that_ends_early_shows_how_to_continue(
    network: InProcess, phone: Phone, pauses: list[float], instead: httpx.Response | None, status: int
) -> None:
    ran = run("ping", "all", "--timeout", "0", transport=Interrupted(network, [instead]))
    assert ran.status == status
    assert f"`manage.py fleet command {Command.objects.get().pk} --wait`" in ran.err
    assert pauses == []


def test_a_command_is_sent_with_its_parameters_and_options(network: InProcess, phone: Phone) -> None:
    ran = run(
        "send", "launch_app", phone.device_id.upper(), "--param", "package=com.example.app", "--param",
        'extras={"floor": 2}', "--expires-in", "1h", "--priority", "normal", "--expect-count", "1", "--json",
        transport=network,
    )  # fmt: skip
    assert ran.status == 0
    command = Command.objects.get()
    assert json.loads(command.params) == {"package": "com.example.app", "extras": {"floor": 2}}
    assert (str(command.pk), command.priority) == (ran.json["request_id"], "normal")
    assert (command.expires_at - command.issued_at).total_seconds() == pytest.approx(3600, abs=1)


def test_a_dry_run_sends_nothing(network: InProcess, phone: Phone) -> None:
    ran = run("send", "lock", "all", "--dry-run", "--json", transport=network)
    assert (ran.status, ran.json["device_count"], ran.json["request_id"]) == (0, 1, None)
    shown = run("send", "lock", "all", "--dry-run", transport=network).out
    assert [line.split() for line in shown.splitlines()] == [
        ["Dry", "run:", "nothing", "was", "sent."],
        ["action", "lock"],
        ["device_count", "1"],
        ["push", "queued=0,", "no_push_token=1"],
    ]
    assert not Command.objects.exists()


def test_an_unknown_action_of_send_is_refused(network: InProcess, phone: Phone) -> None:
    ran = run("send", "wipee", phone.device_id, transport=network)
    assert "422 invalid_request): There is no such action. No command was sent." in ran.err
    assert "body.action: must be one of ping, " in ran.err


@pytest.mark.parametrize("target", ["tag:lobby", "all"])
def test_a_wipe_shows_how_to_name_the_phones(network: InProcess, admin: Admin, target: str) -> None:
    admin.enrol("one", alias="front-desk")
    ran = run("send", "wipe", target, "--yes", transport=network)
    assert ran.status == 1
    assert "Write the alias, the hardware id or the device id of each phone." in ran.err
    assert not Command.objects.exists()


def test_a_message_about_one_device_is_in_the_singular(network: InProcess, phone: Phone) -> None:
    ran = run("send", "ping", "all", "--expect-count", "20", transport=network)
    assert "The target contains 1 device, but expect_count is 20." in ran.err
    assert (
        "1 of the devices in the request is unknown, revoked or retired." in run("ping", UNKNOWN, transport=network).err
    )


@pytest.mark.parametrize("target", ["front-desk", "tag:lobby", "tag:lobby, tag:other", "all", "front-desk,back-desk"])
def test_a_target_is_an_id_an_alias_a_tag_or_all(network: InProcess, admin: Admin, target: str) -> None:
    for alias in ("front-desk", "back-desk"):
        phone = Phone(network.client, alias)
        phone.register(admin.enrollment_token(tags=["lobby"]), alias=alias)
    ran = run("send", "ping", target, "--json", transport=network)
    assert ran.json["device_count"] == (1 if target == "front-desk" else 2)


@pytest.mark.parametrize("alias", ["all", "desk, back", "tag:lobby", "alias:desk", UNKNOWN, " desk"])
def test_any_alias_can_be_named_as_it_is(network: InProcess, admin: Admin, alias: str) -> None:
    admin.enrol("phone-1")
    device_id = admin.enrol("phone-2", alias="desk").device_id
    run("change", device_id, "--alias", alias, transport=network)
    kept = Device.objects.get(pk=device_id).alias
    ran = run("ping", f"alias:{kept}", transport=network)
    assert (ran.status, str(Delivery.objects.get().device_id)) == (0, device_id)


@pytest.mark.parametrize("text", ["2026", "true", "1e3", "null", "[1]"])
def test_a_text_that_is_json_is_refused_with_how_to_send_it(network: InProcess, phone: Phone, text: str) -> None:
    arguments = ("send", "message", "all", "--param", "body=x", "--param")
    refused = run(*arguments, f"title={text}", transport=network)
    assert refused.status == 1
    advice = re.search(r"--param (\S+)$", refused.err, re.MULTILINE)
    assert advice is not None
    assert run(*arguments, *shlex.split(advice[1]), transport=network).status == 0
    assert json.loads(Command.objects.get().params)["title"] == text


def test_a_number_out_of_range_is_refused_without_advice_on_texts(network: InProcess, phone: Phone) -> None:
    refused = run("send", "ring", "all", "--param", "duration_seconds=-1", transport=network)
    assert refused.status == 1
    assert "--param" not in refused.err


def test_commands_are_listed_shown_and_cancelled(network: InProcess, phone: Phone) -> None:
    request_id = run("ping", "all", "--json", transport=network).json["request_id"]
    assert request_id in run("commands", "--action", "ping", "--state", "open", transport=network).out
    assert phone.device_id in run("command", request_id, transport=network).out
    assert run("cancel", request_id, "--json", transport=network).json["cancelled"] == 1
    ended = run("command", request_id, "--wait", transport=network)
    assert ended.status == 1
    assert "cancelled" in ended.out


def test_a_cancellation_that_withdraws_nothing_is_exit_status_1(network: InProcess, phone: Phone) -> None:
    request_id = run("ping", "all", "--json", transport=network).json["request_id"]
    phone.report(request_id, "succeeded")
    ran = run("cancel", request_id, "--json", transport=network)
    assert (ran.status, ran.json["cancelled"], ran.json["already_settled"]) == (1, 0, 1)
    assert "No delivery was cancelled" in ran.err


def test_a_large_command_shows_its_worst_deliveries(
    network: InProcess, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.client.verbs.following.SHOWN_DELIVERIES", 2)
    phones = [admin.enrol(f"phone-{number}") for number in range(4)]
    request_id = admin.command("ping").json["request_id"]
    for phone, status in zip(phones, ("succeeded", "failed", "running", "succeeded"), strict=True):
        phone.report(request_id, status)
    ran = run("command", request_id, "--json", transport=network)
    assert [row["state"] for row in ran.json["deliveries"]] == ["failed", "received"]


def test_a_list_of_commands_says_how_many_results_came_too_late(
    network: InProcess, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = admin.enrol("one"), admin.enrol("other")
    late, failed, silent = (admin.command(to=phone).json["request_id"] for phone in (one, other, one))
    other.report(failed, "failed")
    let_pass(hours=2)
    one.report(late, "succeeded")
    still_open = admin.command().json["request_id"]

    def listed() -> dict[str, str]:
        lines = run("commands", transport=network).out.splitlines()[1:]
        return {line.split()[0]: re.split(r" {2,}", line)[2] for line in lines}

    assert listed() == {late: "expired, 1 late", failed: "failed", silent: "expired", still_open: "-"}
    rows = {row["request_id"]: row["late"] for row in run("commands", "--json", transport=network).json}
    assert rows == {late: 1, failed: 0, silent: 0, still_open: None}
    monkeypatch.setattr("commands.queries.commands.MOST_COUNTED", 0)
    assert listed() == {
        late: "expired, ? late", failed: "failed, ? late", silent: "expired, ? late", still_open: "-",
    }  # fmt: skip


def test_a_list_of_commands_shows_on_how_many_devices_each_command_succeeded(
    network: InProcess, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = admin.enrol("one"), admin.enrol("other")
    partial, whole, none = (admin.command().json["request_id"] for _ in range(3))
    for phone, request_id, status in (
        (one, partial, "succeeded"), (other, partial, "failed"), (one, whole, "succeeded"), (other, whole, "succeeded"),
    ):  # fmt: skip
        phone.report(request_id, status)

    def listed() -> dict[str, list[str]]:
        headings, *lines = (re.split(r" {2,}", line) for line in run("commands", transport=network).out.splitlines())
        assert headings[2:6] == ["outcome", "state", "succeeded", "device_count"]
        return {line[0]: line[4:6] for line in lines}

    assert listed() == {partial: ["1", "2"], whole: ["2", "2"], none: ["0", "2"]}
    monkeypatch.setattr("commands.queries.commands.MOST_COUNTED", 1)
    assert listed() == {partial: ["?", "2"], whole: ["2", "2"], none: ["?", "2"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("devices", "--status", "online", "--limit", "5"), "No device matches --status online.\n"),
        (("devices", "--tag", "a", "--newest-first", "--q", "b c"), "No device matches --tag a and --q 'b c'.\n"),
        (("devices",), "There is no device.\n"),
        (("commands", "-o", "wide"), "There is no command.\n"),
        (("devices", "--not-seen-for", "1h"), "No device matches --not-seen-for.\n"),
        (("audit", "--principal", "ops1"), "No entry matches --principal ops1.\n"),
        (("enroll-tokens",), "There is no enrollment token.\n"),
    ],
)  # fmt: skip
def test_an_empty_list_names_the_options_that_filtered_it(
    network: InProcess, words: tuple[str, ...], said: str
) -> None:
    assert run(*words, transport=network).err == said
    for form in ("json", "csv", "yaml"):
        assert run(*words, "-o", form, transport=network).err == ""


def test_the_audit_names_devices_in_its_table_and_their_ids_elsewhere(
    network: InProcess, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, nameless = admin.enrol("HW-1", alias="front desk"), admin.enrol("HW-2")
    many = [admin.enrol(f"HW-{number}", alias=f"tab-{number}") for number in range(3, 10)]
    run("ping", f"{desk.device_id},{nameless.device_id}", transport=network)
    run("revoke", "front desk", "--yes", transport=network)
    run("ping", ",".join(phone.device_id for phone in many), transport=network)
    run("tag", "lobby", "--add", "tab-3", "--remove", "HW-2", transport=network)

    def targets() -> list[str]:
        lines = run("audit", transport=network).out.splitlines()[1:5]
        return [re.split(r" {2,}", line)[3] for line in lines]

    named = [
        "tag: lobby, add: tab-3, remove: HW-2",
        "device_ids: tab-3, tab-4, tab-5, tab-6, …",
        "device_id: front desk",
        "device_ids: front desk, HW-2",
    ]
    assert targets() == named
    monkeypatch.setattr("nexmdm.client.names.PAGE", 1)
    assert targets() == named
    for form in ("wide", "json", "csv", "yaml"):
        ran = run("audit", "-o", form, transport=network)
        assert f"device_ids: {desk.device_id}, {nameless.device_id}" in ran.out
        assert "front desk" not in ran.out


def test_a_field_of_a_field_is_readable_in_csv(network: InProcess, phone: Phone) -> None:
    phone.heartbeat(status={"battery_pct": 83, "charging": True})
    run("ping", "all", transport=network)
    assert '"charging=yes, battery_pct=83"' in run("devices", "-o", "csv", transport=network).out
    assert ",all=yes," in run("commands", "-o", "csv", transport=network).out


def test_commands_are_found_by_device_and_by_time(network: InProcess, admin: Admin, phone: Phone) -> None:
    request_id = run("ping", phone.device_id, "--json", transport=network).json["request_id"]
    run("ping", admin.enrol("phone-2").device_id, transport=network)

    def found(*arguments: str) -> list[str]:
        return [row["request_id"] for row in run("commands", "--json", *arguments, transport=network).json]

    assert found("--device", phone.device_id) == [request_id]
    assert len(found("--since", "1h")) == 2
    assert found("--until", "1h") == found("--since", "2100-01-01T00:00:00Z") == []


def test_the_audit_shows_principals_actions_and_refusals(network: InProcess, phone: Phone) -> None:
    run("send", "ping", "all", "--note", "a look", "--supersede", transport=network)
    run("ping", UNKNOWN, transport=network)
    refused, done, *_ = run("audit", "--since", "1h", "--json", transport=network).json
    assert (refused["status"], refused["code"], done["status"], done["path"]) == (
        422, "unknown_devices", 200, "/admin/command",
    )  # fmt: skip
    header, first, *_ = run("audit", "--limit", "1", transport=network).out.splitlines()
    shown = ["at", "status", "action", "target", "principal", "device_count", "dry_run", "code", "request_id"]
    assert header.split() == shown
    wide = run("audit", "--limit", "1", "-o", "wide", transport=network).out.splitlines()[0]
    assert wide.split() == [*shown, "address", "method", "path", "correlation_id", "body_sha256"]
    assert first.split()[1:9] == [
        "422", "ping", "device_ids:", UNKNOWN, "admin", "-", "no", "unknown_devices",
    ]  # fmt: skip
    (ping,) = run(
        "audit", "--action", "ping", "--status", "200", "--principal", "ADMIN", "--json", transport=network
    ).json
    assert ping == done
    for names in (["--device", phone.device_id], ["--command", done["request_id"]]):
        assert run("audit", *names, "--action", "ping", "--json", transport=network).json == [done]
    assert done["request_id"] in run("audit", transport=network).out.splitlines()[2]
    assert run("audit", "--until", "1h", "--json", transport=network).json == []


def test_a_revocation_shows_which_wipe_or_lock_it_withdraws(network: InProcess, admin: Admin, phone: Phone) -> None:
    request_id = admin.command("wipe", to=phone).json["request_id"]
    ran = run("revoke", phone.device_id, "--yes", transport=network)
    assert f"The open wipe is withdrawn: {request_id}." in ran.err
    assert "may already have the command" not in ran.err


@pytest.mark.parametrize("verb", ["revoke", "retire"])
def test_a_withdrawn_wipe_that_may_still_run_is_reported_as_such(
    network: InProcess, admin: Admin, phone: Phone, verb: str
) -> None:
    request_id = admin.command("wipe", to=phone).json["request_id"]
    phone.heartbeat()
    said = f"The phone may already have the command: {request_id} may still run. The server refuses the phone's report."
    assert said in run(verb, phone.device_id, "--yes", transport=network).err
    presence = f"{verb}d"
    assert presence in run("devices", transport=network).out
    assert run("devices", "--json", transport=network).json[0]["presence"] == presence


def test_reinstating_shows_withdrawn_commands_and_those_that_may_still_run(
    network: InProcess, admin: Admin, phone: Phone
) -> None:
    lock = admin.command("lock", to=phone).json["request_id"]
    phone.heartbeat()
    let_pass(minutes=1)
    wipe = admin.command("wipe", to=phone).json["request_id"]
    run("revoke", phone.device_id, "--yes", transport=network)
    ran = run("reinstate", phone.device_id, transport=network)
    assert f"action=lock, may_still_run=yes; request_id={wipe}, action=wipe, may_still_run=no\n" in ran.out
    said = ran.err
    assert f"The revocation withdrew this wipe: {wipe}." in said
    assert f"The revocation withdrew this lock: {lock}." in said
    assert f"The phone may already have the command: {lock} may still run." in said
    assert f"{wipe} may still run" not in said
    assert run("reinstate", phone.device_id, transport=network).err == ""


def test_a_device_is_revoked_and_reinstated(network: InProcess, phone: Phone) -> None:
    assert run("revoke", phone.device_id, "--yes", "--json", transport=network).json["revoked_at"] is not None
    assert phone.heartbeat().code == "device_revoked"
    assert run("reinstate", phone.device_id, transport=network).status == 0
    assert phone.heartbeat().status == 200


def test_a_device_gets_another_alias_and_other_tags_or_none(network: InProcess, phone: Phone) -> None:
    def changed(*arguments: str) -> tuple[Any, Any]:
        row = run("change", phone.device_id, *arguments, "--json", transport=network).json
        assert row == run("device", phone.device_id, "--json", transport=network).json
        return row["alias"], row["tags"]

    assert changed("--alias", "desk", "--tag", "lobby", "--tag", "floor-1") == ("desk", ["lobby", "floor-1"])
    assert changed("--tag", "floor-2") == ("desk", ["floor-2"])
    assert changed("--no-alias") == (None, ["floor-2"])
    assert changed("--no-tags") == (None, [])


def test_devices_get_a_tag_and_lose_it(network: InProcess, admin: Admin) -> None:
    first, second = (admin.enrol(f"phone-{number}").device_id for number in range(2))
    run("tag", "lobby", "--add", first, second, transport=network)
    answer = run("tag", "lobby", "--add", first, "--remove", second, "--json", transport=network)
    assert (answer.status, answer.json) == (0, {"tag": "lobby", "added": 0, "removed": 1})
    tagged = run("devices", "--tag", "lobby", "--json", transport=network).json
    assert [row["device_id"] for row in tagged] == [first]
    unknown = run("tag", "lobby", "--add", UNKNOWN, transport=network)
    assert (unknown.status, "unknown_devices" in unknown.err) == (1, True)


def test_enrollment_tokens_are_listed_and_revoked(network: InProcess, admin: Admin) -> None:
    made = {label: admin.enrollment_token(label=label) for label in ("open", "used", "old", "no more")}
    Phone(network.client, "phone-1").register(made["used"])
    EnrollmentToken.objects.filter(label="old").update(expires_at=EnrollmentToken.objects.values("created_at")[:1])
    token_id = str(EnrollmentToken.objects.get(label="no more").pk)
    assert run("revoke-token", token_id, "--json", transport=network).json["revoked_at"] is not None
    assert Phone(network.client, "phone-2").register(made["no more"]).code == "enrollment_token_revoked"

    header, *lines = run("enroll-tokens", transport=network).out.splitlines()
    assert header.split()[:4] == ["id", "label", "state", "uses"]
    states = [re.split("  +", line)[1:3] for line in lines]
    assert states == [["no more", "revoked"], ["old", "expired"], ["used", "exhausted"], ["open", "open"]]
    rows = run("enroll-tokens", "--limit", "1", "--json", transport=network)
    assert [row["id"] for row in rows.json] == [token_id]
    assert made["no more"] not in rows.out


def test_a_delivery_is_shown_event_by_event(network: InProcess, phone: Phone) -> None:
    request_id = run("ping", phone.device_id, "--json", transport=network).json["request_id"]
    Attempt.objects.create(
        delivery=Delivery.objects.get(),
        number=1,
        outcome="retry_later",
        http_status=503,
        fcm_error="UNAVAILABLE",
        finished_at=Now(),
    )
    phone.report(request_id, "succeeded", message="it rang", via="heartbeat")
    phone.report(request_id, "failed")

    answer = run("delivery", request_id, phone.device_id, transport=network).out
    fields, _, table = answer.partition("\n\n")
    assert re.search(r"^state +succeeded$", fields, re.MULTILINE)
    header, *lines = table.splitlines()
    assert header.split() == ["when", "event", "outcome", "via", "http_status", "latency_ms", "detail"]
    assert all(re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  ", line) for line in lines)
    assert [re.split("  +", line)[1:] for line in lines] == [
        ["issued", "-", "-", "-", "-", "-"],
        ["attempt", "retry_later", "-", "503", "-", "UNAVAILABLE"],
        ["report", "succeeded", "heartbeat", "-", "-", "it rang"],
        ["settled", "succeeded", "-", "-", "-", "-"],
        ["report", "failed", "-", "-", "-", "duplicate"],
    ]
    events = run("delivery", request_id, phone.device_id, "--json", transport=network).json["timeline"]
    assert [event["event"] for event in events] == ["issued", "attempt", "report", "settled", "report"]


def test_a_push_that_its_delivery_did_not_wait_for_is_shown_as_superseded(network: InProcess, admin: Admin) -> None:
    phone = admin.enrol("phone-2", push_token="token-2")
    request_id = run("ping", phone.device_id, "--json", transport=network).json["request_id"]
    phone.report(request_id, "succeeded", via="heartbeat")
    delivery = run("delivery", request_id, phone.device_id, transport=network).out
    command = run("command", request_id, transport=network).out
    assert re.search("^push .*state=superseded", delivery, re.MULTILINE)
    assert re.search("^push .*superseded=1", command, re.MULTILINE)


def test_any_request_is_signed_and_sent(network: InProcess, phone: Phone, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text('{"alias": "Café"}')
    ran = run("call", "patch", f"/admin/devices/{phone.device_id}", "--body", str(body), transport=network)
    assert (ran.status, ran.json["alias"]) == (0, "Café")
    (found,) = run("call", "GET", "/admin/devices?q=Caf%C3%A9&limit=1", transport=network).json["items"]
    assert found["device_id"] == phone.device_id
    assert run("call", "GET", "/admin/nothing", transport=network).status == 1


def test_a_refusal_shows_the_problem_and_is_exit_status_1(network: InProcess) -> None:
    ran = run("ping", UNKNOWN, transport=network)
    assert (ran.status, ran.out) == (1, "")
    assert "422 unknown_devices" in ran.err
    assert f"body: {UNKNOWN} is unknown" in ran.err
    assert "fleet devices" in ran.err


def test_an_unknown_device_is_refused_with_advice(network: InProcess) -> None:
    ran = run("device", UNKNOWN, transport=network)
    assert (ran.status, ran.out) == (1, "")
    assert "fleet devices" in ran.err


def wrongly_signed(network: InProcess, *, at: str) -> httpx.BaseTransport:
    """Return a transport to a server whose Date is this time, and which refuses each timestamp."""

    def spoil(request: httpx.Request) -> httpx.Response:
        request.headers["X-Timestamp"] = "1767225600"
        response = network.handle_request(request)
        response.headers["Date"] = at
        return response

    return httpx.MockTransport(spoil)


@pytest.mark.parametrize("at", ["", "some day"], ids=["by a clock that is right", "by no clock"])
def test_a_bad_signature_shows_what_to_check(network: InProcess, settings: Settings, at: str) -> None:
    ran = run("summary", transport=wrongly_signed(network, at=at or formatdate(usegmt=True)))
    assert ran.status == 1
    assert "HMAC_SECRET" in ran.err
    assert settings.HMAC_SECRETS[0] not in ran.err + ran.out


def test_a_bad_signature_of_a_named_admin_names_its_own_variables(network: InProcess, settings: Settings) -> None:
    settings.NAMED_ADMIN_KEYS, settings.NAMED_HMAC_SECRETS = {"ops1": ["ops1's key"]}, {"ops1": ["ops1's secret"]}
    ran = run("summary", "--as", "ops1", transport=wrongly_signed(network, at=formatdate(usegmt=True)))
    assert ran.status == 1
    assert "Check that ADMIN_KEY_OPS1 and HMAC_SECRET_OPS1 belong to this server." in ran.err


@pytest.mark.parametrize(
    ("name", "said"),
    [("OPS2", "Set ADMIN_KEY_OPS2 and HMAC_SECRET_OPS2"), ("ops-2", "'ops-2' cannot be the name of an admin")],
)
def test_an_admin_without_variables_is_wrong_usage(network: InProcess, name: str, said: str) -> None:
    ran = run("summary", "--as", name, transport=network)
    assert ran.status == 2
    assert said in ran.err
    assert network.seen == []


@pytest.mark.parametrize(("seconds", "how"), [(3600, "60 minutes behind"), (-7200, "120 minutes ahead of")])
def test_a_clock_that_is_wrong_is_named(network: InProcess, seconds: int, how: str) -> None:
    ran = run("summary", transport=wrongly_signed(network, at=formatdate(time.time() + seconds, usegmt=True)))
    assert ran.status == 1
    assert f"clock is {how} the server's" in ran.err


def test_an_answer_429_shows_how_long_to_wait(network: InProcess, settings: Settings) -> None:
    settings.ADMIN_READ_RATE_LIMIT = "1/h"
    run("summary", transport=network)
    ran = run("summary", transport=network)
    assert ran.status == 1
    assert re.search(r"429 rate_limited\): .* Try again in \d+ s\.", ran.err)


def test_a_server_out_of_reach_is_exit_status_3() -> None:
    ran = run("devices", "--url", "http://127.0.0.1:9", transport=failing(httpx.ConnectError))
    assert (ran.status, ran.out) == (3, "")
    assert "http://127.0.0.1:9" in ran.err
    assert "make run" in ran.err
    assert "may have carried out" not in ran.err


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Skip the pauses between repeats, and yield their lengths."""
    slept: list[float] = []
    monkeypatch.setattr("nexmdm.client.http_client.time.sleep", slept.append)
    return slept


def test_a_write_whose_answers_are_all_lost_may_have_been_carried_out(pauses: list[float]) -> None:
    ran = run("enroll-token", transport=failing(httpx.ReadTimeout))
    assert ran.status == 3
    assert "may have carried out" in ran.err
    assert pauses == [0.5, 2.0]


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_command_whose_answer_was_lost_is_sent_again_and_done_once(
    client: Client, phone: Phone, pauses: list[float], how: str, tmp_path: Path
) -> None:
    body = tmp_path / "body.json"
    body.write_text('{"action": "ping", "target": {"all": true}}')
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(20)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        words = ("call", "POST", "/admin/command", "--body", str(body), "--url", url)
        running = pool.submit(run, *words, transport=None)
        first_key = answered(server, client, lose=how)
        second_key = answered(server, client)
        ran = running.result(timeout=20)
    assert ran.status == 0
    assert first_key == second_key
    assert ran.json["request_id"] == str(Command.objects.get().pk)
    assert pauses == [0.5]


def answered(server: socket.socket, client: Client, *, lose: str | None = None) -> str:
    """Pass a request from a socket to the application, and its answer back, or lose the answer. Return its key."""
    connection, _ = server.accept()
    with connection, connection.makefile("rb") as stream:
        method, target, _ = stream.readline().decode().split()
        headers = _headers("".join(iter(lambda: stream.readline().decode().replace("\r\n", "\n"), "\n")))
        answer = client.request(method, target, stream.read(int(headers["Content-Length"])), headers)
        assert answer.status == 200
        if lose == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif lose is None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer.body) + answer.body)
    return headers["Idempotency-Key"]


@pytest.mark.parametrize(
    ("status", "code", "exit_status"),
    [(409, "idempotency_in_flight", 3), (429, "rate_limited", 3), (503, "overloaded", 3), (422, "invalid_request", 1)],
)
def test_only_a_final_refusal_ends_the_repeats(pauses: list[float], status: int, code: str, exit_status: int) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"items": [], "next_cursor": None})
        seen.append(request.headers["Idempotency-Key"])
        if len(seen) == 1:
            raise httpx.ReadError("Connection reset", request=request)
        return httpx.Response(status, json={"code": code, "detail": "…"})

    assert run("ping", "all", transport=httpx.MockTransport(answer)).status == exit_status
    assert len(set(seen)) == 1
    assert len(seen) == (3 if exit_status == 3 else 2)


def test_another_server_at_the_address_is_exit_status_1() -> None:
    other_server = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>\x1b[2J"))
    ran = run("summary", transport=other_server)
    assert ran.status == 1
    assert "The server does not look like NexMDM. The server answered 200: <html>" in ran.err
    assert "Is http://127.0.0.1:8000 the address of a NexMDM server?" in ran.err
    assert "Refused" not in ran.err
    assert "\x1b" not in ran.err


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("devices", {"items": [{"x": 1}], "next_cursor": None}),
        ("devices", {"items": []}),
        ("devices", {"items": 5, "next_cursor": None}),
        ("commands", {"items": ["x"], "next_cursor": None}),
        ("enroll-tokens", {"items": [{"revoked_at": None, "expires_at": "soon"}], "next_cursor": None}),
        ("enroll-token", {"code": 1}),
        ("ping all", {"x": 1}),
    ],
)
def test_json_of_another_server_is_exit_status_1(verb: str, said: Any) -> None:
    other_server = httpx.MockTransport(lambda _: httpx.Response(200, json=said))
    ran = run(*verb.split(), transport=other_server)
    assert ran.status == 1
    assert "does not look like NexMDM" in ran.err


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(400, json={"code": 5, "detail": ["x"]}),
        httpx.Response(400, json={"code": "x", "detail": "x", "errors": [5]}),
        httpx.Response(400, json={"code": "x", "detail": "x", "errors": "xyz"}),
        httpx.Response(429, json={"code": "x", "detail": "x"}, headers={"Retry-After": "9" * 5000}),
        httpx.Response(400, json={"code": "x", "detail": "x"}, headers={"Date": "Fri, 31 Dec 9999 23:59:59 -2359"}),
        httpx.Response(200, text="[" * 200_000),
    ],
)
def test_a_refusal_of_another_server_is_exit_status_1(answer: httpx.Response) -> None:
    ran = run("summary", transport=httpx.MockTransport(lambda _: answer))
    assert (ran.status, ran.out) == (1, "")
    assert ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("devices", "--q", "\udcff"), "UTF-8"), (("devices", "--q", "x" * 70_000), "too long")],
)
def test_a_text_that_cannot_be_part_of_a_url_is_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    ran = run(*arguments, transport=failing(httpx.ConnectError))
    assert ran.status == 2
    assert said in ran.err


def test_an_ascii_terminal_shows_a_replacement_for_other_letters(network: InProcess, admin: Admin) -> None:
    admin.enrol("phone-1", alias="lobby ✓")
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    run("devices", transport=network, out=screen)
    screen.seek(0)
    assert "lobby ?" in screen.read()


def test_a_reader_that_has_read_enough_is_not_an_error(network: InProcess) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone:  # noqa: PTH123
        ran = run("summary", transport=network, out=gone)
    assert (ran.status, ran.err) == (141, "")


def test_an_answer_that_cannot_be_written_is_exit_status_1(network: InProcess) -> None:
    with Path("/dev/full").open("w") as full:
        ran = run("summary", transport=network, out=full)
    assert (ran.status, ran.err) == (1, "The answer could not be written: No space left on device\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("ping",),
        ("ping", ""),
        ("ping", "all,front-desk"),
        ("send", "ring", "all", "--param", "duration_seconds"),
        ("devices", "--limit", "0"),
        ("devices", "--not-seen-for", "long"),
        ("devices", "--push", "live"),
        ("audit", "--since", "some day"),
        ("commands", "--since", "999999d"),
        ("ping", "alias:"),
        ("send", "lock", "all", "--dry-run", "--wait"),
        ("send", "lock", "all", "--dry-run", "--timeout", "30s"),
        ("sign", "GET", "/admin/summary", "--url", "http://127.0.0.1:8000/prefix"),
        ("devices", "--url", "mdm.example.com"),
        ("enroll-token", "--expires-in", "soon"),
        ("sign", "GET", "admin/devices"),
        ("change", UNKNOWN),
        ("change", UNKNOWN, "--alias", "desk", "--no-alias"),
        ("tag", "lobby"),
        ("tag", "no tag", "--add", UNKNOWN),
        ("sign", "POST", "/admin/command", "--body", "/nowhere/body.json"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_sent(arguments: tuple[str, ...]) -> None:
    assert run(*arguments, transport=failing(httpx.ConnectError)).status == 2


@pytest.mark.parametrize("target", ["/admin/devices", "/admin/devices?limit=5&q=caf%C3%A9", "/admin/devices?"])
def test_the_server_accepts_the_headers_that_sign_prints(network: InProcess, target: str) -> None:
    headers = _headers(run("sign", "get", target, transport=network).out)
    assert network.client.request("GET", target, None, headers).status == 200
    assert network.seen == []


def test_sign_covers_a_body_and_gives_an_idempotency_key(network: InProcess, tmp_path: Path) -> None:
    body = b'{"label": "Caf\xc3\xa9"}'
    file = tmp_path / "body.json"
    file.write_bytes(body)
    ran = run("sign", "POST", "/admin/enrollment-tokens", "--body", str(file), transport=network)
    headers = _headers(ran.out)
    assert list(headers) == ["X-Admin", "X-Timestamp", "X-Signature", "Idempotency-Key", "Content-Type"]
    assert network.client.request("POST", "/admin/enrollment-tokens", body, headers).status == 200
    assert EnrollmentToken.objects.get().label == "Café"


def _headers(out: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in out.splitlines())


def test_sign_prints_headers_as_json(network: InProcess) -> None:
    headers = run("sign", "GET", "/admin/devices", "--json", transport=network).json
    assert network.client.request("GET", "/admin/devices", None, headers).status == 200


def test_sign_prints_a_whole_curl_command_for_an_address(network: InProcess, tmp_path: Path) -> None:
    file = tmp_path / "it's a body.json"
    file.write_bytes(b"{}")
    arguments = ("post", "/admin/enrollment-tokens", "--body", str(file), "--url", "http://127.0.0.1:8000/")
    program, *words = shlex.split(run("sign", *arguments, transport=network).out)
    assert (program, words[:4]) == ("curl", ["--silent", "--show-error", "--globoff", "--path-as-is"])
    assert words[4:7] == ["--request", "POST", "http://127.0.0.1:8000/admin/enrollment-tokens"]
    headers = _headers("\n".join(value for option, value in pairwise(words) if option == "--header"))
    assert words[-2:] == ["--data-binary", f"@{file}"]
    assert network.client.request("POST", "/admin/enrollment-tokens", b"{}", headers).status == 200


def test_an_address_before_the_verb_makes_a_curl_command_too(network: InProcess) -> None:
    ran = run("--url", "http://127.0.0.1:8000", "sign", "GET", "/admin/summary", transport=network)
    assert ran.out.startswith("curl ")


ELSEWHERE: Final = "https://mdm.example.com"


@pytest.mark.parametrize("verb", [("summary",), ("sign", "GET", "/admin/summary")])
@pytest.mark.parametrize("missing", ["ADMIN_KEY", "HMAC_SECRET"])
def test_another_server_gets_no_signature_with_the_secrets_of_this_one(
    network: InProcess, monkeypatch: pytest.MonkeyPatch, missing: str, verb: tuple[str, ...]
) -> None:
    for name in {"ADMIN_KEY", "HMAC_SECRET"} - {missing}:
        monkeypatch.setenv(name, "x" * 40)
    monkeypatch.delenv(missing, raising=False)
    ran = run(*verb, "--url", ELSEWHERE, transport=network)
    assert ran.status == 2
    assert re.search(f"Set ADMIN_KEY and HMAC_SECRET .* \\(not set: {missing}\\)", ran.err)
    assert network.seen == []


@pytest.fixture
def with_secrets(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """Put the secrets into the environment."""
    monkeypatch.setenv("ADMIN_KEY", settings.ADMIN_KEYS[0])
    monkeypatch.setenv("HMAC_SECRET", settings.HMAC_SECRETS[0])


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        (ELSEWHERE, False),
        ("http://mdm.example.com", True),
        ("http://127.0.0.1.example.com", True),
        ("http://localhost:8000", False),
        ("http://127.0.0.53:8000", False),
        ("http://[::1]:8000", False),
    ],
)
def test_an_unencrypted_call_gets_a_warning(
    network: InProcess, settings: Settings, with_secrets: None, url: str, warned: bool
) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    ran = run("summary", "--json", "--url", url, transport=network)
    assert (ran.status, ran.json["open_deliveries"]) == (0, 0)
    assert ("are sent unencrypted" in ran.err) is warned


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://192.0.2.7:8000/"])
def test_the_server_of_this_machine_has_its_own_secrets(
    network: InProcess, settings: Settings, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    settings.HOST, settings.ALLOWED_HOSTS = "192.0.2.7", ["*"]
    for name in ("ADMIN_KEY", "HMAC_SECRET"):
        monkeypatch.delenv(name, raising=False)
    assert run("summary", "--url", url, transport=network).status == 0


@pytest.mark.parametrize("key", ["too-short-for-a-key", f"{'x' * 40}\n{'y' * 40}"])
def test_invalid_secrets_are_exit_status_2(key: str) -> None:
    ran = processes.run("manage.py", "fleet", "summary", "--url", ELSEWHERE, ADMIN_KEY=key)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(r"\(nexmdm\.E00\d\) ADMIN_KEY .*\n", ran.stderr)


def test_the_address_is_that_of_the_settings(network: InProcess, settings: Settings) -> None:
    settings.HOST, settings.PORT, settings.ALLOWED_HOSTS = "0.0.0.0", 8123, ["mdm.example.com"]  # noqa: S104
    assert run("summary", transport=network).status == 0
    (request,) = network.seen
    assert (str(request.url), request.headers["Host"]) == ("http://127.0.0.1:8123/admin/summary", "mdm.example.com")


PAGE: Final = Path(__file__).parent.parent.parent / "docs" / "operations" / "fleet.md"


def test_every_example_of_the_page_works_and_every_verb_is_on_the_page(
    network: InProcess, admin: Admin, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.NAMED_ADMIN_KEYS, settings.NAMED_HMAC_SECRETS = {"ops1": ["ops1's key"]}, {"ops1": ["ops1's secret"]}
    settings.ALLOWED_HOSTS = ["*"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for number in range(3, 7):
        admin.enrol(f"phone-{number}", alias=f"tab-{number:02}")
    request_id = run("ping", "all", "--json", transport=network).json["request_id"]
    token_id = str(EnrollmentToken.objects.earliest("created_at").pk)
    ids = {"$COMMAND": request_id, "$TOKEN": token_id}
    program = r"^(?:\.venv/bin/python manage\.py fleet|nexmdm)"
    lines = re.findall(rf"{program} (.*?)(?: +#.*)?$", PAGE.read_text(), re.MULTILINE)
    for line in lines:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{settings.ADMIN_KEYS[0]}\n{settings.HMAC_SECRETS[0]}\n"))
        words = [ids.get(word, word) for word in shlex.split(line)]
        ran = run(*words, transport=network)
        assert (line, ran.status, ran.err if ran.status else "") == (line, 0, "")
    assert {line.partition(" ")[0] for line in lines} == set(VERBS)


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """Return True, as a terminal does."""
        return True


@pytest.mark.parametrize(("channel", "shown"), [(os.openpty, True), (os.pipe, False)])
def test_waiting_shows_progress_on_a_terminal_and_nothing_in_a_pipe(
    network: InProcess,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
    channel: Callable[[], tuple[int, int]],
    shown: bool,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    network.after = reporting([admin.enrol("phone-1"), admin.enrol("phone-2")], "succeeded")
    reading, writing = channel()
    with open(reading, "rb", buffering=0) as seen, open(writing, "w") as standard_error:  # noqa: PTH123
        ran = run("ping", "all", "--wait", transport=network, err=standard_error)
        standard_error.flush()
        os.set_blocking(reading, False)
        progress = (seen.read(65536) or b"").decode()
    assert ran.status == 0
    assert ("2/2" in progress and "2 succeeded" in progress) is shown
    assert ("\x1b" in progress) is shown
    assert "2/2" not in ran.out + ran.err


ROW: Final = {
    "device_id": UNKNOWN,
    "state": "failed",
    "alias": "[bold]x",
    "last_seen_at": "2026-01-01T00:00:00.123456Z",
    "reason": "word " * 40,
}


def on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch, form: Format = "table") -> str:
    """Return a row as a terminal of this width shows it."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Screen()
    Terminal(out, out, form).table(Columns(tuple(ROW)), [ROW])
    return out.getvalue()


def test_rows_are_framed_and_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_a_terminal(120, monkeypatch)
    assert UNKNOWN in shown
    assert "\x1b[31mfailed" in shown
    assert "[bold]x" in shown
    assert "2026-01-01T00:00:00Z" in shown
    assert "─" in shown


@pytest.mark.parametrize("width", [100, 99, 98, 77, 54, 53, 36, 20])
def test_a_narrow_terminal_shows_the_first_columns_whole_and_names_the_others(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    shown = re.sub(r"\x1b\[[\d;]*m", "", on_a_terminal(width, monkeypatch))
    table, _, hint = shown.partition("The terminal is too narrow for these columns: ")
    left_out = hint.partition(". ")[0].split(", ") if hint else []
    headings, _, first, *_ = table.splitlines()
    assert all(len(line) <= max(width, len(UNKNOWN)) for line in table.splitlines())
    assert headings.split() + left_out == list(ROW)
    whole = [value.replace(".123456", "") for name, value in ROW.items() if name not in {*left_out, *FREE_TEXT}]
    assert first.split()[: len(whole)] == whole


def test_a_wide_table_has_all_columns_each_on_one_line_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = re.sub(r"\x1b\[[\d;]*m", "", on_a_terminal(40, monkeypatch, "wide"))
    assert len(shown.splitlines()) == 3
    assert shown.splitlines()[0].split() == list(ROW)
    assert "too narrow" not in shown


def test_an_id_in_a_free_text_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    screen = Screen()
    Terminal(screen, screen).table(Columns(("state", "target")), [{"state": "x", "target": f"device_ids: {UNKNOWN}"}])
    assert UNKNOWN in screen.getvalue()


def test_the_empty_fields_of_a_field_are_left_out(network: InProcess, phone: Phone) -> None:
    request_id = run("ping", "all", "--json", transport=network).json["request_id"]
    assert "state=no_push_token, attempts=0 " in run("command", request_id, "-o", "wide", transport=network).out
