"""Reads the body of a request, within limits of size, time and memory."""

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, Final, Self

from nexmdm.common import addresses, problems, request_facts
from nexmdm.common.asgi_types import Message, Receive, Scope
from nexmdm.common.headers import Headers
from nexmdm.common.overload.shared_bytes import SharedBytes
from nexmdm.common.problems import Problem
from nexmdm.http.guard.errors import ClientGone, Refused

BODY_LIMITS: Final = (("/v1/", 64 * 1024), ("/admin/", 1024 * 1024), ("/django-admin/", 1024 * 1024))
OTHER_BODY_LIMIT: Final = 64 * 1024
LARGE: Final = 64 * 1024
LARGE_BODIES: Final = SharedBytes(64 * 1024 * 1024)
"""The memory for bodies larger than LARGE that are arriving. Any client can send such a body."""

BODY_SECONDS: Final = 10
SHOWN: Final = 64
"""The largest number of characters of a refused header that the answer shows."""

_UNSHOWN: Final = re.compile(r"[^A-Za-z0-9!#$%&'*+.^_`|~/;=, -]")

_DIGITS: Final = 12
_FORMS: Final = "/django-admin/"


async def read_body(scope: Scope, headers: Headers, receive: Receive) -> bytes:
    """Return the whole body.

    Raises Refused if the body is too large, too slow or compressed. Raises Refused also if the body is not JSON on a
    path that requires JSON. Raises ClientGone if the client disconnects.
    """
    limit = _body_limit(scope["path"])
    declared = headers.last(b"content-length")
    if declared and (not declared.isdigit() or len(declared) > _DIGITS or int(declared) > limit):
        raise Refused(_too_large(limit), drain=True)
    if not declared and b"transfer-encoding" not in headers.values:
        return await _collect(scope, receive, limit)
    try:
        body = await _in_time(_collect(scope, receive, limit))
    except TimeoutError:
        detail = f"The body did not arrive within {BODY_SECONDS} s."
        raise Refused(problems.general(408, detail, Connection="close")) from None
    if (problem := request_facts.of(scope).refused_body) is not None:
        raise Refused(problem, drain=True)
    if body and (b"content-encoding" in headers.values or not _is_json(headers)):
        _check_media(scope["path"], headers)
    return body


def _check_media(path: str, headers: Headers) -> None:
    if b"content-encoding" in headers.values:
        encodings = b", ".join(headers.values[b"content-encoding"])
        if not {one.strip().lower() for one in encodings.split(b",")} <= {b"", b"identity"}:
            detail = (
                f"The body has Content-Encoding: {_shown(encodings)}. Send the body uncompressed, without this header."
            )
            raise Refused(problems.general(415, detail))
    if not path.startswith(_FORMS) and not _is_json(headers):
        sent = _shown(headers.last(b"content-type"))
        came = f"with Content-Type: {sent}" if sent else "without a Content-Type"
        raise Refused(
            problems.general(415, f"The body was sent {came}. Send the body with Content-Type: application/json.")
        )


def _shown(value: bytes) -> str:
    text = value[:SHOWN].decode("latin-1").strip()
    return _UNSHOWN.sub("?", text) + ("…" if len(value) > SHOWN else "")


def _body_limit(path: str) -> int:
    for start, limit in BODY_LIMITS:
        if path.startswith(start):
            return limit
    return OTHER_BODY_LIMIT


async def _in_time(collecting: Coroutine[Any, Any, bytes]) -> bytes:
    # This does the same as asyncio.timeout at 40 % of its cost (docs/decisions/0010).
    task, expired = asyncio.current_task(), False
    assert task is not None

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(BODY_SECONDS, expire)
    try:
        return await collecting
    except asyncio.CancelledError:
        if expired and task.uncancel() == 0:
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


async def _collect(scope: Scope, receive: Receive, limit: int) -> bytes:
    # Nearly every body arrives in one piece.
    piece, more = _piece(await receive(), 0, limit)
    return await _collect_on(scope, receive, limit, piece, more) if more or len(piece) > LARGE else piece


async def _collect_on(scope: Scope, receive: Receive, limit: int, piece: bytes, more: bool) -> bytes:
    pieces, size = [piece], len(piece)
    with BodyMemoryBudget(addresses.counting_key(scope["client"][0])) as budget:
        while True:
            if size > LARGE:
                budget.take(size)
            if not more:
                return b"".join(pieces)
            piece, more = _piece(await receive(), size, limit)
            pieces.append(piece)
            size += len(piece)


def _piece(message: Message, before: int, limit: int) -> tuple[bytes, bool]:
    """Return the next piece of a body, and whether more pieces follow. `before` is the number of bytes before this
    piece.
    """
    if message["type"] == "http.disconnect":
        raise ClientGone
    piece: bytes = message.get("body", b"")
    if before + len(piece) > limit:
        raise Refused(_too_large(limit), drain=True)
    return piece, message.get("more_body", False)


class BodyMemoryBudget:
    """The memory that one large body uses while it arrives, as a part of LARGE_BODIES. `client` is the key under which
    the client's address is counted.
    """

    __slots__ = ("_client", "_mine")

    def __init__(self, client: str) -> None:
        self._client = client
        self._mine = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        LARGE_BODIES.change(self._client, -self._mine)

    def take(self, size: int) -> None:
        """Use memory for `size` bytes in total. Raises Refused if the limits of LARGE_BODIES do not allow this."""
        if not LARGE_BODIES.fit(self._client, size - self._mine):
            raise Refused(
                problems.general(503, "Too many large bodies arrive at the same time. Try again in a few seconds."),
                drain=True,
            )
        LARGE_BODIES.change(self._client, size - self._mine)
        self._mine = size


def _too_large(limit: int) -> Problem:
    return problems.general(413, f"The body is too large: this path allows at most {limit} bytes.")


def _is_json(headers: Headers) -> bool:
    return headers.last(b"content-type").partition(b";")[0].strip().lower() == b"application/json"
