"""The headers of a request."""

from dataclasses import dataclass

from nexmdm.common.asgi_types import Scope


@dataclass(frozen=True, slots=True)
class Headers:
    """The headers of a request. `values` has the values of each lower-case name. `size` is the size of all headers in
    bytes.
    """

    values: dict[bytes, list[bytes]]
    size: int

    @classmethod
    def of(cls, scope: Scope) -> "Headers":
        """Return the headers of an ASGI scope."""
        values: dict[bytes, list[bytes]] = {}
        size = 0
        for name, value in scope["headers"]:
            values.setdefault(name, []).append(value)
            size += len(name) + len(value) + 4
        return cls(values, size)

    def last(self, name: bytes) -> bytes:
        """Return the last value of a header, or an empty value if the request does not have the header."""
        found = self.values.get(name)
        return found[-1] if found else b""
