"""HTTP connections to one server. They stay open between requests, and use TLS for https."""

import selectors
import ssl
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from typing import Final
from urllib.parse import urlsplit

from nexmdm.client.network import proxies
from nexmdm.client.network.transport import AnswerLost, NoConnection, Request, Response

CONNECT_SECONDS: Final = 10
"""The time limit for opening a connection, and for its TLS handshake, in seconds."""

_AGENT: Final = {"User-Agent": "nexmdm"}


class Connections:
    """The transport over the network. It follows no redirects, because a signature is valid for one target."""

    def __init__(self, url: str) -> None:
        """Store the address of the server. Only an https server is reached through a proxy."""
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._idle: list[HTTPConnection] = []

    def send(self, request: Request) -> Response:
        """Return the response to a request. Raises NoConnection or AnswerLost."""
        connection = self._kept() or self._opened(min(request.answer_seconds, CONNECT_SECONDS))
        connection.sock.settimeout(request.answer_seconds)
        try:
            connection.request(request.method, request.target, request.content or None, {**_AGENT, **request.headers})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, HTTPException) as error:
            connection.close()
            raise AnswerLost(_reason(error)) from error
        if answer.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> HTTPConnection | None:
        """Return an idle connection that the server has not closed, or None."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if not _is_readable(connection):
                return connection
            connection.close()

    def _opened(self, seconds: float) -> HTTPConnection:
        connection = self._new(seconds)
        try:
            connection.connect()
        except (OSError, HTTPException, UnicodeError) as error:
            connection.close()
            raise NoConnection(_reason(error), _advice(error)) from error
        return connection

    def _new(self, seconds: float) -> HTTPConnection:
        if self._tls is None:
            return HTTPConnection(self._host, self._port, timeout=seconds)
        proxy = proxies.proxy_for(self._host, self._port)
        if proxy is None:
            return HTTPSConnection(self._host, self._port, timeout=seconds, context=self._tls)
        connection = HTTPSConnection(proxy.host, proxy.port, timeout=seconds, context=self._tls)
        connection.set_tunnel(self._host, self._port, proxy.headers)
        return connection


def _is_readable(connection: HTTPConnection) -> bool:
    """Return whether data can be read. On an idle connection, this means that the server has closed it."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate cannot be verified: {error.verify_message}"
    if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
        return "the server's answer is not HTTP"
    if isinstance(error, UnicodeError):
        return "this cannot be the name of a host"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _advice(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            "If your own authority issued the certificate, set SSL_CERT_FILE to the file with the authority's "
            "certificate."
        )
    if isinstance(error, ssl.SSLError):
        return (
            "The server does not speak TLS as expected. Check whether the address begins correctly with http:// or "
            "https://, and check the port."
        )
    return ""
