"""The names with which clients select types of events."""

import re
from typing import Final

from nexmdm.common.event_feed.events import EventType

_NAMES: Final = (
    *EventType, "standing.paused", "rollout.created", "rollout.wave_issued", "rollout.waiting", "rollout.paused",
    "rollout.resumed", "rollout.stopped", "rollout.finished",
)  # fmt: skip
"""All names that a client may select. No events exist yet for `standing.paused` and for names that begin with
`rollout.`.
"""
_PREFIX: Final = re.compile(r"[a-z_.]{0,31}\*")


def names_in(text: str) -> list[str]:
    """Return the names in a text. Commas separate the names. An empty text contains no names."""
    return text.split(",") if text else []


def check_name(name: str) -> str:
    """Return `name` if it is valid. A valid name is a type, or the beginning of type names followed by `*`.

    Raises ValueError for any other text.
    """
    if name not in _NAMES and not _PREFIX.fullmatch(name):
        raise ValueError(
            "must be types of events such as `device.enrolled`, or the beginnings of types such as `device.*`. The "
            f"types are {', '.join(EventType)}"
        )
    return name


def check_names(text: str) -> str:
    """Return `text`. Raises ValueError if check_name() refuses a name in the text."""
    for name in names_in(text):
        check_name(name)
    return text
