"""The actors of a test: a client of the real ASGI application, an admin, a phone."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlencode

from asgiref.sync import async_to_sync
from django.core.signals import request_finished, request_started
from django.db import close_old_connections

from devices import push_targets
from devices.push_targets import Death
from nexmdm.asgi import application  # first: it sets Django up
from nexmdm.auth import signing
from nexmdm.common import database

LOGIN: Final = "/django-admin/login/"


@dataclass(slots=True)
class Answer:
    """The answer of the application."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The problem's code, or None."""
        problem = self.headers.get("content-type") == "application/problem+json"
        return str(self.json["code"]) if problem else None


def encode(body: Any) -> bytes:
    """Return a body as bytes: bytes unchanged, None as no bytes, anything else as JSON."""
    if body is None:
        return b""
    return body if isinstance(body, bytes) else json.dumps(body).encode()


class Client:
    """Runs nexmdm.asgi.application in the test's own thread, so that it sees fixtures and its queries are counted."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address

    def request(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | list[tuple[str, str]] | None = None
    ) -> Answer:
        """Send one request and return the answer."""
        return async_to_sync(self.arequest)(method, target, body, headers)

    async def arequest(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | list[tuple[str, str]] | None = None
    ) -> Answer:
        """Do as request() does, inside a running loop."""
        raw = encode(body)
        given = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
        names = {name.lower() for name, _ in given}
        if "host" not in names:
            given.append(("Host", "localhost"))
        if raw and "content-type" not in names:
            given.append(("Content-Type", "application/json"))
        if raw and not names & {"content-length", "transfer-encoding"}:
            given.append(("Content-Length", str(len(raw))))
        return await self._call(method, target, raw, [(name.lower(), value) for name, value in given])

    async def _call(self, method: str, target: str, raw: bytes, headers: list[tuple[str, str]]) -> Answer:
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            "client": (self.address, 40000),
            "server": ("127.0.0.1", 8000),
        }
        incoming = [{"type": "http.request", "body": raw, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if not incoming:
                await asyncio.Event().wait()
            return incoming.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        await application(scope, receive, send)
        # A server gives each request its own context, with its own deadline.
        database.begin_long_request()
        start = sent[0]
        answered = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))


class Visitor(Client):
    """A client of the admin site, which Django's full handler answers. After a login, the client has a session."""

    def __init__(self, address: str = "127.0.0.1", *, session: str = "") -> None:
        super().__init__(address)
        self.cookies = {"Cookie": f"sessionid={session}"} if session else {}

    def request(self, method: str, target: str, body: Any = None, headers: Any = None) -> Answer:
        """Send one request and return the answer."""
        with self.keeping_the_connection():
            return super().request(method, target, body, {**self.cookies, **(headers or {})})

    @contextmanager
    def keeping_the_connection(self) -> Iterator[None]:
        """Keep Django from closing the connection that contains the test's rows. Django's test client does the same."""
        for signal in (request_started, request_finished):
            signal.disconnect(close_old_connections)
        try:
            yield
        finally:
            for signal in (request_started, request_finished):
                signal.connect(close_old_connections)

    def log_in(self, username: str, password: str, **headers: str) -> Answer:
        """Fill in the form of the login as a browser does, and return the answer."""
        form = self.request("GET", LOGIN, None, headers)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.body.decode())
        assert token is not None, form
        words = {"username": username, "password": password, "csrfmiddlewaretoken": token[1]}
        return self.post_form(f"{LOGIN}?next=/django-admin/", words, form.headers["set-cookie"], **headers)

    def post_form(self, target: str, words: dict[str, str], cookie: str, **headers: str) -> Answer:
        """Send a form with the cookie of its page."""
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        cookies = {"Cookie": "; ".join(filter(None, (self.cookies.get("Cookie"), cookie.partition(";")[0])))}
        return self.request("POST", target, urlencode(words).encode(), {**headers, **kind, **cookies})


@dataclass(slots=True)
class Admin:
    """Signs its requests by NXD1."""

    client: Client
    key: str
    secret: str

    def get(self, target: str) -> Answer:
        """Send a signed GET."""
        return self.call("GET", target)

    def post(self, target: str, body: Any = None, *, idempotency_key: str | None = None) -> Answer:
        """Send a signed POST with a new Idempotency-Key, unless one is given."""
        return self.call("POST", target, body, idempotency_key=idempotency_key)

    def call(self, method: str, target: str, body: Any = None, *, idempotency_key: str | None = None) -> Answer:
        """Send a signed request."""
        raw = encode(body)
        headers = self.headers(method, target, raw, idempotency_key=idempotency_key)
        return self.client.request(method, target, raw or None, headers)

    def headers(self, method: str, target: str, raw: bytes, *, idempotency_key: str | None = None) -> dict[str, str]:
        """Return the signing headers of a request."""
        if idempotency_key is None:
            idempotency_key = "" if method == "GET" else secrets.token_hex(16)
        return signing.headers(
            key=self.key,
            secret=self.secret,
            timestamp=int(time.time()),
            idempotency_key=idempotency_key,
            method=method,
            target=target,
            body=raw,
        )

    def enrollment_token(self, **fields: Any) -> str:
        """Make an enrollment token and return its text."""
        answer = self.post("/admin/enrollment-tokens", fields)
        assert answer.status == 200, answer
        return str(answer.json["enrollment_token"])

    def enrol(self, hardware_id: str, **fields: Any) -> "Phone":
        """Register a phone with a new enrollment token."""
        phone = Phone(self.client, hardware_id)
        answer = phone.register(self.enrollment_token(), **fields)
        assert answer.status == 200, answer
        return phone

    def enrol_fleet(self, size: int, push_token: str | None = None) -> "list[Phone]":
        """Register this number of phones; their push tokens, if they have any, are this text and a number."""
        text = self.enrollment_token(max_uses=size)
        phones = [Phone(self.client, f"phone-{number}") for number in range(size)]
        for number, phone in enumerate(phones):
            said = {} if push_token is None else {"push_token": f"{push_token}{number}"}
            assert phone.register(text, **said).status == 200
        return phones

    def command(self, action: str = "ping", *, to: Any = None, **fields: Any) -> Answer:
        """Send a command to a phone, to several phones, or to a target in the form of the API."""
        phones = [to] if isinstance(to, Phone) else to
        if isinstance(phones, list):
            target: Any = {"device_ids": [phone.device_id for phone in phones]}
        else:
            target = to or {"all": True}
        return self.post("/admin/command", {"action": action, "target": target, **fields})


@dataclass(slots=True)
class Phone:
    """A phone's side of the protocol, as single calls."""

    client: Client
    hardware_id: str
    device_id: str = ""
    device_token: str = ""
    command_key: str = ""
    last: dict[str, Any] = field(default_factory=dict)

    def register(self, enrollment_token: str, **fields: Any) -> Answer:
        """Register, and store the credentials."""
        answer = self.send("/v1/register", {"hardware_id": self.hardware_id, **fields}, enrollment_token)
        if answer.status == 200:
            self.last = answer.json
            self.device_id, self.device_token = answer.json["device_id"], answer.json["device_token"]
            self.command_key = answer.json["command_key"]
        return answer

    def heartbeat(self, **fields: Any) -> Answer:
        """Send a heartbeat."""
        return self.send("/v1/heartbeat", fields)

    def report(self, request_id: str, status: str, **fields: Any) -> Answer:
        """Report on a command."""
        return self.send("/v1/action-result", {"request_id": request_id, "status": status, **fields})

    def rotate(self) -> Answer:
        """Ask for a new pair of credentials."""
        return self.send("/v1/token/rotate", None)

    def send(self, target: str, body: Any, token: str | None = None) -> Answer:
        """POST with a bearer token, by default this phone's."""
        headers = {"Authorization": f"Bearer {token or self.device_token}"}
        return self.client.request("POST", target, body, headers)


def fcm_calls_dead(push_token: str) -> None:
    """Do what the dispatcher does when FCM calls a push token dead."""
    push_targets.mark_dead([Death("token", push_token, database.now())])
