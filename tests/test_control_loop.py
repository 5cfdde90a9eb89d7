"""The whole loop, in the order in which a user meets it."""

from devices.models import Device
from tests.actors import Admin


def test_a_phone_registers_gets_a_command_in_its_heartbeat_and_completes_it(admin: Admin) -> None:
    phone = admin.enrol("phone-1", alias="front-desk", model="Pixel")
    assert phone.heartbeat(status={"battery_pct": 83}).json["commands"] == []

    issued = admin.command("ping", to=phone)
    assert issued.status == 200
    request_id = issued.json["request_id"]

    offered = phone.heartbeat().json["commands"]
    assert [command["request_id"] for command in offered] == [request_id]

    answer = phone.report(request_id, "succeeded", message="pong", via="heartbeat")
    assert answer.json == {"request_id": request_id, "state": "succeeded", "duplicate": False, "late": False}

    command = admin.get(f"/admin/commands/{request_id}").json
    assert (command["state"], command["counts"]["succeeded"]) == ("completed", 1)
    assert phone.heartbeat().json["commands"] == []
    assert Device.objects.get().alias == "front-desk"
