"""A simulated phone. `Agent` is its logic without any I/O. `Phone` adds HTTP requests."""

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, Literal

import aiohttp
import orjson

Status = Literal["received", "running", "deferred", "succeeded", "failed"]
Channel = Literal["push", "heartbeat"]
Envelope = Mapping[str, str]

ACTIONS: Final = frozenset(
    {
        "ping",
        "launch_app",
        "stop_app",
        "ring",
        "message",
        "lock",
        "reboot",
        "wipe",
    }
)
PROBLEM_TYPE: Final = "application/problem+json"
_SIGNED_FIELDS: Final = ("request_id", "action", "params", "issued_at", "expires_at")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an action. `message` and `output` go into the report."""

    status: Status = "succeeded"
    message: str = ""
    output: Mapping[str, Any] | None = None


Perform = Callable[[str, dict[str, Any]], Outcome]


def succeed(action: str, params: dict[str, Any]) -> Outcome:
    """Return success. Nothing is done."""
    del action, params
    return Outcome()


@dataclass(frozen=True, slots=True)
class Report:
    """A report of a phone about a command. The fields are the fields of the request."""

    request_id: str
    status: Status
    message: str = ""
    output: Mapping[str, Any] | None = None
    via: Channel | None = None
    finished_at: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the body of `/v1/action-result`. Empty fields are left out."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True, slots=True)
class Credentials:
    """A device token, and the command key that the server sent with it."""

    device_token: str
    command_key: str


def sign(command_key: str, device_id: str, envelope: Envelope) -> str:
    """Return the signature of an envelope for a device."""
    message = "\n".join(("NXC1", device_id, *(envelope[name] for name in _SIGNED_FIELDS)))
    return hmac.digest(command_key.encode(), message.encode(), "sha256").hex()


@dataclass(slots=True)
class Agent:
    """The logic of a phone: which envelopes to trust, which actions to run, which reports to send.

    - `next`: the new credentials after a rotation, until the server has accepted the new token.
    - `perform`: runs an action.
    - `clock`: the phone's clock, in Unix seconds.
    - `executed`: the request ids of the commands that were run.
    - `refused`: the number of envelopes that were not trusted.
    """

    device_id: str
    current: Credentials
    perform: Perform = succeed
    clock: Callable[[], float] = time.time
    next: Credentials | None = None
    executed: list[str] = field(default_factory=list)
    refused: int = 0
    _ahead_seconds: float = 0
    _last: dict[str, Report] = field(default_factory=dict)

    @property
    def device_token(self) -> str:
        """The device token for the next request. A new token is used immediately."""
        return (self.next or self.current).device_token

    def set_server_time(self, server_time: str) -> None:
        """Store the server's time. The phone computes the server's present time from this time and its own clock."""
        self._ahead_seconds = datetime.fromisoformat(server_time).timestamp() - self.clock()

    def rotated(self, credentials: Credentials) -> None:
        """Store new credentials. The old credentials stay valid until the new token is used.

        Earlier new credentials that were never used are replaced.
        """
        self.next = credentials

    def used(self, device_token: str) -> None:
        """Record that the server has accepted a token. If it is the new token, delete the old credentials."""
        if self.next and device_token == self.next.device_token:
            self.current, self.next = self.next, None

    def trusts(self, envelope: Envelope) -> bool:
        """Return whether an envelope is complete, and is signed for this device with a valid command key."""
        fields = [envelope.get(name) for name in (*_SIGNED_FIELDS, "signature")]
        if not all(isinstance(value, str) for value in fields):
            return False
        pairs = (self.current, self.next) if self.next else (self.current,)
        signatures = [sign(pair.command_key, self.device_id, envelope).encode() for pair in pairs]
        return any(hmac.compare_digest(signature, envelope["signature"].encode()) for signature in signatures)

    def receive(self, envelope: Envelope, via: Channel) -> Report | None:
        """Run a command if it has not been run yet, and return the report.

        For a command that was run already, return the last report again. A deferred command is tried again. Return None
        for an envelope that is not trusted.
        """
        if not self.trusts(envelope):
            self.refused += 1
            return None
        request_id = envelope["request_id"]
        last = self._last.get(request_id)
        if last is None or last.status == "deferred":
            outcome = self._outcome(envelope)
            last = Report(request_id, outcome.status, outcome.message, outcome.output, via)
            self.remember(last)
        return last

    def remember(self, report: Report) -> None:
        """Store the last report about a command."""
        self._last[report.request_id] = report

    def _outcome(self, envelope: Envelope) -> Outcome:
        if envelope["action"] not in ACTIONS:
            return Outcome("failed", "unknown action")
        if self._server_time() >= datetime.fromisoformat(envelope["expires_at"]):
            return Outcome("failed", "expired")
        outcome = self.perform(envelope["action"], orjson.loads(envelope["params"]))
        if outcome.status != "deferred":
            self.executed.append(envelope["request_id"])
        return outcome

    def _server_time(self) -> datetime:
        return datetime.fromtimestamp(self.clock() + self._ahead_seconds, UTC)


class Refusal(Exception):
    """The server answered with a status other than 200.

    `flaw` describes what is wrong with the problem details in the answer. `flaw` is empty if the problem details are
    complete.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], *, retry_after: str | None, content_type: str) -> None:
        self.status = status
        self.flaw = _flaw_in(status, problem, retry_after, content_type)

        self.code = str(problem.get("code", ""))
        self.retry_after_seconds = int(retry_after) if retry_after else None
        super().__init__(f"{status} {self.code}: {problem.get('detail', '')}")


def _flaw_in(status: int, problem: Mapping[str, Any], retry_after: str | None, content_type: str) -> str:
    if content_type != PROBLEM_TYPE:
        return content_type
    if problem.get("status") != status or not problem.get("code"):
        return "no code, or a status that differs from the HTTP status"
    return "no Retry-After" if status in (429, 503) and int(retry_after or 0) < 1 else ""


class Phone:
    """A simulated phone that calls the server. It starts no task: it works only while its methods are awaited."""

    agent: Agent
    """The logic and the credentials of the phone. It exists after the registration."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, *, perform: Perform = succeed) -> None:
        self._session = session
        self._base_url = base_url
        self._perform = perform

    async def register(self, enrollment_token: str, hardware_id: str, **fields: Any) -> dict[str, Any]:
        """Register the phone. A second call registers the phone again, as after a reset. Raises Refusal."""
        answer = await self._post("/v1/register", {"hardware_id": hardware_id, **fields}, enrollment_token)
        self.agent = Agent(answer["device_id"], _credentials_in(answer), self._perform)
        self.agent.set_server_time(answer["server_time"])
        return answer

    async def heartbeat(self, **fields: Any) -> dict[str, Any]:
        """Send a heartbeat, and return the answer. The commands in the answer are not run. Raises Refusal."""
        answer = await self._say("/v1/heartbeat", fields)
        self.agent.set_server_time(answer["server_time"])
        return answer

    async def check_in(self, **fields: Any) -> int:
        """Send a heartbeat and run its commands. Repeat this while the server has more commands.

        Return the number of reports. Raises Refusal.
        """
        answer = await self.heartbeat(**fields)
        reported = total = await self.carry_out(answer["commands"])
        while answer["has_more"] and reported:
            answer = await self.heartbeat()
            reported = await self.carry_out(answer["commands"])
            total += reported
        return total

    async def carry_out(self, commands: Iterable[Envelope]) -> int:
        """Run the commands of a heartbeat in order, and report on them.

        Return the number of commands whose envelope was trusted. Raises Refusal if the server refuses a report.
        """
        reports = [self.agent.receive(envelope, "heartbeat") for envelope in commands]
        good = [report for report in reports if report]
        for report in good:
            await self._say("/v1/action-result", report.body())
        return len(good)

    async def receive(self, envelope: Envelope, via: Channel) -> dict[str, Any] | None:
        """Run a command, and report on it. Return the answer of the server.

        Return None if the envelope is not trusted. Raises Refusal.
        """
        report = self.agent.receive(envelope, via)
        return await self._say("/v1/action-result", report.body()) if report else None

    async def report(self, request_id: str, status: Status, **fields: Any) -> dict[str, Any]:
        """Report on a command. `fields` are fields of `Report`. Raises Refusal.

        If the server sends the command again, the phone repeats this report.
        """
        report = Report(request_id, status, **fields)
        self.agent.remember(report)
        return await self._say("/v1/action-result", report.body())

    async def rotate(self) -> None:
        """Rotate the credentials. The request has the current token, even if there is an unused new token.

        Raises Refusal.
        """
        answer = await self._post("/v1/token/rotate", {}, self.agent.current.device_token)
        self.agent.rotated(_credentials_in(answer))

    async def _say(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        token = self.agent.device_token
        answer = await self._post(path, body, token)
        self.agent.used(token)
        return answer

    async def _post(self, path: str, body: Mapping[str, Any], bearer: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        url, data = self._base_url + path, orjson.dumps(body)
        async with self._session.post(url, data=data, headers=headers, allow_redirects=False) as response:
            return await answer_in(response)


async def answer_in(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Return the JSON of a response. Raises Refusal if the status is not 200.

    Raises JSONDecodeError if the response is not JSON.
    """
    answer: dict[str, Any] = orjson.loads(await response.read())
    if response.status != HTTPStatus.OK:
        retry_after = response.headers.get("Retry-After")
        raise Refusal(response.status, answer, retry_after=retry_after, content_type=response.content_type)
    return answer


def _credentials_in(answer: Mapping[str, str]) -> Credentials:
    return Credentials(answer["device_token"], answer["command_key"])
