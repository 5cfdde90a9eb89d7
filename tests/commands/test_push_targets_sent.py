"""Push targets of both kinds, from a phone's request through the real sender and a real socket to FCM and the rows."""

from datetime import datetime, timedelta
from typing import Any, Final

import pytest
from django.core.management import call_command
from django.db.models.functions import Now

from commands import actions
from commands.models import Attempt, Delivery
from commands.push import attempts, outbox
from commands.push.outbox import Sent
from devices.models import DeadPushToken, Device
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.common import database
from nexmdm.common.types import rfc3339
from tests.support.action_params import GOOD
from tests.support.actors import Admin, Phone
from tests.support.moments import let_pass

pytestmark = pytest.mark.django_db(transaction=True)

FID: Final = "cAb_d-1EfGhIjKlMnOpQrS"


def fid(value: str = FID, *, registered: timedelta | None = None) -> dict[str, Any]:
    """Return a FID that was registered this long ago (negative: in the future); None: the phone does not send it."""
    said = {} if registered is None else {"registered_at": rfc3339(database.now() - registered)}
    return {"kind": "fid", "value": value, **said}


def ago(**length: float) -> timedelta:
    return timedelta(**length)


def dispatch() -> None:
    Delivery.objects.filter(next_attempt_at__isnull=False).update(next_attempt_at=Now())
    call_command("dispatch", once=True)


def device(phone: Phone) -> Device:
    return Device.objects.get(id=phone.device_id)


def is_live(phone: Phone) -> bool:
    return Device.objects.reachable_by_push().filter(id=phone.device_id).exists()


def fid_that_fcm_called_dead(admin: Admin, fcm: FcmStandin) -> Phone:
    """Return a phone whose FID was registered a day ago, and is dead since its only push."""
    phone = admin.enrol("phone-1", push_target=fid(registered=ago(days=1)))
    admin.command("ping", to=phone, expires_in_seconds=86_400)
    fcm.override = "unregistered"
    dispatch()
    fcm.override = None
    assert not is_live(phone)
    return phone


@pytest.mark.parametrize("kind", ["token", "fid"])
def test_the_push_target_travels_in_the_field_of_its_kind(admin: Admin, fcm: FcmStandin, kind: str) -> None:
    phone = admin.enrol("phone-1", push_target={"kind": kind, "value": FID})
    admin.command("ping", to=phone)
    dispatch()
    message = fcm.journal.sends()[0].message
    assert {name: message.get(name) for name in ("token", "fid")} == {"token": None, "fid": None, kind: FID}
    assert Delivery.objects.get().push_state == "accepted"


def test_a_push_token_is_a_push_target_of_kind_token_and_push_target_outranks_it(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="old-1", push_target=fid())
    assert (device(phone).push_kind, device(phone).push_token) == ("fid", FID)
    phone.heartbeat(push_token="new-1")
    assert (device(phone).push_kind, device(phone).push_token) == ("token", "new-1")
    phone.heartbeat(push_token="new-2", push_target=None)
    assert device(phone).push_token is None


def test_the_same_text_as_another_kind_is_another_push_target(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_target=fid("cAb:legacy"))
    admin.command("ping", to=phone, expires_in_seconds=86_400)
    dispatch()
    assert not is_live(phone), "FCM calls a registration token that is sent as a FID dead"
    phone.heartbeat(push_target={"kind": "token", "value": "cAb:legacy"})
    dispatch()
    assert [send.message.get("token") for send in fcm.journal.sends()] == [None, "cAb:legacy"]
    assert is_live(phone)


def test_a_fid_takes_the_installation_from_the_device_that_had_its_token(admin: Admin, fcm: FcmStandin) -> None:
    before = admin.enrol("phone-1", push_token=f"{FID}:APA91b")
    admin.command("ping", to=before, expires_in_seconds=86_400)
    after = admin.enrol("phone-2", push_target=fid())
    dispatch()
    assert fcm.journal.sends() == []
    assert (device(before).push_token, device(before).push_kind) == (None, "token")
    admin.command("ping", to=after)
    dispatch()
    assert [send.message["fid"] for send in fcm.journal.sends()] == [FID]


def test_a_dead_fid_lives_again_when_it_was_registered_after_its_death(admin: Admin, fcm: FcmStandin) -> None:
    phone = fid_that_fcm_called_dead(admin, fcm)
    phone.heartbeat(push_target=fid(registered=ago()))
    assert is_live(phone)
    dispatch()
    assert [send.answer for send in fcm.journal.sends()] == ["unregistered", "ok"]
    assert Delivery.objects.get().push_state == "accepted"


@pytest.mark.parametrize("registered", [None, ago(hours=1), ago(days=2)])
def test_a_dead_fid_stays_dead_if_it_was_registered_before_its_death(
    admin: Admin, fcm: FcmStandin, registered: timedelta | None
) -> None:
    phone = fid_that_fcm_called_dead(admin, fcm)
    phone.heartbeat(push_target=fid(registered=registered))
    dispatch()
    assert (is_live(phone), len(fcm.journal.sends())) == (False, 1)
    assert len(phone.heartbeat().json["commands"]) == 1


def test_a_time_in_the_future_counts_as_now(admin: Admin, fcm: FcmStandin) -> None:
    phone = fid_that_fcm_called_dead(admin, fcm)
    phone.heartbeat(push_target=fid(registered=-ago(days=365)))
    registered_at = device(phone).push_registered_at
    assert registered_at is not None
    assert registered_at <= database.now()
    assert is_live(phone)
    let_pass(minutes=1)
    fcm.override = "unregistered"
    dispatch()
    assert not is_live(phone), "a later death counts, although the phone said that it had registered in a year's time"


def test_a_device_revives_a_dead_fid_once_an_hour_at_most(admin: Admin, fcm: FcmStandin) -> None:
    phone = fid_that_fcm_called_dead(admin, fcm)
    fcm.override = "unregistered"
    for minutes, lives in ((1, True), (1, False), (57, False), (3, True)):
        let_pass(minutes=minutes)
        phone.heartbeat(push_target=fid(registered=ago()))
        assert is_live(phone) is lives
        dispatch()
        assert not is_live(phone)


def test_a_token_stays_dead_for_any_time_of_its_registration(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_token="unregistered-1")
    admin.command("ping", to=phone, expires_in_seconds=86_400)
    dispatch()
    let_pass(hours=2)
    phone.heartbeat(push_target={"kind": "token", "value": "unregistered-1", "registered_at": rfc3339(database.now())})
    assert not is_live(phone)


def test_an_answer_about_an_earlier_registration_does_not_kill_a_fid(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_target=fid(registered=ago(days=1)))
    admin.command("ping", to=phone, expires_in_seconds=86_400)
    (claimed,) = outbox.claim_due(1)
    phone.heartbeat(push_target=fid(registered=ago()))
    attempts.record_attempts([Sent(claimed, "token_dead", http_status=404)])  # type: ignore[arg-type]
    assert (is_live(phone), DeadPushToken.objects.count()) == (True, 0)
    dispatch()
    assert [(one.number, one.outcome) for one in Attempt.objects.order_by("number")] == [
        (1, "token_dead"), (2, "accepted"),
    ]  # fmt: skip


def test_a_revived_fid_may_be_sent_by_another_device(admin: Admin, fcm: FcmStandin) -> None:
    phone = fid_that_fcm_called_dead(admin, fcm)
    other = admin.enrol("phone-2", push_target=fid())
    assert not is_live(other)
    other.heartbeat(push_target=fid(registered=ago()))
    assert (is_live(other), device(phone).push_token) == (True, None)


@pytest.mark.parametrize("kind", ["token", "fid"])
def test_a_400_that_names_the_push_target_calls_it_dead_and_any_other_does_not(
    admin: Admin, fcm: FcmStandin, kind: str
) -> None:
    phones = [admin.enrol(value, push_target={"kind": kind, "value": value}) for value in ("malformed-1", "invalid-1")]
    admin.command("ping", to=phones)
    dispatch()
    assert {send.answer: send.status for send in fcm.journal.sends()} == {"malformed": 400, "invalid": 400}
    assert list(map(is_live, phones)) == [False, True]


def test_the_time_of_a_registration_is_kept_and_moves_forward(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_target=fid(registered=ago(days=2)))
    first = device(phone).push_registered_at
    phone.heartbeat(push_target=fid())
    phone.heartbeat(push_target=fid(registered=ago(days=3)))
    assert device(phone).push_registered_at == first
    phone.heartbeat(push_target=fid(registered=ago(days=1)))
    second = device(phone).push_registered_at
    assert isinstance(second, datetime)
    assert isinstance(first, datetime)
    assert second > first
    phone.heartbeat(push_target=fid("another-fid"))
    assert device(phone).push_registered_at is None


def test_an_unchanged_registration_resets_no_backoff(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1", push_target=fid("unavailable-1", registered=ago(days=2)))
    admin.command("ping", to=phone, expires_in_seconds=86_400)
    dispatch()
    due = Delivery.objects.get().next_attempt_at
    phone.heartbeat(push_target=fid("unavailable-1", registered=ago(days=1)))
    assert (Delivery.objects.get().next_attempt_at, Delivery.objects.get().push_state) == (due, "retrying")


@pytest.mark.parametrize(
    ("sent", "warned"),
    [
        (
            {"kind": "fid", "value": "BLACKLISTED"},
            "value is a placeholder, not a push token; the whole object is dropped",
        ),
        ({"kind": "fid", "value": "a b"}, "value must be a push token, without blanks"),
        (
            {"kind": "fid", "value": "p" * 4097},
            "value String should have at most 4096 characters; the whole object is dropped",
        ),
        ({"kind": "apns", "value": "a"}, "kind Input should be 'token' or 'fid'; the whole object is dropped"),
        ({"kind": "fid"}, "value is required; the whole object is dropped"),
        ({"value": "a"}, "kind is required; the whole object is dropped"),
        ("cAb", "must be an object; dropped"),
    ],
)
def test_an_invalid_push_target_is_dropped_with_a_warning_and_the_stored_one_stays(
    admin: Admin, fcm: FcmStandin, sent: Any, warned: str
) -> None:
    phone = admin.enrol("phone-1", push_target=fid())
    (warning,) = phone.heartbeat(push_target=sent).json["warnings"]
    assert warning["loc"] == ["body", "push_target"]
    assert warning["msg"].startswith(warned)
    assert device(phone).push_token == FID


def test_an_invalid_time_of_registration_is_dropped_alone(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1")
    answer = phone.heartbeat(push_target={"kind": "fid", "value": FID, "registered_at": "yesterday"})
    assert [warning["loc"] for warning in answer.json["warnings"]] == [["body", "push_target", "registered_at"]]
    assert (device(phone).push_token, device(phone).push_registered_at) == (FID, None)
    assert "warnings" not in phone.heartbeat(push_target={"kind": "fid", "value": FID, "registered_at": None}).json


def test_a_push_token_counts_if_the_push_target_next_to_it_is_dropped(admin: Admin, fcm: FcmStandin) -> None:
    phone = admin.enrol("phone-1")
    phone.heartbeat(push_token="token-1", push_target={"kind": "fid", "value": "BLACKLISTED"})
    assert (device(phone).push_kind, device(phone).push_token) == ("token", "token-1")


IN_DIRECT_BOOT: Final = {"lock", "wipe", "ring", "reboot"}


@pytest.mark.parametrize("action", sorted(actions.CATALOGUE))
def test_each_message_is_counted_under_its_action_and_some_reach_a_locked_phone(
    admin: Admin, fcm: FcmStandin, action: str
) -> None:
    phone = admin.enrol("phone-1", push_target=fid())
    assert admin.command(action, to=phone, params=GOOD[action][0]).status == 200
    dispatch()
    message = fcm.journal.sends()[0].message
    assert message["fcm_options"] == {"analytics_label": action}
    assert message["android"].get("direct_boot_ok") is (True if action in IN_DIRECT_BOOT else None)
