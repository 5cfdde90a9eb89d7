"""Take screenshots of every page of the admin site: `python -m loadtest.browser.screenshots FOLDER`.

Each page is shown in light and dark colours, on a wide screen and on a phone. The program starts its own server and
fake FCM. The fleet has some phones with aliases and commands, and a month of seeded commands. The program requires
Debian's Chromium. If a page is wider than a phone, the program names the page, and the exit status is 1.
"""

import argparse
import base64
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
from selenium import webdriver
from selenium.webdriver.common.by import By

from loadtest.browser import chromium
from loadtest.testbed import testbed
from loadtest.testbed.serving import MANAGE, wait_for
from loadtest.testbed.testbed import ServerUnderTest
from nexmdm.client.http_client import Refused

FLEET: Final = {
    "front-desk": "ok-1", "lobby": "ok-2", "warehouse-scanner-03": "unregistered-1", "yard": "unavailable-1",
    "kitchen": None, "delivery-van-12": "invalid-1", "Büro ✓": "ok-3",
}  # fmt: skip
"""The alias of each phone, and its push token. The push token chooses the answer of the fake FCM."""

LISTS: Final = {
    "devices": "devices/device/", "commands": "commands/command/", "deliveries": "commands/delivery/",
    "attempts": "commands/attempt/", "reports": "commands/report/", "audit": "nexmdm/auditentry/",
    "tokens": "devices/enrollmenttoken/", "dispatchers": "nexmdm/dispatcherseen/",
}  # fmt: skip
ROWS: Final = {
    **{f"{name}-row": path for name, path in LISTS.items()},
    "deliveries-open": "commands/delivery/?state=pending",
    "deliveries-failed": "commands/delivery/?state=failed",
    "reports-long": "commands/report/?status=failed",
    "devices-away": "devices/device/?presence=never",
    "audit-refused": "nexmdm/auditentry/?ending=refused",
}
"""Lists of the admin site. For each list, the program takes a screenshot of the page of the newest row."""

PAGES: Final = {
    "index": "",
    **LISTS,
    "attempts-narrowed": "commands/attempt/?fcm_error=UNREGISTERED&age=1 day",
    "deliveries-none": "commands/delivery/?q=nobody",
    "push-health": "push-health/",
    "search": "search/?q=ping",
    "search-none": "search/?q=nobody",
    "not-there": "nothing/",
    "refused": "devices/device/?token_hash=x",
    "password": "password_change/",
}
LOOKS: Final = {
    "light": ("light", chromium.LAPTOP),
    "dark": ("dark", chromium.LAPTOP),
    "phone": ("light", chromium.PHONE),
    "phone-dark": ("dark", chromium.PHONE),
}
_TALLEST: Final = 3000
_USER: Final = "staff"


def main() -> int:
    """Take the screenshots.

    Return 1 if a page is wider than a phone, 2 if Chromium is missing, and 0 in all other cases.
    """
    parser = argparse.ArgumentParser(prog="python -m loadtest.browser.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder for the pictures")
    arguments = parser.parse_args()
    if not chromium.is_there():
        sys.stderr.write(f"This {chromium.WANTED}.\n")
        return 2
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as name:
        own = testbed.started(Path(name), Path(name) / "data", interval_seconds=120, commands_per_minute=60)
        with own as place, chromium.started() as (driver, _):
            wide = [*_pictures(driver, _prepared(place), arguments.folder)]
    for page in wide:
        sys.stdout.write(f"Wider than a phone: {page}\n")
    return 1 if wide else 0


def _prepared(place: ServerUnderTest) -> tuple[str, str]:
    """Give the server a history, a fleet and an account.

    Return the address of its admin site, and the account's password.
    """
    assert place.serving is not None
    seeding = [sys.executable, "-m", "loadtest.fleet", "--devices", "40", "--deliveries", "4000", "--push-tokens"]
    subprocess.run(seeding, cwd=Path(MANAGE).parent, env=place.serving.environment, check=True)
    phones = {alias: _enrolled(place, alias, token) for alias, token in FLEET.items()}
    _work(place, phones)
    password = secrets.token_urlsafe(24)
    account = ("--username", _USER, "--email", "staff@example.com")
    place.serving.manage("createsuperuser", "--noinput", *account, DJANGO_SUPERUSER_PASSWORD=password)
    return f"{place.admin.url}/django-admin/", password


def _enrolled(place: ServerUnderTest, alias: str, push_token: str | None) -> httpx.Client:
    """Register a phone, let it send a heartbeat, and return its client."""
    token = place.admin.post("/admin/enrollment-tokens", {"tags": ["floor-1", "shared"]})["enrollment_token"]
    body = {
        "hardware_id": f"SN-{secrets.token_hex(4)}",
        "alias": alias,
        "manufacturer": "Example",
        "model": "X-Cover 5",
    }
    headers = {"Authorization": f"Bearer {token}"}
    pushed = {"push_token": push_token} if push_token else {}
    answer = httpx.post(f"{place.admin.url}/v1/register", json=body | pushed, headers=headers).raise_for_status()
    phone = httpx.Client(base_url=place.admin.url, headers={"Authorization": f"Bearer {answer.json()['device_token']}"})
    status = {"battery_pct": 83, "charging": True, "network": "wifi", "foreground_app": "com.example.kiosk.launcher"}
    phone.post("/v1/heartbeat", json={"status": status, "agent_version": "1.4.2"}).raise_for_status()
    return phone


def _work(place: ServerUnderTest, phones: dict[str, httpx.Client]) -> None:
    """Create open, succeeded, failed and cancelled commands, and refused requests."""

    def asked(action: str, target: dict[str, Any], params: dict[str, Any] | None = None, note: str = "") -> str:
        body = {"action": action, "target": target, "params": params or {}, "note": note}
        return str(place.admin.post("/admin/command", body)["request_id"])

    def said(alias: str, request_id: str, status: str, **more: Any) -> None:
        body = {"request_id": request_id, "status": status, "via": "push", **more}
        phones[alias].post("/v1/action-result", json=body).raise_for_status()

    everybody = {"aliases": list(phones)}
    message = asked("message", everybody, {"title": "Closing", "body": "Back at ten. " * 20}, "for the whole floor")
    launch = asked("launch_app", everybody, {"package": "com.example.kiosk", "extras": {"mode": "demo"}})
    place.admin.post(f"/admin/commands/{asked('ring', everybody, {'duration_seconds': 30})}/cancel")
    ping = asked("ping", {"tags": ["floor-1"]}, note="n" * 200)
    wait_for(lambda: not place.admin.command(ping)["push"]["waiting"])
    said("front-desk", message, "succeeded", output={"shown": True, "seconds": 4})
    said("lobby", message, "failed", message="Another app uses the screen, and it did not release it. " * 4)
    said("lobby", launch, "deferred", message="in use")
    said("lobby", launch, "deferred")
    said("front-desk", ping, "running")
    for refused in ({"action": "wipe", "target": {"all": True}}, {"action": "ping", "target": {"tags": ["nobody"]}}):
        with suppress(Refused):
            place.admin.post("/admin/command", refused)


def _pictures(driver: webdriver.Chrome, site: tuple[str, str], folder: Path) -> Iterator[str]:
    """Take a screenshot of each page with each theme and window size in LOOKS. Yield the pages that are wider than a
    phone.
    """
    url, password = site
    for look in LOOKS:
        _appear(driver, look)
        driver.get(url)
        yield from _picture(driver, folder, "login", look)
    for name, value in (("username", _USER), ("password", password)):
        driver.find_element(By.NAME, name).send_keys(value)
    driver.find_element(By.CSS_SELECTOR, "input[type=submit]").click()
    addresses = {name: url + path for name, path in PAGES.items()}
    for name, path in ROWS.items():
        driver.get(url + path)
        row = driver.find_element(By.CSS_SELECTOR, "#result_list tbody th a, #result_list tbody td a")
        addresses[name] = str(row.get_attribute("href"))
    for look in LOOKS:
        _appear(driver, look)
        for name, address in addresses.items():
            driver.get(address)
            yield from _picture(driver, folder, name, look)


def _appear(driver: webdriver.Chrome, look: str) -> None:
    theme, size = LOOKS[look]
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def _picture(driver: webdriver.Chrome, folder: Path, name: str, look: str) -> Iterator[str]:
    width = int(LOOKS[look][1]["width"])
    wide, tall = driver.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.scrollHeight]"
    )
    clip = {"x": 0, "y": 0, "width": max(wide, width), "height": min(tall, _TALLEST), "scale": 1}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    (folder / f"{name}-{look}.png").write_bytes(base64.b64decode(taken["data"]))
    if look.startswith("phone") and wide > width:
        yield f"{name} ({wide} px)"


if __name__ == "__main__":
    sys.exit(main())
