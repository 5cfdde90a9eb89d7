"""The HTTP client of an admin, which signs each request."""

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
"""The largest `wait_seconds` of one request."""

PAGE: Final = 500
PAUSES_SECONDS: Final = (0.5, 2.0)
"""The pauses before the repeats of a write without an answer, in seconds. There is one repeat for each pause."""

AGAIN_SECONDS: Final = 1.0
"""The pause before a read is repeated, in seconds, if the server named no pause."""

_LOOPBACK: Final = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_LONGEST_TARGET: Final = 16_384
"""The largest length of path and query in characters. A NexMDM server refuses longer headers."""

_SHOWN_OF_A_STRANGER: Final = 200
_OF_NO_ACCOUNT: Final = ("idempotency_in_flight", "rate_limited")
"""A repeat can be refused with one of these codes. Such a refusal does not show whether the first write was carried
out.
"""

_AWAY: Final = (502, 503, 504)


def on_loopback(url: str) -> bool:
    """Return whether the host of a URL is this machine."""
    return _LOOPBACK.fullmatch(urlsplit(url).hostname or "") is not None


class Refused(Exception):
    """The server answered with an error, or did not answer as NexMDM.

    `code` is empty if the answer is not from NexMDM. `clock_ahead_seconds` is the server's time minus the time of this
    machine. It is None if the answer has no time.
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
    """The server did not answer.

    `perhaps_done` is true if the server may have carried out a write. `advice` is the remedy, or an empty string.
    """

    def __init__(self, reason: str, *, perhaps_done: bool, advice: str = "") -> None:
        super().__init__(reason)
        self.perhaps_done = perhaps_done
        self.advice = advice


class UnsendableTarget(Exception):
    """A path with its query cannot be sent. The message contains the reason."""


class FleetClient:
    """The HTTP client for one server and one admin.

    Every method that sends a request raises Refused or Unreachable if there is no answer with status 200. These methods
    raise UnsendableTarget if the path or the query cannot be sent.
    """

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
        """Store the server and the secrets. No request is sent.

        - `host`: the Host header, or None for the host in `url`.
        - `clock`: returns the present time in Unix seconds.
        - `repeats`: whether to repeat a write without an answer. A repeat has the same idempotency key, so the server
          carries out the write only once.
        - `answer_seconds`: the longest time to wait for each part of an answer.
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
        """Send a GET. Parameters of the query that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self.call("GET", path, query=given)

    def post(self, path: str, body: Json | None = None) -> Json:
        """Send a POST with a new idempotency key."""
        return self.call("POST", path, content=b"" if body is None else json.dumps(body).encode())

    def patch(self, path: str, body: Json) -> Json:
        """Send a PATCH with a new idempotency key."""
        return self.call("PATCH", path, content=json.dumps(body).encode())

    def delete(self, path: str) -> Json:
        """Send a DELETE with a new idempotency key."""
        return self.call("DELETE", path)

    def items(self, path: str, limit: int, **query: Any) -> tuple[list[Json], bool]:
        """Return the first `limit` rows of a list, and whether the list has more rows."""
        rows = list(islice(self.rows(path, min(limit + 1, PAGE), **query), limit + 1))
        return rows[:limit], len(rows) > limit

    def rows(self, path: str, page: int, **query: Any) -> Iterator[Json]:
        """Yield all rows of a list. Each request reads `page` rows."""
        cursor = None
        while True:
            answer = self.get(path, limit=page, cursor=cursor, **query)
            yield from answer["items"]
            cursor = answer["next_cursor"]
            if cursor is None:
                return

    def command(self, request_id: str) -> Json:
        """Return a command."""
        return self.get(f"/admin/commands/{request_id}")

    def wait(self, request_id: str, seconds: float, *, step: float, watch: Callable[[Json], None]) -> Json:
        """Wait until a command is no longer open, for at most `seconds`. Return the command.

        `watch` is called with the command at least every `step` seconds. If a request fails and a repeat can help, the
        request is repeated until the time is over.
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
        """Return the headers that sign a request.

        `target` is the path with its query, exactly as it is sent. Without `idempotency_key`, a write gets a new key.
        """
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
        """Send a request, and return the answer. `path` may contain a query. `content` is JSON."""
        target = _target(path, query)
        key = _new_key(method)
        try:
            return self._send(method, target, content, key)
        except Unreachable as lost:
            if not lost.perhaps_done:
                raise
            return self._repeat(method, target, content, key, lost)

    def _repeat(self, method: str, target: str, content: bytes, idempotency_key: str, lost: Unreachable) -> Json:
        """Repeat a write until an answer shows whether it was carried out.

        Raises `lost` if no answer shows this.
        """
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
    """Return the path with its query. Raises UnsendableTarget if it is too long or is not UTF-8."""
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
    """Return the seconds to wait before a read is repeated. Return None if a repeat cannot help."""
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
    errors = content if isinstance(content, list) else []
    return [one for one in errors if isinstance(one, dict) and isinstance(one.get("loc"), list) and "msg" in one]


def _clock_ahead(response: Response) -> float | None:
    try:
        return parsedate_to_datetime(response.headers["date"]).timestamp() - time.time()
    except (KeyError, ValueError, OverflowError):
        return None


def _json(response: Response) -> Json:
    try:
        content = json.loads(response.content)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
