"""Addresses: where the server of these settings answers, and by which name a client is counted."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from django.conf import settings
from django.http.request import validate_host

LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104
"""By which address a server is reached that listens on all of them."""

_HOST_BITS: Final = 64
"""One customer of an internet provider has a whole IPv6 /64, so that its addresses count as one."""


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


@lru_cache(maxsize=10_000)
def canonical(address: str) -> str:
    """Return the one name by which a client's address is counted.

    That is an IPv4 address (also of an IPv4-mapped IPv6 one), or the /64 of an IPv6 address; any other text stays.
    """
    parsed = _parse(address)
    if parsed is None:
        return address
    parsed = _unmapped(parsed)
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    network = int(parsed) >> _HOST_BITS << _HOST_BITS
    return f"{IPv6Address(network)}/{128 - _HOST_BITS}"


def is_trusted_proxy(address: str) -> bool:
    """Tell whether TRUSTED_PROXIES names this address, as it is written or as the IPv4 address that it maps."""
    parsed = _parse(address)
    if parsed is None:
        return False
    return any(one in network for network in settings.TRUSTED_PROXIES for one in (parsed, _unmapped(parsed)))


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(address)
    except ValueError:
        return None


def _unmapped(parsed: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed
