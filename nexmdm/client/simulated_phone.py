"""One simulated phone that shows what it does: it registers, sends heartbeats, and carries out what it is told."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import aiohttp
import orjson

from nexmdm.client.phone import Outcome, Phone, Refusal

ANSWER_SECONDS: Final = 30
RETRY_SECONDS: Final = 5
SHUT_OUT: Final = (401, 403)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SimulatedPhone:
    """Who the phone is, where its server is, and whom it tells what it does."""

    url: str
    host: str | None
    hardware_id: str
    alias: str | None
    interval_seconds: float
    tell: Tell

    async def live(self, enrollment_token: str) -> None:
        """Register, and be a phone until cancelled. Raises Refusal when it is not let in, or not any more.

        Raises aiohttp.ClientError and TimeoutError when there is no server to register with; later, it waits for one.
        """
        headers = {"Host": self.host} if self.host else None
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_SECONDS), headers=headers) as session:
            phone = Phone(session, self.url, perform=self._perform)
            fields = {"model": "Simulated", **({"alias": self.alias} if self.alias else {})}
            answer = await phone.register(enrollment_token, self.hardware_id, **fields)
            self.tell(f"Registered as {answer['device_id']}; a heartbeat every {self.interval_seconds:g} s.")
            for number in count():
                await self._check_in(phone, number)
                await asyncio.sleep(self.interval_seconds)

    async def _check_in(self, phone: Phone, number: int) -> None:
        status = {"battery_pct": 90 - number // 100 % 80, "charging": False, "network": "wifi"}
        try:
            await phone.check_in(status=status | {"uptime_seconds": int(number * self.interval_seconds)})
        except Refusal as refusal:
            if refusal.status in SHUT_OUT:
                raise
            self.tell(f"Refused ({refusal}); trying again.")
            await asyncio.sleep(refusal.retry_after_seconds or RETRY_SECONDS)
        except (aiohttp.ClientError, TimeoutError):
            self.tell(f"No answer from {self.url}; trying again.")
            await asyncio.sleep(RETRY_SECONDS)

    def _perform(self, action: str, params: dict[str, Any]) -> Outcome:
        self.tell(f"{action} {orjson.dumps(params).decode()}: done")
        return Outcome(message="done by a simulated phone")
