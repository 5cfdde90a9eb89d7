"""The address and scheme of the client: from the connection, or from the headers of a trusted proxy."""

from collections.abc import Iterable
from itertools import islice
from typing import Final

from django.conf import settings

from nexmdm.common import addresses, request_facts
from nexmdm.common.asgi_types import Scope
from nexmdm.common.headers import Headers

HOPS: Final = 32
"""The largest number of entries of X-Forwarded-For that are read, beginning with the last entry."""


def set_client(scope: Scope, headers: Headers) -> None:
    """Set the canonical address and the scheme of the client in the scope. Only headers of trusted proxies are used."""
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
    """Return the first address that is not a trusted proxy, or the last address if all are trusted proxies.

    An invalid entry ends the search. The result is then the last address before this entry, or None.
    """
    nearest = None
    for entry in islice(entries, HOPS):
        parsed = addresses.parse(entry.strip())
        if parsed is None:
            break
        nearest = str(parsed)
        if not addresses.is_trusted_proxy(nearest):
            break
    return nearest
