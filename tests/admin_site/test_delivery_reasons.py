"""The devices that did not get a command, and the reasons: on the admin site, in its CSV, in the API, and by the
client.
"""

import csv
import json
import re
from io import StringIO
from typing import Final

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.urls import reverse

from commands.models import Command, Delivery
from tests.support.actors import Admin, Phone, Visitor
from tests.support.fleet_command import InProcess, run
from tests.support.html import plain
from tests.support.moments import let_pass

NEVER_SEEN: Final = "The device had never sent a heartbeat; the device had no live push token."


@pytest.fixture
def browser(db: None) -> Browser:
    """A visitor who has logged in."""
    browser = Browser()
    browser.force_login(User.objects.create_superuser("root", password="not-a-real-password"))
    return browser


@pytest.fixture
def phones(admin: Admin) -> list[Phone]:
    return [admin.enrol(name, alias=name) for name in ("works", "fails", "silent", "late")]


@pytest.fixture
def wiped(admin: Admin, phones: list[Phone]) -> str:
    """Return a lock of four phones: it succeeded, failed, expired, and expired before a report of success."""
    works, fails, _, late = phones
    request_id: str = admin.command("lock", to=phones).json["request_id"]
    works.report(request_id, "succeeded", message="locked")
    fails.report(request_id, "failed", message="no device owner")
    let_pass(hours=24 * 28 + 1)
    late.report(request_id, "succeeded")
    return request_id


def test_the_list_of_deliveries_shows_reasons_and_can_leave_out_successes(
    wiped: str, phones: list[Phone], browser: Browser
) -> None:
    answer = browser.get(reverse("nexmdm-admin:commands_delivery_changelist"), {"q": wiped, "state": "not succeeded"})
    rows = {row.device.alias: row for row in answer.context["cl"].result_list}
    assert list(rows) == ["late", "silent", "fails"]
    text = plain(answer.content.decode())
    assert f"expired {NEVER_SEEN} The phone reported succeeded later." in text
    assert text.count(f"expired {NEVER_SEEN}") == 2
    assert "failed no device owner" in text


def test_the_pages_of_a_command_and_a_device_say_why(wiped: str, phones: list[Phone], browser: Browser) -> None:
    page = plain(browser.get(reverse("nexmdm-admin:commands_command_change", args=[wiped])).content.decode())
    assert "failed no device owner" in page
    assert page.count(NEVER_SEEN) == 2
    silent = browser.get(reverse("nexmdm-admin:devices_device_change", args=[phones[2].device_id]))
    assert NEVER_SEEN in plain(silent.content.decode())


def test_the_page_of_a_command_lists_failed_then_expired_then_open_deliveries(
    admin: Admin, phones: list[Phone], browser: Browser
) -> None:
    works, fails, silent, _ = phones
    request_id = admin.command(to=phones).json["request_id"]
    works.report(request_id, "succeeded", message="pong")
    fails.report(request_id, "failed", message="no device owner")
    past = Command.objects.get().issued_at
    Delivery.objects.filter(device__id=silent.device_id).update(open_until=past)
    page = browser.get(reverse("nexmdm-admin:commands_command_change", args=[request_id])).content.decode()
    rows = [plain(row) for row in re.findall(r'<tr class="form-row">.*?</tr>', page, re.DOTALL)]
    assert [row.split()[:2] for row in rows] == [
        ["fails", "failed"], ["silent", "expired"], ["late", "pending"], ["works", "succeeded"],
    ]  # fmt: skip
    assert "failed no device owner" in rows[0]
    assert page.index("Not succeeded") < page.index(">Succeeded") < page.index("The request")


def test_the_page_of_a_command_says_how_many_deliveries_it_does_not_show(admin: Admin, browser: Browser) -> None:
    fleet = admin.enrol_fleet(42)
    request_id = admin.command(to=fleet).json["request_id"]
    for phone in fleet[:20]:
        phone.report(request_id, "succeeded")
    page = browser.get(reverse("nexmdm-admin:commands_command_change", args=[request_id])).content.decode()
    everything = f"{reverse('nexmdm-admin:commands_delivery_changelist')}?command__id__exact={request_id}"
    whole = f'<a href="{everything}&amp;state=not+succeeded">All deliveries: not succeeded</a>'
    assert f"These are 20 of 22. {whole}" in page
    assert page.count("These are") == 1
    assert len(browser.get(f"{everything}&state=not+succeeded").context["cl"].result_list) == 22


def test_the_list_and_the_page_of_a_command_say_how_many_results_came_too_late(wiped: str, browser: Browser) -> None:
    for address in (reverse("nexmdm-admin:commands_command_changelist"),
                    reverse("nexmdm-admin:commands_command_change", args=[wiped])):  # fmt: skip
        assert "partial , 1 late" in plain(browser.get(address).content.decode())


def test_the_csv_has_the_reasons_and_the_results(wiped: str, browser: Browser) -> None:
    staff = Visitor(session=browser.cookies["sessionid"].value)
    answer = staff.request("GET", reverse("nexmdm-admin:commands_delivery_export"))
    rows = list(csv.DictReader(StringIO(answer.body.decode(), newline="")))
    names = ("alias", "state", "why_open", "why_unfinished", "result", "result_message", "late_result")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("late", "expired", "", NEVER_SEEN, "", "", "succeeded"),
        ("silent", "expired", "", NEVER_SEEN, "", "", ""),
        ("fails", "failed", "", "", "failed", "no device owner", ""),
        ("works", "succeeded", "", "", "succeeded", "locked", ""),
    ]


def test_the_list_of_commands_names_the_device_of_a_command_to_one_and_the_csv_has_the_targets(
    admin: Admin, wiped: str, phones: list[Phone], browser: Browser
) -> None:
    fails = phones[1]
    alone = admin.command("wipe", to=fails).json["request_id"]
    answer = browser.get(reverse("nexmdm-admin:commands_command_changelist"))
    device_page = reverse("nexmdm-admin:devices_device_change", args=[fails.device_id])
    cells = re.findall(r'field-meant">(.*?)</td>', answer.content.decode())
    assert cells == [f'<a class="nowrap" href="{device_page}">fails</a>', "4"]
    staff = Visitor(session=browser.cookies["sessionid"].value)

    def targets() -> list[tuple[str, str]]:
        answer = staff.request("GET", reverse("nexmdm-admin:commands_command_export"))
        rows = csv.DictReader(StringIO(answer.body.decode(), newline=""))
        return [(row["request_id"], row["target"]) for row in rows]

    ids = {"device_ids": [phone.device_id for phone in phones]}
    of_one = json.dumps({"device_ids": [fails.device_id]})
    assert targets() == [(alone, of_one), (wiped, json.dumps(ids))]
    Command.objects.filter(pk=wiped).update(target={"tags": ["x" * 64] * 500})
    assert targets() == [(alone, of_one), (wiped, "")]


def test_an_open_delivery_has_its_reason_in_the_list_and_the_csv(admin: Admin, phone: Phone, browser: Browser) -> None:
    admin.command(to=phone)
    why = (
        "The device has never sent a heartbeat; the device has no push token, and the phone gets the command with "
        "its next heartbeat."
    )
    answer = browser.get(reverse("nexmdm-admin:commands_delivery_changelist"), {"state": "not succeeded"})
    assert why in plain(answer.content.decode())


def test_the_api_can_leave_out_successes_and_shows_open_deliveries(admin: Admin, phones: list[Phone]) -> None:
    works, fails, *_ = phones
    request_id = admin.command(to=phones).json["request_id"]
    works.report(request_id, "succeeded")
    fails.report(request_id, "failed")
    path = f"/admin/commands/{request_id}/deliveries"
    found = admin.get(f"{path}?state=not_succeeded").json["items"]
    assert [(row["alias"], row["state"]) for row in found] == [
        ("late", "pending"), ("silent", "pending"), ("fails", "failed"),
    ]  # fmt: skip
    assert admin.get(f"{path}?state=not").status == 422


def test_the_client_shows_which_devices_did_not_get_a_command_and_why(
    admin: Admin, wiped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most in (100, 2):
        monkeypatch.setattr("nexmdm.client.verbs.following.SHOWN_DELIVERIES", most)
        ran = run("command", wiped, "--not-succeeded", transport=InProcess(admin.client))
        table = ran.out.split("\n\n")[1]
        assert "works" not in table
        assert "no device owner" in table
        assert NEVER_SEEN in table
        assert ("reported succeeded later." in table.splitlines()[-1]) == (most == 100)
        assert ("reported succeeded later." in table) == (most == 100)
        assert ("These are 2 of 3 deliveries. Failures come first." in ran.err) == (most == 2)
    assert Delivery.objects.filter(state="succeeded").count() == 1
