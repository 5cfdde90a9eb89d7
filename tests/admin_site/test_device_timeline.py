"""The page of a device: one timeline of all events of the device, newest first."""

import re
from datetime import timedelta
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.urls import reverse

from commands import queue
from commands.admin import device_timeline
from commands.models import Attempt, Delivery, Report
from devices import last_refusals
from devices.last_refusals import LastRefused
from nexmdm.common import database
from tests.support.actors import Admin, Phone
from tests.support.html import plain
from tests.support.moments import let_pass


@pytest.fixture
def browser(db: None) -> Browser:
    """A visitor who has logged in."""
    browser = Browser()
    browser.force_login(User.objects.create_user("staff", is_staff=True))
    return browser


def page_of(browser: Browser, phone: Phone) -> str:
    return browser.get(reverse("nexmdm-admin:devices_device_change", args=[phone.device_id])).content.decode()


def timeline(browser: Browser, phone: Phone) -> list[tuple[str, str]]:
    """Return the kind and the text of each event, in the order of the page."""
    events = re.findall(
        r'<li class="(\w+)">.*?<div>(.*?)</div>', page_of(browser, phone).partition('class="timeline')[2], re.DOTALL
    )
    return [(kind, plain(text)) for kind, text in events]


def pushed(outcome: str, http_status: int | None, fcm_error: str = "") -> Attempt:
    """Record one push of the newest delivery, sent a moment ago."""
    delivery = Delivery.objects.all()[0]
    attempt = Attempt.objects.create(
        delivery=delivery, number=1, outcome=outcome, http_status=http_status, fcm_error=fcm_error,
        finished_at=delivery.command.issued_at,
    )  # fmt: skip
    Delivery.objects.filter(pk=delivery.pk).update(attempt_count=1)
    return attempt


def test_commands_pushes_reports_refusals_and_signed_requests_are_one_timeline(admin: Admin, browser: Browser) -> None:
    phone = admin.enrol("hw-1", alias="lobby")
    let_pass(hours=1)
    admin.command("lock", to=phone)
    let_pass(minutes=1)
    attempt = pushed("token_dead", 404, "UNREGISTERED")
    let_pass(minutes=1)
    phone.report(str(Delivery.objects.get().command_id), "failed", message="no device owner")
    let_pass(minutes=1)
    last_refusals.write([LastRefused(UUID(phone.device_id), 0, "/v1/heartbeat", "invalid_request")])
    let_pass(minutes=1)
    admin.command("wipe", to=phone, dry_run=True)
    admin.command("wipe", to=phone, expect_count=3)
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    events = timeline(browser, phone)
    assert events[:3] == [
        ("admin", "revoke by admin"),
        ("admin", "wipe by admin refused: audience_changed"),
        ("admin", "wipe by admin dry run"),
    ]
    assert events[3] == ("refusal", "last refusal: invalid_request The phone called /v1/heartbeat.")
    assert events[4] == ("report", "phone reports on lock : failed no device owner")
    assert events[5] == ("push", "push 1 of lock : token_dead 404 UNREGISTERED")
    assert events[6] == ("command", "lock issued by admin: failed no device owner")
    assert (events[7][0], events[7][1][:13], len(events)) == ("device", "enrolled with", 8)
    page = page_of(browser, phone)
    for model, key in (("commands_attempt", attempt.pk), ("commands_report", Report.objects.get().pk),
                       ("commands_delivery", attempt.delivery_id)):  # fmt: skip
        assert f'href="{reverse(f"nexmdm-admin:{model}_change", args=[key])}"' in page


def test_an_expiry_is_a_separate_event_and_the_command_shows_the_reason(
    admin: Admin, phone: Phone, browser: Browser
) -> None:
    let_pass(minutes=1)
    admin.command(to=phone)
    let_pass(minutes=20)
    queue.expire(10)
    (end, command, *_) = timeline(browser, phone)
    assert end == ("end", "ping expired")
    assert command == (
        "command",
        "ping issued by admin: expired The device had never sent a heartbeat; the device had no live push token.",
    )


def test_a_long_timeline_ends_before_its_first_gap_and_links_to_the_whole_lists(
    admin: Admin, phone: Phone, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_timeline, "DELIVERIES", 3)
    for number in range(5):
        admin.command("ping", to=phone, note=f"{number}")
        let_pass(minutes=1)
    assert [kind for kind, _ in timeline(browser, phone)] == ["command"] * 3
    page = page_of(browser, phone)
    for address in (
        f"/django-admin/commands/delivery/?device__id__exact={phone.device_id}",
        f"/django-admin/commands/attempt/?q={phone.device_id}",
        f"/django-admin/commands/report/?q={phone.device_id}",
        f"/django-admin/nexmdm/auditentry/?q={phone.device_id}",
    ):
        assert f'href="{address}"' in page


def test_a_timeline_shows_a_hundred_events_at_most(admin: Admin, phone: Phone, browser: Browser) -> None:
    admin.command("ping", to=phone)
    delivery, now = Delivery.objects.get(), database.now()
    Report.objects.bulk_create(
        Report(delivery=delivery, status="running", message=f"step {n}", reported_at=now + timedelta(seconds=n))
        for n in range(150)
    )
    events = timeline(browser, phone)
    assert len(events) == 100
    assert [text[-8:] for _, text in events[:2]] == ["step 149", "step 148"]


def test_texts_of_others_are_shown_as_text_in_the_timeline(admin: Admin, phone: Phone, browser: Browser) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    phone.report(request_id, "failed", message="<script>alert(1)</script>")
    assert "<script>alert" not in page_of(browser, phone)
