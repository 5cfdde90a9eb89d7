"""The handler of the admin site, with a limit on logins and two gates.

Any client may request pages of the admin site. The admin site and the API share the process and the connection pool. So
only a few requests for the admin site run at the same time. Further requests are refused here, before Django runs.
"""

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from nexmdm.admin_site import logins, passwords, turns
from nexmdm.admin_site.turns import SiteTurn
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.common import addresses, database, request_facts
from nexmdm.common.asgi_types import Message, Receive, Scope, Send
from nexmdm.common.overload.gates import Gate, GateFull
from nexmdm.http.api_handler import ApiHandler

ROUTE: Final = "/django-admin/"
_HASHING: Final = frozenset(f"{ROUTE}{page}/" for page in ("login", "password_change"))

PASSWORDS: Final = Gate("passwords", at_once=passwords.AT_ONCE, waiting=8, waiting_per_key=4, seconds=10)
"""The gate for requests whose password must be hashed. Its keys are addresses. A hash takes half a second, so the last
waiting request waits for about 5 s.
"""

REFUSAL_SECONDS: Final = 1
"""The time in seconds before a refusal is sent. Without this delay, a client that immediately repeats refused requests
would cost more than a client that is served.
"""


def serves(path: str) -> bool:
    """Return whether a path belongs to the admin site."""
    return path.startswith(ROUTE) or path == ROUTE.rstrip("/")


class SiteHandler:
    """The ASGI application of the admin site. Its refusals are problem details, as in the API."""

    def __init__(self, api: ApiHandler) -> None:
        self._api = api
        self._django = _Django()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it with 429 or 503."""
        request_facts.of(scope).route = ROUTE
        database.begin_long_request()
        with SiteTurn(addresses.counting_key(scope["client"][0])) as turn:
            async with ThreadSensitiveContext(), AsyncExitStack() as held:
                try:
                    if scope["method"] == "POST" and scope["path"] in _HASHING:
                        await _admit_password(turn, held)
                    await turn.take()
                except (RateLimited, GateFull, DatabaseError, InterfaceError) as error:
                    await held.aclose()
                    await asyncio.sleep(REFUSAL_SECONDS)
                    await self._api.refuse(scope, b"", error, send)
                    return
                held.push_async_callback(sync_to_async(database.release_connections))
                await self._django(dict(scope), receive, partial(_begin, turn, send))


async def _admit_password(turn: SiteTurn, held: AsyncExitStack) -> None:
    """Count an attempt to log in, and then enter the gate PASSWORDS. When the caller closes `held`, the request leaves
    the gate.
    """
    logins.refuse_over_limit(turn.address)
    # Do not count an attempt that the gate refuses: in a flood, repeats would use up the address's limit of logins.
    PASSWORDS.check(turn.address)
    await turn.take()
    try:
        await database.run_in_db_thread_ungated(logins.count, turn.address)
    finally:
        turn.give_up()
    await held.enter_async_context(PASSWORDS.turn(turn.address))


async def _begin(turn: SiteTurn, send: Send, message: Message) -> None:
    # Release the turn and the connection before the answer begins: a client may read slowly.
    if message["type"] == "http.response.start":
        await sync_to_async(database.release_connections)()
        turn.give_up()
    await send(message)


class _Django(ASGIHandler):
    """Django's handler. Middlewares and view run in one call in the thread of the request.

    Django's own handler changes the thread for each middleware. The login page then takes 8.6 ms of processor time, and
    with this class 6.1 ms.
    """

    def load_middleware(self, is_async: bool = False) -> None:  # noqa: ARG002
        """Load the middlewares for calls in a thread."""
        super().load_middleware(is_async=False)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        """Return the answer."""
        return await sync_to_async(database.work_until)(turns.ends_at(), self.get_response, request)
