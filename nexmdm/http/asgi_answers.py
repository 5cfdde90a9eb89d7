"""Complete answers, sent by ASGI applications that are not Django handlers."""

from collections.abc import Iterable

from nexmdm.common.asgi_types import Scope, Send
from nexmdm.common.problems import Problem

Header = tuple[bytes, bytes]


async def answer(scope: Scope, send: Send, status: int, headers: Iterable[Header], body: bytes = b"") -> None:
    """Send an answer, without its body if the request is a HEAD."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def refuse(scope: Scope, send: Send, problem: Problem) -> None:
    """Send a problem."""
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.all_headers().items()]
    await answer(scope, send, problem.status, headers, problem.body())
