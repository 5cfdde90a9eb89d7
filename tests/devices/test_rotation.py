"""Rotation of a device's pair of credentials, and of the keys of this installation."""

import hmac
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from pytest_django import Settings

from commands.models import Delivery
from devices import credentials, tokens
from devices.models import Device
from tests.support.actors import Admin, Answer, Client, Phone
from tests.support.moments import in_one_batch, in_parallel, let_pass

NEW_KEY = "a-key-that-was-made-for-this-test-and-no-other-use"


def beat(phone: Phone, token: str) -> int:
    return phone.send("/v1/heartbeat", {}, token).status


def verified_with(answer: Answer, phone: Phone, command_key: str) -> bool:
    """Return whether this key has signed the one command in a heartbeat's answer."""
    (command,) = answer.json["commands"]
    sealed = "\n".join(["NXC1", phone.device_id, *list(command.values())[:5]])
    mine = hmac.digest(command_key.encode(), sealed.encode(), "sha256").hex()
    return bool(command["signature"] == mine)


def test_a_rotation_gives_a_new_pair_for_the_same_device(phone: Phone) -> None:
    answer = phone.rotate()
    assert (answer.status, set(answer.json)) == (200, {"device_token", "command_key"})
    token = tokens.parse(tokens.DEVICE_PREFIX, answer.json["device_token"])
    assert token is not None
    assert (str(token.id), token.text != phone.device_token) == (phone.device_id, True)
    assert answer.json["command_key"] != phone.command_key


@pytest.mark.parametrize("body", [None, {}, b"null", {"why": "routine"}, b'{"why": "\\ud800", "count": 1e400}'])
def test_a_rotation_needs_no_body_and_ignores_fields_of_a_newer_agent(phone: Phone, body: object) -> None:
    assert phone.send("/v1/token/rotate", body).status == 200


@pytest.mark.parametrize("body", [b"[]", b'"routine"', b"7"])
def test_a_rotation_whose_body_is_no_object_is_422(phone: Phone, body: bytes) -> None:
    assert phone.send("/v1/token/rotate", body).status == 422
    assert Device.objects.get().next_hash == ""


def test_the_old_token_works_until_the_new_one_is_first_used(phone: Phone) -> None:
    old, new = phone.device_token, phone.rotate().json["device_token"]
    assert [beat(phone, old), beat(phone, old), beat(phone, new), beat(phone, new), beat(phone, old)] == [
        200, 200, 200, 200, 401,
    ]  # fmt: skip


@pytest.mark.parametrize("first_use", ["/v1/heartbeat", "/v1/action-result", "/v1/token/rotate"])
def test_any_use_of_the_new_token_is_its_first(admin: Admin, phone: Phone, first_use: str) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    new = phone.rotate().json["device_token"]
    body = {"request_id": request_id, "status": "received"} if first_use == "/v1/action-result" else {}
    assert phone.send(first_use, body, new).status == 200
    assert (beat(phone, phone.device_token), beat(phone, new)) == (401, 200)


def test_old_and_new_tokens_in_one_flush_are_decided_separately(phone: Phone) -> None:
    old, new = phone.device_token, phone.rotate().json["device_token"]
    statuses = [answer.status for answer in in_one_batch((old, {}), (new, {}))]
    assert statuses == [200, 200]
    assert (beat(phone, old), beat(phone, new)) == (401, 200)


def test_rotating_again_replaces_the_new_pair(phone: Phone) -> None:
    unused, new = (phone.rotate().json["device_token"] for _ in range(2))
    assert (beat(phone, unused), beat(phone, phone.device_token)) == (401, 200)
    assert (beat(phone, new), beat(phone, phone.device_token)) == (200, 401)


def test_a_new_pair_can_be_rotated_in_turn(phone: Phone) -> None:
    used = [phone.device_token]
    for _ in range(3):
        phone.device_token = phone.rotate().json["device_token"]
        used.append(phone.device_token)
        assert phone.heartbeat().status == 200
    assert [beat(phone, token) for token in used] == [401, 401, 401, 200]
    assert Device.objects.get().generation == 4


def test_a_new_pair_that_is_not_used_within_a_day_is_deleted_and_the_old_one_stays(phone: Phone) -> None:
    old, new = phone.device_token, phone.rotate().json["device_token"]
    let_pass(hours=24, seconds=1)
    assert (beat(phone, new), beat(phone, old)) == (401, 200)
    assert credentials.forget_unused_next() == 1
    assert (beat(phone, new), beat(phone, old)) == (401, 200)
    assert Device.objects.get().next_hash == ""


def test_a_new_pair_may_be_used_to_the_end_of_its_day(phone: Phone) -> None:
    new = phone.rotate().json["device_token"]
    let_pass(hours=23, minutes=59)
    assert credentials.forget_unused_next() == 0
    assert beat(phone, new) == 200


def test_a_pair_once_used_does_not_expire(phone: Phone) -> None:
    new = phone.rotate().json["device_token"]
    beat(phone, new)
    let_pass(days=400)
    assert credentials.forget_unused_next() == 0
    assert beat(phone, new) == 200


def test_a_wrong_token_is_refused_while_a_new_pair_waits_too(phone: Phone) -> None:
    phone.rotate()
    wrong = tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text
    assert (beat(phone, wrong), beat(phone, phone.device_token)) == (401, 200)


def test_a_revoked_device_cannot_rotate_nor_use_a_new_pair(admin: Admin, phone: Phone) -> None:
    new = phone.rotate().json["device_token"]
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    assert (phone.rotate().code, beat(phone, new)) == ("device_revoked", 403)
    admin.post(f"/admin/devices/{phone.device_id}/reinstate")
    assert beat(phone, new) == 200


@pytest.mark.django_db(transaction=True)
def test_rotations_at_the_same_moment_leave_one_new_pair(admin: Admin) -> None:
    phone = admin.enrol("phone-1")
    phones = [Phone(Client(), "phone-1", device_token=phone.device_token) for _ in range(5)]
    answers = in_parallel([one.rotate for one in phones], all_wait_for="devices_device")
    assert [answer.status for answer in answers] == [200] * 5
    assert len({answer.json["command_key"] for answer in answers}) == 5
    assert beat(phone, phone.device_token) == 200
    assert sorted(beat(phone, answer.json["device_token"]) for answer in answers) == [200] + [401] * 4


@pytest.mark.django_db(transaction=True)
def test_simultaneous_first_uses_of_a_new_pair_are_all_accepted(admin: Admin) -> None:
    phone = admin.enrol("phone-1")
    new = phone.rotate().json["device_token"]
    phones = [Phone(Client(), "phone-1", device_token=new) for _ in range(5)]
    answers = in_parallel([one.heartbeat for one in phones], all_wait_for="devices_device")
    assert [answer.status for answer in answers] == [200] * 5
    assert beat(phone, phone.device_token) == 401


def test_commands_are_signed_with_the_key_of_the_pair_in_use(admin: Admin, phone: Phone) -> None:
    admin.command(to=phone)
    new = phone.rotate().json
    assert verified_with(phone.heartbeat(), phone, phone.command_key)
    answer = phone.send("/v1/heartbeat", {}, new["device_token"])
    assert verified_with(answer, phone, new["command_key"])
    assert not verified_with(answer, phone, phone.command_key)


def test_no_command_key_is_issued_twice(phone: Phone) -> None:
    keys = [phone.command_key]
    keys += [phone.rotate().json["command_key"] for _ in range(2)]
    let_pass(hours=25)
    credentials.forget_unused_next()
    keys.append(phone.rotate().json["command_key"])
    assert len(set(keys)) == 4


def test_a_device_gets_the_new_signing_key_with_its_next_pair(admin: Admin, phone: Phone, settings: Settings) -> None:
    old_keys = settings.COMMAND_SIGNING_KEYS
    settings.COMMAND_SIGNING_KEYS = [NEW_KEY, *old_keys]
    admin.command(to=phone)
    assert verified_with(phone.heartbeat(), phone, phone.command_key)
    new = phone.rotate().json
    assert verified_with(phone.heartbeat(), phone, phone.command_key)
    by_hand = hmac.digest(NEW_KEY.encode(), f"NXK1\n{phone.device_id}\n2".encode(), "sha256").hex()
    assert new["command_key"] == by_hand
    assert verified_with(phone.send("/v1/heartbeat", {}, new["device_token"]), phone, by_hand)


def test_a_device_whose_signing_key_is_gone_refuses_commands_until_its_next_pair(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    settings.COMMAND_SIGNING_KEYS = [NEW_KEY]
    admin.command(to=phone)
    answer = phone.heartbeat()
    assert (answer.status, verified_with(answer, phone, phone.command_key)) == (200, False)
    new = phone.rotate().json
    assert verified_with(phone.send("/v1/heartbeat", {}, new["device_token"]), phone, new["command_key"])
    assert Delivery.objects.get().state == "pending"


@pytest.mark.parametrize("fallbacks", ["kept", "gone"])
def test_a_token_stays_valid_without_its_secret_key_and_gets_a_new_digest(
    phone: Phone, settings: Settings, fallbacks: str
) -> None:
    before: dict[str, Any] = dict(Device.objects.values().get())
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY] if fallbacks == "kept" else []
    settings.SECRET_KEY = NEW_KEY
    assert phone.heartbeat().status == 200
    after: dict[str, Any] = dict(Device.objects.values().get())
    assert {name for name in after if after[name] != before[name]} == {
        "token_digest",
        "token_digest_key",
        "token_used_at",
    }
    settings.SECRET_KEY_FALLBACKS = []
    Device.objects.update(token_hash="not asked any more")
    assert phone.heartbeat().status == 200


def test_bcrypt_runs_only_if_the_key_is_gone(phone: Phone, settings: Settings) -> None:
    settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY = [settings.SECRET_KEY], NEW_KEY
    Device.objects.update(token_hash="no hash of anything")
    assert phone.heartbeat().status == 200
    Device.objects.update(token_digest=bytes(32))
    assert phone.heartbeat().code == "invalid_token"


def test_a_digest_may_be_deleted_at_any_time(phone: Phone) -> None:
    Device.objects.update(token_digest=None, token_digest_key="")
    assert phone.heartbeat().status == 200
    assert Device.objects.get().token_digest is not None


@pytest.mark.parametrize("fallbacks", ["kept", "gone"])
def test_a_wrong_token_stays_wrong_with_any_secret_key(phone: Phone, settings: Settings, fallbacks: str) -> None:
    before = Device.objects.values().get()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY] if fallbacks == "kept" else []
    settings.SECRET_KEY = NEW_KEY
    wrong = tokens.make(tokens.DEVICE_PREFIX, UUID(phone.device_id), bytes(32)).text
    assert phone.send("/v1/heartbeat", {}, wrong).code == "invalid_token"
    assert Device.objects.values().get() == before


@pytest.mark.parametrize("fallbacks", ["kept", "gone"])
def test_a_pending_rotation_stays_valid_without_its_secret_key(
    phone: Phone, settings: Settings, fallbacks: str
) -> None:
    new = phone.rotate().json["device_token"]
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY] if fallbacks == "kept" else []
    settings.SECRET_KEY = NEW_KEY
    statuses = [beat(phone, token) for token in (phone.device_token, new, phone.device_token)]
    assert statuses == [200, 200, 401]


def test_reports_and_rotations_work_without_the_old_secret_key_too(
    admin: Admin, phone: Phone, settings: Settings
) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    settings.SECRET_KEY = NEW_KEY
    assert phone.report(request_id, "succeeded").json["state"] == "succeeded"
    Device.objects.update(token_digest=None)
    assert phone.rotate().status == 200


def test_an_enrollment_token_stays_valid_without_its_secret_key(
    admin: Admin, client: Client, settings: Settings
) -> None:
    text = admin.enrollment_token()
    settings.SECRET_KEY = NEW_KEY
    assert Phone(client, "imei-1").register(text).status == 200


def test_the_end_of_a_day_is_counted_from_the_rotation(phone: Phone) -> None:
    phone.rotate()
    first = Device.objects.get().next_expires_at
    let_pass(hours=5)
    phone.rotate()
    second = Device.objects.get().next_expires_at
    assert first is not None
    assert second is not None
    assert timedelta(0) <= second - first < timedelta(minutes=1)
