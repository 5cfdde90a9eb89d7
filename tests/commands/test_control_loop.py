"""The whole loop, in the order in which a user meets it: one test for each promise."""

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client as Browser

from commands.models import Attempt, Command, Delivery, Report
from devices.models import Device, Presence
from loadtest.fake_fcm.server import FcmStandin
from tests.support.actors import Admin, Client, Phone


def test_register_returns_device_id_and_device_token_and_stores_only_hashes(admin: Admin, client: Client) -> None:
    phone = Phone(client, "phone-1")
    answer = phone.register(admin.enrollment_token())
    assert answer.status == 200
    assert {"device_id", "device_token"} <= answer.json.keys()

    row = Device.objects.values().get()
    stored = " ".join(bytes(value).hex() if isinstance(value, memoryview) else str(value) for value in row.values())
    secret = phone.device_token.split("_")[2][:43]
    assert secret not in stored
    assert phone.command_key not in stored
    assert row["token_hash"].startswith("$2b$")


def test_a_heartbeat_with_a_valid_bearer_updates_last_seen_and_last_status(admin: Admin, phone: Phone) -> None:
    assert phone.heartbeat(status={"battery_pct": 83}).status == 200
    presence = Presence.objects.get()
    assert presence.last_seen_at is not None
    assert presence.last_status == {"battery_pct": 83}
    assert admin.get(f"/admin/devices/{phone.device_id}").json["presence"] == "online"


@pytest.mark.django_db(transaction=True)
def test_a_signed_command_answers_200_with_request_id_queues_an_fcm_send_and_logs_its_response_code(
    admin: Admin, fcm: FcmStandin
) -> None:
    phone = admin.enrol("phone-1", push_token="ok-1")
    answer = admin.command("launch_app", to=phone, params={"package": "com.example.kiosk"})
    assert answer.status == 200
    assert Delivery.objects.get().push_state == "waiting"

    call_command("dispatch", once=True)

    assert fcm.journal.sends()[0].request_id == answer.json["request_id"]
    assert Attempt.objects.get().http_status == 200


def test_a_bad_signature_is_refused_and_nothing_is_queued(admin: Admin, phone: Phone) -> None:
    admin.secret = "another-secret-that-is-long-enough-to-be-one"
    answer = admin.command("ping", to=phone)
    assert (answer.status, answer.code) == (401, "invalid_signature")
    assert not Command.objects.exists()


def test_an_action_result_completes_the_command_visible_by_api_and_in_the_admin_site(
    admin: Admin, phone: Phone
) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    assert phone.heartbeat().json["commands"][0]["request_id"] == request_id

    phone.report(request_id, "succeeded", message="pong", via="heartbeat")

    assert admin.get(f"/admin/commands/{request_id}").json["state"] == "completed"
    browser = Browser()
    browser.force_login(User.objects.create_superuser("staff"))
    page = browser.get(f"/django-admin/commands/delivery/{Delivery.objects.get().id}/change/").content.decode()
    assert request_id in page
    assert "succeeded" in page
    assert "pong" in page


def test_the_same_heartbeat_again_changes_nothing_twice(admin: Admin, phone: Phone) -> None:
    admin.command("ping", to=phone)
    first, second = (phone.heartbeat(status={"battery_pct": 83}) for _ in range(2))
    assert first.json["commands"] == second.json["commands"]
    assert (Presence.objects.count(), Delivery.objects.count()) == (1, 1)


def test_the_same_result_again_changes_nothing_twice(admin: Admin, phone: Phone) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    first, second = (phone.report(request_id, "succeeded") for _ in range(2))
    assert (first.json["duplicate"], second.json["duplicate"]) == (False, True)
    assert first.json["state"] == second.json["state"] == "succeeded"
    assert Report.objects.filter(duplicate=False).count() == 1
    assert phone.heartbeat().json["commands"] == []
