"""The interface between the HTTP client and the network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `url` is the server's address without a path. `target` is the path with its query, exactly as sent."""

    method: str
    url: str
    target: str
    headers: Mapping[str, str]
    content: bytes
    answer_seconds: float
    """The longest time to wait for each part of the answer, in seconds."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response. The names in `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class NoConnection(Exception):
    """The request was not sent. The message is the reason. `advice` is the remedy, or an empty string."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.advice = advice


class AnswerLost(Exception):
    """The request was sent, but no complete answer came. The message is the reason."""


class Transport(Protocol):
    """An object that sends requests to a server. Several threads may use it at the same time."""

    def send(self, request: Request) -> Response:
        """Return the response to a request. Raises NoConnection or AnswerLost."""

    def close(self) -> None:
        """Close the connections."""
