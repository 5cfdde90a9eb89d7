"""The base of the errors that the API answers with a problem."""

from typing import ClassVar


class DomainError(Exception):
    """An error with a sentence for people: the text that it was raised with, else its class's `detail`."""

    detail: ClassVar[str] = ""

    def __str__(self) -> str:
        """Return the sentence."""
        return super().__str__() or self.detail
