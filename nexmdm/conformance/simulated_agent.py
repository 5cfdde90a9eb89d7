"""The simulated phone as an agent under test: `python -m nexmdm.conformance.simulated_agent`.

nexmdm/client/phone.py has the logic of an agent, but stores nothing and does not wait between retries. This module adds
the storage and the waits.
"""

import asyncio
import json
import os
import random
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from nexmdm.client.phone import Agent, Channel, Credentials, Envelope, Outcome, Phone, Refusal, Report
from nexmdm.client.profiles import private_file
from nexmdm.client.simulated_phone import SHUT_OUT

_ANSWER_SECONDS: Final = 30
_LONGEST_RETRY_SECONDS: Final = 300
_LONGEST_REFUSED_SECONDS: Final = 3600
_REFUSED_FOR_GOOD: Final = (404, 413, 422)
_GONE: Final = (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError)


def _variable(name: str) -> str:
    return os.environ[f"PHONE_{name}"]


class _Gates:
    """The times until which requests must wait because of Retry-After. They apply to one path or to all paths."""

    def __init__(self) -> None:
        self._open_from: dict[str, float] = {}

    def close(self, path: str, refusal: Refusal) -> None:
        if refusal.retry_after_seconds:
            wait = refusal.retry_after_seconds * random.uniform(1, 1.1)
            self._open_from["" if refusal.status == HTTPStatus.SERVICE_UNAVAILABLE else path] = time.monotonic() + wait

    def wait(self, path: str) -> float:
        """Return how long requests to `path` must still wait, in seconds. The result may be negative."""
        return max(self._open_from.get(path, 0), self._open_from.get("", 0)) - time.monotonic()


class SimulatedAgent:
    """A simulated phone that stores its state in a file, and waits between retries as docs/agent.md requires."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._state = Path(_variable("STATE_DIR")) / "phone.json"
        self._phone = Phone(session, _variable("SERVER_URL"), perform=self._perform)
        self._gates = _Gates()
        self._reports: dict[str, Report] = {}
        self._unsent: dict[str, Report] = {}
        self._interval, self._failures, self._refusals = 120.0, 0, 0
        self._rotate_at = self._ahead_seconds = 0.0
        self._taking = ""

    async def live(self) -> None:
        """Register if there is no stored state. Then send heartbeats and take pushes until the task is cancelled."""
        if self._state.exists():
            self._restore()
        else:
            await self._register()
        self._plan_rotation()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._check_in_for_ever())
            tasks.create_task(self._take_pushes())

    async def _register(self) -> None:
        push_token = json.loads(_variable("PUSH_TARGET"))["value"]
        while True:
            try:
                answer = await self._phone.register(
                    _variable("ENROLLMENT_TOKEN"), _variable("HARDWARE_ID"), push_token=push_token
                )
            except Refusal as refusal:
                if refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR and refusal.status != HTTPStatus.TOO_MANY_REQUESTS:
                    sys.exit(f"Not registered: {refusal}")
                self._gates.close("/v1/register", refusal)
                await asyncio.sleep(max(self._gates.wait("/v1/register"), self._pause(refusal)))
            except _GONE:
                await asyncio.sleep(self._pause(None))
            else:
                self._failures = 0
                self._interval = answer["heartbeat_interval_seconds"]
                self._phone.agent.clock = _own_clock
                self._learn_time(answer["server_time"])
                self._save()
                return

    async def _check_in_for_ever(self) -> None:
        while True:
            try:
                await self._rotate_if_due()
                answer = await self._phone.heartbeat()
                self._learn_time(answer["server_time"])
                self._failures = self._refusals = 0
                took = [self._take(envelope, "heartbeat") for envelope in answer["commands"]]
                self._save()
                await self._send_reports()
                wait = 0 if answer["has_more"] and any(took) else answer["next_heartbeat_seconds"]
            except Refusal as refusal:
                self._gates.close("/v1/heartbeat", refusal)
                wait = self._pause(refusal)
            except _GONE:
                wait = self._pause(None)
            await asyncio.sleep(max(wait, self._gates.wait("/v1/heartbeat")))

    def _pause(self, refusal: Refusal | None) -> float:
        """Return the wait after a failure, in seconds. `refusal` is None if there was no answer."""
        if refusal is not None and refusal.status in SHUT_OUT:
            self._refusals += 1
            longest = min(_LONGEST_REFUSED_SECONDS, self._interval * 2.0**self._refusals)
        else:
            self._failures += 1
            longest = min(_LONGEST_RETRY_SECONDS, 2.0 ** (self._failures - 1))
        return longest * random.uniform(0.5, 1)

    async def _rotate_if_due(self) -> None:
        if self._phone.agent.next is not None or time.monotonic() < self._rotate_at:
            return
        with suppress(Refusal, *_GONE):
            await self._phone.rotate()
            self._save()
            self._plan_rotation()

    def _plan_rotation(self) -> None:
        self._rotate_at = time.monotonic() + float(os.environ.get("PHONE_ROTATE_AFTER_SECONDS", "2592000"))

    def _take(self, envelope: Envelope, via: Channel) -> bool:
        self._taking = envelope["request_id"]
        report = self._phone.agent.receive(envelope, via)
        if report is not None:
            self._reports[report.request_id] = self._unsent[report.request_id] = report
            self._save()
        return report is not None

    async def _send_reports(self) -> None:
        """Send all reports that were not answered yet.

        After a failure, the remaining reports are sent after the next heartbeat.
        """
        for report in list(self._unsent.values()):
            if self._gates.wait("/v1/action-result") > 0:
                return
            try:
                await self._phone.report(**asdict(report))
            except Refusal as refusal:
                self._gates.close("/v1/action-result", refusal)
                if refusal.status not in _REFUSED_FOR_GOOD:
                    return
            except _GONE:
                return
            self._unsent.pop(report.request_id, None)
            self._save()

    async def _take_pushes(self) -> None:
        while True:
            try:
                async with self._session.get(_variable("PUSH_URL")) as response:
                    message = await response.json() if response.status == HTTPStatus.OK else None
            except _GONE:
                await asyncio.sleep(1)
                continue
            if message is not None and self._take(message["data"], "push"):
                await self._send_reports()

    def _perform(self, action: str, params: dict[str, Any]) -> Outcome:
        del params
        with Path(_variable("ACTIONS_FILE")).open("a") as file:
            file.write(f"{self._taking} {action}\n")
        return Outcome(message=f"{action} by a simulated phone")

    # --- state

    def _learn_time(self, server_time: str) -> None:
        self._phone.agent.set_server_time(server_time)
        self._ahead_seconds = datetime.fromisoformat(server_time).timestamp() - _own_clock()

    def _save(self) -> None:
        agent = self._phone.agent
        kept = {
            "device_id": agent.device_id,
            "current": asdict(agent.current),
            "next": agent.next and asdict(agent.next),
            "ahead_seconds": self._ahead_seconds,
            "reports": [asdict(report) for report in self._reports.values()],
            "unsent": list(self._unsent),
            "interval": self._interval,
        }
        private_file.write(self._state, json.dumps(kept))

    def _restore(self) -> None:
        kept: dict[str, Any] = json.loads(self._state.read_text())
        following = kept["next"] and Credentials(**kept["next"])
        agent = Agent(kept["device_id"], Credentials(**kept["current"]), self._perform, _own_clock, following)
        for fields in kept["reports"]:
            agent.remember(Report(**fields))
            self._reports[fields["request_id"]] = Report(**fields)
        self._unsent = {request_id: self._reports[request_id] for request_id in kept["unsent"]}
        self._interval = kept["interval"]
        self._phone.agent = agent
        self._learn_time(datetime.fromtimestamp(_own_clock() + kept["ahead_seconds"], UTC).isoformat())


def _own_clock() -> float:
    return time.time() + float(_variable("CLOCK_OFFSET_SECONDS"))


async def _main() -> None:
    timeout = aiohttp.ClientTimeout(_ANSWER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await SimulatedAgent(session).live()


if __name__ == "__main__":
    asyncio.run(_main())
