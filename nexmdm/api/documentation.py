"""A decorator for the pages that document the API. These pages load nothing from other servers."""

from collections.abc import Awaitable, Callable
from functools import wraps
from hashlib import sha256
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.utils.cache import get_conditional_response
from django.views.decorators.http import require_safe

View = Callable[..., HttpResponse]

_FROM_HERE_ONLY: Final = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def made_once(view: View) -> Callable[..., Awaitable[HttpResponse]]:
    """Wrap a view: call it only for the first request, and send its result to every client.

    One call takes about 40 ms, and every client may request the page. The answer is 304 if the request has the ETag of
    the page. The headers forbid the page to load anything from other servers. Methods other than GET and HEAD get 405.
    """
    made: list[_Document] = []

    @wraps(view)
    async def document(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not made:
            made.append(_Document(view(request, *args, **kwargs)))
        return made[0].answer_to(request)

    return require_safe(document)


class _Document:
    """The body of an answer, with its headers."""

    def __init__(self, response: HttpResponse) -> None:
        self._body = response.content
        self._etag = f'"{sha256(self._body).hexdigest()[:32]}"'
        self._headers = {
            "Content-Type": response["Content-Type"],
            "Content-Security-Policy": _FROM_HERE_ONLY,
            "Cache-Control": "no-cache",
            "ETag": self._etag,
        }

    def answer_to(self, request: HttpRequest) -> HttpResponse:
        whole = HttpResponse(self._body, headers=self._headers)
        return get_conditional_response(request, etag=self._etag, response=whole) or whole
