"""How long the pages and lists of a large fleet take: `python -m loadtest.page_times`.

Starts a server of its own, seeds the fleet, has a third of it online and a third offline, and asks for each page so
many times, one after the other: signed for the API, logged in for the admin site.
"""

import argparse
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import psycopg
from rich.console import Console
from rich.table import Table

from loadtest import ground
from loadtest.serving import MANAGE, Serving
from nexmdm.fleet_client import FleetClient

LIMIT_MS: Final = 200
API: Final = (
    "/admin/devices",
    "/admin/devices?status=online",
    "/admin/devices?status=offline",
    "/admin/devices?status=never",
    "/admin/devices?push=ok",
    "/admin/devices?q=seeded",
    "/admin/summary",
)
SITE: Final = (
    "/django-admin/",
    "/django-admin/devices/device/",
    "/django-admin/devices/device/?p=500",
    "/django-admin/devices/device/?q=seeded",
)
_USER: Final = "page-times"
# An online third, an offline third; the rest was never heard.
_HEARD: Final = """
    UPDATE devices_presence SET last_seen_at = now() - make_interval(secs => place.number % 2 * 3600)
    FROM (SELECT device_id, row_number() OVER (ORDER BY device_id) AS number FROM devices_presence) place
    WHERE place.device_id = devices_presence.device_id AND place.number % 3 <> 2
"""


def main() -> int:
    """Measure, print a table; 0 if every page kept within the limit."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.page_times", description=__doc__)
    parser.add_argument("--devices", type=int, default=100_000, help="how many phones (100,000)")
    parser.add_argument("--times", type=int, default=20, help="how often each page is asked for (20)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        times = _measure(Path(folder), arguments.devices, arguments.times)
    _print(times, arguments.devices)
    return 0 if all(max(one) < LIMIT_MS for one in times.values()) else 1


def _measure(folder: Path, devices: int, count: int) -> dict[str, list[float]]:
    with ground.of_its_own(folder, folder / "data", interval_seconds=120, commands_per_minute=600) as place:
        assert place.serving is not None
        ground.gather(place, devices, folder / "roster", lambda: None)
        with psycopg.connect(place.serving.database_url(), autocommit=True) as connection:
            connection.execute(_HEARD)
            connection.execute("VACUUM ANALYZE devices_presence")
        times = {path: _times(_signed(place.admin, path), count) for path in API}
        with closing(_logged_in(place.serving)) as browser:
            times |= {path: _times(_page(browser, path), count) for path in SITE}
    return times


def _signed(admin: FleetClient, path: str) -> Callable[[], object]:
    return lambda: admin.get(path)


def _page(browser: httpx.Client, path: str) -> Callable[[], object]:
    return lambda: browser.get(path).raise_for_status()


def _times(ask: Callable[[], object], count: int) -> list[float]:
    """Return the milliseconds that each of so many calls took, after one that does not count."""
    ask()
    return [_time(ask) for _ in range(count)]


def _time(ask: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    ask()
    return (time.perf_counter() - began_at) * 1000


def _logged_in(serving: Serving) -> httpx.Client:
    """Return a browser that a new superuser has logged in with."""
    password = secrets.token_urlsafe(24)
    environment = {**serving.environment, "DJANGO_SUPERUSER_PASSWORD": password}
    program = [sys.executable, MANAGE, "createsuperuser", "--noinput", "--username", _USER, "--email", "a@example.com"]
    subprocess.run(program, env=environment, check=True, capture_output=True)
    browser = httpx.Client(base_url=serving.url, follow_redirects=True, timeout=30)
    browser.get("/django-admin/login/")
    form = {"username": _USER, "password": password, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
    answer = browser.post("/django-admin/login/?next=/django-admin/", data=form, headers={"Referer": serving.url})
    assert "sessionid" in browser.cookies, answer.text
    return browser


def _print(times: dict[str, list[float]], devices: int) -> None:
    table = Table(title=f"{devices:,} devices, {len(next(iter(times.values())))} times each")
    for heading in ("page", "median", "longest", f"< {LIMIT_MS} ms"):
        table.add_column(heading, justify="left" if heading == "page" else "right")
    for path, one in times.items():
        word = "held" if max(one) < LIMIT_MS else "missed"
        table.add_row(path, f"{median(one):.1f} ms", f"{max(one):.1f} ms", word)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
