"""Cursors of the event feed. A cursor is a place before an event, in one epoch."""

import base64
import binascii
import re
from typing import Final, NamedTuple, Self

from nexmdm.common.domain_error import DomainError
from nexmdm.common.types import MAX_INTEGER

NOW: Final = "now"
"""The text that a client may send in place of a cursor. It means the place after the newest event."""

_FORM: Final = re.compile(r"([0-9a-f]{16}) ([0-9]{1,19}) ([0-9]{1,19}) ([0-9]{1,9})")


class CursorExpired(DomainError):
    detail = (
        "Events after this cursor were deleted, or the database was restored. Begin again with an empty `after`. "
        "Read the present state from GET /admin/devices and GET /admin/commands."
    )


class Cursor(NamedTuple):
    """The place from which a reader continues.

    The next event is the event with this transaction id, row and place in the row. If there is no such event, the next
    event is the first event after this place.
    """

    epoch: str
    xid: int
    id: int
    place: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the cursor with this text. Raises ValueError if NexMDM did not create the text."""
        try:
            plain = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        except (binascii.Error, ValueError):
            plain = ""
        found = _FORM.fullmatch(plain)
        numbers = [int(part) for part in found.groups()[1:]] if found else []
        if found is None or max(numbers) > MAX_INTEGER or cls(found[1], *numbers).text != text:
            raise ValueError("must be a next_cursor from an answer of GET /admin/events, or `now`, or empty")
        return cls(found[1], *numbers)

    @property
    def text(self) -> str:
        """The text of the cursor, for clients."""
        plain = f"{self.epoch} {self.xid} {self.id} {self.place}"
        return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")
