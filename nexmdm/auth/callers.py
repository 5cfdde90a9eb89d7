"""What an endpoint may ask of the signed caller of an admin request, who is made known one floor up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The outcome of a signed write: its answer, and what the audit and a repeat should know.

    `secrets` are shown in the answer and never stored; `kept` False (a dry run) stores nothing for a repeat.
    """

    answer: BaseModel
    request_id: UUID | None = None
    secrets: Mapping[str, str] = field(default_factory=dict)
    kept: bool = True


class Caller(Protocol):
    """An admin whose signature was good."""

    @property
    def principal(self) -> str:
        """Who calls, whichever of its keys it used."""

    async def run(
        self,
        work: Callable[[], WriteResult],
        *,
        restore_secrets: Callable[[dict[str, Any]], Mapping[str, str]] | None = None,
    ) -> HttpResponse:
        """Do the work once, in one transaction with its audit entry and stored answer; a repeat gets the answer again.

        `reveal` finds the secrets of a stored answer again.
        """


def caller_of(request: HttpRequest) -> Caller:
    """Return the caller of a signed request."""
    return cast("Caller", request.auth)  # type: ignore[attr-defined]
