"""The presence of a device on its page: a strip of the last week, the same in words, and as a table."""

import re

import pytest
from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.test import Client as Browser
from django.urls import reverse

from commands.admin import presence_strip
from devices.models import ServiceMark
from devices.presence import service_time
from tests.support.actors import Admin, Phone
from tests.support.html import plain
from tests.support.moments import let_pass

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def browser(db: None) -> Browser:
    """A visitor who has logged in."""
    browser = Browser()
    browser.force_login(User.objects.create_user("staff", is_staff=True))
    return browser


@pytest.fixture(autouse=True)
def forget_the_last_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_time, "_latest", None)


def page_of(browser: Browser, phone: Phone) -> str:
    return browser.get(reverse("nexmdm-admin:devices_device_change", args=[phone.device_id])).content.decode()


def section(page: str) -> str:
    return page.partition('<section class="module chart hourly presence"')[2].partition("</section>")[0]


def parts(page: str) -> list[tuple[str, float, float]]:
    """Return look, place and width of each part of the strip, in hours."""
    found = re.findall(r'<g>.*?<rect class="(\w+)" x="([\d.]+)" y="\d+" width="([\d.]+)"', section(page), re.DOTALL)
    return [(look, round(float(x) * 0.24, 1), round(float(width) * 0.24, 1)) for look, x, width in found]


def serve(**length: float) -> None:
    """Let time pass in which web workers run."""
    let_pass(**length)
    ServiceMark.objects.update(at=Now())


def test_a_strip_shows_when_the_device_was_online_and_offline(phone: Phone, browser: Browser) -> None:
    phone.heartbeat()
    serve(hours=24)
    phone.heartbeat()
    serve(minutes=4)
    page = page_of(browser, phone)
    assert parts(page) == [("good", 143.9, 0.1), ("hatched", 144.0, 23.9), ("good", 167.9, 0.1)]
    assert re.search(r"Online for 0\.6% of the time since [-0-9]{10} \d\d:\d\dZ; offline once\.", plain(section(page)))
    rows = [plain(row).split()[0] for row in re.findall(r"<tr><td>.*?</tr>", section(page))]
    assert rows == ["online", "offline", "online"]
    assert "style=" not in section(page)


def test_a_time_in_which_the_service_was_away_is_unknown(phone: Phone, browser: Browser) -> None:
    service_time.mark()
    phone.heartbeat()
    serve(minutes=2)
    let_pass(hours=2)
    service_time.mark()
    serve(minutes=1)
    page = page_of(browser, phone)
    assert [look for look, _, _ in parts(page)] == ["good", "quiet", "good"]
    assert "For a part of this time, the server did not run." in plain(section(page))


def test_an_absence_of_the_service_does_not_split_the_time_in_which_a_device_was_offline(
    phone: Phone, browser: Browser
) -> None:
    service_time.mark()
    phone.heartbeat()
    serve(hours=1)
    let_pass(hours=2)
    service_time.mark()
    serve(hours=1)
    page = page_of(browser, phone)
    assert [look for look, _, _ in parts(page)] == ["good", "hatched", "quiet", "hatched"]
    assert "; offline once." in plain(section(page))


def test_a_page_says_since_when_a_device_is_offline(phone: Phone, browser: Browser) -> None:
    phone.heartbeat()
    assert re.search(r'field-went_offline.*?<div class="readonly">-</div>', page_of(browser, phone), re.DOTALL)
    serve(hours=3)
    found = re.search(r'field-went_offline.*?<div class="readonly">(.*?)</div>', page_of(browser, phone), re.DOTALL)
    assert found is not None
    assert plain(found[1]).startswith("2 h ago")


def test_a_device_that_was_never_seen_has_no_strip(phone: Phone, browser: Browser) -> None:
    shown = section(page_of(browser, phone))
    assert "<svg" not in shown
    assert "No heartbeat so far." in plain(shown)


def test_a_device_that_comes_and_goes_often_shows_its_newest_states(
    admin: Admin, phone: Phone, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_strip, "MOST", 3)
    for _ in range(3):
        phone.heartbeat()
        serve(hours=1)
    page = page_of(browser, phone)
    assert [look for look, _, _ in parts(page)] == ["hatched", "good", "hatched"]
    assert "Only the newest 3 states are shown" in plain(section(page))
