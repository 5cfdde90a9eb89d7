"""The server of the settings that `manage.py fleet` runs with."""

from typing import Protocol


class OwnServer(Protocol):
    """The address of this server, and the secrets of its admins."""

    @property
    def url(self) -> str:
        """The address of this server."""

    @property
    def host(self) -> str | None:
        """A Host header that this server accepts, if it does not accept its address as Host."""

    def credentials(self, principal: str) -> tuple[str, str] | None:
        """Return the current key and secret of an admin; None if there is no such admin."""
