"""The admin site's Content-Security-Policy, as middleware: its pages need our own files, and nothing inline."""

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any, Final

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


@sync_and_async_middleware
def content_security_policy(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Return the layer that adds the header to each answer."""
    if iscoroutinefunction(get_response):
        return _asynchronous(get_response)

    def layer(request: HttpRequest) -> HttpResponseBase:
        return _with_policy(get_response(request))

    return layer


def _asynchronous(
    get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], Awaitable[HttpResponseBase]]:
    async def layer(request: HttpRequest) -> HttpResponseBase:
        return _with_policy(await get_response(request))

    return layer


def _with_policy(response: HttpResponseBase) -> HttpResponseBase:
    response.headers.setdefault("Content-Security-Policy", POLICY)
    return response
