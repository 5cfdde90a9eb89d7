"""The cost of each write of a phone or an admin, pinned: messages, statements and changes of threads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from django.contrib.auth.models import User

from tests.support.actors import LOGIN, Admin, Answer, Phone, Visitor
from tests.support.moments import let_pass, thread_hops
from tests.support.wire import traffic

Send = Callable[[], Answer]

PASSWORD: Final = "correct horse battery"
WEBHOOK: Final = {"url": "https://hooks.example.com/"}


@dataclass(slots=True)
class Fleet:
    """An admin and three phones with push tokens."""

    admin: Admin
    phones: list[Phone]
    folder: Path

    @property
    def phone(self) -> Phone:
        """The first phone."""
        return self.phones[0]

    def commanded(self, action: str = "ping", **fields: Any) -> str:
        """Send a command to the first phone and return its request id."""
        return str(self.admin.command(action, to=self.phone, **fields).json["request_id"])

    def reporting(self, request_id: str, status: str) -> Send:
        """Return a function that sends a report."""
        return lambda: self.phone.report(request_id, status, via="push")

    def on_device(self, write: str) -> Send:
        """Return a function that sends a write on the first phone."""
        return lambda: self.admin.post(f"/admin/devices/{self.phone.device_id}/{write}")


@pytest.fixture
def fleet(admin: Admin, tmp_path: Path) -> Fleet:
    """A fleet whose admin and phones have called before, so that the limits of this window exist."""
    phones = admin.enrol_fleet(3, push_token="ok-")
    for phone in phones:
        assert phone.heartbeat().status == 200
    return Fleet(admin, phones, tmp_path)


def registering(fleet: Fleet, hardware_id: str, **token: Any) -> Send:
    text = fleet.admin.enrollment_token(**token)
    phone = Phone(fleet.admin.client, hardware_id)
    return lambda: phone.register(text, push_token="ok-new", model="Example")


def asking_again(fleet: Fleet) -> Send:
    send = registering(fleet, "phone-new")
    assert send().status == 200
    return send


def using_a_rotated_token(fleet: Fleet) -> Send:
    fleet.phone.device_token = fleet.phone.rotate().json["device_token"]
    return fleet.phone.heartbeat


def using_a_first_token(fleet: Fleet) -> Send:
    return fleet.admin.enrol("phone-new").heartbeat


def coming_back(fleet: Fleet) -> Send:
    let_pass(hours=1)
    return fleet.phone.heartbeat


def showing_a_wrong_token(fleet: Fleet) -> Send:
    old = fleet.phone.device_token
    fleet.phone.device_token = fleet.phone.rotate().json["device_token"]
    assert fleet.phone.heartbeat().status == 200
    return lambda: fleet.phone.send("/v1/heartbeat", {}, old)


def repeating(fleet: Fleet) -> Send:
    send = fleet.reporting(fleet.commanded(), "succeeded")
    assert send().status == 200
    return send


def reporting_late(fleet: Fleet) -> Send:
    request_id = fleet.commanded()
    assert fleet.admin.post(f"/admin/commands/{request_id}/cancel").status == 200
    return fleet.reporting(request_id, "failed")


def commanding_without_push(fleet: Fleet) -> Send:
    assert fleet.phone.heartbeat(push_token=None).status == 200
    return lambda: fleet.admin.command(to=fleet.phone)


def commanding_a_tag(fleet: Fleet) -> Send:
    fleet.admin.post("/admin/tags/kiosk", {"add": [phone.device_id for phone in fleet.phones]})
    return lambda: fleet.admin.command(to={"tags": ["kiosk"]})


def superseding(fleet: Fleet) -> Send:
    fleet.commanded()
    return lambda: fleet.admin.command(to=fleet.phone, supersede=True)


def repeating_a_command(fleet: Fleet) -> Send:
    def send() -> Answer:
        body = {"action": "ping", "target": {"device_ids": [fleet.phone.device_id]}}
        return fleet.admin.post("/admin/command", body, idempotency_key="0123456789abcdef")

    assert send().status == 200
    return send


def cancelling(fleet: Fleet) -> Send:
    path = f"/admin/commands/{fleet.commanded()}/cancel"
    return lambda: fleet.admin.post(path)


def revoking_an_enrollment_token(fleet: Fleet) -> Send:
    path = f"/admin/enrollment-tokens/{fleet.admin.post('/admin/enrollment-tokens', {}).json['id']}/revoke"
    return lambda: fleet.admin.post(path)


def on_a_webhook(method: str, path: str = "", body: Any = None) -> Callable[[Fleet], Send]:
    def prepare(fleet: Fleet) -> Send:
        webhook_id = fleet.admin.post("/admin/webhooks", WEBHOOK).json["id"]
        return lambda: fleet.admin.call(method, f"/admin/webhooks/{webhook_id}{path}", body)

    return prepare


def making_another_webhook(fleet: Fleet) -> Send:
    def send() -> Answer:
        return fleet.admin.post("/admin/webhooks", WEBHOOK)

    assert send().status == 200
    return send


def changing_the_alias(fleet: Fleet) -> Send:
    path = f"/admin/devices/{fleet.phone.device_id}"
    return lambda: fleet.admin.call("PATCH", path, {"alias": "till 7"})


def putting_a_tag_on(fleet: Fleet) -> Send:
    return lambda: fleet.admin.post("/admin/tags/kiosk", {"add": [fleet.phone.device_id]})


def shutting_out(write: str) -> Callable[[Fleet], Send]:
    def prepare(fleet: Fleet) -> Send:
        fleet.commanded("lock")
        return fleet.on_device(write)

    return prepare


def reinstating(fleet: Fleet) -> Send:
    fleet.commanded("lock")
    assert fleet.on_device("revoke")().status == 200
    return fleet.on_device("reinstate")


def logging_in(fleet: Fleet) -> Send:
    User.objects.create_user("staff", password=PASSWORD, is_staff=True)
    visitor = Visitor()
    form = visitor.request("GET", LOGIN)
    token = form.body.decode().split('name="csrfmiddlewaretoken" value="')[1].partition('"')[0]
    words = {"username": "staff", "password": PASSWORD, "csrfmiddlewaretoken": token}
    return lambda: visitor.post_form(f"{LOGIN}?next=/django-admin/", words, form.headers["set-cookie"])


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a write: messages to PostgreSQL, each of which is answered; statements; and changes of threads."""

    messages: int
    statements: int
    hops: int


@dataclass(frozen=True, slots=True)
class Write:
    """A write by name: the work before it, its status, its cost."""

    name: str
    prepare: Callable[[Fleet], Send]
    cost: Cost
    status: int = 200


WRITES: Final = [
    Write("heartbeat", lambda fleet: lambda: fleet.phone.heartbeat(status={"battery_pct": 83}), Cost(2, 2, 1)),
    Write("heartbeat, first of a device", using_a_first_token, Cost(3, 5, 1)),
    Write("heartbeat, after an offline time", coming_back, Cost(3, 5, 1)),
    Write("heartbeat, another push token", lambda f: lambda: f.phone.heartbeat(push_token="ok-x"), Cost(10, 8, 2)),
    Write("heartbeat, first use of a rotated token", using_a_rotated_token, Cost(8, 6, 4)),
    Write("heartbeat, token of before a rotation", showing_a_wrong_token, Cost(4, 3, 2), 401),
    Write("register, new hardware", lambda fleet: registering(fleet, "phone-new"), Cost(24, 21, 3)),
    Write("register, known hardware", lambda fleet: registering(fleet, "phone-1", re_enroll=True), Cost(26, 23, 3)),
    Write("register, lost answer asked for again", asking_again, Cost(19, 16, 3)),
    Write("rotate", lambda fleet: fleet.phone.rotate, Cost(9, 5, 4)),
    Write("report, received", lambda fleet: fleet.reporting(fleet.commanded(), "received"), Cost(2, 2, 1)),
    Write("report, succeeded", lambda fleet: fleet.reporting(fleet.commanded(), "succeeded"), Cost(2, 2, 1)),
    Write("report, succeeded again", repeating, Cost(2, 2, 1)),
    Write("report, failed late", reporting_late, Cost(2, 2, 1)),
    Write("report, wiped", lambda fleet: fleet.reporting(fleet.commanded("wipe"), "succeeded"), Cost(21, 19, 2)),
    Write("command, one device", lambda fleet: lambda: fleet.admin.command(to=fleet.phone), Cost(6, 9, 1)),
    Write("command, one device without push token", commanding_without_push, Cost(6, 9, 1)),
    Write("command, repeated request", repeating_a_command, Cost(4, 3, 1)),
    Write("command, a tag", commanding_a_tag, Cost(6, 8, 1)),
    Write("command, all devices", lambda fleet: fleet.admin.command, Cost(6, 8, 1)),
    Write("command, supersede", superseding, Cost(6, 9, 1)),
    Write("command, dry run", lambda fleet: lambda: fleet.admin.command(to=fleet.phone, dry_run=True), Cost(6, 8, 1)),
    Write("command, refused", lambda fleet: lambda: fleet.admin.command("dance"), Cost(3, 3, 1), 422),
    Write("cancel", cancelling, Cost(9, 11, 1)),
    Write("enrollment token made", lambda f: lambda: f.admin.post("/admin/enrollment-tokens", {}), Cost(6, 8, 1)),
    Write("enrollment token revoked", revoking_an_enrollment_token, Cost(6, 8, 1)),
    Write("device changed", changing_the_alias, Cost(14, 16, 1)),
    Write("tag put on", putting_a_tag_on, Cost(8, 10, 1)),
    Write("revoke", shutting_out("revoke"), Cost(11, 13, 1)),
    Write("retire", shutting_out("retire"), Cost(15, 17, 1)),
    Write("reinstate", reinstating, Cost(9, 11, 1)),
    Write("webhook made", making_another_webhook, Cost(8, 10, 1)),
    Write("webhook changed", on_a_webhook("PATCH", body={"types": ["device.*"]}), Cost(6, 8, 1)),
    Write("webhook paused", on_a_webhook("PATCH", body={"paused": True}), Cost(7, 9, 1)),
    Write("webhook replayed", on_a_webhook("POST", "/replay", {"after": "now"}), Cost(10, 12, 1)),
    Write("webhook's secret rotated", on_a_webhook("POST", "/rotate-secret"), Cost(7, 9, 1)),
    Write("webhook tested, without a dispatcher", on_a_webhook("POST", "/test"), Cost(9, 10, 2)),
    Write("webhook deleted", on_a_webhook("DELETE"), Cost(8, 10, 1)),
    Write("read of a device", lambda f: lambda: f.admin.get(f"/admin/devices/{f.phone.device_id}"), Cost(4, 2, 2)),
    Write("login of staff", logging_in, Cost(11, 6, 6), 302),
]  # fmt: skip


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
def test_a_write_costs_so_many_messages_statements_and_changes_of_threads(fleet: Fleet, write: Write) -> None:
    send = write.prepare(fleet)
    with traffic(fleet.folder) as counted, thread_hops() as hops:
        answer = send()
    assert answer.status == write.status, answer
    made = Cost(len(counted.messages), counted.statements, len(hops))
    assert made == write.cost, "\n".join(counted.messages)
