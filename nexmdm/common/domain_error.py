"""The base class of the errors that the API answers with problem details."""

from typing import ClassVar


class DomainError(Exception):
    """An error with a text for people. The default text is the `detail` of the class."""

    detail: ClassVar[str] = ""

    def __str__(self) -> str:
        """Return the text."""
        return super().__str__() or self.detail
