"""Pages of lists, newest row first. A page begins below the last key of the page before it. So new and deleted rows do
not shift a page.
"""

import base64
import binascii
from typing import Annotated, Any, TypeVar
from uuid import UUID

from django.db.models import Model, QuerySet
from pydantic import AfterValidator, BaseModel, Field

from nexmdm.common.domain_error import DomainError
from nexmdm.common.types import QueryInteger

M = TypeVar("M", bound=Model)


def _cursor(value: str) -> str:
    decode(value)
    return value


class Page(BaseModel):
    """The query parameters of every list."""

    limit: Annotated[QueryInteger, Field(ge=1, le=500)] = 100
    cursor: Annotated[str, Field(max_length=100), AfterValidator(_cursor)] | None = None


def encode(key: UUID | int) -> str:
    """Return the cursor for the rows after the row with this key."""
    return base64.urlsafe_b64encode(str(key).encode()).decode().rstrip("=")


def decode(cursor: str) -> UUID | int:
    """Return the key in a cursor. Raises ValueError if NexMDM did not create the cursor."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        if text.isdigit() and len(text) < 19:
            return int(text)
        return UUID(text)
    except (binascii.Error, ValueError) as error:
        raise ValueError("must be a next_cursor from an answer of this list") from error


class ForeignCursor(DomainError):
    detail = "The cursor belongs to another list. Send a next_cursor from an answer of this list."


def paginate(rows: QuerySet[M], page: Page, key_type: type[Any]) -> tuple[list[M], str | None]:
    """Return one page of rows by descending primary key, and the cursor of the next page (None for the last page).

    `key_type` is the type of the primary key. Raises ForeignCursor if the cursor has a key of another type.
    """
    if page.cursor is not None:
        after = decode(page.cursor)
        if not isinstance(after, key_type):
            raise ForeignCursor
        rows = rows.filter(pk__lt=after)
    found = list(rows.order_by("-pk")[: page.limit + 1])
    shown = found[: page.limit]
    return shown, encode(shown[-1].pk) if len(found) > page.limit else None
