"""All kinds of writes that a phone or an admin can cause, for write_costs.

The `prepare` function of a kind does the preparatory work with unused phones, and returns the requests to measure.
"""

import http.client
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice
from typing import Any, Final
from urllib.parse import urlencode, urlsplit
from uuid import UUID

import orjson
import psycopg

from devices import tokens
from loadtest.fleet.credentials_file import Member
from nexmdm.client.http_client import FleetClient

STAFF: Final = "root"
LOGIN: Final = "/django-admin/login/"
COMPARED: Final = 0.2
"""The `share` of heartbeats. The usual number of requests is divided by this number, so heartbeats get five times as
many. All other kinds are compared with heartbeats.
"""

EXPENSIVE: Final = 5
"""The `share` of kinds that hash a password or a token. The usual number of requests is divided by this number. A fifth
of the requests is enough for these kinds.
"""

_HARDWARE: Final = "SELECT hardware_id FROM devices_device WHERE id = ANY(%s::uuid[])"
_FORM: Final = "application/x-www-form-urlencoded"
_CSRF: Final = re.compile(r'name="csrfmiddlewaretoken" value="(\w+)"')


class Failed(Exception):
    """A request did not get the expected status, or there were too few phones."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request, and the status that its answer must have."""

    method: str
    target: str
    body: bytes
    headers: dict[str, str]
    status: int = HTTPStatus.OK


@dataclass(slots=True)
class Fleet:
    """The unused phones, an admin, and one connection to the server.

    - `password`: the password of the account STAFF.
    """

    members: Iterator[Member]
    admin: FleetClient
    database: psycopg.Connection[Any]
    password: str
    connection: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.admin.url)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port)

    def take(self, count: int) -> list[Member]:
        """Return `count` phones, which count as used from now on. Raises Failed if there are too few unused phones."""
        taken = list(islice(self.members, count))
        if len(taken) < count:
            raise Failed("Too few phones: use more --devices, or fewer --times.")
        return taken

    def signed(self, target: str, body: Any = None, *, method: str = "POST", status: int = HTTPStatus.OK) -> Request:
        """Return a signed request with a new Idempotency-Key."""
        content = b"" if body is None else orjson.dumps(body)
        headers = self.admin.sign(method, target, content) | {"Content-Type": "application/json"}
        return Request(method, target, content, headers, status)

    def do(self, request: Request) -> bytes:
        """Send a request, and return the body of its answer. Raises Failed if the status is not the expected status."""
        self.connection.request(request.method, request.target, request.body, request.headers)
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status != request.status:
            raise Failed(f"{request.method} {request.target}: {answer.status} {body[:300].decode(errors='replace')}")
        return body

    def post(self, target: str, body: Any = None) -> dict[str, Any]:
        """Send a signed POST, and return its answer. Raises Failed if the status is not 200."""
        return dict(orjson.loads(self.do(self.signed(target, body))))

    def command(self, members: Sequence[Member], action: str = "ping") -> str:
        """Send a command to `members`, and return its request id."""
        return str(self.post("/admin/command", {**_ping(members, action), "expect_count": len(members)})["request_id"])

    def enrollment_token(self, **fields: Any) -> str:
        """Create an enrollment token, and return its text."""
        return str(self.post("/admin/enrollment-tokens", fields)["enrollment_token"])


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of write, and the function that prepares its requests.

    The benchmark divides the usual number of requests by `share`.
    """

    name: str
    prepare: Callable[[Fleet, int], list[Request]]
    share: float = 1


def _bearer(token: str, target: str, body: dict[str, Any], status: int = HTTPStatus.OK) -> Request:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return Request("POST", target, orjson.dumps(body), headers, status)


def _ping(members: Sequence[Member], action: str = "ping") -> dict[str, Any]:
    return {"action": action, "target": {"device_ids": [member.device_id for member in members]}}


def _heartbeat(member: Member, **fields: Any) -> Request:
    return _bearer(member.device_token, "/v1/heartbeat", fields)


def _report(member: Member, request_id: str, status: str) -> Request:
    body = {"request_id": request_id, "status": status, "via": "push"}
    return _bearer(member.device_token, "/v1/action-result", body)


def _heartbeats(fleet: Fleet, count: int) -> list[Request]:
    return [_heartbeat(member, status={"battery_pct": 83}) for member in fleet.take(count)]


def _push_tokens(fleet: Fleet, count: int) -> list[Request]:
    return [_heartbeat(member, push_token=f"ok-{secrets.token_hex(70)}") for member in fleet.take(count)]


def _rotated(fleet: Fleet, count: int) -> list[Request]:
    answers = [orjson.loads(fleet.do(request)) for request in _rotations(fleet, count)]
    return [_bearer(answer["device_token"], "/v1/heartbeat", {}) for answer in answers]


def _wrong_tokens(fleet: Fleet, count: int) -> list[Request]:
    wrong = [tokens.make(tokens.DEVICE_PREFIX, UUID(one.device_id), bytes(32)).text for one in fleet.take(count)]
    return [_bearer(text, "/v1/heartbeat", {}, HTTPStatus.UNAUTHORIZED) for text in wrong]


def _registrations(fleet: Fleet, count: int) -> list[Request]:
    return _register(fleet.enrollment_token(max_uses=count), [secrets.token_hex(8) for _ in range(count)])


def _re_enrollments(fleet: Fleet, count: int) -> list[Request]:
    ids = [member.device_id for member in fleet.take(count)]
    known = [hardware_id for (hardware_id,) in fleet.database.execute(_HARDWARE, [ids])]
    return _register(fleet.enrollment_token(max_uses=count, re_enroll=True), known)


def _lost_answers(fleet: Fleet, count: int) -> list[Request]:
    requests = _registrations(fleet, count)
    for request in requests:
        fleet.do(request)
    return requests


def _register(enrollment_token: str, hardware_ids: Sequence[str]) -> list[Request]:
    return [
        _bearer(enrollment_token, "/v1/register", {
            "hardware_id": one, "model": "Simulated", "push_token": f"ok-{secrets.token_hex(70)}"
        })
        for one in hardware_ids
    ]  # fmt: skip


def _rotations(fleet: Fleet, count: int) -> list[Request]:
    return [_bearer(member.device_token, "/v1/token/rotate", {}) for member in fleet.take(count)]


def _reports(status: str, *, action: str = "ping", again: bool = False, late: bool = False) -> Callable[..., Any]:
    def prepare(fleet: Fleet, count: int) -> list[Request]:
        members = fleet.take(count)
        request_id = fleet.command(members, action)
        if late:
            fleet.post(f"/admin/commands/{request_id}/cancel")
        requests = [_report(member, request_id, status) for member in members]
        for request in requests if again else ():
            fleet.do(request)
        return requests

    return prepare


def _commands(*, push: bool = True, earlier: bool = False, **fields: Any) -> Callable[..., Any]:
    def prepare(fleet: Fleet, count: int) -> list[Request]:
        members = fleet.take(count)
        for member in () if push else members:
            fleet.do(_heartbeat(member, push_token=None))
        if earlier:
            fleet.command(members)
        return [fleet.signed("/admin/command", {**_ping([member]), **fields}) for member in members]

    return prepare


def _repeated_commands(fleet: Fleet, count: int) -> list[Request]:
    requests = [fleet.signed("/admin/command", _ping([member])) for member in fleet.take(count)]
    for request in requests:
        fleet.do(request)
    return requests


def _tag_commands(fleet: Fleet, count: int) -> list[Request]:
    tags = [f"tag-{secrets.token_hex(4)}" for _ in range(count)]
    for tag in tags:
        fleet.post(f"/admin/tags/{tag}", {"add": [member.device_id for member in fleet.take(1)]})
    return [fleet.signed("/admin/command", {"action": "ping", "target": {"tags": [tag]}}) for tag in tags]


def _fleet_commands(fleet: Fleet, count: int) -> list[Request]:
    return [fleet.signed("/admin/command", {"action": "ping", "target": {"all": True}}) for _ in range(count)]


def _refusals(fleet: Fleet, count: int) -> list[Request]:
    body = {"action": "dance", "target": {"all": True}}
    return [fleet.signed("/admin/command", body, status=HTTPStatus.UNPROCESSABLE_ENTITY) for _ in range(count)]


def _cancellations(fleet: Fleet, count: int) -> list[Request]:
    ids = [fleet.command([member]) for member in fleet.take(count)]
    return [fleet.signed(f"/admin/commands/{request_id}/cancel") for request_id in ids]


def _new_tokens(fleet: Fleet, count: int) -> list[Request]:
    return [fleet.signed("/admin/enrollment-tokens", {}) for _ in range(count)]


def _token_revocations(fleet: Fleet, count: int) -> list[Request]:
    made = [fleet.post("/admin/enrollment-tokens", {})["id"] for _ in range(count)]
    return [fleet.signed(f"/admin/enrollment-tokens/{token_id}/revoke") for token_id in made]


def _changes(fleet: Fleet, count: int) -> list[Request]:
    return [
        fleet.signed(f"/admin/devices/{member.device_id}", {"alias": secrets.token_hex(8)}, method="PATCH")
        for member in fleet.take(count)
    ]


def _tags(fleet: Fleet, count: int) -> list[Request]:
    return [fleet.signed("/admin/tags/kiosk", {"add": [one.device_id]}) for one in fleet.take(count)]


def _on_devices(write: str, *, revoked: bool = False) -> Callable[..., Any]:
    def prepare(fleet: Fleet, count: int) -> list[Request]:
        members = fleet.take(count)
        fleet.command(members, "lock")
        for member in members if revoked else ():
            fleet.post(f"/admin/devices/{member.device_id}/revoke")
        return [fleet.signed(f"/admin/devices/{member.device_id}/{write}") for member in members]

    return prepare


def _logins(fleet: Fleet, count: int) -> list[Request]:
    fleet.connection.request("GET", LOGIN)
    answer = fleet.connection.getresponse()
    found = _CSRF.search(answer.read().decode())
    if found is None:
        raise Failed(f"GET {LOGIN}: {answer.status}")
    words = {"username": STAFF, "password": fleet.password, "csrfmiddlewaretoken": found[1]}
    cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
    headers = {"Content-Type": _FORM, "Cookie": cookie}
    request = Request("POST", f"{LOGIN}?next=/django-admin/", urlencode(words).encode(), headers, HTTPStatus.FOUND)
    return [request] * count


KINDS: Final = (
    Kind("heartbeat", _heartbeats, COMPARED),
    Kind("heartbeat, another push token", _push_tokens),
    Kind("heartbeat, first use of a rotated token", _rotated, EXPENSIVE),
    Kind("heartbeat, wrong token (401)", _wrong_tokens),
    Kind("register, new hardware", _registrations, EXPENSIVE),
    Kind("register, known hardware", _re_enrollments, EXPENSIVE),
    Kind("register, lost answer asked for again", _lost_answers, EXPENSIVE),
    Kind("rotate the device token", _rotations, EXPENSIVE),
    Kind("report, received", _reports("received")),
    Kind("report, succeeded", _reports("succeeded")),
    Kind("report, succeeded again", _reports("succeeded", again=True)),
    Kind("report, failed late", _reports("failed", late=True)),
    Kind("report, wiped: retires the device", _reports("succeeded", action="wipe")),
    Kind("command, one device", _commands()),
    Kind("command, one device without push token", _commands(push=False)),
    Kind("command, repeated request", _repeated_commands),
    Kind("command, a tag of one device", _tag_commands),
    Kind("command, supersede", _commands(earlier=True, supersede=True)),
    Kind("command, dry run", _commands(dry_run=True)),
    Kind("command, refused (422)", _refusals),
    Kind("cancel", _cancellations),
    Kind("enrollment token made", _new_tokens),
    Kind("enrollment token revoked", _token_revocations),
    Kind("device changed (alias)", _changes),
    Kind("tag put on", _tags),
    Kind("revoke", _on_devices("revoke")),
    Kind("retire", _on_devices("retire")),
    Kind("reinstate", _on_devices("reinstate", revoked=True)),
    Kind("login of staff (302)", _logins, EXPENSIVE),
)
TO_ALL: Final = Kind("command, all devices", _fleet_commands)
"""The kind that must be measured last, because each phone has open commands afterwards."""
