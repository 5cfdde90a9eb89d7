"""A request, its response, and the two errors of a call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """A request: `url` is the server's address without a path, `target` the path and query exactly as they are sent."""

    method: str
    url: str
    target: str
    headers: Mapping[str, str]
    content: bytes
    answer_seconds: float
    """The seconds that the server may take for each part of its answer."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response. The names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class NoConnection(Exception):
    """The request was not sent. The text says why; `advice` says what to do, if that is known."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.advice = advice


class AnswerLost(Exception):
    """The request was sent, and no complete answer came. The text says why."""


class Transport(Protocol):
    """Carries requests to a server. Several threads may use it at the same time."""

    def send(self, request: Request) -> Response:
        """Return the response to a request. Raises NoConnection and AnswerLost."""

    def close(self) -> None:
        """Close the connections."""
