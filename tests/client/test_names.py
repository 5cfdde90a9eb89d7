"""Names of devices and commands: alias, hardware id, the start of an id, @last."""

import io
from pathlib import Path

import pytest

from commands.models import Command, Delivery
from devices.models import Device, EnrollmentToken
from tests.support.actors import Admin, Client, Phone
from tests.support.fleet_command import InProcess, run
from tests.support.moments import let_pass


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the client keeps the last names of this test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    return InProcess(client)


@pytest.fixture
def tablet(admin: Admin) -> Phone:
    admin.enrol("HW-0001", alias="tab-30")
    return admin.enrol("HW-0003", alias="tab-03")


@pytest.mark.parametrize("name", ["tab-03", "TAB-03", "HW-0003", "hw-0003", "alias:Tab-03"])
def test_a_device_is_named_by_alias_or_hardware_id(network: InProcess, tablet: Phone, name: str) -> None:
    assert run("device", name, "--json", transport=network).json["device_id"] == tablet.device_id


def test_every_verb_takes_a_name(network: InProcess, tablet: Phone) -> None:
    request_id = run("ping", "tab-03", "--json", transport=network).json["request_id"]
    for words in (
        ("commands", "--device", "tab-03"), ("audit", "--device", "tab-03"), ("audit", "--command", "@last"),
        ("delivery", "@last", "tab-03"), ("command", request_id[:-3]), ("cancel", "@last"),
        ("change", "tab-03", "--tag", "lobby"), ("tag", "floor-1", "--add", "tab-03", "hw-0001", "--remove", "tab-30"),
        ("revoke", "tab-03", "--yes"), ("reinstate", "tab-03"), ("retire", "tab-03", "--yes"),
    ):  # fmt: skip
        assert (words, run(*words, transport=network).status) == (words, 0)
    assert Device.objects.get(hardware_id="HW-0003").tags == ["lobby", "floor-1"]
    assert Device.objects.get(hardware_id="HW-0001").tags == []


def test_an_exact_name_has_priority_over_all_others(network: InProcess, admin: Admin) -> None:
    exact = admin.enrol("one", alias="abcd")
    admin.enrol("abcd", alias="other")
    admin.enrol("abcde", alias="abcdef")
    assert run("device", "abcd", "--json", transport=network).json["device_id"] == exact.device_id


def test_the_exact_alias_is_chosen_of_two_that_differ_in_case(network: InProcess, tablet: Phone) -> None:
    Device.objects.filter(hardware_id="HW-0001").update(alias="TAB-03")
    assert run("device", "TAB-03", "--json", transport=network).json["hardware_id"] == "HW-0001"
    assert run("device", "tab-03", "--json", transport=network).json["hardware_id"] == "HW-0003"
    assert "2 devices have the name 'Tab-03':" in run("device", "Tab-03", transport=network).err


def test_the_start_of_an_id_is_enough_if_it_is_unique(network: InProcess, tablet: Phone) -> None:
    starts = (tablet.device_id[:-1], tablet.device_id.replace("-", "")[:-1])
    for start in starts:
        assert run("device", start, "--json", transport=network).json["device_id"] == tablet.device_id


def test_an_ambiguous_start_lists_the_devices_and_nothing_is_sent(network: InProcess, tablet: Phone) -> None:
    ran = run("ping", tablet.device_id[:6], transport=network)
    assert ran.status == 1
    assert f"2 devices have the name '{tablet.device_id[:6]}':" in ran.err
    assert "tab-03  HW-0003" in ran.err
    assert "tab-30  HW-0001" in ran.err
    assert not Command.objects.exists()


def test_an_unknown_name_is_answered_with_names_that_look_like_it(network: InProcess, tablet: Phone) -> None:
    ran = run("revoke", "tba-03", "--yes", transport=network)
    assert (ran.status, ran.out) == (1, "")
    assert "No device has the alias, hardware id or id 'tba-03'. Did you mean tab-03" in ran.err
    part = run("device", "hw", transport=network)
    assert "Devices with this text in their names:" in part.err
    assert "tab-30  HW-0001" in part.err


def test_another_number_of_the_same_series_is_no_suggestion(network: InProcess, tablet: Phone) -> None:
    unknown = run("device", "tab-04", transport=network)
    assert unknown.err == "No device has the alias, hardware id or id 'tab-04'.\n"
    assert "Did you mean tab-03?" in run("device", "tab-3", transport=network).err
    assert "Did you mean" not in run("device", "tablet", transport=network).err


def test_the_alias_of_a_wiped_phone_names_its_id(network: InProcess, tablet: Phone) -> None:
    run("lost", "tab-03", "--yes", transport=network)
    tablet.report(str(Command.objects.get(action="wipe").pk), "succeeded")
    ran = run("device", "TAB-03", transport=network)
    assert ran.status == 1
    assert "The phone with this alias was lost, and a wipe was sent on 20" in ran.err
    assert f"Write the id of the device: {tablet.device_id}." in ran.err
    assert run("device", tablet.device_id, "--json", transport=network).json["presence"] == "retired"


def test_a_part_of_an_alias_is_not_a_name(network: InProcess, admin: Admin) -> None:
    admin.enrol("one", alias="front desk")
    assert run("send", "wipe", "desk", "--yes", transport=network).status == 1
    assert not Command.objects.exists()


def test_last_is_the_device_and_the_command_that_were_named_last(network: InProcess, tablet: Phone) -> None:
    first = run("device", "@last", transport=network)
    advice = "There is no last device yet. Write the id of a device instead of @last."
    assert (first.status, advice in first.err) == (1, True)
    request_id = run("ping", "tab-03", "--json", transport=network).json["request_id"]
    assert run("device", "@last", "--json", transport=network).json["device_id"] == tablet.device_id
    assert run("command", "@last", "--json", transport=network).json["request_id"] == request_id
    assert run("ping", "all", "--json", transport=network).json["request_id"] != request_id
    assert run("command", "@last", "--json", transport=network).json["device_count"] == 2


class Ended(io.StringIO):
    """The output of a program whose reader has ended."""

    def __init__(self, spare: int) -> None:
        super().__init__()
        self._spare = spare

    def write(self, _: str) -> int:
        """Fail."""
        raise BrokenPipeError

    def fileno(self) -> int:
        """Return a descriptor that may be replaced."""
        return self._spare


@pytest.mark.parametrize("verb", ["ping", "lost"])
def test_last_is_the_command_that_was_sent_even_if_the_reader_of_the_output_has_ended(
    network: InProcess, admin: Admin, tablet: Phone, tmp_path: Path, verb: str
) -> None:
    run("ping", "tab-03", transport=network)
    with (tmp_path / "out").open("w") as file:
        run(verb, "tab-03", "--yes", transport=network, out=Ended(file.fileno()))
    newest = admin.get("/admin/commands").json["items"][0]
    assert newest["action"] == {"ping": "ping", "lost": "wipe"}[verb]
    assert run("command", "@last", "--json", transport=network).json["request_id"] == newest["request_id"]


def test_a_name_that_was_refused_is_not_the_last(network: InProcess, tablet: Phone) -> None:
    run("device", "tab-03", transport=network)
    run("device", "0192f0c1-b000-7abc-8def-0123456789ab", transport=network)
    assert run("device", "@last", "--json", transport=network).json["device_id"] == tablet.device_id


def test_last_counts_for_its_own_server_only(network: InProcess, tablet: Phone) -> None:
    run("device", "tab-03", transport=network)
    elsewhere = run("device", "@last", "--url", "http://127.0.0.1:9000", transport=network)
    assert "There is no last device yet" in elsewhere.err


def test_a_client_that_cannot_store_names_works(
    network: InProcess, tablet: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert run("device", "tab-03", transport=network).status == 0


def test_the_start_of_a_commands_id_is_found_among_many_or_lists_them(network: InProcess, tablet: Phone) -> None:
    ids = [run("ping", "tab-03", "--json", transport=network).json["request_id"] for _ in range(3)]
    let_pass(hours=30)
    for request_id in ids:
        found = run("command", request_id[:-2].upper(), "--json", transport=network)
        assert (found.status, found.json["request_id"]) == (0, request_id)
    several = run("cancel", ids[0][:6], transport=network)
    assert (several.status, f"3 ids of commands begin with '{ids[0][:6]}'" in several.err) == (1, True)
    assert ids[2] in several.err
    none = run("cancel", "0000", transport=network)
    assert "No command has an id that begins with '0000'." in none.err
    assert "is not an id of a command" in run("cancel", "tab-03", transport=network).err


def test_several_devices_are_named_with_commas_each_in_its_own_way(network: InProcess, tablet: Phone) -> None:
    target = f"tab-30,{tablet.device_id},hw-0003"
    assert run("ping", target, "--json", transport=network).json["device_count"] == 2
    assert Delivery.objects.count() == 2


def test_a_misspelled_tag_is_answered_with_those_that_look_like_it(network: InProcess, admin: Admin) -> None:
    Phone(network.client, "one").register(admin.enrollment_token(tags=["floor-1"]))
    sent = run("ping", "tag:flor-1", transport=network)
    assert "No active device has the tag flor-1. Did you mean floor-1?" in sent.err
    listed = run("devices", "--tag", "floor1", transport=network)
    assert listed.err == "No device matches --tag floor1.\nDid you mean floor-1?\n"


def test_a_misspelled_action_and_verb_are_answered_with_those_that_look_like_them(
    network: InProcess, tablet: Phone
) -> None:
    assert "Did you mean ring?" in run("send", "rign", "tab-03", transport=network).err
    verb = run("devcies", transport=network)
    assert verb.status == 2
    assert "devices" in verb.err


@pytest.mark.parametrize("words", [("first floor",), ("FIRST FLOOR",), ("id",), ("start",), ("text",)])
def test_an_enrollment_token_is_revoked_by_its_label_its_id_or_itself(
    network: InProcess, admin: Admin, words: tuple[str, ...]
) -> None:
    made = admin.post("/admin/enrollment-tokens", {"label": "first floor"}).json
    names = {"id": made["id"], "start": made["id"][:-2], "text": made["enrollment_token"]}
    ran = run("revoke-token", names.get(words[0], words[0]), transport=network)
    assert ran.status == 0
    assert [str(token.pk) for token in EnrollmentToken.objects.filter(revoked_at__isnull=False)] == [made["id"]]
    assert not any(made["enrollment_token"] in request.url.path for request in network.seen)


def test_a_label_that_several_enrollment_tokens_have_or_none_revokes_nothing(network: InProcess, admin: Admin) -> None:
    made = [admin.post("/admin/enrollment-tokens", {"label": "first floor"}).json["id"] for _ in range(2)]
    several = run("revoke-token", "first floor", transport=network)
    assert several.status == 1
    assert all(token_id in several.err for token_id in made)
    assert "Did you mean first floor?" in run("revoke-token", "frist floor", transport=network).err
    assert not EnrollmentToken.objects.filter(revoked_at__isnull=False).exists()
