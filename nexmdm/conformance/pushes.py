"""The stand-in for FCM. It takes the pushes of the dispatcher, and agents read theirs by long poll."""

import asyncio
import secrets
import socket
from collections import deque
from typing import Any, Final, Self

import orjson
from aiohttp import web

from nexmdm.client.phone import Envelope
from nexmdm.client.simulated_fcm import SimulatedFcm

POLL_SECONDS: Final = 20
"""How long a poll waits for a push, in seconds, before it is answered with 204."""

_HOST: Final = "127.0.0.1"


class Mailbox:
    """The pushes of one agent.

    While `is_held` is true, the pushes of the dispatcher do not go to the agent: a scenario takes them from `kept`.
    """

    def __init__(self, url: str) -> None:
        self.target = f"conformance-{secrets.token_urlsafe(16)}"
        self.url = f"{url}/push/{self.target}"
        self.is_held = False
        self.kept: dict[str, Envelope] = {}
        self._waiting: deque[Envelope] = deque()
        self._poll: asyncio.Future[Envelope] | None = None

    @property
    def waits(self) -> bool:
        """Whether the agent has not taken a push that was handed to it."""
        return bool(self._waiting)

    def arrive(self, envelope: Envelope) -> None:
        """Take a push from the dispatcher."""
        self.kept[envelope["request_id"]] = envelope
        if not self.is_held:
            self.put(envelope)

    def put(self, envelope: Envelope) -> None:
        """Hand a push to the agent, now or at its next poll."""
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(envelope)
        else:
            self._waiting.append(envelope)

    async def take(self) -> Envelope | None:
        """Wait for the next push, as the agent's only poll: an earlier poll ends."""
        if self._poll is not None:
            self._poll.cancel()
        if self._waiting:
            return self._waiting.popleft()
        self._poll = poll = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.wait_for(poll, POLL_SECONDS)
        except TimeoutError:
            return None


class PushStandin:
    """The stand-in of all agents, which listens while its context is open."""

    def __init__(self) -> None:
        self.fcm = SimulatedFcm(_HOST, _free_port())
        self._mailboxes: dict[str, Mailbox] = {}
        application = web.Application()
        application.router.add_get("/push/{target}", self._answer)
        # A poll of an agent that was killed ends, so that it takes no push.
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.fcm.__aenter__()
        await self._runner.setup()
        await web.TCPSite(self._runner, _HOST, 0).start()
        self._port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()
        await self.fcm.__aexit__(*error)

    def mailbox(self) -> Mailbox:
        """Return a new agent's mailbox, with a push target of its own."""
        mailbox = Mailbox(f"http://{_HOST}:{self._port}")
        self._mailboxes[mailbox.target] = mailbox
        self.fcm.phones[mailbox.target] = mailbox.arrive
        return mailbox

    async def _answer(self, request: web.Request) -> web.Response:
        mailbox = self._mailboxes.get(request.match_info["target"])
        if mailbox is None:
            raise web.HTTPNotFound
        envelope = await mailbox.take()
        if envelope is None:
            return web.Response(status=204)
        message: dict[str, Any] = {"data": envelope}
        return web.Response(body=orjson.dumps(message), content_type="application/json")


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as free:
        return int(free.getsockname()[1])
