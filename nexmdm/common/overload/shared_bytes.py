"""A limit on the bytes that are kept for clients without a valid credential: in total, and for each address."""

from typing import Final

PART: Final = 4
"""One address gets at most a quarter (1 / PART) of the bytes, so only several addresses together can take all of them.
"""


class SharedBytes:
    """Counts the bytes that each address uses; the names of addresses are those of addresses.counting_key().

    The empty name counts in total only: clients of a Unix socket or behind a trusted proxy have it.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0
        self._by_name: dict[str, int] = {}

    def fit(self, name: str, more: int) -> bool:
        """Return whether this number of further bytes is within both limits."""
        if self.taken + more > self.total:
            return False
        return not name or self._by_name.get(name, 0) + more <= self.total // PART

    def change(self, name: str, by: int) -> None:
        """Take this number of bytes; a negative number gives bytes back."""
        if not by:
            return
        self.taken += by
        left = self._by_name.get(name, 0) + by
        if left:
            self._by_name[name] = left
        else:
            self._by_name.pop(name, None)
