"""Facts about one request, which all layers of the server share. They are stored in the request's ASGI scope."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from nexmdm.common.asgi_types import Scope
from nexmdm.common.headers import Headers
from nexmdm.common.problems import Problem

_KEY: Final = "nexmdm.request_facts"
_NO_HEADERS: Final = Headers({}, 0)


@dataclass(slots=True)
class RequestFacts:
    """Facts about one request. Each layer adds facts that it has verified. No fact is a secret.

    - `route` is empty until the route is known.
    - `status` is the status of the answer, and 0 until the answer begins.
    - `refused_body` is the problem in the answer, if the protocol has refused the body. No more of the body arrives.
    - `reason` is for the log.
    - `code` is the error code of an answer whose body contains no code.
    """

    correlation_id: str = ""
    headers: Headers = _NO_HEADERS
    route: str = ""
    status: int = 0
    is_forwarded: bool = False
    """Whether the client's address comes from a trusted proxy."""

    is_another_target: bool = False
    """Whether the request target is not a path. In this case, the scope's `path` contains only a part of the target."""

    refused_body: Problem | None = None
    principal: str = ""
    device_id: UUID | None = None
    reason: str = ""
    code: str = ""
    client_has_left: bool = False
    """Whether the server knows that the client has closed its connection."""


def of(scope: Scope) -> RequestFacts:
    """Return the facts about the request of this scope."""
    known: RequestFacts | None = scope.get(_KEY)
    if known is None:
        known = scope[_KEY] = RequestFacts()
    return known


def explain(scope: Scope, error: Exception) -> None:
    """If an error has a `reason` or `device_id`, copy these attributes to the facts about the request."""
    reason, device_id = getattr(error, "reason", None), getattr(error, "device_id", None)
    if isinstance(reason, str) and reason:
        of(scope).reason = reason
    if isinstance(device_id, UUID):
        of(scope).device_id = device_id
