"""Names of types of events, as clients choose among them."""

import re
from typing import Final

from nexmdm.common.event_feed.events import EventType

_NAMES: Final = frozenset(EventType)
_PREFIX: Final = re.compile(r"[a-z_.]{0,31}\*")


def names_in(text: str) -> list[str]:
    """Return the names in a text, where commas separate them; none if the text is empty."""
    return text.split(",") if text else []


def check_name(name: str) -> str:
    """Return a name of a type, or a beginning of names with `*` at its end. Raises ValueError if it is neither."""
    if name not in _NAMES and not _PREFIX.fullmatch(name):
        raise ValueError(
            f"must be types of events, or beginnings of their names such as `device.*`: {', '.join(_NAMES)}"
        )
    return name


def check_names(text: str) -> str:
    """Return a text of names that commas separate. Raises ValueError as check_name() does."""
    for name in names_in(text):
        check_name(name)
    return text
