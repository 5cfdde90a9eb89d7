"""Problem details (RFC 9457): the form of every error in an answer of the API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import orjson
from django.http import HttpResponse

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 1
MOST_ERRORS: Final = 100
"""The largest number of errors in one problem."""

# The code of each status, for an error without a code of its own.
GENERAL: Final[Mapping[int, str]] = {
    400: "invalid_request",
    401: "invalid_token",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "rate_limited",
    431: "headers_too_large",
    500: "internal",
    503: "overloaded",
}


def demanded(status: int) -> dict[str, str]:
    """Return the headers that every answer with this status must have."""
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as the API answers it. `code` is for programs and never changes; `detail` is a sentence for people."""

    status: int
    code: str
    detail: str
    errors: Sequence[Mapping[str, Any]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The standard phrase of the status."""
        return HTTPStatus(self.status).phrase

    def body(self) -> bytes:
        """Return the JSON of the problem, with at most MOST_ERRORS errors."""
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.errors is not None:
            content["errors"] = self.errors[:MOST_ERRORS]
        return orjson.dumps(content)

    def all_headers(self) -> dict[str, str]:
        """Return all headers of the answer, with the headers that its status requires."""
        return {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"} | demanded(self.status) | dict(self.headers)

    def response(self) -> HttpResponse:
        """Return the problem as a response of Django."""
        return HttpResponse(self.body(), status=self.status, headers=self.all_headers())


def general(status: int, detail: str, **headers: str) -> Problem:
    """Return a problem with the code of GENERAL for this status. If GENERAL has no code for this status, the code is
    `error`.
    """
    return Problem(status, GENERAL.get(status, "error"), detail, headers=headers)


TARGET_IS_NO_PATH: Final = general(
    400,
    "The request target must be a path, with or without a query. Remove scheme, host and fragment.",
)
NOT_FOUND: Final = general(404, "There is nothing at this path.")
INTERNAL: Final = general(
    500, "The server failed. To find the cause, search the server's log for the X-Correlation-ID of this answer."
)
DATABASE_UNAVAILABLE: Final = Problem(
    503, "database_unavailable", "The database cannot be reached. Try again in a few seconds."
)
STOPPING: Final = Problem(
    503, "overloaded", "This server process is stopping. Send the request again. Another process will answer."
)
