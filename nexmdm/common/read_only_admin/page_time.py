"""The time of a page, from the database's clock, which is read once for each page with relative times."""

from contextvars import ContextVar
from datetime import datetime
from typing import Final

from nexmdm.common import database

_asked: Final[ContextVar[list[datetime] | None]] = ContextVar("page_time", default=None)


def begin() -> None:
    """Begin a page: the next call of now() reads the database's clock."""
    _asked.set([])


def now() -> datetime:
    """Return the page's time."""
    asked = _asked.get()
    if asked is None:
        return database.now()
    if not asked:
        asked.append(database.now())
    return asked[0]
