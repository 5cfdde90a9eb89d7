"""Measure how long pages and lists take in a fleet with many old commands: `python -m loadtest.benchmarks.page_times`.

The program starts its own server, and seeds a fleet and a month of commands. A third of the fleet is online, and a
third is offline. The program requests each page several times, one request after another. On the admin site, it
requests the pages of new and of old rows. It requests every list without a filter, with each choice of each filter, and
with a search. It also requests the last page of every list, and every list as CSV. The time of a CSV ends with its
first rows.
"""

import argparse
import base64
import html
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import urlencode

import httpx
import psycopg
from rich.console import Console
from rich.table import Table

from loadtest.testbed import testbed
from loadtest.testbed.serving import MANAGE, Serving
from nexmdm.client.http_client import FleetClient

LIMIT_MS: Final = 500
DEVICES_LIMIT_MS: Final = 200
"""The limit for lists of devices."""

LISTS: Final = {
    "/django-admin/devices/device/": "devices_device",
    "/django-admin/commands/command/": "commands_command",
    "/django-admin/commands/delivery/": "commands_delivery",
    "/django-admin/commands/attempt/": "commands_attempt",
    "/django-admin/commands/report/": "commands_report",
    "/django-admin/nexmdm/auditentry/": "nexmdm_auditentry",
}
# Filters that match few rows. Some filters have two parts: each part matches many rows, but both together match few.
NARROWED: Final = {
    "/django-admin/devices/device/": (
        "?model=Simulated", "?model=Rare", "?model=nowhere", "?os_version=9", "?agent_version=0.9",
        "?agent_version=nowhere", "?model=Rare&agent_version=1.0&silent=1 hour", "?silent=1 day&push=failing",
        "?presence=active&silent=1 day", "?presence=active&push=failing", "?tag=none",
    ),
    "/django-admin/commands/command/": (
        "?action=reboot&state=open", "?outcome=failed&ended=1 day", "?outcome=partial&ended=1 day",
    ),
    "/django-admin/commands/delivery/": ("?action=reboot&state=pending", "?http_status=400&state=failed"),
    "/django-admin/commands/attempt/": (
        "?action=reboot&fcm_error=UNAVAILABLE", "?action=reboot&http_status=429", "?outcome=unknown&action=reboot",
        "?fcm_error=INVALID_ARGUMENT&age=1 day",
    ),
}  # fmt: skip

DEVICE_FILTERS: Final = (
    "status=online", "status=offline", "status=never", "push=ok", "push=failing", "push=dead", "tag=none",
    "model=Simulated", "model=Rare", "model=nowhere", "os_version=14", "os_version=9", "os_version=nowhere",
    "agent_version=1.0", "agent_version=0.9", "agent_version=nowhere", "not_seen_for_seconds=0",
    "not_seen_for_seconds=1800", "not_seen_for_seconds=31536000", "status=online&not_seen_for_seconds=1800",
    "status=offline&model=Rare", "status=online&push=failing", "status=never&not_seen_for_seconds=31536000",
    "push=failing&agent_version=0.9", "model=Rare&os_version=9",
)  # fmt: skip
_USER: Final = "page-times"
# A few devices get a rare model, and a few devices get a failing push token. The oldest devices get OS version 9.
_REPORTED: Final = """
    UPDATE devices_device device SET
        model = CASE WHEN place.number % 1000 = 7 THEN 'Rare' ELSE model END,
        push_failures = CASE WHEN place.number % 1000 = 8 THEN 5 ELSE 0 END,
        os_version = CASE WHEN place.number <= 50 THEN '9' ELSE os_version END
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS number FROM devices_device) place
    WHERE place.id = device.id AND (place.number % 1000 IN (7, 8) OR place.number <= 50)
"""
# A third is online, a third is offline, and a third never sent a heartbeat. A few devices get a rare agent version.
_HEARD: Final = """
    UPDATE devices_presence SET last_seen_at = now() - make_interval(secs => place.number % 2 * 3600),
        agent_version = CASE WHEN place.number % 1000 = 9 THEN '0.9' ELSE '1.0' END
    FROM (SELECT device_id, row_number() OVER (ORDER BY device_id) AS number FROM devices_presence) place
    WHERE place.device_id = devices_presence.device_id AND place.number % 3 <> 2
"""
_COUNT_HOURS: Final = "from nexmdm.monitoring import push_health; push_health.count_hours(31 * 24)"
PUSH_HEALTH_FIELDS: Final = ("model", "manufacturer", "os_version", "agent_version")
_FACTS: Final = """
    SELECT
        (SELECT id FROM commands_command ORDER BY id DESC LIMIT 1),
        (SELECT id FROM commands_command ORDER BY device_count DESC, id LIMIT 1),
        (SELECT id FROM commands_command ORDER BY device_count DESC, id DESC LIMIT 1),
        (SELECT device_id FROM commands_delivery ORDER BY id DESC LIMIT 1),
        now() - interval '15 days', now() - interval '14 days'
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """Values from the database that are parts of the requested addresses.

    - `oldest_wide_command`, `newest_wide_command`: the oldest and the newest of the commands that have the most
      devices.
    - `since`, `until`: the beginning and the end of an old day.
    - `far_ends`: for each list, the id of the row before its last full page.
    """

    newest_command: str
    oldest_wide_command: str
    newest_wide_command: str
    device: str
    since: Any
    until: Any
    far_ends: dict[str, str]


def main() -> int:
    """Measure, and print a table. Return 0 if every page was within its limit, else 1."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmarks.page_times", description=__doc__)
    parser.add_argument("--devices", type=int, default=100_000, help="how many phones (100,000)")
    parser.add_argument("--deliveries", type=int, default=1_000_000, help="number of their deliveries (1,000,000)")
    parser.add_argument("--times", type=int, default=20, help="number of requests of each page (20)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        times = _measure(Path(folder), arguments)
    _print(times, arguments)
    return 0 if all(max(one) < _limit(path) for path, one in times.items()) else 1


def _measure(folder: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    count = arguments.times
    with testbed.started(folder, folder / "data", interval_seconds=120, commands_per_minute=600) as place:
        assert place.serving is not None
        _seed(place.serving, arguments)
        with psycopg.connect(place.serving.database_url(), autocommit=True) as connection:
            # The dispatcher has counted hours before the history was seeded. So the hours are counted again.
            connection.execute("DELETE FROM nexmdm_pushhealthhour")
            place.serving.manage("shell", "--command", _COUNT_HOURS)
            connection.execute(_HEARD)
            connection.execute(_REPORTED)
            connection.execute("VACUUM ANALYZE devices_presence, devices_device")
            facts = _facts(connection)
        times = {path: _times(_signed(place.admin, path), count) for path in _api_paths(facts)}
        with closing(_logged_in(place.serving)) as browser:
            for path in [*_site_paths(browser, facts)]:
                times[path] = _times(_first_rows(browser, path) if "/export/" in path else _page(browser, path), count)
    return times


def _seed(serving: Serving, arguments: argparse.Namespace) -> None:
    sizes = ["--devices", str(arguments.devices), "--deliveries", str(arguments.deliveries)]
    program = [sys.executable, "-m", "loadtest.fleet", "--push-tokens", *sizes]
    subprocess.run(program, cwd=Path(MANAGE).parent, env=serving.environment, check=True)


def _facts(connection: psycopg.Connection[Any]) -> Facts:
    row = connection.execute(_FACTS).fetchone()
    assert row is not None
    far_ends = {}
    for path, table in LISTS.items():
        # The last full page begins after this row. Fifty older rows follow this page.
        found = connection.execute(f"SELECT id FROM {table} ORDER BY id OFFSET 150 LIMIT 1").fetchone()  # noqa: S608
        far_ends[path] = str(found[0]) if found else ""
    newest, oldest_wide, newest_wide, device, since, until = row
    return Facts(str(newest), str(oldest_wide), str(newest_wide), str(device), since, until, far_ends)


def _api_paths(facts: Facts) -> Iterator[str]:
    day = urlencode({"since": facts.since.isoformat(), "until": facts.until.isoformat()})
    yield "/admin/summary"
    for field in PUSH_HEALTH_FIELDS:
        yield f"/admin/push-health?by={field}"
        yield f"/admin/push-health?by={field}&since=2026-01-01T00:00:00Z"
    yield "/admin/devices"
    for query in DEVICE_FILTERS:
        yield f"/admin/devices?{query}"
    for text in ("seeded", "SEEDED-", "nowhere", facts.device, facts.device[:8]):
        yield f"/admin/devices?q={text}"
    yield f"/admin/devices?cursor={_cursor(facts.far_ends['/django-admin/devices/device/'])}"
    yield "/admin/commands"
    for state in ("open", "completed", "expired", "cancelled"):
        yield f"/admin/commands?state={state}"
    for outcome in ("succeeded", "partial", "failed", "expired", "cancelled"):
        yield f"/admin/commands?outcome={outcome}"
    for action in ("ping", "reboot", "wipe"):
        yield f"/admin/commands?action={action}"
    yield f"/admin/commands?device_id={facts.device}"
    yield f"/admin/commands?{day}"
    yield f"/admin/commands?action=reboot&state=open&{day}"
    yield f"/admin/commands?cursor={_cursor(facts.far_ends['/django-admin/commands/command/'])}"
    for command in (facts.newest_command, facts.oldest_wide_command, facts.newest_wide_command):
        yield f"/admin/commands/{command}"
        yield f"/admin/commands/{command}/deliveries"
        yield f"/admin/commands/{command}/deliveries?limit=500"
        yield f"/admin/commands/{command}/deliveries?state=failed"
    yield "/admin/audit"
    yield f"/admin/audit?{day}"
    yield "/admin/audit?action=wipe"
    yield "/admin/audit?status=422"
    yield f"/admin/audit?device_id={facts.device}"
    yield f"/admin/audit?request_id={facts.oldest_wide_command}"
    yield f"/admin/audit?cursor={_cursor(facts.far_ends['/django-admin/nexmdm/auditentry/'])}"
    yield "/admin/enrollment-tokens"


def _cursor(key: str) -> str:
    """Return the cursor of the API that continues a list after the row with this key."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _site_paths(browser: httpx.Client, facts: Facts) -> Iterator[str]:
    day = urlencode({"since": f"{facts.since:%Y-%m-%dT%H:%M}", "until": f"{facts.until:%Y-%m-%dT%H:%M}"})
    searches = ("seeded", "nowhere", facts.device[-12:], facts.device, facts.newest_command, facts.oldest_wide_command)
    yield "/django-admin/"
    for text in (*searches, "ping", "wipe", "0"):
        yield f"/django-admin/search/?q={text}"
    for field in PUSH_HEALTH_FIELDS:
        for last in ("hour", "day", "7days", "30days"):
            yield f"/django-admin/push-health/?by={field}&last={last}"
    yield "/django-admin/devices/enrollmenttoken/"
    for path in LISTS:
        page = browser.get(path).raise_for_status().text
        yield path
        for query in dict.fromkeys(re.findall(r'<li>\s*<a href="(\?[^"]+)">', page)):
            yield path + html.unescape(query)
        if 'name="since"' in page:
            yield f"{path}?{day}"
        for query in NARROWED.get(path, ()):
            yield path + query
        for text in searches:
            yield f"{path}?q={text}"
        yield f"{path}?before={facts.far_ends[path]}"
        rows = re.findall(rf'href="({path}[^"/]+/change/)', page)
        yield from dict.fromkeys((rows[0], f"{path}{facts.far_ends[path]}/change/"))
        yield f"{path}export/"
    yield f"/django-admin/commands/command/{facts.oldest_wide_command}/change/"
    yield f"/django-admin/commands/delivery/?command__id__exact={facts.oldest_wide_command}"
    yield f"/django-admin/commands/delivery/?command__id__exact={facts.oldest_wide_command}&state=failed"
    yield f"/django-admin/commands/delivery/?device__id__exact={facts.device}"
    yield f"/django-admin/devices/device/{facts.device}/change/"
    yield "/django-admin/nexmdm/dispatcherseen/"


def _signed(admin: FleetClient, path: str) -> Callable[[], object]:
    return lambda: admin.get(path)


def _page(browser: httpx.Client, path: str) -> Callable[[], object]:
    return lambda: browser.get(path).raise_for_status()


def _first_rows(browser: httpx.Client, path: str) -> Callable[[], object]:
    def ask() -> None:
        with browser.stream("GET", path) as answer:
            lines = answer.raise_for_status().iter_lines()
            next(lines)
            next(lines)

    return ask


def _times(ask: Callable[[], object], count: int) -> list[float]:
    """Return the duration of each of `count` calls, in milliseconds. An additional first call is not measured."""
    ask()
    return [_time(ask) for _ in range(count)]


def _time(ask: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    ask()
    return (time.perf_counter() - began_at) * 1000


def _logged_in(serving: Serving) -> httpx.Client:
    """Return a browser in which a new superuser is logged in."""
    password = secrets.token_urlsafe(24)
    account = ("--username", _USER, "--email", "page-times@example.com")
    serving.manage("createsuperuser", "--noinput", *account, DJANGO_SUPERUSER_PASSWORD=password)
    browser = httpx.Client(base_url=serving.url, follow_redirects=True, timeout=30)
    browser.get("/django-admin/login/")
    form = {"username": _USER, "password": password, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
    answer = browser.post("/django-admin/login/?next=/django-admin/", data=form, headers={"Referer": serving.url})
    assert "sessionid" in browser.cookies, answer.text
    return browser


def _limit(path: str) -> int:
    return DEVICES_LIMIT_MS if "/devices" in path and "change" not in path else LIMIT_MS


def _print(times: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    sizes = f"{arguments.devices:,} devices, {arguments.deliveries:,} deliveries"
    table = Table(title=f"{sizes}, {arguments.times} times each")
    for heading in ("page", "median", "longest", "limit", ""):
        table.add_column(heading, justify="left" if heading in ("page", "") else "right", overflow="fold")
    for path, one in times.items():
        word = "held" if max(one) < _limit(path) else "missed"
        table.add_row(path, f"{median(one):.1f} ms", f"{max(one):.1f} ms", f"{_limit(path)} ms", word)
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
