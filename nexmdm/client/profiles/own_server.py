"""The interface of the server whose settings `manage.py fleet` uses."""

from typing import Protocol


class OwnServer(Protocol):
    """The address of the server, and the secrets of its admins."""

    @property
    def url(self) -> str:
        """The address of the server."""

    @property
    def host(self) -> str | None:
        """The Host header for requests to `url`, or None if the server accepts the host in `url`."""

    def credentials(self, principal: str) -> tuple[str, str] | None:
        """Return the current key and secret of an admin, or None if there is no such admin."""
