"""Where the server of these settings answers, as seen from this machine."""

from typing import Final

from django.conf import settings
from django.http.request import validate_host

LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104
"""By which address a server is reached that listens on all of them."""


def of_settings() -> tuple[str, str | None]:
    """Return its URL; and a Host header that it accepts, if the address in the URL is none."""
    name = LOOPBACK.get(settings.HOST, settings.HOST)
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{settings.PORT}", host_instead_of(name)


def host_instead_of(name: str) -> str | None:
    """Return a Host header that the server accepts, where this name is none; else None."""
    if not settings.ALLOWED_HOSTS or validate_host(name, settings.ALLOWED_HOSTS):
        return None
    accepted: str = settings.ALLOWED_HOSTS[0]
    return accepted.removeprefix(".")
