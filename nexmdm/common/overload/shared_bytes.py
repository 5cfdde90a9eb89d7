"""A limit on the memory for clients without a valid credential: in total and for each address."""

from typing import Final

PART: Final = 4
"""One address may use at most a quarter (1 / PART) of the bytes."""


class SharedBytes:
    """Counts the bytes that each address uses. `total` is the limit for all addresses together.

    `name` is the addresses.counting_key() of an address. An empty name counts only in total. Clients of a Unix socket
    and clients behind a trusted proxy have an empty name.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0
        self._by_name: dict[str, int] = {}

    def fit(self, name: str, more: int) -> bool:
        """Return whether `more` further bytes are within the limit of the address and the total limit."""
        if self.taken + more > self.total:
            return False
        return not name or self._by_name.get(name, 0) + more <= self.total // PART

    def change(self, name: str, by: int) -> None:
        """Count `by` more bytes for an address. A negative number gives bytes back."""
        if not by:
            return
        self.taken += by
        left = self._by_name.get(name, 0) + by
        if left:
            self._by_name[name] = left
        else:
            self._by_name.pop(name, None)
