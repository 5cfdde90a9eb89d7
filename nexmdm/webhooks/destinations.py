"""The destinations that webhooks may have: public addresses by https, and the networks in WEBHOOK_ALLOW_PRIVATE.

An admin chooses the URL, but the request comes from inside the server's network. So a webhook must not reach an address
that only this network can reach. This rule applies to addresses in the URL and to addresses of its host name.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from django.conf import settings

LONGEST_URL: Final = 2048

Address = IPv4Address | IPv6Address

_FORM: Final = re.compile(r"https?://[!-~]+", re.IGNORECASE)
_LABEL: Final = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""If the last part of a host has this form, resolvers read the host as an IPv4 address. Examples are `127.1` and
`0x7f000001`.
"""

_HTTPS_PORT: Final = 443
_HTTP_PORT: Final = 80

_NOT_PUBLIC: Final = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
"""The networks of IANA's IPv4 Special-Purpose Address Registry, and multicast."""

_PUBLIC_V6: Final = IPv6Network("2000::/3")
"""IANA's IPv6 Global Unicast Addresses. Each IPv6 host of the internet has an address in this network."""

_NOT_PUBLIC_V6: Final = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20")
)
"""The networks in _PUBLIC_V6 that IANA's IPv6 Special-Purpose Address Registry contains, such as the network of Teredo.
"""

_NAT64: Final = IPv6Network("64:ff9b::/96")


class Destination(NamedTuple):
    """The parts of a webhook's URL.

    - `target` is the path with its query.
    - `authority` is the host, with the port if it is not the default port.
    """

    is_https: bool
    host: str
    port: int
    authority: str
    target: str


class Refused(ValueError):
    """A URL or an address is not allowed. The text is the end of a sentence that begins with `The URL`."""


def parse(url: str) -> Destination:
    """Return the parts of a URL. Raises Refused if the URL is malformed or its destination is not allowed.

    If the host is a name, its addresses are not looked up here.
    """
    if len(url) > LONGEST_URL or not _FORM.fullmatch(url) or "\\" in url:
        raise Refused(f"must be a URL such as https://example.com/events, of at most {LONGEST_URL} ASCII characters")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        raise Refused("must be a URL with a valid host and port") from None
    if "@" in parts.netloc:
        raise Refused(
            "must not contain a user or a password. The receiver can verify the signature of each request instead"
        )
    if "#" in url:
        raise Refused("must not contain a fragment")
    is_https = parts.scheme == "https"
    if port == 0:
        raise Refused("must have a port from 1 to 65535")
    _check_host(host, is_bracketed="[" in parts.netloc, is_https=is_https)
    target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    default = _HTTPS_PORT if is_https else _HTTP_PORT
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port in (None, default) else f"{shown}:{port}"
    return Destination(is_https, host, port or default, authority, target)


def _check_host(host: str, *, is_bracketed: bool, is_https: bool) -> None:
    literal = _literal(host, is_bracketed=is_bracketed)
    if literal is not None:
        check_addresses([literal], is_https=is_https)
        return
    name = host.removesuffix(".")
    if not _NAME.fullmatch(host) or len(name) > 253:
        raise Refused(
            "must have an IP address, or a host name in ASCII. The ASCII form of an international name begins with xn--"
        )
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        raise Refused("must have a host name, or an IPv4 address of four decimal numbers without leading zeros")
    is_local = name == "localhost" or name.endswith(".localhost")
    if is_local and not any(network.is_loopback for network in settings.WEBHOOK_ALLOW_PRIVATE):
        raise Refused(f"must not lead to this machine. {_HOW_TO_ALLOW}")
    if not is_https and not is_local:
        raise Refused("must begin with https://")


def _literal(host: str, *, is_bracketed: bool) -> Address | None:
    try:
        if not is_bracketed:
            return IPv4Address(host)
        if "%" not in host:
            return IPv6Address(host)
    except ValueError:
        pass
    if is_bracketed:
        raise Refused("must have a valid IPv6 address in its brackets, without a zone")
    return None


def check_addresses(addresses: Iterable[Address], *, is_https: bool) -> None:
    """Raise Refused if one of these addresses is not allowed for a webhook."""
    for address in addresses:
        seen = _embedded(address) or address
        allowed = [network for network in settings.WEBHOOK_ALLOW_PRIVATE if address in network or seen in network]
        if not allowed and not _is_public(seen):
            raise Refused(f"must not lead to {address}, which is not a public address. {_HOW_TO_ALLOW}")
        if not is_https and not (allowed and seen.is_loopback):
            raise Refused("must begin with https://, except for loopback networks in WEBHOOK_ALLOW_PRIVATE")


_HOW_TO_ALLOW: Final = "The setting WEBHOOK_ALLOW_PRIVATE can allow more networks"


def parse_address(text: str) -> Address:
    """Return the address in a resolver's result, without a zone."""
    return ip_address(text.partition("%")[0])


def _embedded(address: Address) -> IPv4Address | None:
    """Return the IPv4 address to which an IPv6 address leads (IPv4-mapped, NAT64, 6to4), or None."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC)
    return address in _PUBLIC_V6 and not any(address in network for network in _NOT_PUBLIC_V6)
