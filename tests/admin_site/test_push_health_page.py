"""Push health on the admin site: the page that compares models, and the pages of devices and deliveries."""

import html
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import transaction
from django.test import Client as Browser

from commands.models import Delivery
from devices.models import Device
from devices.push_targets import Death, mark_dead
from loadtest.fake_fcm.server import FcmStandin
from nexmdm.admin_site import push_health
from nexmdm.common import database
from nexmdm.models import PushHealthHour
from tests.support.actors import Admin, Phone, Visitor
from tests.support.html import plain
from tests.support.moments import let_pass

MaxQueries = Callable[[int], AbstractContextManager[Any]]

pytestmark = pytest.mark.django_db(transaction=True)

PAGE: Final = "/django-admin/push-health/"
ARRIVED_LATE: Final = {
    "priority": "normal", "original_priority": "high",
    "sent_at": "2026-01-02T03:04:05Z", "received_at": "2026-01-02T03:14:05Z",
}  # fmt: skip
SENT: Final = "sent 2026-01-02 03:04:05Z"
RECEIVED: Final = "received 2026-01-02 03:14:05Z"


@pytest.fixture
def browser(db: None) -> Browser:
    """A visitor who has logged in."""
    browser = Browser()
    browser.force_login(User.objects.create_user("staff", is_staff=True))
    return browser


@pytest.fixture
def fleet(admin: Admin, fcm: FcmStandin) -> None:
    """Four models: one answers by push, one answers by heartbeat, one has a dead push token, and one gets no pushes."""
    good, slow, gone = (
        admin.enrol(f"hw-{model}", model=model, agent_version="2.0", push_token=token)
        for model, token in (("Good", "ok-1"), ("Slow", "ok-2"), ("Gone", "unregistered-1"))
    )
    admin.enrol("hw-idle", model="")
    request_id = admin.command("ping", to=[good, slow, gone], expires_in_seconds=86_400).json["request_id"]
    call_command("dispatch", once=True)
    good.report(request_id, "succeeded", via="push", push=ARRIVED_LATE)
    slow.report(request_id, "succeeded", via="heartbeat")


def lines(browser: Browser, query: str = "") -> list[list[str]]:
    """Return the cells of the table."""
    answer = browser.get(PAGE + query)
    assert answer.status_code == 200
    table = answer.content.decode().partition("<tbody>")[2].partition("</tbody>")[0]
    return [
        [plain(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    ]


def test_the_worst_model_is_first_and_one_without_pushes_last(fleet: None, browser: Browser) -> None:
    shown = lines(browser)
    assert [row[:5] for row in shown] == [
        ["Gone", "none accepted", "0", "0", "0"],
        ["Slow", "0 %", "1", "0", "1"],
        ["Good", "100 %", "1", "1", "0"],
        ["not reported", "no pushes", "0", "0", "0"],
    ]
    assert (shown[2][5], shown[2][-1]) == ("1", "1"), "downgraded, devices"


def test_a_field_and_a_time_are_chosen_by_links(fleet: None, browser: Browser) -> None:
    page = browser.get(PAGE).content.decode()
    links = {
        plain(text): html.unescape(address) for address, text in re.findall(r'<a href="(\?.*?)".*?>(.*?)</a>', page)
    }
    assert list(links) == [
        "model", "manufacturer", "Android version", "agent version", "last hour", "last day", "7 days", "30 days",
    ]  # fmt: skip
    chosen = re.findall(r'aria-current="true">(.*?)<', page)
    assert chosen == ["model", "last day"]
    assert "By model, last day" in plain(page)
    assert [row[0] for row in lines(browser, links["agent version"])] == ["2.0", "not reported"]
    for address in links.values():
        assert browser.get(PAGE + address).status_code == 200


def test_a_time_counts_only_its_own_events(fleet: None, browser: Browser) -> None:
    let_pass(hours=3)
    PushHealthHour.objects.all().delete()
    assert {row[1] for row in lines(browser, "?last=hour")} == {"no pushes"}
    assert lines(browser, "?last=7days")[0][1] == "none accepted"


def test_a_value_leads_to_its_devices(fleet: None, browser: Browser) -> None:
    page = browser.get(PAGE).content.decode()
    (address,) = re.findall(r'<th scope="row" class="text"><a href="(.*?)">Slow</a>', page)
    assert [str(device) for device in browser.get(html.unescape(address)).context["cl"].result_list] == ["hw-Slow"]


def test_the_page_is_linked_from_the_home_page_and_among_the_lists(browser: Browser) -> None:
    home = browser.get("/django-admin/").content.decode()
    assert home.count(f'href="{PAGE}"') == 2
    assert f'href="{PAGE}"' in browser.get("/django-admin/nexmdm/").content.decode()


@pytest.mark.parametrize("query", ["?by=alias", "?last=year", "?by=", "?x=1"])
def test_an_unknown_choice_redirects_to_the_default_page(browser: Browser, query: str) -> None:
    answer = browser.get(PAGE + query)
    assert (answer.status_code, answer["Location"]) == (302, PAGE)
    assert browser.get(answer["Location"]).status_code == 200


def test_an_empty_fleet_is_reported(browser: Browser) -> None:
    assert "There are no devices, and no pushes in this time." in plain(browser.get(PAGE).content.decode())


def test_only_staff_can_read_the_page_and_it_accepts_no_writes(browser: Browser) -> None:
    assert Browser().get(PAGE)["Location"].startswith("/django-admin/login/")
    assert browser.post(PAGE).status_code == 405


def test_names_from_phones_are_shown_as_text_and_very_many_values_are_cut(
    admin: Admin, browser: Browser, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: MaxQueries
) -> None:
    monkeypatch.setattr(push_health, "SHOWN", 2)
    for number in range(4):
        admin.enrol(f"hw-{number}", model=f"<script>{number}")
    with django_assert_max_num_queries(8):
        page = browser.get(PAGE).content.decode()
    assert ("<script>0" in page, "&lt;script&gt;0" in page, "&lt;script&gt;2" in page) == (False, True, False)
    assert "2 more are not shown" in plain(page)


def page_of(browser: Browser, row: Device | Delivery) -> str:
    answer = browser.get(f"/django-admin/{row._meta.label_lower.replace('.', '/')}/{row.pk}/change/")
    assert answer.status_code == 200
    return plain(answer.content.decode())


def test_a_device_shows_the_kind_and_the_times_of_its_push_target_and_never_its_text(
    admin: Admin, browser: Browser
) -> None:
    target = {"kind": "fid", "value": "fid-of-lobby", "registered_at": "2026-01-02T03:04:05Z"}
    admin.enrol("hw-1", push_target=target)
    device = Device.objects.get()
    page = page_of(browser, device)
    assert "installation id (FID)" in page
    assert re.search(r"Registered at: \d+ days ago 2026-01-02 03:04:05Z", page)
    assert re.search(r"Revived at: - Dead since: - ", page)
    with transaction.atomic():
        mark_dead([Death("fid", "fid-of-lobby", database.now())])
    Device.objects.update(push_revived_at="2026-01-03T03:04:05Z")
    page = page_of(browser, device)
    assert re.search(r"Revived at: \d+ days ago 2026-01-03 03:04:05Z Dead since: 0 s ago", page)
    staff = Visitor(session=browser.cookies["sessionid"].value)
    for path in ("devices/device/", f"devices/device/{device.pk}/change/", "devices/device/export/", "search/?q=hw"):
        answer = staff.request("GET", f"/django-admin/{path}")
        assert (answer.status in (200, 302), b"fid-of-lobby" in answer.body) == (True, False), path


def test_a_device_without_a_push_target_has_no_kind(phone: Phone, browser: Browser) -> None:
    Device.objects.update(push_token=None)
    assert "Kind: - Registered at:" in page_of(browser, Device.objects.get())
    Device.objects.update(push_token="token-1")
    assert "Kind: registration token" in page_of(browser, Device.objects.get())


@pytest.mark.parametrize(
    ("push", "words"),
    [
        (ARRIVED_LATE, f"downgraded arrived with priority normal, sent as high; {SENT}; {RECEIVED}"),
        ({"priority": "high", "original_priority": "high"}, "arrived with priority high"),
        ({"priority": "unknown", "original_priority": "high"}, "arrived with priority unknown, sent as high"),
        ({"original_priority": "normal"}, "sent with priority normal"),
        ({"received_at": "2026-01-02T03:14:05Z"}, RECEIVED),
        (None, "-"),
    ],
)
def test_a_delivery_shows_in_words_how_its_push_arrived(
    admin: Admin, phone: Phone, browser: Browser, push: dict[str, str] | None, words: str
) -> None:
    request_id = admin.command("ping", to=phone).json["request_id"]
    phone.report(request_id, "succeeded", via="push", **({} if push is None else {"push": push}))
    page = page_of(browser, Delivery.objects.get())
    shown = re.sub(r"\d+ days ago ", "", page.partition("Arrival: ")[2].partition(" Attempts:")[0])
    assert shown.replace(" ;", ";") == words
    assert "original_priority" not in page
