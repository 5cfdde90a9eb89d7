"""Push tokens: valid texts and owners; each installation of the app has one owner."""

from functools import partial
from typing import Any, Final

import pytest
from django.core.management import call_command
from pydantic import TypeAdapter, ValidationError
from structlog.testing import capture_logs

from commands.models import Delivery
from commands.push import outbox
from devices.identity import device_checks
from devices.models import PUSH_OWNER, Device
from nexmdm.common import database, identity
from nexmdm.common.types import PushToken
from tests.support.actors import Admin, Client, Phone, fcm_calls_dead
from tests.support.moments import in_parallel

NO_PUSH_TOKENS: Final = [
    "BLACKLISTED", "blacklisted", "null", "unknown", " fcm-1", "fcm 1", "fcm-1\r\n", "fcm\t1", "fcm\x7f", "fcm\x1b[0m",
    "fcm\u00a01", "fcm\u20281", "é\x85", "",
]  # fmt: skip


def owners() -> dict[str, str | None]:
    """Each phone's push token."""
    return dict(Device.objects.values_list("hardware_id", "push_token"))


def as_the_version_before(phone: Phone, push_token: str) -> None:
    """Give a phone a push token as the version before does; that version does not know installations."""
    Device.objects.filter(id=phone.device_id).update(push_token=push_token)


@pytest.mark.parametrize("text", NO_PUSH_TOKENS)
def test_an_invalid_push_token_is_never_stored_and_changes_no_other(admin: Admin, client: Client, text: str) -> None:
    phone = admin.enrol("imei-1", push_token="fcm-1")
    phone.heartbeat(push_token=text)
    Phone(client, "imei-2").register(admin.enrollment_token(), push_token=text)
    assert owners().pop("imei-1") == "fcm-1"
    assert text not in owners().values()
    with pytest.raises(ValidationError):
        TypeAdapter(PushToken).validate_python(text)


@pytest.mark.parametrize("text", ["f", "cAb_d-1:APA91bE", "blacklisted-1", "p" * 4096, "é", "a:b:c", ":a"])
def test_any_other_text_is_a_push_token(admin: Admin, text: str) -> None:
    admin.enrol("imei-1", push_token=text)
    assert owners() == {"imei-1": text}


def test_phones_that_send_the_same_placeholder_keep_their_push_tokens(admin: Admin) -> None:
    phones = admin.enrol_fleet(6, "fid-")
    for phone in phones * 2:
        phone.heartbeat(push_token="BLACKLISTED")
    assert sorted(map(str, owners().values())) == [f"fid-{number}" for number in range(6)]


def test_a_push_token_of_the_same_installation_is_taken_from_the_device_that_had_one(admin: Admin) -> None:
    before = admin.enrol("imei-1", push_token="fid-1:aaa")
    admin.enrol("imei-2", push_token="fid-10:aaa")
    admin.command("ping", to=before)
    after = admin.enrol("imei-3")
    after.heartbeat(push_token="fid-1:bbb")
    assert owners() == {"imei-1": None, "imei-2": "fid-10:aaa", "imei-3": "fid-1:bbb"}
    delivery = Delivery.objects.get()
    assert (delivery.push_state, delivery.next_attempt_at) == ("no_push_token", None)
    assert len(before.heartbeat().json["commands"]) == 1


def test_a_device_keeps_its_own_installation_when_its_push_token_is_renewed(admin: Admin) -> None:
    phone = admin.enrol("imei-1", push_token="fid-1:aaa")
    phone.heartbeat(push_token="fid-1:bbb")
    assert owners() == {"imei-1": "fid-1:bbb"}


def test_an_installation_named_alone_and_one_in_a_push_token_are_the_same(admin: Admin) -> None:
    admin.enrol("imei-1", push_token="fid-1:aaa")
    admin.enrol("imei-2", push_token="fid-1")
    assert owners() == {"imei-1": None, "imei-2": "fid-1"}


def test_push_tokens_with_nothing_before_the_colon_share_nothing(admin: Admin) -> None:
    admin.enrol("imei-1", push_token=":a")
    admin.enrol("imei-2", push_token=":b")
    assert owners() == {"imei-1": ":a", "imei-2": ":b"}


def test_a_dead_push_token_stays_dead_and_another_one_of_its_installation_revives_pushing(admin: Admin) -> None:
    phone = admin.enrol("imei-1", push_token="fid-1:aaa")
    fcm_calls_dead("fid-1:aaa")
    phone.heartbeat(push_token=None)
    phone.heartbeat(push_token="fid-1:aaa")
    assert Device.objects.get().push_token_dead_at is not None
    phone.heartbeat(push_token="fid-1:bbb")
    assert Device.objects.get().push_token_dead_at is None


@pytest.mark.django_db(transaction=True)
def test_simultaneous_push_tokens_of_one_installation_leave_it_with_one_owner(admin: Admin) -> None:
    texts = [admin.enrollment_token() for _ in range(5)]
    calls = [
        partial(Phone(Client(), f"imei-{number}").register, text, push_token=f"fid-1:{number}")
        for number, text in enumerate(texts)
    ]
    answers = in_parallel(calls, all_wait_for="devices_device")
    assert [answer.status for answer in answers] == [200] * 5
    assert len([token for token in owners().values() if token is not None]) == 1


def test_the_database_and_python_agree_on_the_installation_of_a_push_token(phone: Phone) -> None:
    for text in ("a", "fid:b", "fid:b:c", ":b", "::", "é:b", "p" * 4096, f"{'p' * 2000}:b"):
        Device.objects.update(push_token=text)
        assert Device.objects.values_list(PUSH_OWNER, flat=True).get() == identity.push_owner_digest(text)


def sharing(admin: Admin) -> tuple[Phone, Phone, Phone]:
    """Three phones with push tokens of one installation, as the version before left them; the first was seen last."""
    phones = [admin.enrol(f"imei-{number}") for number in range(3)]
    for number in (1, 2, 0):
        as_the_version_before(phones[number], f"fid-1:{number}")
    phones[1].heartbeat()
    database.execute("UPDATE devices_presence SET last_seen_at = last_seen_at - interval '1 hour'")
    phones[0].heartbeat()
    return phones[0], phones[1], phones[2]


def test_of_devices_that_share_an_installation_the_one_seen_last_keeps_its_push_token(admin: Admin) -> None:
    last, *others = sharing(admin)
    other = admin.enrol("imei-9", push_token="fid-9:9")
    admin.command("ping")
    with capture_logs() as lines:
        assert outbox.settle_shared_push_tokens(10) == 1
    assert owners() == {"imei-0": "fid-1:0", "imei-1": None, "imei-2": None, "imei-9": "fid-9:9"}
    states = {str(delivery.device_id): str(delivery.push_state) for delivery in Delivery.objects.all()}
    assert states == {
        last.device_id: "waiting",
        other.device_id: "waiting",
        **{phone.device_id: "no_push_token" for phone in others},
    }
    (line,) = lines
    assert (line["event"], sorted(line["device_ids"])) == (
        "push_token.taken",
        sorted(phone.device_id for phone in others),
    )
    assert "fid-1" not in str(lines)
    assert outbox.settle_shared_push_tokens(10) == 0


def test_a_revoked_device_keeps_no_push_token_that_another_one_has(admin: Admin) -> None:
    last, _, _ = sharing(admin)
    admin.post(f"/admin/devices/{last.device_id}/revoke")
    outbox.settle_shared_push_tokens(10)
    assert owners() == {"imei-0": None, "imei-1": "fid-1:1", "imei-2": None}


@pytest.mark.django_db(transaction=True)
def test_the_dispatcher_leaves_a_shared_installation_to_one_device(admin: Admin) -> None:
    sharing(admin)
    call_command("dispatch", once=True)
    assert owners() == {"imei-0": "fid-1:0", "imei-1": None, "imei-2": None}


def test_check_lists_the_devices_that_share_an_installation(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    last, *others = sharing(admin)
    call_command("check")
    printed = capsys.readouterr().err
    named: list[Any] = [phone.device_id in printed for phone in (last, *others)]
    assert (device_checks.SAME_INSTALLATION in printed, named) == (True, [False, True, True])
    assert "fid-1" not in printed
    outbox.settle_shared_push_tokens(10)
    call_command("check")
    assert capsys.readouterr().err == ""
