"""Finds the devices of refused requests by their tokens, and stores the last refusal of each device.

No answer waits for this work. One statement checks the tokens of all refusals of a second. Another statement stores the
last refusals. If the database is not available, refusals are logged without a device and are not stored.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final
from uuid import UUID

import structlog
from asgiref.sync import ThreadSensitiveContext
from prometheus_client import Counter

from devices import claims, last_refusals
from devices.claims import Claim
from devices.last_refusals import LastRefused
from nexmdm.common import addresses
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.postgresql.errors import safe_message
from nexmdm.common.timers import Timer

log = structlog.get_logger()

LOOK_UP_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 5
"""The longest time in seconds that a stopping process waits for this work."""

CLAIMS: Final = 1000
"""The largest number of different refusals that wait for the check of their token. Further refusals are logged without
a device. Without this limit, invented tokens could fill the memory.
"""

DEVICES: Final = 10_000
"""The largest number of devices whose last refusals wait to be stored. A device's row is written at most once a minute.
The refusals of further devices are only logged.
"""

CURTAILED = Counter(
    "nexmdm_refusals_curtailed",
    "Refusals that exceeded a limit, by the limit. lines: logged without the address. look-ups: logged without the "
    "device. devices: not stored for the device.",
    ["bound"],
)
for _bound in ("lines", "look-ups", "devices"):
    CURTAILED.labels(_bound)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal, as the log contains it. `at` is the time of the answer, in monotonic time."""

    code: str
    status: int
    method: str
    route: str
    address: str
    correlation_id: str
    principal: str = ""
    reason: str = ""
    device_id: UUID | None = None
    enrollment_token_id: UUID | None = None
    at: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """A key that is equal for equal refusals."""
        return self.code, f"{self.device_id or addresses.counting_key(self.address)} {self.principal}"

    def of_owner(self, claim: Claim) -> "Refusal":
        """Return the refusal with the device or enrollment token that `claim` names."""
        if claim.is_of_device:
            return replace(self, device_id=self.device_id or claim.id)
        return replace(self, enrollment_token_id=claim.id)


@dataclass(slots=True)
class _Waiting:
    """Equal refusals of requests with one token: the first refusal, and the number of refusals."""

    refusal: Refusal
    count: int = 1


class RefusedDevices:
    """Refusals whose token must be checked, and refusals that must be stored. Use it on the event loop.

    `write_line` is called for each refusal after the check, with the number of equal refusals.
    """

    def __init__(self, write_line: Callable[[Refusal, int], None]) -> None:
        self._write_line = write_line
        self._waiting: dict[tuple[Claim, tuple[str, str]], _Waiting] = {}
        self._last: dict[UUID, Refusal] = {}
        # Each refusal is stored with the time from which the row of its device may be written again. The entries are in
        # the order of these times.
        self._later: dict[UUID, tuple[float, Refusal]] = {}
        self._task: asyncio.Task[None] | None = None
        self._timer = Timer(self._begin)
        self._next_at = 0.0

    def look_up(self, refusal: Refusal, claim: Claim) -> None:
        """Check the token of a refused request soon. Then log the refusal, and store it for its device."""
        key = (claim, refusal.key)
        if key in self._waiting:
            self._waiting[key].count += 1
        elif len(self._waiting) < CLAIMS:
            self._waiting[key] = _Waiting(refusal)
            self._soon()
        else:
            CURTAILED.labels("look-ups").inc()
            self._write_line(refusal, 1)
            self._soon()

    async def drain(self) -> None:
        """Check all waiting tokens and log their refusals. Store the last refusal of each device, unless its row was
        written too recently.
        """
        self._timer.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                if self._task is not None and not self._task.done():
                    await self._task
                if self._waiting or self._last:
                    await self._work()
        self._timer.stop()
        for waiting in self._waiting.values():
            self._write_line(waiting.refusal, waiting.count)
        self._waiting.clear()

    def forget(self) -> None:
        """Delete all refusals that wait to be checked or stored."""
        self._timer.stop()
        for waiting in (self._waiting, self._last, self._later):
            waiting.clear()
        self._next_at = 0.0

    def _soon(self) -> None:
        if self._task is not None and not self._task.done():
            return  # The task calls this method again at its end.
        if self._waiting or self._last:
            self._timer.set(self._next_at)
        elif self._later:
            due, _ = next(iter(self._later.values()))
            self._timer.set(max(due, self._next_at))

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work(), context=Context())

    async def _work(self) -> None:
        try:
            # This runs in a separate thread, so that no flush of heartbeats waits for it.
            async with ThreadSensitiveContext():
                await self._look_up_waiting()
                await self._write_last()
        finally:
            self._next_at = time.monotonic() + LOOK_UP_SECONDS
            self._task = None
            self._soon()

    async def _look_up_waiting(self) -> None:
        asked = list(self._waiting)
        try:
            proved = await run_in_db_thread(claims.proved, {claim for claim, _ in asked}) if asked else set()
        except Exception as error:  # noqa: BLE001  (a refusal is logged even if its look-up failed)
            log.warning("refusals.not_looked_up", error=type(error).__name__, detail=safe_message(error)[:200])
            proved = set()
        for key in asked:
            waiting, claim = self._waiting.pop(key), key[0]
            refusal = waiting.refusal.of_owner(claim) if claim in proved else waiting.refusal
            self._write_line(refusal, waiting.count)
            if refusal.device_id is not None and refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                self._keep(refusal.device_id, refusal)

    def _keep(self, device_id: UUID, refusal: Refusal) -> None:
        if device_id in self._later:
            self._later[device_id] = (self._later[device_id][0], refusal)
        elif device_id in self._last or len(self._last) + len(self._later) < DEVICES:
            self._last[device_id] = refusal
        else:
            CURTAILED.labels("devices").inc()

    async def _write_last(self) -> None:
        now = time.monotonic()
        for device_id, (due, refusal) in list(self._later.items()):
            if due > now:
                break
            del self._later[device_id]
            self._last[device_id] = refusal
        refused = dict(self._last)
        rows = [LastRefused(device_id, now - one.at, one.route, one.code) for device_id, one in refused.items()]
        held_back = []
        try:
            held_back = await run_in_db_thread(last_refusals.write, rows) if rows else []
        except Exception as error:  # noqa: BLE001  (the next refusals are written even if these failed)
            log.warning("refusals.not_written", error=type(error).__name__, detail=safe_message(error)[:200])
        for device_id in held_back:
            self._later[device_id] = (now + last_refusals.PAUSE.total_seconds(), refused[device_id])
        for device_id, refusal in refused.items():
            if self._last.get(device_id) is refusal:
                del self._last[device_id]
