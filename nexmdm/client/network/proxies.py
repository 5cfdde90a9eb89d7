"""The HTTP proxy for the server, from the environment."""

import base64
import importlib
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from nexmdm.client.network.transport import NoConnection


class Proxy(NamedTuple):
    """An HTTP proxy, which opens a tunnel to the server. `headers` are for the request that opens the tunnel."""

    host: str
    port: int
    headers: dict[str, str]


def proxy_for(host: str, port: int | None) -> Proxy | None:
    """Return the proxy for an https server, from HTTPS_PROXY, ALL_PROXY and NO_PROXY, or None.

    Raises NoConnection if the proxy is not an HTTP proxy.
    """
    # Imported here, because requests to this machine do not need this slow import.
    request = importlib.import_module("urllib.request")
    known = request.getproxies()
    address = known.get("https") or known.get("all")
    if not address or request.proxy_bypass(host if port is None else f"{host}:{port}"):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname:
        raise NoConnection(
            f"the proxy of the environment ({parts.scheme}://{parts.hostname}) is not an HTTP proxy",
            "Set HTTPS_PROXY to an address that begins with http://, or add the server to NO_PROXY.",
        )
    return Proxy(parts.hostname, parts.port or 80, _headers(parts.username, parts.password))


def _headers(name: str | None, password: str | None) -> dict[str, str]:
    if name is None:
        return {}
    pair = f"{unquote(name)}:{unquote(password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
