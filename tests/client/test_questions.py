"""Questions and messages before a command is sent: the number of devices, and the number of silent devices."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from commands.models import Command, Delivery
from devices.models import Device
from tests.support.actors import Admin, Answer, Client, Phone
from tests.support.fleet_command import InProcess, Ran, run
from tests.support.moments import let_pass


class Terminal(io.StringIO):
    """The input or output of a terminal."""

    def isatty(self) -> bool:
        """Return True, as a terminal does."""
        return True


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    return InProcess(client)


@pytest.fixture
def fleet(admin: Admin) -> list[Phone]:
    return [admin.enrol(f"phone-{number}", alias=f"tab-{number}") for number in range(3)]


Typed = Callable[..., tuple[Ran, str]]


@pytest.fixture
def typed(network: InProcess, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Run a command on a terminal on which a person types a line. Return its result and its question."""

    def type_(line: str, *arguments: str) -> tuple[Ran, str]:
        monkeypatch.setattr("sys.stdin", Terminal(f"{line}\n"))
        asked = Terminal()
        ran = run(*arguments, "--json", transport=network, err=asked)
        return ran, asked.getvalue()

    return type_


SEVERAL: list[tuple[str, ...]] = [("send", "reboot", "all"), ("send", "lock", "tab-0,tab-1,tab-2")]


@pytest.mark.parametrize("words", SEVERAL)
def test_reboot_and_lock_of_several_devices_ask_for_their_number(
    fleet: list[Phone], typed: Typed, words: tuple[str, ...]
) -> None:
    ran, asked = typed("3", *words)
    assert f"{words[1]} 3 devices: " in asked
    assert all(f"tab-{number}" in asked for number in range(3))
    assert asked.endswith("Type 3 to confirm: ")
    assert (ran.status, ran.json["device_count"]) == (0, 3)


@pytest.mark.parametrize("line", ["", "y", "2", "yes", "33"])
@pytest.mark.parametrize("words", [*SEVERAL, ("send", "wipe", "tab-1"), ("lost", "tab-1")])
def test_any_other_answer_sends_nothing(fleet: list[Phone], typed: Typed, words: tuple[str, ...], line: str) -> None:
    ran, asked = typed(line, *words)
    assert (ran.status, ran.out) == (1, "")
    assert "Not confirmed: nothing was done." in asked
    assert not Command.objects.exists()


@pytest.mark.parametrize("words", [*SEVERAL, ("send", "wipe", "tab-1"), ("lost", "tab-1")])
def test_without_a_terminal_a_question_is_refused_and_yes_answers_it(
    network: InProcess, fleet: list[Phone], words: tuple[str, ...]
) -> None:
    ran = run(*words, transport=network)
    assert (ran.status, ran.out) == (2, "")
    assert "Not done, because it is not confirmed: " in ran.err
    assert ran.err.endswith("add --yes.\n")
    assert not Command.objects.exists()
    assert run(*words, "--yes", transport=network).status == 0
    assert Command.objects.exists()


@pytest.mark.parametrize("verb", ["revoke", "retire"])
def test_revoke_and_retire_ask_for_confirmation_and_show_what_they_withdraw(
    network: InProcess, fleet: list[Phone], typed: Typed, verb: str
) -> None:
    assert run(verb, "tab-1", transport=network).status == 2
    refused, _ = typed("no", verb, "tab-1")
    assert refused.status == 1
    assert not Device.objects.filter(revoked_at__isnull=False).exists()
    ran, asked = typed("1", verb, "tab-1")
    assert (ran.status, f"{verb} 1 device: tab-1. Type 1 to confirm: " in asked) == (0, True)
    assert ("and cannot be wiped. For a lost phone, see `manage.py fleet lost --help`" in asked) is (verb == "revoke")


@pytest.mark.parametrize(
    "words", [("send", "reboot", "tab-1"), ("send", "lock", "tag:none,tag:lobby"), ("ping", "all")]
)
def test_one_device_and_harmless_actions_ask_nothing(
    network: InProcess, fleet: list[Phone], words: tuple[str, ...]
) -> None:
    run("tag", "lobby", "--add", "tab-2", transport=network)
    assert run(*words, transport=network).status == 0


def test_a_number_that_changes_after_the_confirmation_sends_nothing(
    network: InProcess, admin: Admin, fleet: list[Phone], typed: Typed
) -> None:
    def enrol_another(request: httpx.Request, answer: Answer) -> None:
        if b"dry_run" in request.content and Device.objects.count() == len(fleet):
            admin.enrol("phone-4")

    network.after = enrol_another
    ran, asked = typed("3", "send", "reboot", "all")
    assert ran.status == 1
    assert "409 audience_changed" in asked
    assert not Command.objects.exists()


def test_yes_answers_for_several_devices_and_their_number_goes_into_the_request(
    network: InProcess, fleet: list[Phone]
) -> None:
    def count_of_the_last() -> int:
        return int(json.loads(network.seen[-1].content)["expect_count"])

    assert run("send", "wipe", "tab-0,tab-2", "--yes", transport=network).status == 0
    assert count_of_the_last() == 2
    assert run("send", "reboot", "all", "--yes", transport=network).status == 0
    assert count_of_the_last() == len(fleet)
    assert run("send", "wipe", "tab-0,tab-2", "--dry-run", transport=network).status == 0
    assert Command.objects.count() == 2


def test_an_expected_count_of_the_person_counts_even_with_yes(network: InProcess, fleet: list[Phone]) -> None:
    ran = run("send", "wipe", "tab-0,tab-2", "--yes", "--expect-count", "3", transport=network)
    assert (ran.status, "409 audience_changed" in ran.err) == (1, True)
    assert not Command.objects.exists()


def test_a_tag_written_as_a_name_is_pointed_out(network: InProcess, fleet: list[Phone]) -> None:
    run("tag", "floor-2", "--add", "tab-2", transport=network)
    ran = run("send", "reboot", "floor-2", transport=network)
    assert ran.status == 1
    assert ran.err.endswith("There is a tag with this name. To use the tag, write tag:floor-2.\n")


def test_the_output_of_a_sent_command_shows_how_to_follow_it(network: InProcess, fleet: list[Phone]) -> None:
    assert (
        run("ping", "tab-0", transport=network).err
        == "To follow the command: `manage.py fleet command @last --wait`.\n"
    )
    assert run("ping", "tab-0", "--json", transport=network).err == ""


def test_a_wipe_of_several_devices_is_confirmed_by_their_number_alone(fleet: list[Phone], typed: Typed) -> None:
    ran, asked = typed("2", "send", "wipe", "tab-0,tab-2")
    assert "wipe 2 devices: tab-0, tab-2. Type 2 to confirm: " in asked
    assert (ran.status, ran.json["device_count"]) == (0, 2)


def test_the_question_names_a_few_of_many_devices(network: InProcess, admin: Admin, typed: Typed) -> None:
    for number in range(9):
        admin.enrol(f"phone-{number}", alias=f"tab-{number}")
    run("retire", "tab-8", "--yes", transport=network)
    _, asked = typed("8", "send", "reboot", "all")
    assert "reboot 8 devices: tab-7, tab-6, tab-5, tab-4, …. Type 8" in asked


def test_a_wipe_is_sent_to_an_alias(network: InProcess, fleet: list[Phone]) -> None:
    ran = run("send", "wipe", "tab-1", "--yes", "--json", transport=network)
    assert ran.status == 0
    assert str(Delivery.objects.get().device_id) == fleet[1].device_id
    assert Command.objects.get().target == {"device_ids": [fleet[1].device_id]}


def test_lost_locks_then_wipes_and_the_success_of_the_wipe_retires(network: InProcess, fleet: list[Phone]) -> None:
    ran = run("lost", "tab-1", "--yes", "--note", "left on a bus", transport=network)
    lock, wipe = Command.objects.order_by("pk")
    assert (lock.action, wipe.action, lock.note, wipe.note) == ("lock", "wipe", "left on a bus", "left on a bus")
    assert ran.out == f"Sent lock {lock.pk}.\nSent wipe {wipe.pk}.\n"
    assert "tab-1 (last seen: never) has until" in ran.err
    assert "When the phone reports that the wipe succeeded, the server retires the device." in ran.err
    assert f"To follow the command: `manage.py fleet command {wipe.pk} --wait`." in ran.err
    fleet[1].report(str(wipe.pk), "succeeded")
    assert Device.objects.get(pk=fleet[1].device_id).retired_at is not None
    assert run("command", "@last", "--wait", "--json", transport=network).json["outcome"] == "succeeded"


def test_the_alias_of_a_lost_phone_is_the_note_of_its_commands(network: InProcess, fleet: list[Phone]) -> None:
    ran = run("lost", "tab-1", "--yes", transport=network)
    assert [one.note for one in Command.objects.all()] == ["lost: tab-1", "lost: tab-1"]
    assert f"The device then has no alias, but keeps its hardware id: {fleet[1].hardware_id}." in ran.err


def test_lost_waits_for_the_wipe(network: InProcess, fleet: list[Phone]) -> None:
    def report(request: httpx.Request, answer: Answer) -> None:
        if request.url.path == "/admin/command" and answer.json["action"] == "wipe" and answer.json["request_id"]:
            fleet[1].report(answer.json["request_id"], "succeeded")

    network.after = report
    ran = run("lost", "tab-1", "--yes", "--wait", "--json", transport=network)
    assert (ran.status, ran.json["action"], ran.json["outcome"]) == (0, "wipe", "succeeded")


def test_lost_is_refused_as_a_whole_for_a_revoked_device_and_shows_how_to_continue(
    network: InProcess, fleet: list[Phone]
) -> None:
    run("revoke", "tab-1", "--yes", transport=network)
    ran = run("lost", "tab-1", "--yes", transport=network)
    assert ran.status == 1
    assert f"{fleet[1].device_id} is revoked" in ran.err
    assert "A revoked device gets commands after `manage.py fleet reinstate`." in ran.err
    assert not Command.objects.exists()


@pytest.mark.parametrize("target", ["all", "tag:lobby", "tab-0,tab-1,tab-2"])
def test_devices_that_are_silent_for_longer_than_the_command_lives_are_counted_before_it(
    network: InProcess, fleet: list[Phone], target: str
) -> None:
    run("tag", "lobby", "--add", "tab-0", "tab-1", "tab-2", transport=network)
    fleet[0].heartbeat()
    let_pass(minutes=30)
    fleet[1].heartbeat()
    said = run("ping", target, transport=network).err
    assert "2 of 3 devices were last seen more than 10 min ago, or never. The command expires in 10 min." in said
    assert "last seen" not in run("send", "reboot", target, "--yes", transport=network).err
    assert "expires in 2 min" in run("send", "ping", target, "--expires-in", "2m", transport=network).err


def test_only_a_page_of_very_many_silent_devices_is_counted(
    network: InProcess, fleet: list[Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.client.verbs.audience.PAGE", 2)
    let_pass(hours=1)
    assert "2 or more of 3 devices were last seen" in run("ping", "all", transport=network).err


def test_a_device_named_by_its_id_is_checked_too_and_revoked_devices_do_not_count(
    network: InProcess, fleet: list[Phone]
) -> None:
    run("revoke", "tab-2", "--yes", transport=network)
    let_pass(hours=2)
    assert "1 of 1 devices was last seen" in run("ping", fleet[0].device_id, transport=network).err
    assert (
        "2 of 2 devices were last seen more than 1 h ago"
        in run("send", "reboot", "all", "--yes", transport=network).err
    )


def test_named_devices_that_are_offline_are_pointed_out(network: InProcess, fleet: list[Phone]) -> None:
    for phone in fleet:
        phone.heartbeat()
    assert "offline" not in run("ping", "tab-0", transport=network).err
    let_pass(minutes=8)
    seen = run("device", "tab-0", transport=network).out.partition("last_seen_at")[2].split()[0]
    back = "A command reaches a phone only if the phone is online again within 10 min.\n"
    for name in ("tab-0", fleet[0].device_id):
        assert f"tab-0 is offline (last seen: {seen}). {back}" in run("ping", name, transport=network).err
    fleet[1].heartbeat()
    assert f"2 of 3 devices are offline. {back}" in run("ping", "tab-0,tab-1,tab-2", transport=network).err
    lost = run("lost", "tab-0", "--yes", transport=network).err
    assert (
        f"tab-0 is offline (last seen: {seen}). "
        "A command reaches a phone only if the phone is online again within 28 d." in lost
    )
    let_pass(days=29)
    assert "1 of 1 devices was last seen more than 28 d ago" in run("lost", "tab-0", "--yes", transport=network).err


def test_devices_without_the_command_and_the_reasons_are_in_the_table_and_in_csv(
    network: InProcess, fleet: list[Phone], tmp_path: Path
) -> None:
    request_id = run("ping", "all", "--json", transport=network).json["request_id"]
    fleet[0].report(request_id, "succeeded", message="done")
    fleet[1].report(request_id, "failed", message="no, never")
    let_pass(hours=1)
    table = run("command", request_id, "--not-succeeded", transport=network).out.partition("\n\n")[2].splitlines()
    assert table[0].split() == ["device_id", "alias", "state", "reason", "delivered_via"]
    assert [line.split()[1:3] for line in table[1:]] == [["tab-1", "failed"], ["tab-2", "expired"]]
    assert "no, never" in table[1]
    assert "never" in table[2]
    lines = run("command", request_id, "--not-succeeded", "-o", "csv", transport=network).out.splitlines()
    assert lines[0].startswith("device_id,alias,state,reason,delivered_via,")
    assert lines[1].startswith(f'{fleet[1].device_id},tab-1,failed,"no, never",')
    assert lines[2].startswith(f"{fleet[2].device_id},tab-2,expired,")
    assert len(lines) == 3
    one = run("command", request_id, "--not-succeeded", "-o", "csv", "--limit", "1", transport=network)
    assert one.out.splitlines() == lines[:2]
    assert (
        f"These are 1 of 2 deliveries. Failures come first. `manage.py fleet command {request_id} --limit 2`" in one.err
    )
