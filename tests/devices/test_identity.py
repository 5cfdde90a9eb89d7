"""The names of a phone: valid hardware ids and aliases, names that count as equal, and rows of earlier versions."""

import unicodedata
from functools import partial
from typing import Any, Final
from unittest.mock import Mock

import pytest
from django.core.management import call_command
from django.db import OperationalError
from hypothesis import given
from hypothesis import strategies as st

from devices.identity import comparison_keys, device_checks
from devices.models import UNKEYED, Device
from nexmdm.common import database, identity
from tests.support.actors import Admin, Answer, Client, Phone
from tests.support.moments import in_parallel

COMPOSED: Final = "Caf\u00e9"
DECOMPOSED: Final = "Cafe\u0301"
INVISIBLE: Final = [
    "a\u200bb", "\u200b", "\u202egnp.exe", "a\nb", "a\rb", "a\tb", "a\x1bb", "a\x85b", "a\u00adb", "a\u2028b",
    "a\u2066b", "\ufeffa", "a\x7f",
]  # fmt: skip
NO_HARDWARE_IDS: Final = [
    "unknown", " unknown", "UNKNOWN", "Null", "none\n", "N/A", "0", "000000000000000", "00:00:00:00:00:00",
    "00000000-0000-0000-0000-000000000000", "02:00:00:00:00:00", "9774d56d682e549c", "9774D56D682E549C",
]  # fmt: skip


def as_the_version_before(phone: Phone, **columns: Any) -> None:
    """Write the row of a phone as the version before does: with these columns, and no comparison keys."""
    Device.objects.filter(id=phone.device_id).update(alias_key=None, hardware_key=None, **columns)


def renamed_by_the_version_before(phone: Phone, alias: str) -> None:
    database.execute("UPDATE devices_device SET alias = %s WHERE id = %s", [alias, phone.device_id])


def change(admin: Admin, phone: Phone, alias: str | None) -> Answer:
    return admin.call("PATCH", f"/admin/devices/{phone.device_id}", {"alias": alias})


def colliding(admin: Admin) -> tuple[Phone, Phone]:
    """Two phones whose aliases differ only in case, as the version before allowed; the first was enrolled first."""
    first, second = admin.enrol("imei-1", alias="Till"), admin.enrol("imei-2")
    as_the_version_before(first)
    as_the_version_before(second, alias="till")
    return first, second


@pytest.mark.parametrize("text", NO_HARDWARE_IDS)
def test_a_hardware_id_that_many_phones_share_is_refused_and_the_message_says_why(
    admin: Admin, client: Client, text: str
) -> None:
    answer = Phone(client, text).register(admin.enrollment_token())
    (error,) = answer.json["errors"]
    assert (answer.status, answer.code, error["loc"]) == (422, "invalid_request", ["body", "hardware_id"])
    assert "many phones report" in error["msg"]
    assert not Device.objects.exists()


@pytest.mark.parametrize("text", ["unknown-1", "0a", "10", "nullx", "9774d56d682e549d", "x/n/a"])
def test_a_hardware_id_that_only_resembles_one_of_those_is_accepted(admin: Admin, client: Client, text: str) -> None:
    assert Phone(client, text).register(admin.enrollment_token()).status == 200


@pytest.mark.parametrize("text", ["", " ", "\u3000\t\n", " " * 200])
def test_a_hardware_id_of_nothing_but_blanks_is_refused(admin: Admin, client: Client, text: str) -> None:
    assert Phone(client, text).register(admin.enrollment_token()).code == "invalid_request"


def test_blanks_around_a_hardware_id_make_no_difference(admin: Admin, client: Client) -> None:
    phone = admin.enrol("\t imei-1\u00a0\n")
    assert Device.objects.get().hardware_id == "imei-1"
    assert Phone(client, " imei-1 ").register(admin.enrollment_token()).code == "hardware_known"
    again = Phone(client, " imei-1 ").register(admin.enrollment_token(re_enroll=True))
    assert again.json["device_id"] == phone.device_id


def test_hardware_ids_that_differ_in_case_are_different(admin: Admin) -> None:
    admin.enrol("abc")
    admin.enrol("ABC")
    assert Device.objects.count() == 2


@pytest.mark.parametrize("filled", [False, True])
def test_a_hardware_id_that_was_stored_with_blanks_is_found_without_them(
    admin: Admin, client: Client, filled: bool
) -> None:
    phone = admin.enrol("imei-1")
    as_the_version_before(phone, hardware_id=" imei-1 ")
    if filled:
        comparison_keys.fill(100)
    assert Phone(client, "imei-1").register(admin.enrollment_token()).code == "hardware_known"
    again = Phone(client, "imei-1").register(admin.enrollment_token(re_enroll=True))
    assert (again.json["device_id"], Device.objects.get().hardware_id) == (phone.device_id, " imei-1 ")


@pytest.mark.parametrize("alias", INVISIBLE)
def test_an_alias_with_invisible_characters_is_refused(admin: Admin, client: Client, alias: str) -> None:
    phone = admin.enrol("imei-1")
    answers = [Phone(client, "imei-2").register(admin.enrollment_token(), alias=alias), change(admin, phone, alias)]
    for answer in answers:
        assert (answer.status, answer.json["errors"][0]["loc"]) == (422, ["body", "alias"])
        assert "control characters or format characters" in answer.json["errors"][0]["msg"]
    assert list(Device.objects.values_list("alias", flat=True)) == [None]


@pytest.mark.parametrize("alias", ["", " ", "\u3000", "x" * 129, "e\u0301" * 129, "\u0958" * 128])
def test_an_alias_has_1_to_128_characters_as_stored(admin: Admin, phone: Phone, alias: str) -> None:
    answer = change(admin, phone, alias)
    assert (answer.status, "1 to 128 characters" in answer.json["errors"][0]["msg"]) == (422, True)


@pytest.mark.parametrize("alias", [f"  {COMPOSED}\n", DECOMPOSED, f"\u00a0{DECOMPOSED} "])
def test_an_alias_is_stored_trimmed_and_in_nfc(admin: Admin, phone: Phone, alias: str) -> None:
    assert change(admin, phone, alias).json["alias"] == COMPOSED
    admin.enrol("imei-2", alias=f" 2 {alias}")
    assert Device.objects.get(hardware_id="imei-2").alias == f"2 {alias}".strip().replace(DECOMPOSED, COMPOSED)


def test_128_letters_with_an_accent_of_their_own_fit(admin: Admin, phone: Phone) -> None:
    assert change(admin, phone, "e\u0301" * 128).json["alias"] == "\u00e9" * 128


def test_only_texts_that_could_become_an_alias_are_normalised(
    admin: Admin, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalise = Mock(side_effect=unicodedata.normalize)
    monkeypatch.setattr(identity, "normalize", normalise)
    answer = Phone(client, "imei-1").register(admin.enrollment_token(), alias="a" + "\u0316\u0301" * 5_000)
    assert answer.status == 422
    assert max((len(call.args[1]) for call in normalise.call_args_list), default=0) <= 4 * 128


@pytest.mark.parametrize("alias", ["lobby", "LOBBY", " Lobby\t", "loBBy"])
def test_two_aliases_that_differ_only_in_case_or_blanks_are_the_same(
    admin: Admin, client: Client, phone: Phone, alias: str
) -> None:
    admin.enrol("imei-1", alias="Lobby")
    assert Phone(client, "imei-2").register(admin.enrollment_token(), alias=alias).code == "alias_taken"
    assert change(admin, phone, alias).code == "alias_taken"


@pytest.mark.parametrize(("one", "other"), [(COMPOSED, DECOMPOSED.upper()), ("Straße", "STRASSE"), ("ΣΑΣ", "σας")])
def test_two_aliases_that_differ_only_in_composition_or_in_the_case_of_any_script_are_the_same(
    admin: Admin, phone: Phone, one: str, other: str
) -> None:
    admin.enrol("imei-1", alias=one)
    assert change(admin, phone, other).code == "alias_taken"


def test_a_device_may_write_its_alias_in_another_case(admin: Admin, client: Client) -> None:
    phone = admin.enrol("imei-1", alias="lobby")
    assert change(admin, phone, "LOBBY").json["alias"] == "LOBBY"
    assert Device.objects.values_list("alias", "alias_key").get() == ("LOBBY", "lobby")
    assert phone.register(admin.enrollment_token(re_enroll=True), alias="Lobby").status == 200
    assert Device.objects.values_list("alias", "alias_key").get() == ("Lobby", "lobby")


def test_an_alias_that_was_deleted_is_free(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("imei-1", alias="Lobby")
    change(admin, other, None)
    assert change(admin, phone, "lobby").status == 200


@pytest.mark.parametrize("named", ["LOBBY", " lobby ", "Lobby", f"{DECOMPOSED} 1", f"{COMPOSED.upper()} 1"])
def test_a_command_reaches_a_device_by_its_alias_in_any_case_and_composition(admin: Admin, named: str) -> None:
    admin.enrol("imei-1", alias="lobby" if "obby" in named.lower() else f"{COMPOSED} 1")
    assert admin.command(to={"aliases": [named]}).json["device_count"] == 1


def test_one_device_named_by_several_spellings_is_one_device(admin: Admin) -> None:
    admin.enrol("imei-1", alias="lobby")
    assert admin.command(to={"aliases": ["lobby", "LOBBY", " lobby"]}, expect_count=1).status == 200


def test_an_unknown_alias_is_named_as_it_was_given(admin: Admin) -> None:
    admin.enrol("imei-1", alias="lobby")
    answer = admin.command(to={"aliases": ["Lobby", "Foyer"]})
    assert (answer.code, ["Foyer" in error["msg"] for error in answer.json["errors"]]) == ("unknown_devices", [True])


def test_the_refusal_says_that_a_revoked_device_has_the_alias(admin: Admin, client: Client, phone: Phone) -> None:
    holder = admin.enrol("imei-1", alias="Lobby")
    assert "revoked" not in change(admin, phone, "lobby").json["detail"]
    admin.post(f"/admin/devices/{holder.device_id}/revoke")
    answers = [Phone(client, "imei-2").register(admin.enrollment_token(), alias="lobby"), change(admin, phone, "lobby")]
    for answer in answers:
        assert (answer.status, answer.code, "revoked" in answer.json["detail"]) == (409, "alias_taken", True)


def test_the_refusal_of_a_revoked_phone_names_the_remedy(admin: Admin, client: Client, phone: Phone) -> None:
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    registered = Phone(client, phone.hardware_id).register(admin.enrollment_token(re_enroll=True))
    for answer in (phone.heartbeat(), phone.rotate(), registered):
        assert (answer.status, answer.code) == (403, "device_revoked")
        assert "POST /admin/devices/{device_id}/reinstate" in answer.json["detail"]


@pytest.mark.django_db(transaction=True)
def test_only_one_of_two_simultaneous_registrations_gets_an_alias_in_two_cases(admin: Admin) -> None:
    texts = [admin.enrollment_token() for _ in range(4)]
    calls = [
        partial(Phone(Client(), f"imei-{number}").register, text, alias="till" if number % 2 else "Till")
        for number, text in enumerate(texts)
    ]
    answers = in_parallel(calls, all_wait_for="devices_device")
    assert sorted(str(answer.code) for answer in answers) == ["None"] + ["alias_taken"] * 3


@pytest.mark.parametrize("filled", [False, True])
def test_an_alias_that_the_version_before_wrote_is_taken_and_can_be_named(
    admin: Admin, phone: Phone, filled: bool
) -> None:
    as_the_version_before(admin.enrol("imei-1"), alias="Lobby")
    if filled:
        comparison_keys.fill(100)
    assert change(admin, phone, "LOBBY").code == "alias_taken"
    assert admin.command(to={"aliases": ["lobby"]}).json["device_count"] == 1


@pytest.mark.parametrize("filled", [False, True])
def test_an_alias_that_the_version_before_changed_counts_as_it_is_now(admin: Admin, phone: Phone, filled: bool) -> None:
    renamed_by_the_version_before(admin.enrol("imei-1", alias="lobby"), "Foyer")
    if filled:
        comparison_keys.fill(100)
    assert change(admin, phone, "FOYER").code == "alias_taken"
    assert change(admin, phone, "lobby").status == 200
    assert admin.command(to={"aliases": ["foyer", "Lobby"]}).json["device_count"] == 2


def test_rows_of_the_version_before_are_filled_in_batches_until_none_is_left(admin: Admin) -> None:
    phones = [admin.enrol(f"IMEI-{number}", alias=f"Till {number}") for number in range(3)]
    for phone in phones[:2]:
        as_the_version_before(phone)
    renamed_by_the_version_before(phones[2], f"{DECOMPOSED} 3")
    assert [comparison_keys.fill(2) for _ in range(3)] == [2, 1, 0]
    keys = set(Device.objects.values_list("hardware_key", "alias_key"))
    assert keys == {("imei-0", "till 0"), ("imei-1", "till 1"), ("imei-2", f"{COMPOSED.lower()} 3")}


@pytest.mark.django_db(transaction=True)
def test_the_dispatcher_fills_in_rows_that_the_version_before_continues_to_write(admin: Admin) -> None:
    as_the_version_before(admin.enrol("imei-1", alias="Till"))
    call_command("dispatch", once=True)
    assert not Device.objects.filter(UNKEYED).exists()


@pytest.mark.parametrize("filled", [False, True])
def test_of_two_devices_with_one_alias_the_first_enrolled_keeps_it_and_no_row_changes(
    admin: Admin, phone: Phone, filled: bool
) -> None:
    first, second = colliding(admin)
    if filled:
        comparison_keys.fill(100)
    for named in ("till", "Till"):
        request_id = admin.command(to={"aliases": [named]}).json["request_id"]
        reached = admin.get(f"/admin/commands/{request_id}/deliveries").json["items"]
        assert [delivery["device_id"] for delivery in reached] == [first.device_id]
    assert change(admin, phone, "TILL").code == "alias_taken"
    aliases = dict(Device.objects.values_list("hardware_id", "alias"))
    assert (aliases["imei-1"], aliases["imei-2"]) == ("Till", "till")
    assert change(admin, first, "TILL").status == 200
    assert change(admin, second, "Till").code == "alias_taken"


def test_a_phone_whose_alias_an_earlier_phone_also_has_can_register_with_it(admin: Admin) -> None:
    _, second = colliding(admin)
    answer = second.register(admin.enrollment_token(re_enroll=True), alias="till")
    assert (answer.status, Device.objects.get(id=second.device_id).alias) == (200, "till")


def test_once_the_first_device_gives_up_its_alias_the_second_has_it(admin: Admin) -> None:
    first, second = colliding(admin)
    change(admin, first, "desk")
    request_id = admin.command(to={"aliases": ["TILL"]}).json["request_id"]
    (delivery,) = admin.get(f"/admin/commands/{request_id}/deliveries").json["items"]
    assert delivery["device_id"] == second.device_id


def warnings(capsys: pytest.CaptureFixture[str]) -> str:
    """The output of `manage.py check` without its summary."""
    call_command("check")
    return capsys.readouterr().err


def test_check_lists_the_device_whose_alias_an_earlier_one_has(
    admin: Admin, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = colliding(admin)
    comparison_keys.fill(100)
    printed = warnings(capsys)
    assert (device_checks.SAME_ALIAS in printed, second.device_id in printed, first.device_id in printed) == (
        True,
        True,
        False,
    )
    change(admin, second, "till 2")
    assert warnings(capsys) == ""


def test_check_lists_the_device_whose_hardware_id_an_earlier_one_has(
    admin: Admin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.enrol("IMEI-1")
    first, second = admin.enrol("imei-1"), admin.enrol("imei-2")
    as_the_version_before(second, hardware_id="imei-1 ")
    comparison_keys.fill(100)
    printed = warnings(capsys)
    assert (device_checks.SAME_HARDWARE_ID in printed, second.device_id in printed) == (True, True)
    assert first.device_id not in printed
    assert Phone(admin.client, "imei-1 ").register(admin.enrollment_token(re_enroll=True)).json["device_id"] == (
        first.device_id
    )


def test_check_names_some_of_very_many_and_counts_the_rest(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    phones = admin.enrol_fleet(device_checks.NAMED_DEVICES + 3)
    for number, phone in enumerate(phones):
        as_the_version_before(phone, alias="".join(c.upper() if number >> i & 1 else c for i, c in enumerate("abcde")))
    comparison_keys.fill(100)
    printed = warnings(capsys)
    assert printed.count("-7") >= device_checks.NAMED_DEVICES
    assert ", and 2 more." in printed


def test_check_reports_that_the_database_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_keys, "exist", Mock(side_effect=OperationalError))
    (found,) = device_checks.same_devices(databases=["default"])
    assert (found.id, bool(found.hint)) == (device_checks.UNCHECKED_DEVICES, True)


@given(st.text(min_size=1, max_size=40))
def test_a_comparison_key_is_its_own_and_the_same_for_each_spelling(text: str) -> None:
    key = identity.comparison_key(text)
    assert identity.comparison_key(key) == key
    assert identity.comparison_key(unicodedata.normalize("NFD", f" {text}\t")) == key
    assert len(key.encode()) <= 12 * len(text)
