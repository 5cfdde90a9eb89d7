"""Complete answers of ASGI applications that do not use Django."""

from collections.abc import Iterable

from nexmdm.common.asgi_types import Scope, Send
from nexmdm.common.problems import Problem

Header = tuple[bytes, bytes]


async def answer(scope: Scope, send: Send, status: int, headers: Iterable[Header], body: bytes = b"") -> None:
    """Send an answer. If the request is a HEAD, its body is not sent."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def refuse(scope: Scope, send: Send, problem: Problem) -> None:
    """Send a problem."""
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.all_headers().items()]
    await answer(scope, send, problem.status, headers, problem.body())
