"""The pushes of the kit. The dispatcher sends them to a simulated FCM, and agents read them by long polling."""

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
"""How long a poll waits for a push, in seconds. Without a push, the answer is 204."""

_HOST: Final = "127.0.0.1"


class Mailbox:
    """The pushes to one agent.

    All pushes of the dispatcher are stored in `kept`. If `is_held` is true, the agent does not get these pushes.
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
        """Whether a push waits for the next poll of the agent."""
        return bool(self._waiting)

    def arrive(self, envelope: Envelope) -> None:
        """Accept a push of the dispatcher."""
        self.kept[envelope["request_id"]] = envelope
        if not self.is_held:
            self.put(envelope)

    def put(self, envelope: Envelope) -> None:
        """Give a push to the agent, now or at its next poll."""
        if self._poll is not None and not self._poll.done():
            self._poll.set_result(envelope)
        else:
            self._waiting.append(envelope)

    async def take(self) -> Envelope | None:
        """Wait for the next push. Return None after POLL_SECONDS.

        An earlier wait of the same agent is cancelled.
        """
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
    """The simulated FCM and the polls of all agents. It listens while its context is open."""

    def __init__(self) -> None:
        self.fcm = SimulatedFcm(_HOST, _free_port())
        self._mailboxes: dict[str, Mailbox] = {}
        application = web.Application()
        application.router.add_get("/push/{target}", self._answer)
        # With handler_cancellation, the poll of a killed agent ends. Without it, this poll could take a push.
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
        """Return the mailbox for a new agent, with a new push target."""
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
