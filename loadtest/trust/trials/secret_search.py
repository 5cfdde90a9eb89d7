"""The search for secrets in the answers, pages, logs and rows of a server."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html import unescape
from typing import Final
from urllib.parse import parse_qsl, urldefrag, urljoin, urlsplit

import httpx
import psycopg
from psycopg import sql

from loadtest.testbed.serving import MANAGE, Serving
from loadtest.trust.trials.secret_evidence import PASSWORD, SITE, USER, WRONG_PASSWORD, Calls, Evidence

MOST_ALIKE: Final = 2
"""The search follows at most this number of links whose queries differ only in their values."""

MOST_NAMES: Final = 2
"""The largest number of names in the query of a followed link. Without this limit, the combinations of filters would
not end."""

EXPORTS: Final = 6
"""The number of lists that the admin site can export."""

_LINK: Final = re.compile(r'href="([^"]*)"')


def look(calls: Calls, serving: Serving) -> None:
    """Read all places in which no secret may be, and record their content as evidence."""
    places = calls.evidence.places
    bearer = {"Authorization": f"Bearer {calls.configured['METRICS_TOKEN']}"}
    places["the metrics"] = str(calls.call("GET", "/metrics", None, bearer))
    rows: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = calls.signed("GET", f"/admin/audit?limit=500{cursor and '&cursor=' + cursor}")
        rows.append(str(page["items"]))
        cursor = page["next_cursor"]
    places["the audit"] = "\n".join(rows)
    places["the admin site"] = "\n".join(_pages(serving, calls.evidence))
    logs = (serving.data_dir / "pg" / "log").glob("*.log")
    places["PostgreSQL's log"] = "\n".join(path.read_text(errors="replace") for path in logs)
    places["a dump of the database, without devices_device.push_token"] = _dump(serving.database_url())
    places["answers that are errors"] = "\n".join(calls.evidence.errors)


def _pages(serving: Serving, evidence: Evidence) -> Iterator[str]:
    """Log in as staff, and yield the content of every page of the admin site that links lead to."""
    account = {"DJANGO_SUPERUSER_PASSWORD": PASSWORD, "DJANGO_SUPERUSER_EMAIL": "auditor@example.com"}
    create = [sys.executable, MANAGE, "createsuperuser", "--noinput", "--username", USER]
    subprocess.run(create, env={**serving.environment, **account}, check=True, capture_output=True)
    with httpx.Client(base_url=serving.url, timeout=60, trust_env=False, follow_redirects=True) as browser:
        for password in (WRONG_PASSWORD, PASSWORD):
            form = browser.get(f"{SITE}login/?next={SITE}")
            token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)
            assert token is not None
            fields = {"csrfmiddlewaretoken": token[1], "username": USER, "password": password}
            evidence.secret("password", password)
            yield browser.post(f"{SITE}login/?next={SITE}", data=fields).text
        evidence.secret("session cookie", browser.cookies["sessionid"])
        yield from _linked(browser, evidence)


def _linked(browser: httpx.Client, evidence: Evidence) -> Iterator[str]:
    """Yield the content of every page and export that links lead to. Raises HTTPStatusError if a link fails."""
    alike: Counter[tuple[str, frozenset[str]]] = Counter()
    waiting, seen = [SITE], {SITE}
    while waiting:
        page = browser.get(waiting.pop(0))
        page.raise_for_status()
        evidence.pages += 1
        if page.headers["Content-Type"].startswith("text/csv"):
            evidence.exports.add(page.url.path)
        for target in links(page):
            parts = urlsplit(target)
            names = frozenset(name for name, _ in parse_qsl(parts.query, keep_blank_values=True))
            kind = parts.path, names
            if target not in seen and len(names) <= MOST_NAMES and alike[kind] < MOST_ALIKE:
                seen.add(target)
                alike[kind] += 1
                waiting.append(target)
        yield page.text


def links(page: httpx.Response) -> Iterator[str]:
    """Yield the links of a page within the admin site, without the logout."""
    for link in _LINK.findall(page.text):
        target = urldefrag(urljoin(page.url.raw_path.decode(), unescape(link))).url
        if target.startswith(SITE) and not target.startswith(f"{SITE}logout"):
            yield target


def _dump(url: str) -> str:
    """Return all rows of all tables, without the column `devices_device.push_token`."""
    columns = (
        "SELECT table_name, array_agg(column_name::text) FROM information_schema.columns"
        " WHERE table_schema = 'public' AND (table_name, column_name) <> ('devices_device', 'push_token')"
        " GROUP BY table_name"
    )
    tables = []
    with psycopg.connect(url) as database, database.cursor() as cursor:
        for table, names in database.execute(columns).fetchall():
            wanted = sql.SQL(", ").join(map(sql.Identifier, names))
            rows = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(wanted, sql.Identifier(table))
            with cursor.copy(rows) as copy:
                tables.append(b"".join(map(bytes, copy)).decode())
    return "\n".join(tables)
