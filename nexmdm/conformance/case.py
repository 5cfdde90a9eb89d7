"""The objects and operations that a scenario uses: the agent, the proxy, the pushes and the admin API."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from nexmdm.client.phone import Credentials, Envelope, sign
from nexmdm.conformance.agent_process import AgentProcess
from nexmdm.conformance.proxy import HEARTBEAT, REGISTER, REPORT, ROTATE, Call, Proxy
from nexmdm.conformance.pushes import Mailbox
from nexmdm.conformance.server import Server

SOON_SECONDS: Final = 12
"""The default time limit for an action of the agent, in seconds.

It is long enough for two heartbeats, or for the first retries.
"""

_LOOK_SECONDS: Final = 0.05
_NO_PUSH: Final = {
    "none": "it has no push target of the agent. Send PHONE_PUSH_TARGET as push_target",
    "dead": "FCM does not know the push target of the agent. Send PHONE_PUSH_TARGET unchanged as push_target",
}
"""The reason why the server sent no push, by the push health of the device."""


class Missed(Exception):
    """The agent did not keep the promise of the scenario. The message describes what the agent did."""


@dataclass(slots=True)
class Case:
    """The objects of one scenario, and operations on them."""

    proxy: Proxy
    mailbox: Mailbox
    agent: AgentProcess
    server: Server
    hardware_id: str
    enrollment_token: str
    _orders: list[str] = field(default_factory=list)

    async def until(
        self, condition: Callable[[], object], what: str | Callable[[], str], *, within: float = SOON_SECONDS
    ) -> None:
        """Wait until `condition` returns a true value.

        Raises Missed after `within` seconds. `what` is the message, or a function that returns it.
        """
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() >= deadline:
                raise Missed(f"within {within:g} s, {what if isinstance(what, str) else what()}")
            await asyncio.sleep(_LOOK_SECONDS)

    async def enroll(self) -> None:
        """Start the agent, and wait for its registration and its first heartbeat. Raises Missed."""
        self.agent.start()
        await self.until(lambda: self._accepted(REGISTER, 0), "the agent did not register")
        what = "the agent registered, but sent no heartbeat that the server accepted"
        await self.until(lambda: self._accepted(HEARTBEAT, 0), what)

    async def heartbeat(self, what: str = "the agent sent no heartbeat", *, within: float = SOON_SECONDS) -> Call:
        """Wait for a new heartbeat that the server answers with 200, and return it.

        Raises Missed with the message `what` after `within` seconds.
        """
        since = time.monotonic()
        await self.until(lambda: self._accepted(HEARTBEAT, since), what, within=within)
        return self._accepted(HEARTBEAT, since)[0]

    async def heartbeats(self, number: int, *, within: float = SOON_SECONDS) -> None:
        """Wait for `number` new heartbeats that the server answers with 200. Raises Missed."""
        since = time.monotonic()
        what = f"the agent sent fewer than {number} heartbeats"
        await self.until(lambda: len(self._accepted(HEARTBEAT, since)) >= number, what, within=within)

    async def refused(self, path: str, status: int) -> Call:
        """Wait for a call of `path` that got `status`. Return the first of these calls. Raises Missed."""

        def found() -> list[Call]:
            return [call for call in self.proxy.to(path) if call.status == status]

        await self.until(found, f"the agent did not call {path}")
        return found()[0]

    def _accepted(self, path: str, since: float) -> list[Call]:
        return [call for call in self.proxy.to(path, since=since) if call.status == 200 and call.answer]

    def registered_once(self, after: str) -> None:
        """Raise Missed if the agent has registered more than once. `after` names the cause in the message."""
        if len(self.proxy.to(REGISTER)) > 1:
            raise Missed(f"the agent registered again after {after}")

    # --- commands

    async def order(self, action: str = "ping", **fields: Any) -> str:
        """Send a command to the agent as an admin. Return its request id. `fields` are further fields of the body."""
        body = {"action": action, "target": {"device_ids": [self.device_id]}, **fields}
        answer = await self.server.post("/admin/command", body)
        self._orders.append(str(answer["request_id"]))
        return self._orders[-1]

    async def withheld(self, action: str = "ping", **fields: Any) -> Envelope:
        """Send a command that reaches the agent neither by push nor by heartbeat. Return its envelope.

        Call withhold() first. Raises Missed.
        """
        assert self.mailbox.is_held
        assert self.proxy.hides_commands
        return await self.sent(await self.order(action, **fields))

    async def sent(self, request_id: str) -> Envelope:
        """Wait until the dispatcher has pushed a command. Return the envelope. Raises Missed."""
        try:
            await self.until(lambda: request_id in self.mailbox.kept, "the server sent no push")
        except Missed as missed:
            push = (await self.server.get(f"/admin/devices/{self.device_id}"))["push"]
            raise Missed(f"{missed}: {_NO_PUSH.get(push, 'a fault of the kit')}") from None
        return self.mailbox.kept[request_id]

    def withhold(self) -> None:
        """Withhold all later commands of the server. The agent gets only the commands of offer() and push()."""
        self.mailbox.is_held = self.proxy.hides_commands = True

    def offer(self, *envelopes: Envelope) -> None:
        """Add envelopes to the answer to the next heartbeat."""
        self.proxy.offers.append(list(envelopes))

    def push(self, envelope: Envelope) -> None:
        """Send an envelope to the agent as a push."""
        self.mailbox.put(envelope)

    async def delivery(self, request_id: str) -> dict[str, Any]:
        """Return the delivery of a command to this agent, from the admin API."""
        return await self.server.get(f"/admin/commands/{request_id}/deliveries/{self.device_id}")

    async def done(self, request_id: str, status: str = "succeeded", *, of: str = "the command") -> Call:
        """Wait for a final report that the server accepted. Return the first of these reports.

        Raises Missed if there is no such report, or if its status is not `status`. `of` names the command in the
        message.
        """
        final = ("succeeded", "failed")
        await self.until(
            lambda: [one for one in self.reports(request_id) if one.body.get("status") in final and one.status == 200],
            lambda: f"the agent did not report {status!r} on {of}: {self._seen_of(request_id)}",
        )
        report = next(one for one in self.reports(request_id) if one.body.get("status") in final and one.status == 200)
        if report.body["status"] != status:
            raise Missed(f"the agent reported {report.body['status']!r} instead of {status!r}")
        return report

    def reports(self, request_id: str) -> list[Call]:
        """Return the reports about a command, including reports without an answer."""
        return [call for call in self.proxy.to(REPORT) if call.body.get("request_id") == request_id]

    def _seen_of(self, request_id: str) -> str:
        reports = [f"{one.body.get('status')} (answer: {one.status or 'none'})" for one in self.reports(request_id)]
        found = self.agent.executed().count(request_id)
        seen = f"it reported {', '.join(reports)}" if reports else "it sent no report"
        seen += f", and carried it out {_often(found)}, according to PHONE_ACTIONS_FILE"
        return seen + self._untaken()

    def _untaken(self) -> str:
        return "; a push waits at PHONE_PUSH_URL, and the agent does not take it" if self.mailbox.waits else ""

    def ran(self, request_id: str, times: int) -> None:
        """Raise Missed if the agent did not run a command exactly `times` times."""
        found = self.agent.executed().count(request_id)
        if found != times:
            missed = f"the agent carried the command out {_often(found)} instead of {_often(times)}"
            raise Missed(missed + (f", according to PHONE_ACTIONS_FILE{self._untaken()}" if found < times else ""))

    # --- credentials

    @property
    def device_id(self) -> str:
        """The device id of the agent."""
        return str(self._answers()[-1]["device_id"])

    def credentials(self) -> list[Credentials]:
        """Return all credentials that the server sent, oldest first. Credentials in lost answers are included."""
        return [Credentials(one["device_token"], one["command_key"]) for one in self._answers(REGISTER, ROTATE)]

    def resign(self, envelope: Envelope, command_key: str, **changes: str) -> Envelope:
        """Return an envelope with `changes`, signed again with `command_key` for this agent."""
        changed = {**envelope, **changes}
        return {**changed, "signature": sign(command_key, self.device_id, changed)}

    def _answers(self, *paths: str) -> list[dict[str, Any]]:
        paths = paths or (REGISTER,)
        return [call.answer for call in self.proxy.calls if call.path in paths and "device_token" in call.answer]


def _often(times: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(times, f"{times} times")
