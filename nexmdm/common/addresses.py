"""Network addresses: the address of this server, and the forms in which client addresses are compared and counted."""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

from django.conf import settings
from django.http.request import validate_host

LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104
"""The keys are the values of HOST for a server that listens on all addresses. The value of a key is the address at
which clients on this machine reach this server.
"""

IPV6_PREFIX: Final = 64
"""The number of leading bits of an IPv6 address that identify the network of one client."""

_WITH_PORT: Final = re.compile(r"\[([^]]*)\](?::\d{1,5})?|([\d.]+):\d{1,5}")


def of_settings() -> tuple[str, str | None]:
    """Return the server's URL for clients on this machine, and the Host header that they must send.

    The header is None if the server accepts the host in the URL.
    """
    name = LOOPBACK.get(settings.HOST, settings.HOST)
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{settings.PORT}", host_instead_of(name)


def host_instead_of(name: str) -> str | None:
    """Return a Host header that ALLOWED_HOSTS accepts, or None if ALLOWED_HOSTS accepts `name`."""
    if not settings.ALLOWED_HOSTS or validate_host(name, settings.ALLOWED_HOSTS):
        return None
    accepted: str = settings.ALLOWED_HOSTS[0]
    return accepted.removeprefix(".")


def parse(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address in a text, or None if the text is not an address.

    A port, the brackets of an IPv6 address, and a zone (`%eth0`) are ignored. An IPv4-mapped IPv6 address becomes an
    IPv4 address.
    """
    found = _WITH_PORT.fullmatch(text)
    try:
        parsed = ip_address((found[1] or found[2] if found else text).partition("%")[0])
    except ValueError:
        return None
    return (isinstance(parsed, IPv6Address) and parsed.ipv4_mapped) or parsed


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """Return an address in its canonical form. Any other text, such as the empty text of a Unix socket, stays
    unchanged.
    """
    parsed = parse(text)
    return text if parsed is None else str(parsed)


@lru_cache(maxsize=4096)
def counting_key(text: str) -> str:
    """Return the key by which the requests of an address are counted. For an IPv6 address, the key is its /64 network.

    A client usually owns a whole /64 network, and can send each request from another address of this network.
    """
    parsed = parse(text)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, IPV6_PREFIX), strict=False))
    return text if parsed is None else str(parsed)


def is_trusted_proxy(text: str) -> bool:
    """Return whether TRUSTED_PROXIES contains this address."""
    parsed = parse(text)
    return parsed is not None and any(parsed in network for network in settings.TRUSTED_PROXIES)


def is_loopback(text: str) -> bool:
    """Return whether this is a loopback address."""
    parsed = parse(text)
    return parsed is not None and parsed.is_loopback
