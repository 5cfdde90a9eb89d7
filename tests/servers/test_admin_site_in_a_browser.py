"""The admin site in a real browser, against a real server whose pushes went to a fake FCM."""

import csv
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from loadtest.browser import chromium
from loadtest.testbed import testbed
from loadtest.testbed.serving import wait_for
from loadtest.testbed.testbed import ServerUnderTest

PASSWORD: Final = secrets.token_urlsafe(24)
PING: Final = {"action": "ping", "target": {"all": True}, "note": "n" * 200}

pytestmark = pytest.mark.skipif(not chromium.is_there(), reason=f"this {chromium.WANTED}")


@dataclass(slots=True)
class Browser:
    """Chromium, on one server's admin site."""

    driver: webdriver.Chrome
    url: str
    downloads: Path

    def open(self, path: str) -> None:
        self.driver.get(f"{self.url}/django-admin/{path}")

    def click(self, text: str, *, within: str = "body") -> None:
        """Follow a link, and return when its page is there."""
        part = self.driver.find_element(By.CSS_SELECTOR, within)
        part.find_element(By.XPATH, f".//a[normalize-space()='{text}']").click()

    def fill(self, **fields: str) -> None:
        for name, value in fields.items():
            self.driver.find_element(By.NAME, name).send_keys(value)

    def find(self, text: str) -> None:
        """Use the search box of the header, by keyboard, and return when its page is there."""
        box = self.driver.find_element(By.CSS_SELECTOR, "#site-search input")
        box.clear()
        box.send_keys(text)
        self.leave(lambda: box.send_keys(Keys.ENTER))

    def leave(self, act: Callable[[], object]) -> None:
        """Do something that leads to another page, and return when that page is loaded."""
        self.run("window.isLeft = true")
        act()
        # Between two pages, Chromium may know neither page.
        wait = WebDriverWait(self.driver, 10, ignored_exceptions=[WebDriverException])
        wait.until(lambda _: self.run("!window.isLeft && document.readyState === 'complete'"))

    @property
    def heading(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "h1").text

    @property
    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def rows(self) -> list[str]:
        return [row.text for row in self.driver.find_elements(By.CSS_SELECTOR, "#result_list tbody tr")]

    def steps(self) -> list[str]:
        """Return the timeline of a delivery."""
        return [step.text for step in self.driver.find_elements(By.CSS_SELECTOR, ".timeline li")]

    def run(self, script: str) -> Any:
        """Return the value of an expression."""
        return self.driver.execute_script(f"return {script}")

    def complaints(self) -> list[Any]:
        """Return the messages in the browser's console since the last call."""
        return list(self.driver.get_log("browser"))  # type: ignore[no-untyped-call]

    def emulate(self, command: str, **settings: Any) -> None:
        self.driver.execute_cdp_cmd(f"Emulation.{command}", settings)


@pytest.fixture(scope="module")
def place() -> Iterator[ServerUnderTest]:
    """A server whose fleet has two phones; one got the ping for both, and the other has a dead push token."""
    with (
        tempfile.TemporaryDirectory(prefix="nexmdm-") as name,
        testbed.started(Path(name), Path(name) / "data", interval_seconds=120, commands_per_minute=60) as place,
    ):
        assert place.serving is not None
        lobby, _ = enrol(place, "lobby", "ok-1", "2.1"), enrol(place, "yard", "unregistered-1", "2.0")
        request_id = place.admin.post("/admin/command", PING)["request_id"]
        wait_for(lambda: not place.admin.command(request_id)["push"]["waiting"])
        result = {"request_id": request_id, "status": "succeeded", "message": "=all is well", "via": "push"}
        httpx.post(f"{place.serving.url}/v1/action-result", json=result, headers=lobby).raise_for_status()
        account = ("--username", "staff", "--email", "staff@example.com")
        place.serving.manage("createsuperuser", "--noinput", *account, DJANGO_SUPERUSER_PASSWORD=PASSWORD)
        yield place


def enrol(place: ServerUnderTest, alias: str, push_token: str, agent_version: str) -> dict[str, str]:
    """Register a phone with a tag of its own, and return its credential as headers."""
    token = place.admin.post("/admin/enrollment-tokens", {"tags": [f"{alias}-tag"]})["enrollment_token"]
    body = {"hardware_id": alias, "alias": alias, "push_token": push_token, "agent_version": agent_version}
    headers = {"Authorization": f"Bearer {token}"}
    phone = httpx.post(f"{place.admin.url}/v1/register", json=body, headers=headers).raise_for_status().json()
    return {"Authorization": f"Bearer {phone['device_token']}"}


@pytest.fixture(scope="module")
def browser(place: ServerUnderTest) -> Iterator[Browser]:
    """A browser in which staff has logged in."""
    with chromium.started() as (driver, downloads):
        browser = Browser(driver, place.admin.url, downloads)
        browser.open("commands/attempt/")
        browser.fill(username="staff", password=PASSWORD)
        driver.find_element(By.CSS_SELECTOR, "input[type=submit]").click()
        yield browser


def test_a_login_leads_to_the_requested_page(browser: Browser) -> None:
    WebDriverWait(browser.driver, 10).until(lambda driver: driver.title.startswith("Attempts"))
    assert browser.driver.current_url == f"{browser.url}/django-admin/commands/attempt/"
    assert "STAFF" in browser.text.upper()


def test_the_first_page_shows_the_fleet_and_leads_to_what_it_counts(browser: Browser) -> None:
    browser.open("")
    for text in ("Devices", "Open deliveries", "Pushes of the last 24 hours, by FCM code"):
        assert text.upper() in browser.text.upper()
    bars = "[...document.querySelectorAll('#pushes + table tr')].map(bar => bar.innerText.split(/\\s+/))"
    assert browser.run(bars) == [["OK", "1"], ["UNREGISTERED", "1"]]
    browser.click("UNREGISTERED")
    assert len(browser.rows()) == 1


def test_attempts_are_filtered_by_fcm_code_and_one_of_them_leads_to_its_delivery(browser: Browser) -> None:
    browser.open("commands/attempt/")
    assert len(browser.rows()) == 2
    browser.click("UNREGISTERED", within="#changelist-filter")
    (row,) = browser.rows()
    assert "token_dead 404 UNREGISTERED" in row

    browser.driver.find_element(By.CSS_SELECTOR, "td.field-of_delivery a").click()
    issued, pushed = browser.steps()
    assert "Issued by admin" in issued
    assert "Push 1: token_dead HTTP 404 UNREGISTERED in" in pushed
    assert browser.run("document.querySelector('.timeline .badge').className") == "badge bad"
    assert "never sent a heartbeat; the push token is dead." in browser.text
    browser.click("ping for 2 devices")
    assert browser.heading == "Command ping for 2 devices"


def test_the_timeline_of_a_settled_delivery_ends_with_its_settlement(browser: Browser) -> None:
    browser.open("commands/delivery/?state=succeeded")
    browser.driver.find_element(By.CSS_SELECTOR, "#result_list th a").click()
    issued, pushed, reported, settled = browser.steps()
    assert "Issued by admin" in issued
    assert "Push 1: accepted HTTP 200 in" in pushed
    assert "Report: succeeded (came by push)" in reported
    assert "Settled: succeeded" in settled


def test_a_filtered_list_is_saved_as_csv(browser: Browser) -> None:
    browser.open("commands/attempt/?fcm_error=UNREGISTERED")
    browser.click("Export CSV")
    wait_for(lambda: list(browser.downloads.glob("*.csv")))
    (path,) = browser.downloads.glob("attempts-*.csv")
    with path.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["alias"], row["action"], row["outcome"], row["http_status"]) == ("yard", "ping", "token_dead", "404")


def test_the_search_of_the_home_page_leads_directly_to_a_device(browser: Browser) -> None:
    browser.open("")
    browser.find("obb")
    assert browser.heading == "Device lobby"
    assert browser.driver.title == "Device lobby | NexMDM"


def test_the_search_leads_to_a_command_by_the_start_of_its_id_and_to_a_page_for_several(browser: Browser) -> None:
    browser.open("commands/command/")
    request_id = browser.run("document.querySelector('td.field-request_id .id').textContent")
    browser.find(request_id[:20])
    assert browser.heading == "Command ping for 2 devices"
    browser.find("y")
    assert browser.heading == "Search"
    assert "lobby" in browser.text
    browser.find("nobody")
    assert "Nothing matches nobody." in browser.text


def test_a_click_on_an_id_selects_all_of_it(browser: Browser) -> None:
    browser.open("devices/device/")
    shown = browser.driver.find_element(By.CSS_SELECTOR, "td.field-device_id .id")
    shown.click()
    selected = browser.run("getSelection().toString()")
    assert selected == shown.get_attribute("title")
    assert len(selected) == 36


def test_the_page_of_a_device_has_one_timeline_newest_first(browser: Browser) -> None:
    browser.open("search/?q=lobby")
    kinds = [kind.text for kind in browser.driver.find_elements(By.CSS_SELECTOR, ".timeline li > .quiet")]
    assert sorted(kinds) == ["command", "device", "push", "report"]
    assert kinds[0] == "report"
    report = browser.steps()[0]
    assert "phone reports on ping: succeeded" in report
    assert "=all is well" in report
    browser.click("push 1", within=".timeline")
    assert browser.heading == "Attempt push 1 of ping for lobby"


def test_devices_are_filtered_by_tag_and_by_version(browser: Browser) -> None:
    browser.open("devices/device/")
    assert len(browser.rows()) == 2
    browser.click("yard-tag", within="#result_list")
    (row,) = browser.rows()
    assert row.startswith("yard")
    browser.open("devices/device/")
    browser.leave(lambda: browser.fill(agent_version="2.1\n"))
    (row,) = browser.rows()
    assert row.startswith("lobby")
    browser.open("devices/device/?agent_version=2.1")
    browser.click("7 days", within="#changelist-filter")
    assert "No devices match." in browser.text
    browser.open("devices/device/?agent_version=9")
    assert "No devices match." in browser.text
    browser.click("Show all devices")
    assert len(browser.rows()) == 2


def test_the_audit_and_its_objects_link_to_each_other(browser: Browser) -> None:
    browser.open("nexmdm/auditentry/?action=ping")
    browser.driver.find_element(By.CSS_SELECTOR, "td.field-command a").click()
    assert browser.heading == "Command ping for 2 devices"
    browser.click("Signed requests about this command")
    (row,) = browser.rows()
    assert "admin ping all 2" in row
    browser.driver.find_element(By.CSS_SELECTOR, "#result_list th a").click()
    assert browser.heading == "Audit entry ping by admin"


def test_a_command_shows_first_the_devices_without_success_and_the_reasons(browser: Browser) -> None:
    browser.open("commands/command/")
    browser.driver.find_element(By.CSS_SELECTOR, "#result_list th a").click()
    first, second = browser.driver.find_elements(By.CSS_SELECTOR, ".inline-group")
    assert first.text.upper().startswith("NOT SUCCEEDED")
    assert "yard" in first.text
    assert "the push token is dead" in first.text
    assert "lobby" in second.text


LISTS: Final = (
    "devices/device/", "devices/enrollmenttoken/", "commands/command/", "commands/delivery/", "commands/attempt/",
    "commands/report/", "nexmdm/auditentry/", "nexmdm/dispatcherseen/",
)  # fmt: skip


def pages(browser: Browser) -> Iterator[str]:
    """Open the first page, each list, and a row of each."""
    browser.open("")
    yield browser.driver.current_url
    for path in ("search/?q=y", "push-health/?by=agent_version"):
        browser.open(path)
        yield browser.driver.current_url
    for path in LISTS:
        browser.open(path)
        yield browser.driver.current_url
        browser.driver.find_element(By.CSS_SELECTOR, "#result_list th a").click()
        yield browser.driver.current_url


CONTROLS: Final = """
    [...document.querySelectorAll("input, select, textarea, button, [contenteditable]")]
        .filter(one => !one.closest("form[method=get], #logout-form, .theme-toggle"))
        .map(one => one.outerHTML)
"""


def test_no_page_has_a_form_control_that_writes(browser: Browser) -> None:
    seen = 0
    for page in pages(browser):
        seen += 1
        posted = browser.run("[...document.querySelectorAll('form[method=post]')].map(form => form.id)")
        assert posted == ["logout-form"], page
        assert browser.run(CONTROLS.strip()) == [], page
    assert seen == 3 + 2 * len(LISTS)


def test_no_page_requests_files_from_outside_or_missing_files(browser: Browser) -> None:
    browser.complaints()
    for page in pages(browser):
        asked: list[str] = browser.run("performance.getEntriesByType('resource').map(one => one.name)")
        assert asked
        assert [name for name in asked if not name.startswith(browser.url)] == [], page
        assert browser.complaints() == [], page


def test_the_pages_around_the_lists_request_nothing_from_outside(browser: Browser) -> None:
    browser.complaints()
    for path in ("password_change/", "commands/nothing/", "devices/device/?token_hash=x"):
        browser.open(path)
        # Chromium notes the answer's own status, and recommends a field for the user's name.
        lines = [line for line in browser.complaints() if line["level"] != "DEBUG"]
        assert [line for line in lines if "status of 40" not in line["message"]] == [], path
        assert browser.run("getComputedStyle(document.querySelector('#header')).backgroundColor") == "rgb(65, 118, 144)"
    browser.click("To the home page")
    assert browser.driver.current_url == f"{browser.url}/django-admin/"


def test_a_script_in_a_page_does_not_run(browser: Browser) -> None:
    browser.open("")
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.ran=1>')")
    browser.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 2'}))")
    blocked = [line["message"] for line in browser.complaints() if "Content Security Policy" in line["message"]]
    assert blocked
    assert browser.run("window.ran === undefined") is True


def test_every_page_fits_on_a_phone(browser: Browser) -> None:
    browser.emulate("setDeviceMetricsOverride", **chromium.PHONE)
    try:
        wide = {
            page: width
            for page in pages(browser)
            if (width := browser.run("document.documentElement.scrollWidth")) > 390
        }
    finally:
        browser.emulate("clearDeviceMetricsOverride")
    assert wide == {}


def test_the_help_of_a_search_box_does_not_overlap_it(browser: Browser) -> None:
    box, text = (f"document.querySelector('{one}').getBoundingClientRect()" for one in ("#searchbar", ".help"))
    try:
        for screen in (chromium.PHONE, chromium.LAPTOP):
            browser.emulate("setDeviceMetricsOverride", **screen)
            browser.open("devices/device/")
            assert browser.run(f"{text}.top - {box}.bottom") >= 2
    finally:
        browser.emulate("clearDeviceMetricsOverride")


def test_no_page_cuts_anything_off_on_a_laptop(browser: Browser) -> None:
    browser.emulate("setDeviceMetricsOverride", **chromium.LAPTOP)
    wider = "[...document.querySelectorAll('.results, .form-row')].filter(one => one.scrollWidth > one.clientWidth)"
    try:
        cut = {page: names for page in pages(browser) if (names := browser.run(f"{wider}.map(one => one.className)"))}
    finally:
        browser.emulate("clearDeviceMetricsOverride")
    assert cut == {}


def test_every_bar_stands_out_from_its_row(browser: Browser) -> None:
    colours = "[row, row.querySelector('svg')].map(one => getComputedStyle(one).backgroundColor)"
    tracks = f"[...document.querySelectorAll('.chart tr:has(svg)')].map(row => {colours})"
    for theme in ("light", "dark"):
        browser.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        browser.open("")
        rows = browser.run(tracks)
        assert len({row for row, _ in rows}) == 2, "every second row has another colour"
        assert not {track for _, track in rows} & {row for row, _ in rows}, theme
    browser.emulate("setEmulatedMedia", features=[])


def test_the_charts_follow_the_theme(browser: Browser) -> None:
    looks = {}
    for theme in ("light", "dark"):
        browser.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        browser.open("")
        page = browser.run("getComputedStyle(document.body).backgroundColor")
        bar = browser.run("getComputedStyle(document.querySelector('.chart rect')).fill")
        looks[theme] = (page, bar)
    browser.emulate("setEmulatedMedia", features=[])
    assert looks["light"][0] == "rgb(255, 255, 255)"
    assert looks["dark"][0] == "rgb(18, 18, 18)"
    assert looks["light"][1] != looks["dark"][1]
