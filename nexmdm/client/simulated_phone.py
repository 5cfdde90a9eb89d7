"""Simulated phones that print what they do."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import aiohttp
import orjson

from nexmdm.client.phone import Channel, Envelope, Outcome, Phone, Refusal

ANSWER_SECONDS: Final = 30
RETRY_SECONDS: Final = 5
SHUT_OUT: Final = (401, 403)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Traits:
    """The description and the faults of a simulated phone.

    - `fields`: further fields of its registration.
    - `battery_pct`: the charge in the first heartbeat, in percent.
    - `fails`: whether the phone reports each command as `failed`.
    - `is_silent`: whether the phone stops after one heartbeat.
    """

    fields: dict[str, str] = field(default_factory=lambda: {"model": "Simulated"})
    battery_pct: int = 90
    fails: bool = False
    is_silent: bool = False


@dataclass(slots=True)
class SimulatedPhone:
    """A simulated phone that prints what it does.

    `host` is the Host header, or None for the host in `url`. `interval_seconds` is the time between two heartbeats.
    `tell` prints a line.
    """

    url: str
    host: str | None
    hardware_id: str
    alias: str | None
    interval_seconds: float
    tell: Tell
    traits: Traits = field(default_factory=Traits)
    push_token: str | None = None
    _phone: Phone | None = None

    async def live(self, enrollment_token: str) -> None:
        """Register, then send heartbeats and run commands until the task is cancelled.

        Raises Refusal if the server refuses the registration, or later refuses the device. Raises aiohttp.ClientError
        or TimeoutError if the server does not answer the registration. If the server does not answer a later request,
        the phone tries again at the next heartbeat.
        """
        headers = {"Host": self.host} if self.host else None
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_SECONDS), headers=headers) as session:
            await self.register(session, enrollment_token)
            self.tell(f"Registered as {self.device_id}; a heartbeat every {self.interval_seconds:g} s.")
            await self.check_in_for_ever()

    @property
    def device_id(self) -> str:
        """The device id from the registration."""
        assert self._phone is not None
        return self._phone.agent.device_id

    async def register(self, session: aiohttp.ClientSession, enrollment_token: str) -> None:
        """Register. Raises Refusal, aiohttp.ClientError or TimeoutError."""
        phone = Phone(session, self.url, perform=self._perform)
        named = {"alias": self.alias, "push_token": self.push_token}
        fields = self.traits.fields | {name: value for name, value in named.items() if value}
        await phone.register(enrollment_token, self.hardware_id, **fields)
        self._phone = phone

    async def check_in_for_ever(self, *, first_after: float = 0) -> None:
        """Send a heartbeat every `interval_seconds`, and run the commands.

        `first_after` is the time before the first heartbeat, in seconds. Raises Refusal if the server refuses the
        device.
        """
        await asyncio.sleep(first_after)
        for number in count():
            await self._check_in(number)
            if self.traits.is_silent:
                return
            await asyncio.sleep(self.interval_seconds)

    async def take_push(self, envelope: Envelope) -> None:
        """Run a command that came by push, and report on it.

        If the report fails, the command comes again with the next heartbeat.
        """
        if self._phone is not None and not self.traits.is_silent:
            await self._in_spite_of_trouble(self._receive(envelope, "push"))

    async def _receive(self, envelope: Envelope, via: Channel) -> None:
        assert self._phone is not None
        await self._phone.receive(envelope, via)

    async def _check_in(self, number: int) -> None:
        assert self._phone is not None
        battery = max(1, self.traits.battery_pct - number // 100 % 80)
        status = {"battery_pct": battery, "charging": False, "network": "wifi"}
        uptime = int(number * self.interval_seconds)
        await self._in_spite_of_trouble(self._phone.check_in(status=status | {"uptime_seconds": uptime}))

    async def _in_spite_of_trouble(self, call: Any) -> None:
        try:
            await call
        except Refusal as refusal:
            if refusal.status in SHUT_OUT:
                raise
            self.tell(f"Refused ({refusal}); trying again.")
            await asyncio.sleep(refusal.retry_after_seconds or RETRY_SECONDS)
        except (aiohttp.ClientError, TimeoutError):
            self.tell(f"No answer from {self.url}; trying again.")
            await asyncio.sleep(RETRY_SECONDS)

    def _perform(self, action: str, params: dict[str, Any]) -> Outcome:
        shown = f"{action} {orjson.dumps(params).decode()}"
        if self.traits.fails:
            self.tell(f"{shown}: failed")
            return Outcome("failed", f"{action} is not possible on this simulated phone")
        self.tell(f"{shown}: done")
        return Outcome(message="carried out by a simulated phone")


MODELS: Final = (
    {"manufacturer": "Google", "model": "Pixel 9", "os_version": "16", "agent_version": "1.2.0"},
    {"manufacturer": "Samsung", "model": "Galaxy Tab A9", "os_version": "15", "agent_version": "1.2.0"},
    {"manufacturer": "Lenovo", "model": "Tab M10", "os_version": "14", "agent_version": "1.1.0"},
)
"""The descriptions of the phones in a simulated fleet. The phones use them in turn."""


def various_traits(total: int, *, failing: float, silent: float, chance: random.Random) -> list[Traits]:
    """Return the traits of `total` phones.

    `failing` and `silent` are shares from 0 to 1. The phones that fail come first, then the silent phones, then all
    other phones.
    """
    fails, silents = round(total * failing), round(total * silent)
    return [
        Traits(
            dict(MODELS[number % len(MODELS)]),
            battery_pct=chance.randint(5, 100),
            fails=number < fails,
            is_silent=fails <= number < fails + silents,
        )
        for number in range(total)
    ]
