"""A request's headers, by lower-case name."""

from dataclasses import dataclass

from nexmdm.common.asgi_types import Scope


@dataclass(frozen=True, slots=True)
class Headers:
    """The request's headers that the guard reads, by lower-case name."""

    values: dict[bytes, list[bytes]]
    size: int

    @classmethod
    def of(cls, scope: Scope) -> "Headers":
        """Read a scope's headers."""
        values: dict[bytes, list[bytes]] = {}
        size = 0
        for name, value in scope["headers"]:
            values.setdefault(name, []).append(value)
            size += len(name) + len(value) + 4
        return cls(values, size)

    def last(self, name: bytes) -> bytes:
        """Return the last value of a header, or nothing."""
        found = self.values.get(name)
        return found[-1] if found else b""
