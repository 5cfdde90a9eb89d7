"""The fast path of heartbeats: a heartbeat that can be read passes here, anything else takes the ordinary way.

Django's request, its resolver and Ninja's parameters cost a heartbeat more than all of its own work
(docs/performance.md has the figures). What this path does not take, it hands over untouched: the operation `heartbeat`
in devices/phone_api.py is the one that is published, and the one that says what is wrong with a body.
"""

from collections.abc import Sequence
from typing import Final

from devices import check_in, tokens
from devices.credentials import InvalidToken
from devices.schemas import Heartbeat
from nexmdm.auth import rate_limits
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.common import request_facts
from nexmdm.common.asgi_types import Receive, Scope, Send
from nexmdm.common.request_facts import RequestFacts
from nexmdm.common.tolerance import repair, tolerant_json
from nexmdm.common.tolerance.repair import Note
from nexmdm.common.types import parse_json
from nexmdm.http.api_handler import ApiHandler

PATH: Final = "/v1/heartbeat"
_BEARER: Final = b"Bearer "
_JSON: Final = (b"content-type", b"application/json")


class HeartbeatFastPath:
    """An ASGI application for one path, around the handler of all paths."""

    def __init__(self, ordinary: ApiHandler) -> None:
        self._ordinary = ordinary

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Record a heartbeat and answer it; or have the ordinary way answer it."""
        message = await receive()
        body = message["body"]
        facts = request_facts.of(scope)
        token = _token(facts)
        heartbeat = None if token is None else _heartbeat(body)
        if token is None or heartbeat is None or scope["method"] != "POST" or scope["query_string"]:
            await self._ordinary.serve(scope, body, send)
            return
        fields, notes = heartbeat
        facts.route = PATH
        try:
            answer = await check_in.check_in(token, fields, notes, scope["client"][0])
            if isinstance(answer, InvalidToken):
                await self._refuse(scope, body, answer, send)
                return
        except Exception as error:  # noqa: BLE001  (the API's one table of errors says what it means)
            await self._ordinary.refuse(scope, body, error, send)
        else:
            await _answer(200, [_JSON], answer, send)

    async def _refuse(self, scope: Scope, body: bytes, error: InvalidToken, send: Send) -> None:
        """Answer a wrong token; in a flood of them, from an address that is over its limit, at the least cost."""
        seconds = rate_limits.failures.seconds_over(scope["client"][0])
        if seconds is None:
            await self._ordinary.refuse(scope, body, error, send)
            return
        request_facts.of(scope).reason = rate_limits.FAILURES
        problem = RateLimited(seconds, rate_limits.FAILURES).problem
        headers = [(name.lower().encode(), value.encode()) for name, value in problem.all_headers().items()]
        await _answer(problem.status, headers, problem.body(), send)


def _token(facts: RequestFacts) -> tokens.Token | None:
    """Return the device token, if there is one header with one in the usual form."""
    found = facts.headers.values.get(b"authorization", ())
    if len(found) != 1 or not found[0].startswith(_BEARER):
        return None
    return tokens.parse(tokens.DEVICE_PREFIX, found[0][len(_BEARER) :].decode("latin-1"))


def _heartbeat(body: bytes) -> tuple[Heartbeat, Sequence[Note]] | None:
    """Return the heartbeat that a body is, and what had to be repaired or dropped for that; None if it is none."""
    try:
        return Heartbeat.model_validate(parse_json(body)), ()
    except ValueError:  # no JSON, or pydantic's ValidationError
        pass
    try:
        reading = repair.repair(Heartbeat, tolerant_json.parse(body))
    except ValueError:
        return None
    return reading.fields, reading.notes


async def _answer(status: int, headers: list[tuple[bytes, bytes]], body: bytes, send: Send) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
