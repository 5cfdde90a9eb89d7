"""The rights of credentials: a wrong kind gives no access, and a device's credential no access to another device."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import UUID

import pytest
from pytest_django import Settings

from commands.models import Delivery, Report
from devices import tokens
from devices.models import Device
from nexmdm.api.application import api
from tests.support.actors import Admin, Client, Phone, encode

Headers = dict[str, str]

METRICS_TOKEN: Final = "a-metrics-token-of-thirty-two-characters"
BODIES: Final = {
    "/v1/register": {"hardware_id": "imei-2"},
    "/v1/action-result": {"request_id": "0192f0c1-b000-7abc-8def-0123456789ab", "status": "received"},
    "/admin/command": {"action": "ping", "target": {"all": True}},
}
OPENS: Final = {
    "DeviceBearer": "a device token",
    "EnrollmentBearer": "an enrollment token",
    "SignedRequest": "a signature",
    "MetricsBearer": "the metrics token",
}


def guarded() -> Iterator[tuple[str, str, str]]:
    """Method, target and scheme of each operation that requires a credential."""
    for path, operations in api.get_openapi_schema()["paths"].items():
        target = re.sub(r"{\w+_id}", "0192f0c1-b000-7abc-8def-0123456789ab", path).replace("{tag}", "floor-1")
        for method, operation in operations.items():
            for scheme in {name for one in operation.get("security", []) for name in one}:
                yield method.upper(), target, scheme


def credentials(admin: Admin, phone: Phone, method: str, target: str, body: bytes) -> Iterator[tuple[str, Headers]]:
    """Each kind of credential, valid for its own operations, and some invalid ones."""
    bearers = {
        "a device token": phone.device_token,
        "an enrollment token": admin.enrollment_token(),
        "the metrics token": METRICS_TOKEN,
        "the admin key": admin.key,
        "the HMAC secret": admin.secret,
        "a command key": phone.command_key,
        "nothing": "",
    }
    for kind, text in bearers.items():
        yield kind, {"Authorization": f"Bearer {text}"}
        yield f"{kind}, as another scheme", {"Authorization": f"Basic {text}"}
    yield "no credential", {}
    yield "a signature", admin.headers(method, target, body)
    yield "an unsigned admin key", {"X-Admin": admin.key}


def test_a_credential_of_the_wrong_kind_is_401_on_every_route(
    admin: Admin, phone: Phone, settings: Settings, record_property: Callable[[str, Any], None]
) -> None:
    settings.METRICS_TOKEN, settings.AUTH_FAILURE_RATE_LIMIT = METRICS_TOKEN, "1000000/s"
    settings.ADMIN_RATE_LIMIT = "1000000/s"
    tried = 0
    for method, target, scheme in guarded():
        body = BODIES.get(target, {}) if method in ("POST", "PATCH") else None
        for kind, headers in credentials(admin, phone, method, target, encode(body)):
            if kind != OPENS[scheme]:
                answer = admin.client.request(method, target, body, headers)
                assert (answer.status, "www-authenticate" in answer.headers) == (401, True), (method, target, kind)
                tried += 1
    assert tried > 200
    assert (Device.objects.count(), Delivery.objects.count()) == (1, 0)
    record_property("wrong credentials", tried)


def test_a_device_cannot_read_or_answer_commands_of_another_one(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2", push_token="fcm-2")
    request_id = admin.command("ping", to=other).json["request_id"]
    before = Device.objects.values().get(id=other.device_id)

    assert phone.heartbeat().json["commands"] == []
    for status in ("received", "succeeded"):
        assert phone.report(request_id, status).code == "unknown_request"
    assert phone.rotate().status == 200

    assert Device.objects.values().get(id=other.device_id) == before
    assert (Delivery.objects.get().state, Report.objects.count()) == ("pending", 0)
    (offered,) = other.heartbeat().json["commands"]
    assert other.report(offered["request_id"], "succeeded").json["state"] == "succeeded"


def test_a_token_with_parts_of_two_devices_is_invalid(admin: Admin, phone: Phone) -> None:
    other = admin.enrol("phone-2")
    for mine, theirs in ((phone, other), (other, phone)):
        token = tokens.parse(tokens.DEVICE_PREFIX, mine.device_token)
        assert token is not None
        number = 0
        for digit in token.secret:
            number = number * 62 + tokens._DIGITS[digit]
        mixed = tokens.make(tokens.DEVICE_PREFIX, UUID(theirs.device_id), number.to_bytes(32))
        assert mixed.secret == token.secret
        for target, body in (
            ("/v1/heartbeat", {}),
            ("/v1/token/rotate", None),
            ("/v1/action-result", BODIES["/v1/action-result"]),
        ):
            assert theirs.send(target, body, mixed.text).code == "invalid_token"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("peer", "secure"), [("192.0.2.1", False), ("10.0.0.1", True)])
def test_only_a_trusted_proxy_can_set_the_scheme_to_https(settings: Settings, peer: str, secure: bool) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    client, login = Client(peer), "/django-admin/login/"
    form = client.request("GET", login)
    (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', form.body.decode())
    headers = {
        "Cookie": form.headers["set-cookie"].partition(";")[0],
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Forwarded-Proto": "https",
    }
    body = f"csrfmiddlewaretoken={token}&username=nobody&password=nothing".encode()
    answer = client.request("POST", login, body, headers)
    # Only over https, Django requires the page that a form came from.
    assert (answer.status, b"Referer" in answer.body) == ((403, True) if secure else (200, False))
