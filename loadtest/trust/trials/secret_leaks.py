"""Leaks on trial: after a whole loop with every kind of error in it, no secret is found anywhere but where it belongs.

Looked for is what was configured, issued, or sent as a credential. Looked through are the logs, PostgreSQL's own among
them, the metrics, each answer that was an error, the audit, the pages of the admin site, and a dump of the database.
"""

import base64
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urldefrag, urljoin, urlsplit

import httpx
import orjson
import psycopg
from psycopg import sql

from loadtest.fake_fcm.server import FcmStandin, Send
from loadtest.testbed import testbed
from loadtest.testbed.connections import Server
from loadtest.testbed.serving import MANAGE, Serving, wait_for
from loadtest.trust.trials import sockets
from loadtest.trust.trials.finding import Finding
from nexmdm.client.http_client import FleetClient

CONFIGURED: Final = ("SECRET_KEY", "ADMIN_KEY", "HMAC_SECRET", "COMMAND_SIGNING_KEY", "METRICS_TOKEN")
PUSH_WORDS: Final = (
    "ok", "unregistered", "mismatch", "invalid", "malformed", "unavailable", "internal", "quota", "garbage", "reset",
    "blank", "html", "forbidden", "missing", "unauthenticated",
)  # fmt: skip
"""The beginnings of push tokens by which the stand-in for FCM chooses its answer."""

STATUSES: Final = frozenset({400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431, 500, 503})
"""Each kind of error: all of them have to be provoked."""

KINDS: Final = frozenset({
    *CONFIGURED, "service account", "access token", "push token", "enrollment token", "device token", "command key",
    "signature", "envelope's signature", "session cookie", "password",
})  # fmt: skip
"""Each kind of secret: some of all of them have to be looked for."""

USER: Final = "auditor"
PASSWORD: Final = "a password that nobody should read"  # noqa: S105
WRONG_PASSWORD: Final = "one that opens nothing, and nobody should read"  # noqa: S105
UNSTORABLE: Final = "unstorable"
FAILURES: Final = 70
"""More than an address may have in a minute."""

STRANGER: Final = "127.0.0.2"
"""Another address of this machine: who fails too often there spoils nothing here."""

PUSH_SECONDS: Final = 30
SITE: Final = "/django-admin/"
MOST_ALIKE: Final = 2
"""How many links are followed that differ in nothing but the values of their query."""

MOST_NAMES: Final = 2
"""How many names the query of a link that is followed may have: filters combine without end."""

EXPORTS: Final = 6
"""How many lists of the admin site can be exported."""

_LINK: Final = re.compile(r'href="([^"]*)"')


@dataclass(slots=True)
class Evidence:
    """The secrets by kind, and what is written in each place where they must not be."""

    secrets: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    places: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    pushed: set[str] = field(default_factory=set)
    pages: int = 0
    exports: set[str] = field(default_factory=set)

    def secret(self, kind: str, text: str) -> str:
        """Remember a secret, and return it."""
        self.secrets[kind].add(text)
        return text

    @property
    def statuses(self) -> set[int]:
        """The kinds of errors that were answered."""
        return {int(error[:3]) for error in self.errors}


def trial(folder: Path) -> Iterator[Finding]:
    """Go through the loop, provoke what can go wrong, and look for what should not be there."""
    evidence = Evidence()
    with ExitStack() as stack:
        standin = stack.enter_context(FcmStandin())
        configured = {name: evidence.secret(name, secrets.token_urlsafe(48)) for name in CONFIGURED}
        account = standin.service_account()
        evidence.secrets["service account"] = set(account["private_key"].splitlines()[1:-1])
        serving = stack.enter_context(
            testbed.served(
                folder / "data",
                **configured,
                FCM_BASE_URL=standin.base_url,
                FIREBASE_SERVICE_ACCOUNT_JSON=orjson.dumps(account).decode(),
                BCRYPT_ROUNDS="4",
                LOG_LEVEL="DEBUG",
            )
        )
        calls = stack.enter_context(Calls(serving.url, configured, evidence))
        phones = _loop(calls, standin, serving)
        _provoke(calls, phones, serving)
        _look(calls, serving)
        evidence.places["the logs"] = serving.said
    yield provoked(evidence)
    yield from findings(evidence)


class Calls:
    """An HTTP client that remembers what was sent and got as a secret, and each answer that was an error."""

    def __init__(self, url: str, configured: dict[str, str], evidence: Evidence) -> None:
        self.evidence = evidence
        self.url = url
        self.configured = configured
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        there = httpx.HTTPTransport(local_address=STRANGER)
        self._stranger = httpx.Client(base_url=url, timeout=60, trust_env=False, transport=there)
        self._signing = FleetClient(url, key=configured["ADMIN_KEY"], secret=configured["HMAC_SECRET"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._stranger.close()
        self._signing.close()

    def call(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        stranger: bool = False,
    ) -> Any:
        """Send a request; return the answer's JSON, if it is one."""
        raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        kind = {"Content-Type": "application/json"} if raw else {}
        http = self._stranger if stranger else self._http
        answer = http.request(method, target, content=raw, headers={**kind, **(headers or {})})
        if answer.status_code >= 400:
            self.evidence.errors.append(f"{answer.status_code} {answer.headers} {answer.text}")
        with suppress(ValueError):
            return answer.json()
        return answer.text

    def signed(self, method: str, target: str, body: Any = None, **altered: str) -> Any:
        """Send a signed request, some of its headers altered."""
        raw = b"" if body is None else orjson.dumps(body)
        headers = self._signing.sign(method, target, raw)
        self.evidence.secret("signature", headers["X-Signature"].removeprefix("v1="))
        return self.call(
            method, target, raw, headers | {name.replace("_", "-"): text for name, text in altered.items()}
        )

    def phone(self, target: str, bearer: str, body: Any = None) -> Any:
        """Send what a phone sends, and remember what it is given."""
        answer = self.call("POST", target, body, {"Authorization": f"Bearer {bearer}"})
        for name in ("device_token", "command_key"):
            if isinstance(answer, dict) and name in answer:
                self.evidence.secret(name.replace("_", " "), answer[name])
        for command in answer.get("commands", ()) if isinstance(answer, dict) else ():
            self.evidence.secret("envelope's signature", command["signature"])
        return answer

    def unfinished(self, target: str, bearer: str) -> None:
        """Begin a request whose body does not end, and hear how the server ends it."""
        server = Server.of(self.url)
        head = server.head("POST", target, {"Authorization": f"Bearer {bearer}", "Content-Length": "1000"})
        with socket.create_connection((server.host, server.port), timeout=60) as connection:
            connection.sendall(head + b"\r\n" + orjson.dumps({"push_token": bearer})[:-1])
            message = b"".join(iter(partial(connection.recv, 65_536), b""))
        self.evidence.errors.append(message.decode().removeprefix("HTTP/1.1 "))

    def enrollment_token(self, **fields: Any) -> str:
        """Make an enrollment token."""
        made = self.signed("POST", "/admin/enrollment-tokens", fields)
        return self.evidence.secret("enrollment token", made["enrollment_token"])


def _push_token(evidence: Evidence, word: str) -> str:
    return evidence.secret("push token", f"{word}-{secrets.token_urlsafe(40)}")


def _loop(calls: Calls, standin: FcmStandin, serving: Serving) -> dict[str, dict[str, Any]]:
    """Enrol a phone for each of FCM's answers, command them, have them answer, rotate and enrol again."""
    phones = {}
    for word in PUSH_WORDS:
        token = calls.enrollment_token(re_enroll=True)
        body = {"hardware_id": f"phone-{word}", "alias": word, "push_token": _push_token(calls.evidence, word)}
        calls.phone("/v1/register", token, body)
        phones[word] = calls.phone("/v1/register", token, body)
    for word, phone in phones.items():
        _command(calls, phone, partial(_await_push, calls.evidence, standin, word))
        new = calls.phone("/v1/token/rotate", phone["device_token"])
        calls.phone("/v1/heartbeat", new["device_token"], {"push_token": _push_token(calls.evidence, word)})
        phone["device_token"] = new["device_token"]
    calls.evidence.secrets["access token"] = set(standin.access_tokens.live())
    standin.oauth_down = True
    standin.revoke_access_tokens()
    _close_the_circuit(serving)
    command = calls.signed("POST", "/admin/command", {"action": "ping", "target": {"all": True}})
    path = f"/admin/commands/{command['request_id']}"
    wait_for(lambda: calls.signed("GET", path)["push"]["retrying"])
    return phones


def _command(calls: Calls, phone: dict[str, Any], pushed: Callable[[], object]) -> None:
    """Have a phone carry out a command once it is pushed, and say so twice."""
    target = {"device_ids": [phone["device_id"]]}
    command = calls.signed("POST", "/admin/command", {"action": "ping", "target": target})
    calls.phone("/v1/heartbeat", phone["device_token"], {"status": {"battery_pct": 50}})
    pushed()
    report = {"request_id": command["request_id"], "status": "succeeded", "output": {"done": True}}
    for _ in range(2):
        calls.phone("/v1/action-result", phone["device_token"], report)


def _await_push(evidence: Evidence, standin: FcmStandin, word: str) -> None:
    """Wait for a push that is answered so. Raises TimeoutError."""
    standin.journal.wait_for(1, PUSH_SECONDS, matching=partial(_is_to, word))
    evidence.pushed.add(word)


def _is_to(word: str, send: Send) -> bool:
    return send.push_token.startswith(f"{word}-") and send.answer == word


def _close_the_circuit(serving: Serving) -> None:
    """Replace the dispatcher: a new one does not know that the one before had stopped pushing for a while."""
    before = serving.child("dispatch")
    os.kill(before, signal.SIGTERM)
    wait_for(lambda: serving.child("dispatch") != before)


def _provoke(calls: Calls, phones: dict[str, dict[str, Any]], serving: Serving) -> None:
    """Provoke each kind of error, with secrets in all the wrong places."""
    phone, other = phones["ok"], phones["quota"]
    enrollment = calls.enrollment_token()
    device, configured = phone["device_token"], calls.configured
    for target in ("/v1/register", "/v1/heartbeat", "/v1/action-result", "/v1/token/rotate"):
        for bearer in (enrollment, device, device[:-1] + "0", configured["ADMIN_KEY"], configured["HMAC_SECRET"]):
            calls.phone(target, bearer, {"hardware_id": [device], "push_token": {"of": device}, "request_id": device})
    for altered in (
        {"X_Admin": configured["HMAC_SECRET"]}, {"X_Signature": "v1=" + secrets.token_hex(32)}, {"X_Timestamp": "0"},
        {"Authorization": f"Bearer {device}"}, {"Idempotency_Key": enrollment[:60]}, {"Content_Type": "text/plain"},
    ):  # fmt: skip
        calls.signed("POST", "/admin/command", {"action": enrollment, "target": {"aliases": [device]}}, **altered)
    for target in (
        f"/{device}",
        f"/admin/devices/{device}",
        f"/admin/devices?q={device}",
        f"/admin/audit?{enrollment}",
    ):
        calls.signed("GET", target)
    for body in (b"{" + device.encode(), b" " * 70_000, orjson.dumps({"push_token": device * 100})):
        calls.phone("/v1/heartbeat", device, body)
    calls.call("GET", "/healthz", None, {"X-Padding": device * 300})
    calls.call("GET", "/healthz", None, {"Host": device, "X-Correlation-ID": device})
    calls.signed("POST", f"/admin/devices/{other['device_id']}/revoke")
    calls.phone("/v1/heartbeat", other["device_token"], {})
    calls.phone("/admin/summary", device)
    calls.phone("/v1/register", enrollment, {"hardware_id": "phone-ok"})
    command = {"action": "ping", "target": {"all": True}, "expect_count": 1000, "note": device}
    calls.signed("POST", "/admin/command", command)
    with suppress(ConnectionError, IndexError):
        sockets.replay(calls.url, f"{device} no HTTP\r\n\r\n".encode())
    calls.unfinished("/v1/heartbeat", device)
    for _ in range(FAILURES):
        guess = f"Bearer {calls.evidence.secret('device token', device[:-1] + '0')}"
        calls.call("POST", "/v1/heartbeat", {}, {"Authorization": guess}, stranger=True)
    _break_the_database(calls, phone, serving)
    _shut_the_database(calls, phone, serving)


def _break_the_database(calls: Calls, phone: dict[str, Any], serving: Serving) -> None:
    """Have PostgreSQL refuse rows, with all that is in them, and cut its connections."""
    rule = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({} NOT LIKE {}) NOT VALID")
    with psycopg.connect(serving.database_url(), autocommit=True) as database:
        for table, column in (
            ("devices_device", "push_token"),
            ("devices_device", "hardware_id"),
            ("commands_command", "note"),
        ):
            pattern = sql.Literal(f"%{UNSTORABLE}%")
            name = sql.Identifier(f"{table}_{column}_trial")
            database.execute(rule.format(sql.Identifier(table), name, sql.Identifier(column), pattern))
        unstorable = _push_token(calls.evidence, f"ok-{UNSTORABLE}")
        calls.phone("/v1/heartbeat", phone["device_token"], {"push_token": unstorable})
        body = {"hardware_id": UNSTORABLE, "push_token": _push_token(calls.evidence, "ok")}
        calls.phone("/v1/register", calls.enrollment_token(), body)
        command = {"action": "ping", "target": {"all": True}, "note": UNSTORABLE}
        calls.signed("POST", "/admin/command", command)
        for _ in range(3):
            database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            calls.phone("/v1/heartbeat", phone["device_token"], {"push_token": _push_token(calls.evidence, "ok")})
            calls.signed("GET", "/admin/summary")


def _shut_the_database(calls: Calls, phone: dict[str, Any], serving: Serving) -> None:
    """Have PostgreSQL let nobody in for a while."""
    url = serving.database_url()
    with psycopg.connect(url) as database:
        name = database.info.dbname
    shut = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    with psycopg.connect(url, dbname="template1", autocommit=True) as other:
        try:
            other.execute(shut.format(sql.Identifier(name), sql.Literal(False)))
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            for _ in range(2):
                calls.phone("/v1/heartbeat", phone["device_token"], {"push_token": _push_token(calls.evidence, "ok")})
                calls.phone("/v1/register", calls.configured["ADMIN_KEY"], {"hardware_id": phone["device_token"]})
                calls.signed("POST", "/admin/enrollment-tokens", {"label": phone["device_token"]})
                calls.signed("GET", "/admin/summary")
        finally:
            other.execute(shut.format(sql.Identifier(name), sql.Literal(True)))
    wait_for(lambda: "devices" in calls.signed("GET", "/admin/summary"))


def _look(calls: Calls, serving: Serving) -> None:
    """Read what is written in each place."""
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
    places["a dump of the database (devices_device.push_token aside)"] = _dump(serving.database_url())
    places["answers that are errors"] = "\n".join(calls.evidence.errors)


def _pages(serving: Serving, evidence: Evidence) -> Iterator[str]:
    """Log in as staff, and yield every page that a link leads to."""
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
    """Yield every page and every export that a link leads to. Raises HTTPStatusError for one that leads nowhere."""
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
    """Yield what a page of the admin site leads to within it, but for the way out."""
    for link in _LINK.findall(page.text):
        target = urldefrag(urljoin(page.url.raw_path.decode(), unescape(link))).url
        if target.startswith(SITE) and not target.startswith(f"{SITE}logout"):
            yield target


def _dump(url: str) -> str:
    """Return all rows of all tables, but for the one column that has to hold push tokens."""
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


def provoked(evidence: Evidence) -> Finding:
    """Judge whether all was tried and looked at that there is to be; without that, a search finds nothing easily."""
    missing = [
        *(f"no {status}" for status in sorted(STATUSES - evidence.statuses)),
        *(f"no push answered {word}" for word in PUSH_WORDS if word not in evidence.pushed),
        *(f"no {kind}" for kind in sorted(KINDS) if not evidence.secrets.get(kind)),
        *([f"{len(evidence.exports)} of {EXPORTS} exports"] if len(evidence.exports) < EXPORTS else []),
    ]
    answered = " ".join(map(str, sorted(evidence.statuses)))
    return Finding(
        "the search comes after every kind of error, and knows every kind of secret",
        f"answers {answered}; pushes answered {', '.join(sorted(evidence.pushed))}",
        ", ".join(missing) or f"{evidence.pages} pages of the admin site, {len(evidence.exports)} lists exported",
        not missing,
    )


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield, for each place, whether there is a secret in it."""
    count = sum(map(len, evidence.secrets.values()))
    for place, text in evidence.places.items():
        found = {kind: sum(_is_in(secret, text) for secret in known) for kind, known in evidence.secrets.items()}
        leaked = ", ".join(f"{number} × {kind}" for kind, number in found.items() if number)
        yield Finding(
            f"no secret in {place}",
            f"{count:,} secrets of {len(evidence.secrets)} kinds",
            f"{leaked or 'none'} in {len(text):,} characters",
            bool(text) and not leaked,
        )


def _is_in(secret: str, text: str) -> bool:
    raw = secret.encode()
    return secret in text or raw.hex() in text or base64.b64encode(raw).decode().rstrip("=") in text
