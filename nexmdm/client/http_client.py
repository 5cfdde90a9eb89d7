"""An admin's HTTP client. It signs each request, and a refusal contains the text of the server's problem."""

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlencode, urlsplit

from nexmdm.auth import signing
from nexmdm.client.network.connections import Connections
from nexmdm.client.network.transport import AnswerLost, NoConnection, Request, Response, Transport

Json = dict[str, Any]

ANSWER_SECONDS: Final = 30
LONGEST_WAIT_SECONDS: Final = 30
"""The longest `wait_seconds` of one request, in seconds."""

PAGE: Final = 500
PAUSES_SECONDS: Final = (0.5, 2.0)
"""The pause before each repeat of a write whose answer was lost, in seconds. There are as many repeats as pauses."""

AGAIN_SECONDS: Final = 1.0
"""While the client waits for a command: the pause after a request that got no answer, in seconds."""

_LOOPBACK: Final = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_LONGEST_TARGET: Final = 16_384
"""The most characters of path and query. A NexMDM server refuses longer headers."""

_SHOWN_OF_A_STRANGER: Final = 200
_OF_NO_ACCOUNT: Final = ("idempotency_in_flight", "rate_limited")
"""The codes (of 4xx) with which the answer to a repeat does not show whether the write was carried out."""

_AWAY: Final = (502, 503, 504)


def on_loopback(url: str) -> bool:
    """Return whether requests to this address stay on this machine."""
    return _LOOPBACK.fullmatch(urlsplit(url).hostname or "") is not None


class Refused(Exception):
    """The server answered, but not with 200.

    `code` is empty if the answer is not from NexMDM. `clock_ahead_seconds` is how far the server's clock is ahead of
    ours, if its answer has a time.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: list[Json] | None = None,
        retry_after_seconds: int | None = None,
        clock_ahead_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.errors = errors or []
        self.retry_after_seconds = retry_after_seconds
        self.clock_ahead_seconds = clock_ahead_seconds


class Unreachable(Exception):
    """The server gave no answer; `perhaps_done`: the request may have reached it.

    `advice` says what to do, if that is known.
    """

    def __init__(self, reason: str, *, perhaps_done: bool, advice: str = "") -> None:
        super().__init__(reason)
        self.perhaps_done = perhaps_done
        self.advice = advice


class UnsendableTarget(Exception):
    """A path with its query cannot be sent. The text says why."""


class FleetClient:
    """The client of one server, for one admin. Every method raises Refused and Unreachable."""

    def __init__(
        self,
        url: str,
        *,
        key: str,
        secret: str,
        host: str | None = None,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.time,
        repeats: bool = False,
        answer_seconds: float = LONGEST_WAIT_SECONDS + ANSWER_SECONDS,
    ) -> None:
        """Store the address and the admin.

        `host` is the Host header, if it is not the name in the URL. With `repeats`, a write whose answer was lost is
        sent again a few times under the same Idempotency-Key, and the server carries it out once.
        """
        self.url = url.rstrip("/")
        self._key = key
        self._secret = secret
        self._clock = clock
        self._pauses = PAUSES_SECONDS if repeats else ()
        self._headers = {"Host": host} if host else {}
        self._answer_seconds = answer_seconds
        self._transport = transport or Connections(url)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.close()

    def get(self, path: str, **query: Any) -> Json:
        """Read a resource; queries that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self.call("GET", path, query=given)

    def post(self, path: str, body: Json | None = None) -> Json:
        """Carry out a write, under a new Idempotency-Key."""
        return self.call("POST", path, content=b"" if body is None else json.dumps(body).encode())

    def patch(self, path: str, body: Json) -> Json:
        """Change a resource, under a new Idempotency-Key."""
        return self.call("PATCH", path, content=json.dumps(body).encode())

    def delete(self, path: str) -> Json:
        """Delete a resource, under a new Idempotency-Key."""
        return self.call("DELETE", path)

    def items(self, path: str, limit: int, **query: Any) -> tuple[list[Json], bool]:
        """Return the first `limit` rows of a list, from as many pages as necessary, and whether there are more."""
        rows = list(islice(self.rows(path, min(limit + 1, PAGE), **query), limit + 1))
        return rows[:limit], len(rows) > limit

    def rows(self, path: str, page: int, **query: Any) -> Iterator[Json]:
        """Yield the rows of a list, `page` of them with each request."""
        cursor = None
        while True:
            answer = self.get(path, limit=page, cursor=cursor, **query)
            yield from answer["items"]
            cursor = answer["next_cursor"]
            if cursor is None:
                return

    def command(self, request_id: str) -> Json:
        """Read a command."""
        return self.get(f"/admin/commands/{request_id}")

    def wait(self, request_id: str, seconds: float, *, step: float, watch: Callable[[Json], None]) -> Json:
        """Return the command when none of its deliveries is open any more, or as it is after `seconds`.

        `watch` is called with the command at least every `step` seconds. If the server is busy or gives no answer, the
        request is repeated while there is time.
        """
        until = time.monotonic() + seconds
        while True:
            left = max(0.0, until - time.monotonic())
            try:
                command = self.get(f"/admin/commands/{request_id}", wait_seconds=f"{min(step, left):.1f}")
            except (Refused, Unreachable) as trouble:
                pause = pause_before_repeat(trouble)
                if pause is None or not left:
                    raise
                time.sleep(min(pause, left))
                continue
            watch(command)
            if command["state"] != "open" or not left:
                return command

    def sign(self, method: str, target: str, body: bytes, *, idempotency_key: str | None = None) -> dict[str, str]:
        """Return the headers that sign a request: a target as it is sent, and for a write a new Idempotency-Key."""
        if idempotency_key is None:
            idempotency_key = _new_key(method)
        return signing.headers(
            key=self._key,
            secret=self._secret,
            timestamp=int(self._clock()),
            idempotency_key=idempotency_key,
            method=method,
            target=target,
            body=body,
        )

    def call(self, method: str, path: str, *, query: Json | None = None, content: bytes = b"") -> Json:
        """Send any request. `path` may contain a query, and `content` is JSON."""
        target = _target(path, query)
        key = _new_key(method)
        try:
            return self._send(method, target, content, key)
        except Unreachable as lost:
            if not lost.perhaps_done:
                raise
            return self._repeat(method, target, content, key, lost)

    def _repeat(self, method: str, target: str, content: bytes, idempotency_key: str, lost: Unreachable) -> Json:
        """Repeat a write whose answer was lost, until an answer shows whether it was carried out."""
        for pause in self._pauses:
            time.sleep(pause)
            try:
                return self._send(method, target, content, idempotency_key)
            except Unreachable:
                continue
            except Refused as refused:
                if refused.status < 500 and refused.code not in _OF_NO_ACCOUNT:
                    raise
        raise lost

    def _send(self, method: str, target: str, content: bytes, idempotency_key: str) -> Json:
        kind = {"Content-Type": "application/json"} if content else {}
        signed = self.sign(method, target, content, idempotency_key=idempotency_key)
        headers = {**self._headers, **kind, **signed}
        try:
            response = self._transport.send(Request(method, self.url, target, headers, content, self._answer_seconds))
        except NoConnection as error:
            raise Unreachable(str(error), perhaps_done=False, advice=error.advice) from error
        except AnswerLost as error:
            raise Unreachable(str(error), perhaps_done=bool(idempotency_key)) from error
        return _answer(response)


def _target(path: str, query: Json | None) -> str:
    """Return path and query in the form that is signed and sent. Raises UnsendableTarget."""
    try:
        target = f"{path}?{urlencode(query, quote_via=quote)}" if query else path
    except UnicodeEncodeError as error:
        raise UnsendableTarget("it is not UTF-8") from error
    if len(target) > _LONGEST_TARGET:
        raise UnsendableTarget("it is too long")
    return target


def _new_key(method: str) -> str:
    return "" if method == "GET" else secrets.token_hex(16)


def pause_before_repeat(trouble: Refused | Unreachable) -> float | None:
    """Return the seconds to wait before a read is repeated, or None if a repeat would get the same answer."""
    if isinstance(trouble, Unreachable):
        return AGAIN_SECONDS
    if trouble.retry_after_seconds is not None:
        return trouble.retry_after_seconds
    return AGAIN_SECONDS if trouble.status in _AWAY else None


def _answer(response: Response) -> Json:
    content = _json(response)
    if response.status == 200 and content:
        return content
    code, detail = content.get("code"), content.get("detail")
    if isinstance(code, str) and isinstance(detail, str):
        wait = response.headers.get("retry-after", "")
        seconds = int(wait) if re.fullmatch(r"[0-9]{1,9}", wait) else None
        errors = _errors(content.get("errors"))
        raise Refused(response.status, code, detail, errors, seconds, _clock_ahead(response))
    shown = " ".join(response.content.decode(errors="replace").split())[:_SHOWN_OF_A_STRANGER]
    raise Refused(
        response.status, "", f"The server does not look like NexMDM. The server answered {response.status}: {shown}"
    )


def _errors(content: Any) -> list[Json]:
    """Return the errors of a problem: each has a `loc` and a `msg`."""
    errors = content if isinstance(content, list) else []
    return [one for one in errors if isinstance(one, dict) and isinstance(one.get("loc"), list) and "msg" in one]


def _clock_ahead(response: Response) -> float | None:
    try:
        return parsedate_to_datetime(response.headers["date"]).timestamp() - time.time()
    except (KeyError, ValueError, OverflowError):
        return None


def _json(response: Response) -> Json:
    """Return an answer's object, or an empty one if the answer has none."""
    try:
        content = json.loads(response.content)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
