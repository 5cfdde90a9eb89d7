"""Receivers of webhooks that fail on purpose.

Each receiver must get each event at least once, in the order of the feed.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from aiohttp import web

from loadtest.chaos.ledgers import part
from loadtest.load.targets import Target
from nexmdm.client.http_client import FleetClient

Fault = Literal["none", "500", "hang", "redirect", "reset"]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)

SETTINGS: Final = {"WEBHOOK_ALLOW_PRIVATE": "127.0.0.0/8"}
"""The setting that allows the server to send to receivers on this machine."""

FAULT_EVERY: Final = 300
"""A receiver fails at the first of every FAULT_EVERY requests."""

HANG_EVERY: Final = 2000
"""The receiver that hangs fails at the first of every HANG_EVERY requests. Each failure costs 10 s, because the server
waits 10 s for an answer."""

HANG_SECONDS: Final = 30
WAIT_SECONDS: Final = 180
"""The longest time from the end of a run until each receiver has the last event. This time includes the server's pauses
after failures."""

_LOOK_SECONDS: Final = 0.2


@dataclass(slots=True)
class Receiver:
    """One receiver of a webhook.

    - `acknowledged`: the ids of the events that the receiver answered with 204, in the order of the answers.
    - `faults`: the number of requests at which the receiver failed on purpose.
    """

    fault: Fault
    acknowledged: list[str] = field(default_factory=list)
    faults: int = 0
    requests: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request of the webhook: acknowledge the event, or fail on purpose."""
        event_id = request.headers["webhook-id"]
        await request.read()
        self.requests += 1
        every = HANG_EVERY if self.fault == "hang" else FAULT_EVERY
        if self.requests % every == 1 and self.fault != "none":
            self.faults += 1
            return await self._misbehave(request)
        self.acknowledged.append(event_id)
        return web.Response(status=204)

    async def _misbehave(self, request: web.Request) -> web.StreamResponse:
        if self.fault == "redirect":
            return web.Response(status=307, headers={"Location": "/redirected"})
        if self.fault == "hang":
            await asyncio.sleep(HANG_SECONDS)
        if self.fault == "reset" and request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)


@asynccontextmanager
async def listening(admin: FleetClient) -> AsyncIterator[list[Receiver]]:
    """Run one receiver for each fault in FAULTS. Each receiver has a webhook that begins with the next event."""
    receivers = [Receiver(fault) for fault in FAULTS]
    application = web.Application()
    for receiver in receivers:
        application.router.add_post(f"/{receiver.fault}", receiver.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    for receiver in receivers:
        await asyncio.to_thread(admin.post, "/admin/webhooks", {"url": f"http://127.0.0.1:{port}/{receiver.fault}"})
    try:
        yield receivers
    finally:
        await runner.cleanup()


async def until_they_have(event_id: str, receivers: Sequence[Receiver]) -> None:
    """Wait until each receiver has acknowledged the event, but at most WAIT_SECONDS."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + WAIT_SECONDS
    for receiver in receivers:
        while event_id not in receiver.acknowledged[-FAULT_EVERY:] and loop.time() < ends_at:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)


def compare(receivers: Sequence[Receiver], expected: Sequence[str]) -> list[Target]:
    """Return one target for each receiver: the acknowledged events must be the expected events, in their order.

    `expected` contains the ids of the events of the feed since the creation of the webhooks.
    """
    return [_judged(receiver, expected) for receiver in receivers]


def _judged(receiver: Receiver, expected: Sequence[str]) -> Target:
    once = list(dict.fromkeys(receiver.acknowledged))[: len(expected)]
    in_place = sum(one == other for one, other in zip(once, expected, strict=False))
    figure, is_whole = part(in_place, len(expected))
    name = f"events at a receiver (fault: {receiver.fault}), each at least once and in order"
    return Target(
        name,
        "all",
        f"{figure}; {receiver.faults} faults",
        is_whole and (receiver.fault == "none") == (not receiver.faults),
    )
