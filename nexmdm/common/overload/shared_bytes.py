"""How many bytes are kept for clients that have proved nothing: together, and for each address."""

from typing import Final

PART: Final = 4
"""An address gets this part of the bytes at most, a quarter: so it takes several to leave none for the others."""


class SharedBytes:
    """Bytes that are taken and given back under the name of an address, as address.counting_key() returns it.

    The empty name counts in total only: it stands for clients of a Unix socket or behind a trusted proxy.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0
        self._by_name: dict[str, int] = {}

    def fit(self, name: str, more: int) -> bool:
        """Tell whether so many more bytes are within both bounds."""
        if self.taken + more > self.total:
            return False
        return not name or self._by_name.get(name, 0) + more <= self.total // PART

    def change(self, name: str, by: int) -> None:
        """Take so many more bytes; give some back if it is less than nothing."""
        if not by:
            return
        self.taken += by
        left = self._by_name.get(name, 0) + by
        if left:
            self._by_name[name] = left
        else:
            self._by_name.pop(name, None)
