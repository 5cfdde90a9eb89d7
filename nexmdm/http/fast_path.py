"""The fast path for the most frequent requests of phones: valid heartbeats and reports.

Django's request, its resolver and Ninja's parameters take more time than all other work on a heartbeat
(docs/performance-changes.md). Every other request goes to the ordinary path without a change. On the ordinary path, the
operations are `heartbeat` in devices/phone_api.py and `action-result` in commands/phone_api.py. These operations report
what is wrong with a body.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from commands import report_intake
from commands.schemas import ActionResult
from devices import check_in, tokens
from devices.credentials import InvalidToken
from devices.schemas import Heartbeat
from nexmdm.api import error_table
from nexmdm.auth import rate_limits
from nexmdm.auth.rate_limits import RateLimited
from nexmdm.common import request_facts
from nexmdm.common.asgi_types import Receive, Scope, Send
from nexmdm.common.group_commit import Overloaded
from nexmdm.common.problems import Problem
from nexmdm.common.request_facts import RequestFacts
from nexmdm.common.tolerance import repair, tolerant_json
from nexmdm.common.tolerance.repair import Note
from nexmdm.common.types import DeviceBody, parse_json
from nexmdm.http.api_handler import ApiHandler

HEARTBEAT: Final = "/v1/heartbeat"
ACTION_RESULT: Final = "/v1/action-result"
_BEARER: Final = b"Bearer "
_JSON: Final = (b"content-type", b"application/json")

Fields = TypeVar("Fields", bound=DeviceBody)
Take = Callable[[tokens.Token, Fields, Sequence[Note], Scope], Awaitable[bytes | InvalidToken]]


class FastPath(Generic[Fields]):
    """The ASGI application for one path.

    - `take` records a request and returns the body of the answer, or InvalidToken.
    - `seconds_if_full` returns the seconds of Retry-After if no more requests can be recorded now, or None.
    - `ordinary` is the handler for all other requests on this path.
    """

    def __init__(
        self,
        path: str,
        schema: type[Fields],
        take: Take[Fields],
        seconds_if_full: Callable[[], int | None],
        ordinary: ApiHandler,
    ) -> None:
        self._path = path
        self._schema = schema
        self._take = take
        self._seconds_if_full = seconds_if_full
        self._ordinary = ordinary

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Record a phone's request and answer it, or pass it to the ordinary path."""
        message = await receive()
        body = message["body"]
        facts = request_facts.of(scope)
        if scope["method"] == "POST" and (seconds := self._seconds_if_full()) is not None:
            facts.route = self._path
            await _refuse(error_table.overloaded(Overloaded(seconds)), send)
            return
        token = _token(facts)
        reading = None if token is None else self._read(body)
        if token is None or reading is None or scope["method"] != "POST" or scope["query_string"]:
            await self._ordinary.serve(scope, body, send)
            return
        fields, notes = reading
        facts.route = self._path
        try:
            answer = await self._take(token, fields, notes, scope)
            if isinstance(answer, InvalidToken):
                await self._refuse(scope, body, answer, send)
                return
        except Exception as error:  # noqa: BLE001  (the API's one table of errors says what it means)
            await self._ordinary.refuse(scope, body, error, send)
        else:
            await _answer(200, [_JSON], answer, send)

    def _read(self, body: bytes) -> tuple[Fields, Sequence[Note]] | None:
        try:
            return self._schema.model_validate(parse_json(body)), ()
        except ValueError:  # no JSON, or pydantic's ValidationError
            pass
        try:
            reading = repair.repair(self._schema, tolerant_json.parse(body))
        except ValueError:
            return None
        return reading.fields, reading.notes

    async def _refuse(self, scope: Scope, body: bytes, error: InvalidToken, send: Send) -> None:
        # For an address over its limit, an answer must cost as little as possible.
        seconds = rate_limits.failures.seconds_over(scope["client"][0])
        if seconds is None:
            await self._ordinary.refuse(scope, body, error, send)
            return
        request_facts.of(scope).reason = rate_limits.FAILURES
        await _refuse(RateLimited(seconds, rate_limits.FAILURES).problem, send)


def fast_paths(ordinary: ApiHandler) -> dict[str, FastPath[Any]]:
    """Return the ASGI applications by their paths. `ordinary` is the handler for requests that these applications do
    not serve.
    """
    heartbeats = FastPath(HEARTBEAT, Heartbeat, _take_heartbeat, lambda: check_in.batcher().seconds_if_full(), ordinary)
    reports = FastPath(
        ACTION_RESULT, ActionResult, _take_report, lambda: report_intake.batcher().seconds_if_full(), ordinary
    )
    return {HEARTBEAT: heartbeats, ACTION_RESULT: reports}


def _take_heartbeat(
    token: tokens.Token, fields: Heartbeat, notes: Sequence[Note], scope: Scope
) -> Awaitable[bytes | InvalidToken]:
    return check_in.check_in(token, fields, notes, scope["client"][0])


def _take_report(
    token: tokens.Token, fields: ActionResult, notes: Sequence[Note], scope: Scope
) -> Awaitable[bytes | InvalidToken]:
    facts = request_facts.of(scope)
    return report_intake.take(token, fields, notes, scope["client"][0], lambda: not facts.client_has_left)


def _token(facts: RequestFacts) -> tokens.Token | None:
    found = facts.headers.values.get(b"authorization", ())
    if len(found) != 1 or not found[0].startswith(_BEARER):
        return None
    return tokens.parse(tokens.DEVICE_PREFIX, found[0][len(_BEARER) :].decode("latin-1"))


async def _refuse(problem: Problem, send: Send) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.all_headers().items()]
    await _answer(problem.status, headers, problem.body(), send)


async def _answer(status: int, headers: list[tuple[bytes, bytes]], body: bytes, send: Send) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
