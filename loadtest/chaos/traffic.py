"""Simulated phones and an admin that continue to send requests during faults, and record all answers.

A phone answers each command that it gets by push or by heartbeat. The admin issues commands, and gives phones new
aliases. If a write of the admin gets an error or no answer, the admin sends the write again, with the original body and
the original Idempotency-Key. The admin repeats until the server answers with 200, but for at most GIVE_UP_SECONDS.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import aiohttp
import orjson

from loadtest.fake_fcm.journal import JournalTail
from loadtest.fleet.credentials_file import Member
from nexmdm.client.http_client import FleetClient
from nexmdm.client.phone import Agent, Channel, Credentials, Envelope, Phone, Refusal, answer_in

T = TypeVar("T")
Kind = Literal["heartbeat", "result", "command", "rename"]

COMMANDS_PER_SECOND: Final = 20
LARGEST_AUDIENCE: Final = 7
LIVES_SECONDS: Final = (15, 60, 600)
"""Each command gets one of these times to begin, at random. Some commands expire before a fault ends."""

ANSWER_SECONDS: Final = 15
KEPT_SECONDS: Final = 3
"""The time for which a client keeps an idle connection. A web worker closes an idle connection after 5 s. The client
must close the connection earlier."""

Connections = tuple[int, int]
"""The largest numbers of connections of the phones and of the admin, in this order; 0: no limit."""

NORMAL_CONNECTIONS: Final[Connections] = (200, 50)
"""The phones and the admin share no connections. So a command does not wait for a connection while all phones
report."""

UNLIMITED_CONNECTIONS: Final[Connections] = (0, 0)
"""The connections for faults during which many requests take long. No request may wait for a connection, because this
wait would count as time of the server."""

GIVE_UP_SECONDS: Final = 90
PATIENCE_SECONDS: Final = 180
"""The longest time from the end of a fault until all deliveries must be settled. It includes a lease of 45 s, a
heartbeat and a retry."""

SETTLED_LOOK_SECONDS: Final = 1
PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 4
"""The longest pause before the admin sends a command again. The pauses grow up to this length, because a long outage
must not end with a flood of requests."""

TARGET: Final = "/admin/command"
RENAMES_PER_SECOND: Final = 2
_LOOK_SECONDS: Final = 0.05

SPREAD: Final = 0.2
"""A phone's interval is randomly shorter or longer by up to this share."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer. Times are seconds on the monotonic clock.

    - `status`: the HTTP status of the answer; 0: there was no answer.
    - `code`: the code of the problem details, or the reason why there was no answer.
    - `flaw`: the parts of problem details that the answer lacks, in words; empty if the answer is complete.
    """

    kind: Kind
    begun_at: float
    ended_at: float
    status: int
    code: str = ""
    flaw: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A final report that the server answered with 200.

    - `said`: the status in the phone's report.
    - `via`: the channel by which the phone got the command.
    - `state`, `late`: the delivery's state, and whether the report was late, as in the server's answer.
    - `at`: the time when the answer arrived, in Unix time.
    """

    request_id: str
    device_id: str
    said: str
    via: str | None
    state: str
    late: bool
    at: float


@dataclass(slots=True)
class Account:
    """What the clients know: their requests, and the answers to them. A run compares the account with three
    other ledgers (ledgers.py)."""

    sent: set[str] = field(default_factory=set)
    """The `note` of each command that the admin posted. Each command has a different note."""

    accepted: dict[str, frozenset[str]] = field(default_factory=dict)
    """The device ids of each command whose POST was answered with 200, by request id."""

    renamed: dict[str, str] = field(default_factory=dict)
    """The last alias that the admin gave to each device with the answer 200, by device id."""

    unanswered: int = 0
    """The number of commands and changes of aliases that were never answered with 200."""

    results: list[Result] = field(default_factory=list)
    """All final reports that were answered with 200. A repeated report counts again."""

    heard: dict[str, str] = field(default_factory=dict)
    """The `server_time` in the last answer to a heartbeat, by device id."""

    refused: int = 0
    """The number of envelopes that phones refused, from pushes and from heartbeats."""

    exchanges: list[Exchange] = field(default_factory=list)

    settled_after_seconds: float | None = None
    """The time from the end of the fault until all deliveries were settled; None if they were not settled in time."""


class Traffic:
    """Simulated phones and one admin on one event loop. `run` starts them."""

    def __init__(
        self,
        admin: FleetClient,
        members: Sequence[Member],
        journal: Path,
        *,
        interval_seconds: float,
        commands_per_second: float = COMMANDS_PER_SECOND,
        connections: Connections = NORMAL_CONNECTIONS,
    ) -> None:
        """Prepare the phones in `members`.

        `journal` is the file of the fake FCM, from which the phones get their pushes.
        """
        self.account = Account()
        self._admin = admin
        self._members = members
        self._journal = journal
        self._interval_seconds = interval_seconds
        self._commands_per_second = commands_per_second
        self._connections = connections
        self._phones: dict[str, Phone] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._commanding = asyncio.Event()

    async def run(self, trial: Awaitable[T], settled: Callable[[], Awaitable[bool]]) -> T:
        """Run the phones and the admin until `trial` ends. Return the result of `trial`.

        After the trial, the admin issues no more commands. The phones continue until `settled` returns True, but for at
        most PATIENCE_SECONDS. The account records error answers, missing answers, and answers that are not JSON. Raises
        ExceptionGroup for every other error of a phone or of the admin.
        """
        for_phones, for_admin = self._connections
        async with (
            _session(for_phones) as self._session,
            _session(for_admin) as self._admin_session,
            asyncio.TaskGroup() as self._group,
        ):
            for member in self._members:
                self._phones[member.push_token] = self._phone(member)
            going = [self._beat(phone) for phone in self._phones.values()]
            tasks = [
                self._group.create_task(one) for one in (*going, self._hear_pushes(), self._command(), self._rename())
            ]
            self._commanding.set()
            found = await trial
            self._commanding.clear()
            await self._settle(settled)
            for task in (*tasks, *self._tasks):
                task.cancel()
        return found

    def pause_commands(self) -> None:
        """Stop issuing commands until `resume_commands` is called."""
        self._commanding.clear()

    def resume_commands(self) -> None:
        """Issue commands again."""
        self._commanding.set()

    def post_to_all(self) -> None:
        """Issue one additional command to all phones."""
        self._work(self._post({"all": True}, [member.device_id for member in self._members], max(LIVES_SECONDS)))

    def _phone(self, member: Member) -> Phone:
        phone = Phone(self._session, self._admin.url)
        phone.agent = Agent(member.device_id, Credentials(member.device_token, member.command_key))
        return phone

    async def _beat(self, phone: Phone) -> None:
        await asyncio.sleep(random.uniform(0, self._interval_seconds))
        while True:
            answer = await self._noted("heartbeat", phone.heartbeat(status={"battery_pct": random.randint(1, 100)}))
            if answer is not None:
                self.account.heard[phone.agent.device_id] = answer["server_time"]
                for envelope in answer["commands"]:
                    await self._receive(phone, envelope, "heartbeat")
            await asyncio.sleep(random.uniform(1 - SPREAD, 1 + SPREAD) * self._interval_seconds)

    async def _hear_pushes(self) -> None:
        with closing(JournalTail(self._journal)) as journal:
            while True:
                for send in journal.sends():
                    if send["status"] == HTTPStatus.OK:
                        phone = self._phones[send["push_token"]]
                        self._work(self._receive(phone, send["message"]["data"], "push"))
                await asyncio.sleep(_LOOK_SECONDS)

    async def _receive(self, phone: Phone, envelope: Envelope, via: Channel) -> None:
        report = phone.agent.receive(envelope, via)
        if report is None:
            self.account.refused += 1
            return
        answer = await self._noted("result", phone.receive(envelope, via))
        if answer is not None:
            told = (answer["state"], answer["late"], time.time())
            self.account.results.append(
                Result(report.request_id, phone.agent.device_id, report.status, report.via, *told)
            )

    async def _command(self) -> None:
        """Issue commands, each to a few random phones, until cancelled."""
        while True:
            await self._commanding.wait()
            devices = [one.device_id for one in random.sample(self._members, random.randint(1, LARGEST_AUDIENCE))]
            self._work(self._post({"device_ids": devices}, devices, random.choice(LIVES_SECONDS)))
            await asyncio.sleep(random.uniform(0.5, 1.5) / self._commands_per_second)

    async def _post(self, target: Mapping[str, Any], devices: list[str], lives_seconds: int) -> None:
        note = f"chaos {next(self._numbers)}"
        command = {"action": "ping", "target": target, "note": note, "expires_in_seconds": lives_seconds}
        self.account.sent.add(note)
        answer = await self._repeat("command", "POST", TARGET, orjson.dumps(command))
        if answer is not None:
            self.account.accepted[answer["request_id"]] = frozenset(devices)

    async def _rename(self) -> None:
        """Give each phone a new alias, in a random order, until cancelled."""
        for member in random.sample(self._members, len(self._members)):
            await self._commanding.wait()
            self._work(self._change_alias(member.device_id, f"renamed {next(self._numbers)}"))
            await asyncio.sleep(random.uniform(0.5, 1.5) / RENAMES_PER_SECOND)

    async def _change_alias(self, device_id: str, alias: str) -> None:
        target = f"/admin/devices/{device_id}"
        if await self._repeat("rename", "PATCH", target, orjson.dumps({"alias": alias})) is not None:
            self.account.renamed[device_id] = alias

    async def _repeat(self, kind: Kind, method: str, target: str, body: bytes) -> dict[str, Any] | None:
        """Send a write of the admin until its answer is 200.

        Return the answer, or None if the answer did not come in time.
        """
        headers = {**self._admin.sign(method, target, body), "Content-Type": "application/json"}
        give_up_at, pause = time.monotonic() + GIVE_UP_SECONDS, PAUSE_SECONDS
        while time.monotonic() < give_up_at:
            answer = await self._noted(kind, self._answer(method, target, body, headers))
            if answer is not None:
                return answer
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
        self.account.unanswered += 1
        return None

    async def _answer(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        url = self._admin.url + target
        async with self._admin_session.request(method, url, data=body, headers=headers) as response:
            return await answer_in(response)

    async def _noted(self, kind: Kind, exchange: Awaitable[T]) -> T | None:
        """Await `exchange` and record it in the account.

        Return its answer, or None if the server did not answer with 200.
        """
        begun_at = time.monotonic()
        status, code, flaw, answer = int(HTTPStatus.OK), "", "", None
        try:
            answer = await exchange
        except Refusal as refusal:
            status, code, flaw = refusal.status, refusal.code, refusal.flaw
        except (aiohttp.ClientError, TimeoutError) as error:
            status, code = 0, type(error).__name__
        except orjson.JSONDecodeError:
            status, code = 0, "not JSON"
        self.account.exchanges.append(Exchange(kind, begun_at, time.monotonic(), status, code, flaw))
        return answer

    async def _settle(self, settled: Callable[[], Awaitable[bool]]) -> None:
        begun_at = time.monotonic()
        while (waited := time.monotonic() - begun_at) < PATIENCE_SECONDS:
            if not self._tasks and await settled():
                self.account.settled_after_seconds = waited
                return
            await asyncio.sleep(SETTLED_LOOK_SECONDS)

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _session(connections: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEPT_SECONDS)
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS), connector=connector)
