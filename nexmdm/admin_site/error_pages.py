"""The answers to errors in Django views. The admin site answers with a page, and other paths with problem details."""

import sys
from typing import Final

from django.db import Error
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from nexmdm.api.application import api
from nexmdm.common import database, problems
from nexmdm.common.postgresql.errors import Meaning, meaning_of

_PATH: Final = "/django-admin/"


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    """Answer a request that the server cannot read, with 400."""
    return _page(
        400,
        "Bad request",
        "The server cannot read this request. The address of the page may contain an unknown filter, or a character "
        "that is not allowed. Open the list, and choose the filters in the list.",
    )


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    """Answer a request without the necessary rights, with 403."""
    return _page(
        403,
        "Forbidden",
        "Your account has no right to see this page. Nothing can be added, changed or deleted on this site.",
    )


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    """Answer an unknown path with 404: a page on the admin site, problem details on other paths."""
    if not request.path.startswith(_PATH):
        return problems.NOT_FOUND.response()
    return _page(
        404,
        "Page not found",
        "There is no page at this address. If another person sent you the address, compare it with the original "
        "address. To find a device or a command, use the search box of the home page.",
    )


def failed(request: HttpRequest) -> HttpResponse:
    """Answer an error of a view with problem details, as the API does. Errors in the code of NexMDM are logged."""
    error = sys.exc_info()[1]
    if isinstance(error, Error) and meaning_of(error) is Meaning.UNAVAILABLE:
        # Django catches this error, so the caller of the site does not see it. The outage must be noted here.
        database.note_unavailable(error)
    return _logged(api.on_exception(request, error) if isinstance(error, Exception) else problems.INTERNAL.response())


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer a form that fails the CSRF check, with 403.

    The usual cause is a proxy that does not forward the host or the scheme.
    """
    context = {
        "reason": reason,
        "seen": f"{request.scheme}://{request.get_host()}",
        "origin": request.headers.get("Origin", ""),
    }
    return HttpResponse(render_to_string("nexmdm/csrf_failure.html", context), status=403)


def _page(status: int, title: str, text: str) -> HttpResponse:
    # Rendered without the request. With the request, a context processor would read the user from the database.
    page = render_to_string("nexmdm/error.html", {"title": title, "text": text})
    return _logged(HttpResponse(page, status=status))


def _logged(response: HttpResponse) -> HttpResponse:
    """Mark an answer as logged. Without this mark, Django would log the same error again."""
    response._has_been_logged = True  # type: ignore[attr-defined]  # noqa: SLF001
    return response
