"""The list of devices on the admin site, filtered by silence, by failing pushes, and by the values that devices
report.
"""

import re
from typing import Final
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser

from devices.models import Device
from tests.support.actors import Admin, Phone, Visitor
from tests.support.moments import let_pass

LIST: Final = "/django-admin/devices/device/"


@pytest.fixture
def staff(db: None) -> Visitor:
    """A visitor who has logged in."""
    browser = Browser()
    browser.force_login(User.objects.create_user("staff", is_staff=True))
    return Visitor(session=browser.cookies["sessionid"].value)


def listed(staff: Visitor, **query: str) -> list[str]:
    """The hardware ids of the devices on the page."""
    answer = staff.request("GET", f"{LIST}?{urlencode(query)}")
    assert answer.status == 200
    return re.findall(r'field-hardware_id">([^<]*)<', answer.body.decode())


def page_of(staff: Visitor, phone: Phone) -> str:
    answer = staff.request("GET", f"{LIST}{phone.device_id}/change/")
    assert answer.status == 200
    return answer.body.decode()


def test_devices_are_listed_by_how_long_they_are_silent(admin: Admin, staff: Visitor) -> None:
    for name in ("week", "day", "hour", "now"):
        let_pass(days={"day": 6, "hour": 2}.get(name, 0), hours={"now": 1}.get(name, 0), seconds=30)
        admin.enrol(f"never-{name}")
        admin.enrol(name).heartbeat()
    assert listed(staff, silent="1 hour") == ["hour", "never-hour", "day", "never-day", "week", "never-week"]
    assert listed(staff, silent="1 day") == ["day", "never-day", "week", "never-week"]
    assert listed(staff, silent="7 days") == ["week", "never-week"]
    assert listed(staff, silent="1 day", presence="never") == ["never-day", "never-week"]


def test_devices_are_listed_by_how_recently_they_were_seen(admin: Admin, staff: Visitor) -> None:
    for name in ("week", "day", "hour", "now"):
        let_pass(days={"day": 6, "hour": 2}.get(name, 0), hours={"now": 1}.get(name, 0), seconds=1)
        admin.enrol(f"never-{name}")
        admin.enrol(name).heartbeat()
    assert listed(staff, seen="1 hour") == ["now"]
    assert listed(staff, seen="1 day") == ["now", "hour"]
    assert listed(staff, seen="7 days") == ["now", "hour", "day"]
    assert listed(staff, seen="7 days", silent="1 day") == ["day"]


def test_devices_are_listed_by_manufacturer_and_agent_version(admin: Admin, staff: Visitor) -> None:
    admin.enrol("a", manufacturer="Lenovo", model="Tab M10", agent_version="1.1.0")
    admin.enrol("b", manufacturer="Lenovo", model="Tab M9", agent_version="1.0.0")
    admin.enrol("c", manufacturer="Google", model="Pixel 9", agent_version="1.1.0")
    assert listed(staff, manufacturer="Lenovo") == ["b", "a"]
    assert listed(staff, manufacturer="Lenovo", agent_version="1.1.0") == ["a"]


def test_devices_are_listed_by_what_they_report_exactly(admin: Admin, staff: Visitor) -> None:
    admin.enrol("a", model="One & Only", os_version="15", agent_version="1.0")
    admin.enrol("b", model="One & Only", os_version="14", agent_version="2.0")
    assert listed(staff, model="One & Only") == ["b", "a"]
    assert listed(staff, model="one & only") == listed(staff, model="One") == []
    assert listed(staff, model="One & Only", os_version="15", agent_version="") == ["a"]
    assert listed(staff, agent_version="2.0") == ["b"]


def test_a_device_links_to_devices_that_report_the_same(admin: Admin, staff: Visitor) -> None:
    reported = {"manufacturer": "Maker", "model": "One & Only", "os_version": "15", "agent_version": "1.0"}
    page = page_of(staff, admin.enrol("a", **reported))
    for query in ("manufacturer=Maker", "model=One+%26+Only", "os_version=15", "agent_version=1.0"):
        assert f'<a href="{LIST}?{query}">' in page
    assert f"{LIST}?" not in page_of(staff, admin.enrol("bare"))


def test_the_form_keeps_the_other_filters_and_shows_what_was_asked_for(staff: Visitor) -> None:
    query = urlencode({"model": '"><b>', "push": "ok"})
    answer = staff.request("GET", f"{LIST}?{query}")
    page = answer.body.decode()
    assert 'name="model" value="&quot;&gt;&lt;b&gt;"' in page
    assert '<input type="hidden" name="push" value="ok">' in page


@pytest.mark.parametrize("text", ["-" + "9" * 5000, "%ED%A0%80", "%25", "'", "%00", "a%00b"])
@pytest.mark.parametrize("name", ["tag", "manufacturer", "model", "os_version", "agent_version"])
def test_an_odd_text_is_not_a_server_error(admin: Admin, staff: Visitor, name: str, text: str) -> None:
    admin.enrol("a", manufacturer="Maker", model="One", os_version="15", agent_version="1.0")
    answer = staff.request("GET", f"{LIST}?{name}={text}")
    assert (answer.status, "field-hardware_id" in answer.body.decode()) == (200, "%00" in text)


def test_a_device_to_which_pushing_fails_is_shown_and_listed_as_such(admin: Admin, staff: Visitor) -> None:
    phone = admin.enrol("failing", push_token="ok-1")
    admin.enrol("well", push_token="ok-2")
    Device.objects.filter(id=phone.device_id).update(push_failures=5)
    assert [listed(staff, push=name) for name in ("ok", "failing", "dead", "none")] == [["well"], ["failing"], [], []]
    assert re.search(r"Push token:.*?failing", page_of(staff, phone), re.DOTALL)
    exported = staff.request("GET", f"{LIST}export/?push=failing").body.decode()
    assert (exported.count("\n"), ",failing," in exported) == (2, True)


def test_devices_are_listed_by_tag_and_a_tag_links_to_its_devices(admin: Admin, staff: Visitor) -> None:
    for name, tags in (("a", ["floor-1", "shared"]), ("b", ["shared"]), ("c", [])):
        Phone(admin.client, name).register(admin.enrollment_token(tags=tags))
    assert listed(staff, tag="shared") == ["b", "a"]
    assert listed(staff, tag="floor-1") == ["a"]
    assert listed(staff, tag="floor") == listed(staff, tag="nobody") == []
    page = staff.request("GET", LIST).body.decode()
    assert f'<a href="{LIST}?tag=floor-1">floor-1</a>, <a href="{LIST}?tag=shared">shared</a>' in page


def test_active_devices_are_those_that_are_neither_revoked_nor_retired(admin: Admin, staff: Visitor) -> None:
    phones = [admin.enrol(name) for name in ("active", "revoked", "retired")]
    for action, phone in zip(("revoke", "retire"), phones[1:], strict=True):
        admin.post(f"/admin/devices/{phone.device_id}/{action}")
    assert listed(staff, presence="active") == ["active"]


def test_the_battery_is_shown_as_last_reported_and_a_low_one_is_marked(admin: Admin, staff: Visitor) -> None:
    for name, status in (("low", {"battery_pct": 15}), ("charging", {"battery_pct": 15, "charging": True}),
                         ("full", {"battery_pct": 100}), ("silent", {})):  # fmt: skip
        admin.enrol(name).heartbeat(status=status)
    page = staff.request("GET", LIST).body.decode()
    assert re.findall(r'field-battery">(.*?)</td>', page) == [
        "-", "100%", "15%, charging", '<span class="badge warn">15%</span>',
    ]  # fmt: skip
    assert listed(staff, battery="low") == ["low"]
