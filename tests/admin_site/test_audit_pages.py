"""The audit on the admin site: the text of each entry, the search for entries, and links to and from their objects."""

import csv
import json
import re
from datetime import timedelta
from hashlib import sha256
from html import unescape
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.urls import reverse

from commands.models import Command
from devices.models import Device, EnrollmentToken
from nexmdm.models import AuditEntry
from tests.support.actors import Admin, Phone, Visitor
from tests.support.html import plain


@pytest.fixture
def browser(db: None) -> Browser:
    """A visitor who has logged in."""
    browser = Browser()
    browser.force_login(User.objects.create_superuser("root", password="not-a-real-password"))
    return browser


def listed(browser: Browser, **query: str) -> list[int]:
    """Return the numbers of the entries in the list, newest first."""
    answer = browser.get(reverse("nexmdm-admin:nexmdm_auditentry_changelist"), query)
    assert answer.status_code == 200, answer.get("Location")
    return [entry.pk for entry in answer.context["cl"].result_list]


def list_text(browser: Browser, **query: str) -> str:
    """Return the list without its mark-up."""
    return plain(browser.get(reverse("nexmdm-admin:nexmdm_auditentry_changelist"), query).content.decode())


def page(browser: Browser, name: str, key: object) -> str:
    return browser.get(reverse(f"nexmdm-admin:{name}_change", args=[key])).content.decode()


def number(**fields: Any) -> int:
    return AuditEntry.objects.filter(**fields).latest("id").pk


def test_the_list_shows_action_target_and_dry_run(admin: Admin, phone: Phone, browser: Browser) -> None:
    admin.command("wipe", to=phone, dry_run=True)
    assert "admin wipe dry run device phone-1 1 only checked - " in list_text(browser, action="wipe")
    request_id = admin.command("wipe", to=phone).json["request_id"]
    ends = f"{request_id[:-8]} {request_id[-8:]}"
    assert f"admin wipe device phone-1 1 done {ends} " in list_text(browser, request_id=request_id)
    admin.command("wipe", to=phone, expect_count=7)
    assert "admin wipe device phone-1 - 409 audience_changed - " in list_text(browser, ending="refused")


def test_a_wipe_is_named_in_the_title_of_its_entry_and_a_dry_run_as_such(
    admin: Admin, phone: Phone, browser: Browser
) -> None:
    admin.command("wipe", to=phone, dry_run=True)
    admin.command("wipe", to=phone)
    admin.command("wipe", to=phone, expect_count=7)
    titles: dict[str, dict[str, Any]] = {
        "wipe (dry run) by admin": {"dry_run": True},
        "wipe by admin": {"dry_run": False, "status": 200},
        "wipe by admin, refused with 409 audience_changed": {"status": 409},
    }
    for title, fields in titles.items():
        text = page(browser, "nexmdm_auditentry", number(**fields))
        assert f"<title>Audit entry {title} | NexMDM</title>" in text
        assert f"<h1>Audit entry {title}</h1>" in text
        assert f"&rsaquo; {title}\n" in text


def test_the_page_of_an_enrollment_token_leads_to_the_request_that_created_it(admin: Admin, browser: Browser) -> None:
    admin.enrollment_token(label="till")
    token = EnrollmentToken.objects.get()

    def created_with_it() -> list[str]:
        text = page(browser, "devices_enrollmenttoken", token.pk)
        (address,) = re.findall(r'<a href="([^"]*)">requests that created a token at that time</a>', text)
        return [entry.target for entry in browser.get(unescape(address)).context["cl"].result_list]

    assert created_with_it() == ["label: till"]
    EnrollmentToken.objects.update(created_at=token.created_at - timedelta(hours=1))
    assert created_with_it() == []


def test_an_entry_leads_to_its_enrollment_token_and_the_token_leads_back(admin: Admin, browser: Browser) -> None:
    token = admin.post("/admin/enrollment-tokens", {"label": "first floor"}).json
    admin.post(f"/admin/enrollment-tokens/{token['id']}/revoke")
    tokens = reverse("nexmdm-admin:devices_enrollmenttoken_changelist")
    revoked = number(action="revoke_enrollment_token")
    entry = page(browser, "nexmdm_auditentry", revoked)
    assert f'href="{tokens}{token["id"]}/change/">enrollment token first floor</a>' in entry
    made = page(browser, "nexmdm_auditentry", number(action="create_enrollment_token"))
    assert f'<a href="{tokens}?q=first+floor">first floor</a>' in made
    entries = reverse("nexmdm-admin:nexmdm_auditentry_changelist")
    assert f'href="{entries}?q={token["id"]}"' in page(browser, "devices_enrollmenttoken", token["id"])
    assert listed(browser, q=token["id"]) == [revoked]


def test_an_entry_leads_to_its_command_and_its_device_and_they_lead_back(
    admin: Admin, phone: Phone, browser: Browser
) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    admin.post(f"/admin/devices/{phone.device_id}/revoke")
    device_page = reverse("nexmdm-admin:devices_device_change", args=[phone.device_id])
    command_page = reverse("nexmdm-admin:commands_command_change", args=[request_id])
    assert f'href="{command_page}"' in page(browser, "nexmdm_auditentry", number(action="ping"))
    assert f'href="{device_page}"' in page(browser, "nexmdm_auditentry", number(action="revoke"))
    entries = reverse("nexmdm-admin:nexmdm_auditentry_changelist")
    assert f'href="{entries}?request_id={request_id}"' in page(browser, "commands_command", Command.objects.get().pk)
    assert listed(browser, request_id=request_id) == [number(action="ping")]
    assert f'href="{entries}?q={phone.device_id}"' in page(browser, "devices_device", Device.objects.get().pk)
    assert listed(browser, q=phone.device_id) == [number(action="revoke"), number(action="ping")]


def test_an_entry_of_a_command_to_one_device_leads_to_it(admin: Admin, phone: Phone, browser: Browser) -> None:
    other = admin.enrol("phone-2")
    device_page = reverse("nexmdm-admin:devices_device_change", args=[phone.device_id])
    admin.command("wipe", to=phone, dry_run=True)
    tried = page(browser, "nexmdm_auditentry", number(action="wipe"))
    assert f'href="{device_page}"' in tried
    assert "Dry run: yes" in plain(tried)
    admin.command("lock", to=[phone, other])
    for_both = page(browser, "nexmdm_auditentry", number(action="lock"))
    assert f'href="{device_page}"' not in for_both
    assert "Dry run: no" in plain(for_both)
    unknown = "0192f0c1-b000-7abc-8def-0123456789ab"
    for named, shown in ((unknown, f"device_ids: {unknown}"), ("Lobby", "device_ids: Lobby"), (7, "-")):
        admin.post("/admin/command", {"action": "ping", "target": {"device_ids": [named]}})
        assert f"About: {shown} " in plain(page(browser, "nexmdm_auditentry", number(action="ping")))


def test_an_entry_about_several_devices_names_them(admin: Admin, phone: Phone, browser: Browser) -> None:
    other = admin.enrol("HW-2", alias="front desk")
    request_id = admin.command(to=[phone, other]).json["request_id"]
    admin.post("/admin/tags/lobby", {"add": [other.device_id], "remove": [phone.device_id]})
    assert "device_ids: phone-1, front desk 2 done" in list_text(browser, request_id=request_id)
    assert "tag: lobby, add: front desk, remove: phone-1" in list_text(browser, action="tag")
    text = plain(page(browser, "nexmdm_auditentry", number(action="tag")))
    assert "tag: lobby, add: front desk, remove: phone-1" in text
    assert f"tag: lobby, add: {other.device_id}, remove: {phone.device_id}" in text


def test_entries_are_found_by_action_dry_run_and_search_text(admin: Admin, phone: Phone, browser: Browser) -> None:
    admin.command("wipe", to=phone, dry_run=True)
    request_id = admin.command("wipe", to=phone).json["request_id"]
    tried, done = AuditEntry.objects.filter(action="wipe").order_by("id").values_list("id", flat=True)
    for query, found in (
        ({"action": "wipe"}, [done, tried]),
        ({"action": "wipe", "dry_run": "dry runs"}, [tried]),
        ({"action": "wipe", "dry_run": "none of them"}, [done]),
        ({"q": "wipe"}, [done, tried]),
        ({"q": request_id}, [done]),
        ({"q": phone.device_id}, [done, tried]),
        ({"q": "/admin/command"}, [done, tried]),
        ({"q": "dance"}, []),
        ({"action": "wipe", "principal": "admin"}, [done, tried]),
        ({"action": "wipe", "status": "200"}, [done, tried]),
        ({"status": "422"}, []),
        ({"status": "other"}, []),
        ({"principal": "ops1"}, []),
        ({"q": "OPS1"}, []),
    ):
        assert listed(browser, **query) == found, query


def test_a_principal_leads_to_its_entries_and_is_found_by_the_search_box(admin: Admin, browser: Browser) -> None:
    admin.enrollment_token()
    entries = reverse("nexmdm-admin:nexmdm_auditentry_changelist")
    everything = listed(browser)
    assert f'<a href="{entries}?principal=admin">admin</a>' in browser.get(entries).content.decode()
    assert listed(browser, q="Admin") == listed(browser, principal="admin") == everything != []


def test_the_csv_has_the_summaries_and_is_enough_to_verify_the_chain(
    admin: Admin, phone: Phone, browser: Browser
) -> None:
    admin.command("wipe", to=phone, dry_run=True)
    admin.post(f"/admin/devices/{phone.device_id}/retire")
    staff = Visitor(session=browser.cookies["sessionid"].value)
    answer = staff.request("GET", reverse("nexmdm-admin:nexmdm_auditentry_export"))
    rows = list(csv.DictReader(StringIO(answer.body.decode(), newline="")))
    assert [(row["action"], row["device_count"], row["dry_run"]) for row in rows[:2]] == [
        ("retire", "1", ""), ("wipe", "1", "true"),
    ]  # fmt: skip
    for row in rows:
        covered = [
            "nexmdm audit 2", row["previous"], int(row["id"]), row["at"], row["principal"], row["admin_key_id"],
            row["idempotency_key"], row["address"] or None, row["method"], row["path"], row["body_sha256"],
            int(row["status"]), row["code"], row["request_id"] or None, row["correlation_id"], row["action"],
            row["target"], json.loads(row["device_count"] or "null"), json.loads(row["dry_run"] or "null"),
        ]  # fmt: skip
        assert sha256(json.dumps(covered, ensure_ascii=False).encode()).hexdigest() == row["hash"]
