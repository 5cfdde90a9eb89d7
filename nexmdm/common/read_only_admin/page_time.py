"""The time at which a page is made: the database's, asked once for each page that shows how long ago something was."""

from contextvars import ContextVar
from datetime import datetime
from typing import Final

from nexmdm.common import database

_asked: Final[ContextVar[list[datetime] | None]] = ContextVar("page_time", default=None)


def begin() -> None:
    """Begin a page: the first call of now() after this asks the database."""
    _asked.set([])


def now() -> datetime:
    """Return the page's time."""
    asked = _asked.get()
    if asked is None:
        return database.now()
    if not asked:
        asked.append(database.now())
    return asked[0]
