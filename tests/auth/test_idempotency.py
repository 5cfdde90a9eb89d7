"""Idempotency: a signed write is done once, however often it is sent."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import psycopg
import pytest
from django.db.models.functions import Now
from pytest_django import Settings

from commands.models import Command
from devices.models import EnrollmentToken
from nexmdm.auth import stored_answers
from nexmdm.common import database
from nexmdm.common.postgresql import direct
from nexmdm.common.postgresql.connection import Connection
from nexmdm.models import AuditEntry, StoredAnswer
from tests.support.actors import Admin, Phone

KEY: Final = "order-4711-attempt_A"
PING: Final[dict[str, Any]] = {"action": "ping", "target": {"all": True}}


def test_a_repeat_gets_the_same_answer_and_the_work_is_done_once(admin: Admin, phone: Phone) -> None:
    first = admin.post("/admin/command", PING, idempotency_key=KEY)
    again = admin.post("/admin/command", PING, idempotency_key=KEY)
    assert (again.status, again.body) == (first.status, first.body)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert Command.objects.count() == 1
    assert AuditEntry.objects.filter(path="/admin/command").count() == 1


def test_a_repeat_gets_the_stored_answer_even_if_the_state_has_changed(admin: Admin, phone: Phone) -> None:
    target = f"/admin/devices/{phone.device_id}"
    first = admin.call("PATCH", target, {"alias": "lobby"}, idempotency_key=KEY)
    admin.call("PATCH", target, {"alias": "gate"})
    again = admin.call("PATCH", target, {"alias": "lobby"}, idempotency_key=KEY)
    assert again.body == first.body
    assert admin.get(target).json["alias"] == "gate"


def test_an_idempotency_key_belongs_to_one_request(admin: Admin, phone: Phone) -> None:
    admin.post("/admin/command", PING, idempotency_key=KEY)
    others = [
        admin.post("/admin/command", PING | {"note": "again"}, idempotency_key=KEY),
        admin.post("/admin/command", json.dumps(PING, indent=1).encode(), idempotency_key=KEY),
        admin.post("/admin/enrollment-tokens", {}, idempotency_key=KEY),
        admin.call("PATCH", f"/admin/devices/{phone.device_id}", {"alias": "x"}, idempotency_key=KEY),
    ]
    assert {(answer.status, answer.code) for answer in others} == {(422, "idempotency_key_reused")}
    assert (Command.objects.count(), EnrollmentToken.objects.count()) == (1, 1)


@pytest.fixture
def another_connection(admin: Admin) -> Iterator["psycopg.Connection[Any]"]:
    with Connection.connect(**direct.parameters()) as connection:
        yield connection


def test_a_repeat_while_the_first_is_still_running_is_409(
    admin: Admin, phone: Phone, another_connection: "psycopg.Connection[Any]"
) -> None:
    lock = "SELECT pg_advisory_lock(hashtextextended(%s, 0))"
    another_connection.execute(lock, [f"idempotency:admin:{KEY}"])
    answer = admin.post("/admin/command", PING, idempotency_key=KEY)
    assert (answer.status, answer.code) == (409, "idempotency_in_flight")
    assert admin.post("/admin/command", PING).status == 200

    another_connection.execute("SELECT pg_advisory_unlock_all()")
    assert admin.post("/admin/command", PING, idempotency_key=KEY).status == 200
    assert Command.objects.count() == 2


@pytest.mark.parametrize("key", ["", "fifteen-letters", "x" * 65, "sixteen letters!", "sixteen.letters.", "a/b" * 8])
def test_a_write_requires_a_well_formed_key_after_a_good_signature(admin: Admin, phone: Phone, key: str) -> None:
    answer = admin.post("/admin/command", PING, idempotency_key=key)
    assert (answer.status, answer.code) == (400, "idempotency_key_required")
    assert not Command.objects.exists()
    assert AuditEntry.objects.latest("id").code == "idempotency_key_required"


@pytest.mark.parametrize("key", ["x" * 16, "x" * 64, "Az09_-Az09_-Az09_-"])
def test_a_key_has_16_to_64_characters(admin: Admin, phone: Phone, key: str) -> None:
    assert admin.post("/admin/command", PING, idempotency_key=key).status == 200
    assert StoredAnswer.objects.filter(key=key).exists()


def test_a_refusal_is_not_stored_so_a_repeat_is_tried_again(admin: Admin) -> None:
    refused = admin.post("/admin/command", PING, idempotency_key=KEY)
    assert (refused.status, refused.code) == (422, "empty_audience")
    assert not StoredAnswer.objects.filter(key=KEY).exists()

    admin.enrol("phone-1")
    accepted = admin.post("/admin/command", PING, idempotency_key=KEY)
    assert accepted.status == 200
    assert "idempotent-replayed" not in accepted.headers


def test_a_dry_run_is_not_stored(admin: Admin, phone: Phone) -> None:
    body = PING | {"dry_run": True}
    assert admin.post("/admin/command", body, idempotency_key=KEY).json["device_count"] == 1
    admin.enrol("phone-2")
    again = admin.post("/admin/command", body, idempotency_key=KEY)
    assert again.json["device_count"] == 2
    assert "idempotent-replayed" not in again.headers
    assert not StoredAnswer.objects.filter(key=KEY).exists()


def test_a_replay_shows_the_enrollment_token_again_although_it_is_not_stored(admin: Admin) -> None:
    first = admin.post("/admin/enrollment-tokens", {"label": "stock"}, idempotency_key=KEY)
    again = admin.post("/admin/enrollment-tokens", {"label": "stock"}, idempotency_key=KEY)
    token = first.json["enrollment_token"]
    assert again.json == first.json
    assert again.headers["idempotent-replayed"] == "true"
    assert EnrollmentToken.objects.count() == 1
    assert "enrollment_token" not in StoredAnswer.objects.get(key=KEY).body
    for table in ("nexmdm_storedanswer", "nexmdm_auditentry", "devices_enrollmenttoken"):
        (text,) = database.row(f"SELECT string_agg(row::text, '') FROM {table} row")  # noqa: S608
        assert token[27:] not in text


def test_a_replay_shows_the_provisioning_again_although_it_is_neither_stored_nor_logged(
    admin: Admin, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    settings.PUBLIC_URL, settings.AGENT_COMPONENT = "https://mdm.example.com", "com.example.agent/.AdminReceiver"
    first = admin.post("/admin/enrollment-tokens", {}, idempotency_key=KEY)
    again = admin.post("/admin/enrollment-tokens", {}, idempotency_key=KEY)
    extras = first.json["provisioning"]["android.app.extra.PROVISIONING_ADMIN_EXTRAS_BUNDLE"]
    token = extras["nexmdm.enrollment_token"]
    assert (again.json, token) == (first.json, first.json["enrollment_token"])
    assert again.headers["idempotent-replayed"] == "true"
    assert "provisioning" not in StoredAnswer.objects.get(key=KEY).body
    for table in ("nexmdm_storedanswer", "nexmdm_auditentry", "devices_enrollmenttoken"):
        (text,) = database.row(f"SELECT string_agg(row::text, '') FROM {table} row")  # noqa: S608
        assert token[27:] not in text
    captured = capfd.readouterr()
    assert token[27:] not in captured.out + captured.err


def test_the_enrollment_token_of_a_replay_is_valid(admin: Admin) -> None:
    admin.post("/admin/enrollment-tokens", {}, idempotency_key=KEY)
    token = admin.post("/admin/enrollment-tokens", {}, idempotency_key=KEY).json["enrollment_token"]
    assert Phone(admin.client, "phone-1").register(token).status == 200


def test_an_answer_is_stored_for_a_day_and_then_deleted(admin: Admin, phone: Phone) -> None:
    admin.post("/admin/command", PING, idempotency_key=KEY)
    mine = StoredAnswer.objects.filter(key=KEY)
    mine.update(created_at=Now() - timedelta(hours=23, minutes=59))
    assert stored_answers.forget_old_answers() == 0

    mine.update(created_at=Now() - timedelta(hours=24, seconds=1))
    assert stored_answers.forget_old_answers() == 1
    assert "idempotent-replayed" not in admin.post("/admin/command", PING, idempotency_key=KEY).headers
    assert Command.objects.count() == 2
