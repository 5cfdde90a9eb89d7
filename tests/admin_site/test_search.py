"""The search box of the admin site: it leads directly to a single match, and otherwise to a page with all matches."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser

from tests.support.actors import Admin, Phone
from tests.support.html import plain

MaxQueries = Callable[[int], AbstractContextManager[Any]]

SEARCH: Final = "/django-admin/search/"


@pytest.fixture
def browser(db: None) -> Browser:
    """A visitor who has logged in."""
    browser = Browser()
    browser.force_login(User.objects.create_user("staff", is_staff=True))
    return browser


def goes_to(browser: Browser, text: str) -> str:
    """Return the key of the page to which a search leads directly."""
    answer = browser.get(SEARCH, {"q": text})
    assert answer.status_code == 302, plain(answer.content.decode())
    found = re.fullmatch(r"/django-admin/\w+/(\w+)/(.*)/change/", answer["Location"])
    assert found is not None
    assert browser.get(answer["Location"]).status_code == 200
    return f"{found[1]} {found[2]}"


def finds(browser: Browser, text: str) -> list[str]:
    """Return the names of the matches of a search, in the order of its page."""
    answer = browser.get(SEARCH, {"q": text})
    assert answer.status_code == 200
    return re.findall(r'<th scope="row"><a [^>]*>(.*?)</a></th>', answer.content.decode())


@pytest.mark.parametrize("text", ["lobby", "OBB", " hw-17 ", "W-1"])
def test_a_part_of_an_alias_or_a_hardware_id_leads_to_its_device(admin: Admin, browser: Browser, text: str) -> None:
    phone = admin.enrol("hw-17", alias="lobby")
    admin.enrol("other")
    assert goes_to(browser, text) == f"device {phone.device_id}"


def test_an_id_or_its_start_leads_to_its_row(admin: Admin, phone: Phone, browser: Browser) -> None:
    token = admin.post("/admin/enrollment-tokens", {}).json["id"]
    request_id = admin.command(to=phone).json["request_id"]
    for kind, key in (("device", phone.device_id), ("command", request_id), ("enrollmenttoken", token)):
        for text in (key, key.upper(), key.replace("-", ""), key[:24]):
            assert goes_to(browser, text) == f"{kind} {key}", text


def test_an_action_and_a_part_of_a_note_lead_to_their_commands(admin: Admin, phone: Phone, browser: Browser) -> None:
    params = {"title": "t", "body": "b"}
    noted = admin.command("message", to=phone, params=params, note="Closing early").json["request_id"]
    admin.command("lock", to=phone)
    admin.command("lock", to=phone)
    assert goes_to(browser, "closing") == f"command {noted}"
    assert goes_to(browser, "Message") == f"command {noted}"
    assert finds(browser, "lock") == ["lock", "lock"]
    assert f'/{phone.device_id}/change/">phone-1</a></td>' in browser.get(SEARCH, {"q": "lock"}).content.decode()


def test_several_matches_are_a_page_with_the_exact_name_first(admin: Admin, browser: Browser) -> None:
    for alias in ("lobby", "lobby-2", "lobby-3"):
        admin.enrol(f"hw-{alias}", alias=alias)
    assert finds(browser, "LOBBY") == ["lobby", "lobby-3", "lobby-2"]


def test_a_page_shows_twenty_matches_of_each_kind_and_links_to_all_matches(admin: Admin, browser: Browser) -> None:
    phones = admin.enrol_fleet(22)
    for phone in phones:
        admin.command("ping", to=phone, note="phone")
    assert len(finds(browser, "phone")) == 40
    page = browser.get(SEARCH, {"q": "phone"}).content.decode()
    assert '<a href="/django-admin/devices/device/?q=phone">All devices that match</a>' in page
    page = browser.get(SEARCH, {"q": "ping"}).content.decode()
    assert '<a href="/django-admin/commands/command/?action=ping">All commands with this action</a>' in page


def test_notes_are_searched_among_the_newest_commands_only(
    admin: Admin, phone: Phone, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    for note in ("summer", "winter one", "winter two"):
        admin.command(to=phone, note=note)
    monkeypatch.setattr("nexmdm.admin_site.search.LATEST", 2)
    assert finds(browser, "winter") == ["ping", "ping"]
    assert finds(browser, "summer") == []


@pytest.mark.parametrize("text", ["nobody", "%", "_", "<b>x</b>", "x" * 3000, "\0", "\ud800", "'"])
def test_a_search_without_a_match_shows_what_is_searched(
    admin: Admin, phone: Phone, browser: Browser, text: str
) -> None:
    answer = browser.get(SEARCH, {"q": text.encode("utf-8", "surrogatepass")})
    page = answer.content.decode()
    assert (answer.status_code, "Nothing matches" in page, "<b>x" in page) == (200, True, False)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_search_shows_what_can_be_searched_for(browser: Browser, text: str) -> None:
    assert "Type a part of an alias" in browser.get(SEARCH, {"q": text}).content.decode()
    assert browser.get(SEARCH).status_code == 200


def test_the_search_is_only_for_staff_and_only_read(db: None, browser: Browser) -> None:
    assert Browser().get(SEARCH, {"q": "x"})["Location"].startswith("/django-admin/login/")
    assert browser.post(SEARCH, {"q": "x"}).status_code == 405


def test_every_page_of_the_site_has_the_search_box(admin: Admin, phone: Phone, browser: Browser) -> None:
    for address in ("/django-admin/", "/django-admin/devices/device/", SEARCH, "/django-admin/password_change/"):
        assert f'action="{SEARCH}" role="search"' in browser.get(address).content.decode()
    assert 'role="search"' not in Browser().get("/django-admin/login/").content.decode()


def test_a_search_costs_eleven_queries_for_any_number_of_matches(
    admin: Admin, browser: Browser, django_assert_max_num_queries: MaxQueries
) -> None:
    for phone in admin.enrol_fleet(25):
        admin.command(to=phone, note="0 phone")
    with django_assert_max_num_queries(11):
        assert len(finds(browser, "0")) == 40
