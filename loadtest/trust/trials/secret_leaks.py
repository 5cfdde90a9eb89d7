"""No secret appears in logs, metrics, error answers, the audit, the admin site or a dump of the database.

The trial uses all functions of the server, and provokes every kind of error. Afterwards, it searches for every secret
that was configured, issued or sent as a credential. It also searches the logs of PostgreSQL. The dump is without
`devices_device.push_token`, because the server needs the push tokens.
"""

import base64
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
import psycopg
from psycopg import sql

from loadtest.fake_fcm.journal import Send
from loadtest.fake_fcm.server import FcmStandin
from loadtest.testbed import testbed
from loadtest.testbed.serving import Serving, wait_for
from loadtest.trust.trials import sockets
from loadtest.trust.trials.finding import Finding
from loadtest.trust.trials.secret_evidence import Calls, Evidence
from loadtest.trust.trials.secret_search import EXPORTS, look
from nexmdm.client.http_client import FleetClient

NAMED_KEY: Final = "ADMIN_KEY_OPS1"
NAMED_SECRET: Final = "HMAC_SECRET_OPS1"  # noqa: S105
CONFIGURED: Final = (
    "SECRET_KEY", "ADMIN_KEY", "HMAC_SECRET", "COMMAND_SIGNING_KEY", "METRICS_TOKEN",
    NAMED_KEY, f"{NAMED_KEY}_PREVIOUS", NAMED_SECRET, f"{NAMED_SECRET}_PREVIOUS",
)  # fmt: skip
PUSH_WORDS: Final = (
    "ok", "unregistered", "mismatch", "invalid", "malformed", "unavailable", "internal", "quota", "garbage", "reset",
    "blank", "html", "forbidden", "missing", "unauthenticated",
)  # fmt: skip
"""The words at the beginning of push tokens, which choose the answers of the fake FCM."""

STATUSES: Final = frozenset({400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431, 500, 503})
"""The statuses of errors. The trial must provoke all of them."""

KINDS: Final = frozenset({
    *CONFIGURED, "service account", "access token", "push token", "enrollment token", "device token", "command key",
    "signature", "envelope's signature", "session cookie", "password",
})  # fmt: skip
"""The kinds of secrets. The search must include at least one secret of each kind."""
UNSTORABLE: Final = "unstorable"
FAILURES: Final = 70
"""The number of failed authentications from one address. It is above the limit for a minute."""

PUSH_SECONDS: Final = 30


def trial(folder: Path) -> Iterator[Finding]:
    """Use the server, provoke errors, and search for secrets."""
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
        _write_as_named_admin(calls)
        _provoke(calls, phones, serving)
        look(calls, serving)
        evidence.places["the logs"] = serving.said
    yield provoked(evidence)
    yield from findings(evidence)


def _push_token(evidence: Evidence, word: str) -> str:
    return evidence.secret("push token", f"{word}-{secrets.token_urlsafe(40)}")


def _loop(calls: Calls, standin: FcmStandin, serving: Serving) -> dict[str, dict[str, Any]]:
    """Register a phone for each answer of FCM, and let each phone carry out a command and rotate its token."""
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


def _write_as_named_admin(calls: Calls) -> None:
    """Send one signed write as a named admin. The write uses this admin's previous key and current secret."""
    key, secret = calls.configured[f"{NAMED_KEY}_PREVIOUS"], calls.configured[NAMED_SECRET]
    with closing(FleetClient(calls.url, key=key, secret=secret)) as admin:
        made = admin.post("/admin/enrollment-tokens", {"label": "of a named admin"})
        calls.evidence.secret("enrollment token", made["enrollment_token"])


def _command(calls: Calls, phone: dict[str, Any], pushed: Callable[[], object]) -> None:
    """Send a command to a phone, wait for its push by calling `pushed`, and report the result twice."""
    target = {"device_ids": [phone["device_id"]]}
    command = calls.signed("POST", "/admin/command", {"action": "ping", "target": target})
    calls.phone("/v1/heartbeat", phone["device_token"], {"status": {"battery_pct": 50}})
    pushed()
    report = {"request_id": command["request_id"], "status": "succeeded", "output": {"done": True}}
    for _ in range(2):
        calls.phone("/v1/action-result", phone["device_token"], report)


def _await_push(evidence: Evidence, standin: FcmStandin, word: str) -> None:
    """Wait for a push that the fake FCM answers with `word` (replies.py). Raises TimeoutError."""
    standin.journal.wait_for(1, PUSH_SECONDS, matching=partial(_is_to, word))
    evidence.pushed.add(word)


def _is_to(word: str, send: Send) -> bool:
    return send.push_token.startswith(f"{word}-") and send.answer == word


def _close_the_circuit(serving: Serving) -> None:
    """Replace the dispatcher by a new dispatcher, whose circuit is closed."""
    before = serving.child("dispatch")
    os.kill(before, signal.SIGTERM)
    wait_for(lambda: serving.child("dispatch") != before)


def _provoke(calls: Calls, phones: dict[str, dict[str, Any]], serving: Serving) -> None:
    """Provoke each kind of error, with secrets in all parts of the requests."""
    phone, other = phones["ok"], phones["quota"]
    enrollment = calls.enrollment_token()
    device, configured = phone["device_token"], calls.configured
    for target in ("/v1/register", "/v1/heartbeat", "/v1/action-result", "/v1/token/rotate"):
        admins = (configured[name] for name in ("ADMIN_KEY", "HMAC_SECRET", NAMED_KEY, NAMED_SECRET))
        for bearer in (enrollment, device, device[:-1] + "0", *admins):
            calls.phone(target, bearer, {"hardware_id": [device], "push_token": {"of": device}, "request_id": device})
    for altered in (
        {"X_Admin": configured["HMAC_SECRET"]}, {"X_Admin": configured[NAMED_KEY]}, {"X_Timestamp": "0"},
        {"X_Signature": "v1=" + secrets.token_hex(32)}, {"Content_Type": "text/plain"},
        {"Authorization": f"Bearer {device}"}, {"Idempotency_Key": enrollment[:60]},
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
        calls.call("POST", "/v1/heartbeat", {}, {"Authorization": guess}, from_other_address=True)
    _break_the_database(calls, phone, serving)
    _shut_the_database(calls, phone, serving)


def _break_the_database(calls: Calls, phone: dict[str, Any], serving: Serving) -> None:
    """Let PostgreSQL refuse rows that contain secrets, and cut its connections."""
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
    """Let PostgreSQL refuse connections for some time."""
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


def provoked(evidence: Evidence) -> Finding:
    """Return a finding: whether the trial provoked all errors, used all kinds of secrets, and searched all exports."""
    missing = [
        *(f"no {status}" for status in sorted(STATUSES - evidence.statuses)),
        *(f"no push answered {word}" for word in PUSH_WORDS if word not in evidence.pushed),
        *(f"no {kind}" for kind in sorted(KINDS) if not evidence.secrets.get(kind)),
        *([f"{len(evidence.exports)} of {EXPORTS} exports"] if len(evidence.exports) < EXPORTS else []),
    ]
    answered = " ".join(map(str, sorted(evidence.statuses)))
    return Finding(
        "the search follows every kind of error, and includes every kind of secret",
        f"answers {answered}; pushes answered {', '.join(sorted(evidence.pushed))}",
        ", ".join(missing) or f"{evidence.pages} pages of the admin site, {len(evidence.exports)} lists exported",
        not missing,
    )


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield a finding for each place: whether the place contains a secret."""
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
