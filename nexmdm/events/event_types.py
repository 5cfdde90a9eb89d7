"""The names with which clients choose types of events."""

import re
from typing import Final

from nexmdm.common.event_feed.events import EventType

_NAMES: Final = (
    *EventType, "standing.paused", "rollout.created", "rollout.wave_issued", "rollout.waiting", "rollout.paused",
    "rollout.resumed", "rollout.stopped", "rollout.finished",
)  # fmt: skip
"""The names that a client may ask for. No fact has an event of the last ones yet."""
_PREFIX: Final = re.compile(r"[a-z_.]{0,31}\*")


def names_in(text: str) -> list[str]:
    """Return the names in a text, in which commas separate them. An empty text contains no name."""
    return text.split(",") if text else []


def check_name(name: str) -> str:
    """Return `name` if it names a type, or is a beginning of names followed by `*`. Raises ValueError otherwise."""
    if name not in _NAMES and not _PREFIX.fullmatch(name):
        raise ValueError(
            "must be types of events such as `device.enrolled`, or the beginnings of types such as `device.*`. The "
            f"types are {', '.join(_NAMES)}"
        )
    return name


def check_names(text: str) -> str:
    """Return a text that contains names with commas between them. Raises ValueError as check_name() does."""
    for name in names_in(text):
        check_name(name)
    return text
