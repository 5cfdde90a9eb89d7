"""Registration: the phones that may register, the credentials that they get once, and the stored rows."""

import hmac
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from commands.models import Delivery
from devices import tokens
from devices.models import Device, EnrollmentToken, Presence
from tests.support.actors import Admin, Client, Phone, fcm_calls_dead
from tests.support.moments import in_parallel, let_pass


def all_rows_as_text() -> str:
    """The whole content of the database, as in a dump."""
    with connection.cursor() as cursor:
        names = connection.introspection.table_names(cursor)
        parts = []
        for name in names:
            cursor.execute(f'SELECT string_agg(kept::text, chr(10)) FROM "{name}" kept')  # noqa: S608
            parts.append(cursor.fetchone()[0] or "")
    return "\n".join(parts)


def uses() -> list[int]:
    return list(EnrollmentToken.objects.order_by("id").values_list("uses", flat=True))


def test_a_phone_gets_its_identity_and_its_credentials(admin: Admin, client: Client) -> None:
    answer = Phone(client, "imei-1").register(admin.enrollment_token())
    device = Device.objects.get()
    assert answer.json == {
        "device_id": str(device.id),
        "device_token": answer.json["device_token"],
        "command_key": answer.json["command_key"],
        "heartbeat_interval_seconds": 120,
        "server_time": answer.json["server_time"],
        "re_enrolled": False,
    }
    assert answer.json["server_time"].endswith("Z")
    assert (device.id.version, device.generation, uses()) == (7, 1, [1])
    assert Presence.objects.get(device=device).last_seen_at is None


def test_the_device_token_names_the_device_and_the_command_key_is_its_first(admin: Admin, client: Client) -> None:
    given = Phone(client, "imei-1").register(admin.enrollment_token()).json
    token = tokens.parse(tokens.DEVICE_PREFIX, given["device_token"])
    assert token is not None
    assert str(token.id) == given["device_id"]
    first = hmac.digest(settings.COMMAND_SIGNING_KEYS[0].encode(), f"NXK1\n{token.id}\n1".encode(), "sha256")
    assert given["command_key"] == first.hex()


def test_the_details_of_a_registration_are_stored(admin: Admin, client: Client) -> None:
    given = {"alias": "till 4", "push_token": "fcm-1", "manufacturer": "Acme", "model": "X", "os_version": "15"}
    Phone(client, "imei-1").register(
        admin.enrollment_token(tags=["shop", "till", "shop"]), agent_version="2.0", **given
    )
    device = Device.objects.select_related("presence").get()
    assert {name: getattr(device, name) for name in given} == given
    assert (device.hardware_id, device.tags) == ("imei-1", ["shop", "till"])
    assert device.presence.agent_version == "2.0"


def test_no_row_of_any_table_contains_a_token_a_secret_or_a_command_key(admin: Admin, client: Client) -> None:
    enrollment_token, phone = admin.enrollment_token(), Phone(client, "imei-1")
    phone.register(enrollment_token)
    shown_once = [phone.device_token, phone.command_key, enrollment_token]
    assert phone.rotate().status == 200
    assert phone.heartbeat().status == 200
    kept = all_rows_as_text()
    assert phone.device_id in kept
    for text in [*shown_once, shown_once[0][27:70], enrollment_token[27:70]]:
        assert text not in kept
        assert text.encode().hex() not in kept


def test_no_line_of_the_log_contains_a_token_a_secret_or_a_command_key(admin: Admin, client: Client) -> None:
    phone = Phone(client, "imei-1")
    with capture_logs() as lines:
        enrollment_token = admin.enrollment_token()
        phone.register(enrollment_token, push_token="fcm-secret")
        phone.heartbeat(push_token="fcm-secret-2")
        rotated = phone.rotate().json
    assert {"device.registered", "heartbeat.upsert", "device.rotated"} <= {line["event"] for line in lines}
    shown = (enrollment_token, phone.device_token, phone.command_key, *rotated.values(), "fcm-secret")
    assert [text for text in shown if text in str(lines)] == []


def test_a_field_that_a_newer_agent_sends_is_ignored(admin: Admin, client: Client) -> None:
    answer = Phone(client, "imei-1").register(admin.enrollment_token(), esim={"slots": 2}, device_id="x")
    assert answer.status == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"hardware_id": "é" * 128},
        {"alias": "é" * 128},
        {"push_token": "p" * 4096},
        {"manufacturer": "m" * 128, "model": "m" * 128, "os_version": "o" * 128, "agent_version": "a" * 128},
        {"alias": None, "push_token": None, "model": None},
    ],
)
def test_the_longest_texts_fit(admin: Admin, client: Client, fields: dict[str, Any]) -> None:
    assert Phone(client, "imei-1").register(admin.enrollment_token(), **fields).status == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hardware_id", ""),
        ("hardware_id", "h" * 129),
        ("hardware_id", 17),
        ("hardware_id", None),
        ("hardware_id", "a\x00b"),
        ("alias", ""),
        ("alias", "a" * 129),
        ("alias", ["a"]),
        ("alias", 7),
    ],
)
def test_an_invalid_identity_is_422_and_consumes_no_use(
    admin: Admin, client: Client, field: str, value: object
) -> None:
    answer = Phone(client, "imei-1").register(admin.enrollment_token(), **{field: value})
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert answer.json["errors"][0]["loc"] == ["body", field]
    assert (Device.objects.count(), uses()) == (0, [0])


def test_a_registration_without_a_hardware_id_is_422(admin: Admin, client: Client) -> None:
    answer = client.request("POST", "/v1/register", {}, {"Authorization": f"Bearer {admin.enrollment_token()}"})
    assert (answer.status, answer.json["errors"][0]["loc"]) == (422, ["body", "hardware_id"])


def test_a_lost_answer_is_asked_for_again_and_consumes_no_use(admin: Admin, client: Client) -> None:
    enrollment_token, phone = admin.enrollment_token(), Phone(client, "imei-1")
    lost = phone.register(enrollment_token).json
    again = phone.register(enrollment_token)
    assert (again.status, again.json["re_enrolled"], again.json["device_id"]) == (200, False, lost["device_id"])
    assert phone.send("/v1/heartbeat", {}, lost["device_token"]).code == "invalid_token"
    assert phone.heartbeat().status == 200
    assert lost["command_key"] != again.json["command_key"]
    assert (Device.objects.get().generation, Presence.objects.count(), uses()) == (2, 1, [1])


def test_a_lost_answer_leaves_open_commands_open_and_signs_them_again(admin: Admin, client: Client) -> None:
    enrollment_token, phone = admin.enrollment_token(), Phone(client, "imei-1")
    phone.register(enrollment_token, push_token="fcm-1", alias="till", model="X")
    request_id = admin.command("ping", to=phone).json["request_id"]
    phone.register(enrollment_token)
    (offered,) = phone.heartbeat().json["commands"]
    sealed = "\n".join(["NXC1", phone.device_id, *list(offered.values())[:5]])
    assert offered["signature"] == hmac.digest(phone.command_key.encode(), sealed.encode(), "sha256").hex()
    assert (offered["request_id"], Delivery.objects.get().state) == (request_id, "pending")
    device = Device.objects.get()
    assert (device.push_token, device.alias, device.model) == ("fcm-1", "till", "X")


def test_a_lost_answer_may_be_asked_for_several_times(admin: Admin, client: Client) -> None:
    enrollment_token, phone = admin.enrollment_token(), Phone(client, "imei-1")
    answers = [phone.register(enrollment_token) for _ in range(4)]
    assert [answer.json["re_enrolled"] for answer in answers] == [False] * 4
    assert len({answer.json["command_key"] for answer in answers}) == 4
    assert (Device.objects.get().generation, uses()) == (4, [1])


def test_other_clients_with_the_enrollment_token_can_ask_for_a_lost_answer_for_15_minutes(
    admin: Admin, client: Client
) -> None:
    text, phone = admin.enrollment_token(max_uses=5), Phone(client, "imei-1")
    first = phone.register(text).json
    let_pass(minutes=14, seconds=59)
    assert Phone(client, "imei-1").register(text).json["device_id"] == first["device_id"]
    let_pass(seconds=2)
    before = Device.objects.values().get()
    assert Phone(client, "imei-1").register(text).code == "hardware_known"
    assert (Device.objects.values().get(), uses()) == (before, [1])


def test_a_repeat_of_a_lost_answer_gives_no_more_time(admin: Admin, client: Client) -> None:
    text, phone = admin.enrollment_token(max_uses=5), Phone(client, "imei-1")
    for minutes in (0, 10):
        let_pass(minutes=minutes)
        assert phone.register(text).status == 200
    let_pass(minutes=6)
    assert phone.register(text).code == "hardware_known"


def test_after_15_minutes_a_repeat_requires_re_enroll(admin: Admin, client: Client) -> None:
    text, phone = admin.enrollment_token(max_uses=5, re_enroll=True), Phone(client, "imei-1")
    phone.register(text)
    let_pass(minutes=16)
    assert phone.register(text).json["re_enrolled"] is True
    assert phone.register(text).json["re_enrolled"] is False
    assert uses() == [2]


def test_a_token_for_one_device_repeats_a_lost_answer_until_it_expires(admin: Admin, client: Client) -> None:
    text, phone = admin.enrollment_token(expires_in_seconds=86_400), Phone(client, "imei-1")
    lost = phone.register(text).json
    let_pass(hours=23)
    assert phone.register(text).json["device_id"] == lost["device_id"]
    let_pass(hours=2)
    assert phone.register(text).code == "enrollment_token_expired"


def replacements(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The log lines of replaced credentials, without the ids."""
    fields = ("log_level", "lost_answer", "address", "earlier_address", "correlation_id")
    return [{name: line[name] for name in fields} for line in lines if line["event"] == "device.re_enrolled"]


def test_a_re_enrollment_is_logged_as_a_warning_with_both_addresses(admin: Admin) -> None:
    phone = Phone(Client("198.51.100.7"), "imei-1")
    phone.register(admin.enrollment_token())
    made = admin.post("/admin/enrollment-tokens", {"re_enroll": True}).json
    phone.client = Client("2001:db8::9")
    with capture_logs([merge_contextvars]) as lines:
        answer = phone.register(made["enrollment_token"])
    assert replacements(lines) == [
        {
            "log_level": "warning",
            "lost_answer": False,
            "address": "2001:db8::9",
            "earlier_address": "198.51.100.7",
            "correlation_id": answer.headers["x-correlation-id"],
        }
    ]
    (line,) = [line for line in lines if line["event"] == "device.re_enrolled"]
    assert (line["device_id"], line["enrollment_token_id"]) == (phone.device_id, made["id"])


def test_a_lost_answer_that_another_address_asks_for_is_a_warning_and_from_the_same_none(admin: Admin) -> None:
    text, phone = admin.enrollment_token(max_uses=2), Phone(Client("198.51.100.7"), "imei-1")
    phone.register(text)
    with capture_logs([merge_contextvars]) as lines:
        phone.register(text)
        assert replacements(lines) == []
        for address in ("203.0.113.5", "198.51.100.7"):
            phone.client = Client(address)
            phone.register(text)
    fields = [(line["lost_answer"], line["earlier_address"], line["address"]) for line in replacements(lines)]
    assert fields == [(True, "198.51.100.7", "203.0.113.5"), (True, "203.0.113.5", "198.51.100.7")]


@pytest.mark.parametrize("first_use", ["heartbeat", "rotate"])
def test_once_the_device_token_was_used_the_answer_was_not_lost(admin: Admin, client: Client, first_use: str) -> None:
    enrollment_token, phone = admin.enrollment_token(max_uses=2), Phone(client, "imei-1")
    phone.register(enrollment_token)
    assert getattr(phone, first_use)().status == 200
    assert phone.register(enrollment_token).code == "hardware_known"
    assert uses() == [1]


def test_an_answer_is_lost_only_to_the_token_that_was_shown_it(admin: Admin, client: Client) -> None:
    phone = admin.enrol("imei-1")
    assert phone.register(admin.enrollment_token()).code == "hardware_known"
    assert phone.heartbeat().status == 200


def test_the_answer_to_a_re_enrollment_can_be_lost_too(admin: Admin, client: Client) -> None:
    phone, again = admin.enrol("imei-1"), admin.enrollment_token(re_enroll=True)
    phone.heartbeat()
    assert phone.register(again).json["re_enrolled"] is True
    assert phone.register(again).json["re_enrolled"] is False
    assert phone.heartbeat().status == 200
    assert (Device.objects.get().generation, uses()) == (3, [1, 1])


def test_known_hardware_is_refused_without_re_enroll(admin: Admin, client: Client) -> None:
    phone = admin.enrol("imei-1")
    before = Device.objects.values().get()
    assert Phone(client, "imei-1").register(admin.enrollment_token(), alias="mine").code == "hardware_known"
    assert Device.objects.values().get() == before
    assert phone.heartbeat().status == 200
    assert uses() == [1, 0]


def test_a_re_enrollment_keeps_the_device_and_stops_its_old_tokens_immediately(admin: Admin, client: Client) -> None:
    phone = admin.enrol("imei-1")
    old, rotated = phone.device_token, phone.rotate().json["device_token"]
    answer = phone.register(admin.enrollment_token(re_enroll=True))
    assert (answer.json["re_enrolled"], str(Device.objects.get().id)) == (True, answer.json["device_id"])
    assert phone.heartbeat().status == 200
    assert phone.send("/v1/heartbeat", {}, old).code == "invalid_token"
    assert phone.send("/v1/heartbeat", {}, rotated).code == "invalid_token"
    assert uses() == [1, 1]


def test_a_re_enrollment_never_gives_the_same_command_key_twice(admin: Admin, client: Client) -> None:
    phone = admin.enrol("imei-1")
    keys = [phone.command_key, phone.rotate().json["command_key"]]
    keys += [phone.register(admin.enrollment_token(re_enroll=True)).json["command_key"] for _ in range(2)]
    assert len(set(keys)) == 4


def test_a_re_enrollment_cancels_open_commands(admin: Admin, client: Client) -> None:
    phone, other = admin.enrol("imei-1", push_token="fcm-1"), admin.enrol("imei-2")
    admin.command("ping", to=[phone, other])
    phone.register(admin.enrollment_token(re_enroll=True))
    mine, others = Delivery.objects.get(device_id=phone.device_id), Delivery.objects.get(device_id=other.device_id)
    assert (mine.state, mine.next_attempt_at, mine.settled_at is None) == ("cancelled", None, False)
    assert others.state == "pending"
    assert phone.heartbeat().json["commands"] == []


def test_a_phone_is_enrolled_again_and_its_commands_are_cancelled_or_neither(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = admin.enrol("imei-1")
    phone.heartbeat()
    admin.command("ping", to=phone)
    token = admin.enrollment_token(re_enroll=True)
    with monkeypatch.context() as failing:
        failing.setattr("commands.queue.cancel_all_of", Mock(side_effect=RuntimeError))
        assert phone.register(token).status == 500
    assert len(phone.heartbeat().json["commands"]) == 1
    assert phone.register(token).json["re_enrolled"] is True


def test_a_re_enrollment_keeps_the_alias_adds_tags_and_deletes_the_push_token(admin: Admin, client: Client) -> None:
    phone = Phone(client, "imei-1")
    phone.register(admin.enrollment_token(tags=["shop", "till"]), alias="till 4", push_token="fcm-1", model="X")
    phone.register(admin.enrollment_token(tags=["till", "north"], re_enroll=True))
    device = Device.objects.get()
    assert (device.alias, device.tags, device.model) == ("till 4", ["shop", "till", "north"], "X")
    assert (device.push_token, device.push_token_dead_at) == (None, None)


def test_a_re_enrollment_stores_the_fields_that_are_sent(admin: Admin, client: Client) -> None:
    phone = admin.enrol("imei-1", alias="till 4", push_token="fcm-1", model="X", agent_version="1")
    phone.register(
        admin.enrollment_token(re_enroll=True), alias="till 5", push_token="fcm-2", model="Y", agent_version="2"
    )
    device = Device.objects.select_related("presence").get()
    assert (device.alias, device.push_token, device.model) == ("till 5", "fcm-2", "Y")
    assert device.presence.agent_version == "2"


def test_a_re_enrollment_with_a_dead_push_token_leaves_it_dead(admin: Admin, client: Client) -> None:
    phone = admin.enrol("imei-1", push_token="fcm-1")
    fcm_calls_dead("fcm-1")
    phone.register(admin.enrollment_token(re_enroll=True), push_token="fcm-1")
    device = Device.objects.get()
    assert (device.push_token, device.push_token_dead_at is None) == ("fcm-1", False)


def test_a_device_may_register_again_with_its_own_alias(admin: Admin, client: Client) -> None:
    phone = admin.enrol("imei-1", alias="till 4")
    assert phone.register(admin.enrollment_token(re_enroll=True), alias="till 4").status == 200


def test_a_push_token_is_taken_from_the_device_that_had_it(admin: Admin) -> None:
    before, after = admin.enrol("imei-1", push_token="fcm-1"), admin.enrol("imei-2", push_token="fcm-1")
    owners = dict(Device.objects.values_list("hardware_id", "push_token"))
    assert owners == {before.hardware_id: None, after.hardware_id: "fcm-1"}


def test_a_dead_push_token_stays_dead_on_the_device_that_sends_it_again(admin: Admin) -> None:
    admin.enrol("imei-1", push_token="fcm-1")
    fcm_calls_dead("fcm-1")
    admin.enrol("imei-2", push_token="fcm-1")
    dead = dict(Device.objects.values_list("hardware_id", "push_token_dead_at"))
    assert dead["imei-1"] is None
    assert dead["imei-2"] is not None


def test_the_pushes_of_a_device_that_lost_its_push_token_are_not_due_any_more(admin: Admin) -> None:
    before = admin.enrol("imei-1", push_token="fcm-1")
    admin.command("ping", to=before)
    admin.enrol("imei-2", push_token="fcm-1")
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.push_state, delivery.next_attempt_at) == ("pending", "no_push_token", None)


def test_refusals_come_in_their_order_and_consume_no_use(admin: Admin, client: Client) -> None:
    admin.enrol("imei-1", alias="till 4")
    known = admin.enrol("imei-2")
    admin.post(f"/admin/devices/{known.device_id}/revoke")
    text = admin.enrollment_token(max_uses=2)
    rows = EnrollmentToken.objects.filter(max_uses=2)
    rows.update(uses=2, expires_at=timezone.now() - timedelta(seconds=1), revoked_at=timezone.now())

    def refusal() -> tuple[int, str | None]:
        answer = Phone(client, "imei-2").register(text, alias="till 4")
        return answer.status, answer.code

    assert refusal() == (401, "enrollment_token_expired")
    rows.update(expires_at=timezone.now() + timedelta(hours=1))
    assert refusal() == (401, "enrollment_token_exhausted")
    rows.update(uses=1)
    assert refusal() == (401, "enrollment_token_revoked")
    rows.update(revoked_at=None)
    assert refusal() == (403, "device_revoked")
    admin.post(f"/admin/devices/{known.device_id}/reinstate")
    assert refusal() == (409, "hardware_known")
    rows.update(re_enroll=True)
    assert refusal() == (409, "alias_taken")
    assert rows.get().uses == 1
    assert known.heartbeat().status == 200


def test_an_unknown_token_is_invalid_in_combination_with_any_other_error(admin: Admin, client: Client) -> None:
    text = admin.enrollment_token()
    mine = tokens.parse(tokens.ENROLLMENT_PREFIX, text)
    assert mine is not None
    EnrollmentToken.objects.update(expires_at=timezone.now() - timedelta(days=1), revoked_at=timezone.now())
    wrong_secret = tokens.make(tokens.ENROLLMENT_PREFIX, mine.id, bytes(32)).text
    unknown = tokens.make(tokens.ENROLLMENT_PREFIX, UUID(int=1), bytes(32)).text
    answers = [Phone(client, "imei-1").register(token) for token in (wrong_secret, unknown)]
    assert [(answer.status, answer.code) for answer in answers] == [(401, "invalid_enrollment_token")] * 2
    assert answers[0].json == answers[1].json
    assert answers[0].headers["www-authenticate"] == "Bearer"


def test_a_device_token_does_not_register(phone: Phone) -> None:
    answer = phone.send("/v1/register", {"hardware_id": "imei-2"})
    assert (answer.status, answer.code) == (401, "invalid_enrollment_token")
    assert Device.objects.count() == 1


def test_a_revoked_device_is_not_enrolled_again(admin: Admin, client: Client) -> None:
    phone = admin.enrol("imei-1")
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    answer = Phone(client, "imei-1").register(admin.enrollment_token(re_enroll=True))
    assert (answer.status, answer.code, uses()) == (403, "device_revoked", [1, 0])
    assert phone.heartbeat().code == "device_revoked"


def test_an_alias_belongs_to_one_device(admin: Admin, client: Client) -> None:
    admin.enrol("imei-1", alias="till 4")
    answer = Phone(client, "imei-2").register(admin.enrollment_token(), alias="till 4")
    assert (answer.status, answer.code, uses()) == (409, "alias_taken", [1, 0])
    assert Device.objects.count() == 1


@pytest.mark.parametrize(
    ("verb", "reason"),
    [("revoke", "A revoked device has this alias."), ("retire", "A retired device still has this alias")],
)
def test_an_alias_of_a_revoked_or_retired_device_is_taken_and_the_refusal_says_which(
    admin: Admin, client: Client, verb: str, reason: str
) -> None:
    phone = admin.enrol("imei-1")
    admin.post(f"/admin/devices/{phone.device_id}/{verb}")
    Device.objects.update(alias="till 4")  # to a retired one, by the version before
    answer = Phone(client, "imei-2").register(admin.enrollment_token(), alias="TILL 4")
    assert (answer.status, answer.code, uses()) == (409, "alias_taken", [1, 0])
    assert answer.json["detail"].startswith(reason)
    assert Device.objects.count() == 1


def test_a_refused_repeat_of_a_lost_answer_leaves_the_first_credentials(admin: Admin, client: Client) -> None:
    admin.enrol("imei-1", alias="till 4")
    enrollment_token, phone = admin.enrollment_token(), Phone(client, "imei-2")
    phone.register(enrollment_token, push_token="fcm-2")
    assert phone.register(enrollment_token, alias="till 4", push_token="fcm-3").code == "alias_taken"
    assert phone.heartbeat().status == 200
    assert Device.objects.get(hardware_id="imei-2").push_token == "fcm-2"


def test_an_enrollment_token_registers_as_many_devices_as_it_has_uses(admin: Admin, client: Client) -> None:
    text = admin.enrollment_token(max_uses=2)
    answers = [Phone(client, f"imei-{number}").register(text) for number in range(3)]
    assert [answer.code for answer in answers] == [None, None, "enrollment_token_exhausted"]
    assert (Device.objects.count(), uses()) == (2, [2])


@pytest.mark.django_db(transaction=True)
def test_a_token_for_one_device_registers_exactly_one_of_many(admin: Admin) -> None:
    text = admin.enrollment_token()
    phones = [Phone(Client(), f"imei-{number}") for number in range(6)]
    answers = in_parallel([partial(phone.register, text) for phone in phones], all_wait_for="devices_device")
    codes = sorted(str(answer.code) for answer in answers)
    assert codes == ["None"] + ["enrollment_token_exhausted"] * 5
    assert (Device.objects.count(), Presence.objects.count(), uses()) == (1, 1, [1])


@pytest.mark.django_db(transaction=True)
def test_simultaneous_registrations_of_a_phone_make_one_device(admin: Admin) -> None:
    text = admin.enrollment_token()
    phones = [Phone(Client(), "imei-1") for _ in range(6)]
    answers = in_parallel([partial(phone.register, text) for phone in phones], all_wait_for="devices_device")
    assert [answer.status for answer in answers] == [200] * 6
    assert (Device.objects.get().generation, uses()) == (6, [1])
    assert sorted(phone.heartbeat().status for phone in phones) == [200] + [401] * 5


@pytest.mark.django_db(transaction=True)
def test_simultaneous_registrations_of_a_phone_with_two_tokens_make_one_device(admin: Admin) -> None:
    texts = [admin.enrollment_token() for _ in range(4)]
    calls = [partial(Phone(Client(), "imei-1").register, text) for text in texts]
    answers = in_parallel(calls, all_wait_for="devices_device")
    assert sorted(str(answer.code) for answer in answers) == ["None"] + ["hardware_known"] * 3
    assert (Device.objects.count(), sum(uses())) == (1, 1)


@pytest.mark.django_db(transaction=True)
def test_only_one_of_two_simultaneous_registrations_gets_an_alias(admin: Admin) -> None:
    texts = [admin.enrollment_token() for _ in range(4)]
    calls = [
        partial(Phone(Client(), f"imei-{number}").register, text, alias="till 4") for number, text in enumerate(texts)
    ]
    answers = in_parallel(calls, all_wait_for="devices_device")
    assert sorted(str(answer.code) for answer in answers) == ["None"] + ["alias_taken"] * 3
    assert (Device.objects.count(), sum(uses())) == (1, 1)


@pytest.mark.django_db(transaction=True)
def test_phones_that_send_the_same_push_token_at_the_same_time_leave_it_with_one_owner(admin: Admin) -> None:
    texts = [admin.enrollment_token() for _ in range(5)]
    calls = [
        partial(Phone(Client(), f"imei-{number}").register, text, push_token="fcm-1")
        for number, text in enumerate(texts)
    ]
    answers = in_parallel(calls, all_wait_for="devices_device")
    assert [answer.status for answer in answers] == [200] * 5
    assert Device.objects.filter(push_token="fcm-1").count() == 1
