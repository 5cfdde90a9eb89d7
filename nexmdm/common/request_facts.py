"""Facts about a request that several layers add to or read: who it is from, why it is refused."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from nexmdm.common.asgi_types import Scope

FACTS: Final = "nexmdm.facts"


@dataclass(slots=True)
class Facts:
    """Verified facts about a request, for the log line if it is refused. Never a secret.

    `code` is for an answer whose body has no code.
    """

    principal: str = ""
    device_id: UUID | None = None
    reason: str = ""
    code: str = ""


FORWARDED: Final = "nexmdm.forwarded"
"""Set in the scope of a request whose client address comes from a trusted proxy."""


def facts(scope: Scope) -> Facts:
    """Return the facts about a request; each layer adds those that it has verified."""
    known: Facts = scope.setdefault(FACTS, Facts())
    return known


def explain(scope: Scope, error: Exception) -> None:
    """Add the `reason` and the `device_id` of an error to the facts about the request that it ends."""
    reason, device_id = getattr(error, "reason", None), getattr(error, "device_id", None)
    if isinstance(reason, str) and reason:
        facts(scope).reason = reason
    if isinstance(device_id, UUID):
        facts(scope).device_id = device_id
