"""The base of the errors that the API answers with a problem."""

from typing import ClassVar


class DomainError(Exception):
    """An error with a sentence for people: its text if it was raised with one, else the `detail` of its class."""

    detail: ClassVar[str] = ""

    def __str__(self) -> str:
        """Return the sentence."""
        return super().__str__() or self.detail
