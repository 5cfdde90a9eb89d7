"""The client's address and scheme: those of the connection, or those that a trusted proxy forwards."""

from collections.abc import Iterable
from itertools import islice
from typing import Final

from django.conf import settings

from nexmdm.common import addresses, request_facts
from nexmdm.common.asgi_types import Scope
from nexmdm.common.headers import Headers

HOPS: Final = 32
"""The number of entries of X-Forwarded-For that are read, from its end. Trusted proxies did not write earlier ones."""


def set_client(scope: Scope, headers: Headers) -> None:
    """Set the client's canonical address; address and scheme are taken from the headers of trusted proxies only."""
    client = scope.get("client")
    if client is None:  # the client of a Unix socket, or a client that has left
        scope["client"] = ("", 0)
    elif ":" in client[0]:
        scope["client"] = (addresses.canonical(client[0]), client[1])
    if not settings.TRUSTED_PROXIES or not addresses.is_trusted_proxy(scope["client"][0]):
        return
    entries = b",".join(headers.values.get(b"x-forwarded-for", [])).decode("latin-1").split(",")
    if (named := _nearest_untrusted(reversed(entries))) is not None:
        scope["client"] = (named, 0)
        request_facts.of(scope).is_forwarded = True
    if headers.last(b"x-forwarded-proto").strip().lower() == b"https":
        scope["scheme"] = "https"


def _nearest_untrusted(entries: Iterable[str]) -> str | None:
    """Return the first address that is no trusted proxy; if there is none, the last one before an invalid entry."""
    nearest = None
    for entry in islice(entries, HOPS):
        parsed = addresses.parse(entry.strip())
        if parsed is None:
            break
        nearest = str(parsed)
        if not addresses.is_trusted_proxy(nearest):
            break
    return nearest
