"""The time of a page, by the database's clock. All relative times of a page are computed from this time."""

from contextvars import ContextVar
from datetime import datetime
from typing import Final

from nexmdm.common import database

_asked: Final[ContextVar[list[datetime] | None]] = ContextVar("page_time", default=None)


def begin() -> None:
    """Begin a page. The next call of now() reads the database's clock."""
    _asked.set([])


def now() -> datetime:
    """Return the time of the page. Without begin(), each call reads the database's clock."""
    asked = _asked.get()
    if asked is None:
        return database.now()
    if not asked:
        asked.append(database.now())
    return asked[0]
