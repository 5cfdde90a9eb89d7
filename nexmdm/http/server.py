"""The server of one web worker, `python -m nexmdm.web`. The server listens on HOST and PORT, or on a socket of the
parent process.

NEXMDM_LISTEN_FD is the number of this socket. `serve` or systemd opens this socket, and several workers can share it.
"""

import asyncio
import errno
import os
import resource
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Any, Final

import uvicorn
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from nexmdm.standalone import parent_watch

VARIABLE: Final = "NEXMDM_LISTEN_FD"
BACKLOG: Final = 2048
AT_ONCE: Final = 128
"""The largest number of connections that are accepted in one turn of the event loop. With a limit, many new connections
do not delay other work.
"""

FIRST_UNPRIVILEGED_PORT: Final = 1024
_PORTS_TRIED: Final = 50

DESCRIPTORS: Final = 65_536
"""The limit on open files that a worker sets. Any client can easily use up the usual limit of 1,024."""


class CannotListen(RuntimeError):
    """The worker cannot listen on HOST and PORT. The text contains the reason.

    `free_port` is a port that is free, or None if no free port was found.
    """

    def __init__(self, text: str, free_port: int | None = None) -> None:
        super().__init__(text)
        self.free_port = free_port


def main() -> None:
    """Serve until SIGTERM. Then answer the requests in progress and return.

    If the worker cannot start, print the reason in one line, and exit.
    """
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nexmdm.settings")
    _raise_descriptor_limit()
    try:
        descriptor = os.environ.pop(VARIABLE, "")
        listener = socket.socket(fileno=int(descriptor)) if descriptor else listen()
        listener.setblocking(False)
        server = AcceptingServer(_config())
        parent_watch.watch()
        server.run(sockets=[listener])
    except (ImproperlyConfigured, CannotListen) as error:
        sys.exit(str(error))
    if not server.started:
        sys.exit(1)


def listen() -> socket.socket:
    """Return a socket that listens on HOST and PORT. Raises CannotListen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.HOST, settings.PORT, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(error) from error
    return listener


def _cannot_listen(error: OSError) -> CannotListen:
    text = f"Cannot listen on HOST {settings.HOST}, PORT {settings.PORT}: {error.strerror}."
    free_port = _free_port() if error.errno in (errno.EADDRINUSE, errno.EACCES) else None
    if free_port is None:
        return CannotListen(f"{text} Set another HOST or PORT.")
    return CannotListen(f"{text} Set another PORT: {free_port} is free.", free_port)


def _free_port() -> int | None:
    """Return the first free port above PORT that needs no privileges, or None if 50 ports are not free."""
    first = max(settings.PORT, FIRST_UNPRIVILEGED_PORT - 1) + 1
    family = socket.AF_INET6 if ":" in settings.HOST else socket.AF_INET
    for port in range(first, min(first + _PORTS_TRIED, 65_536)):
        with suppress(OSError), socket.create_server((settings.HOST, port), family=family):
            return port
    return None


def _raise_descriptor_limit() -> None:
    """Raise the limit on open files to DESCRIPTORS, or to the hard limit of the system if the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _config() -> uvicorn.Config:
    return uvicorn.Config(
        "nexmdm.asgi:application",
        loop="uvloop",
        http="nexmdm.http.protocol:Protocol",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=20,
        backlog=BACKLOG,
    )


class AcceptingServer(uvicorn.Server):
    """uvicorn's server on one listening socket. It accepts up to AT_ONCE waiting connections in one turn of the event
    loop.

    libuv 1.46 and later accepts only one connection in each turn of the event loop. The turns of a busy worker are
    long. So new connections would wait in the kernel's queue until their clients give up.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections. After uvicorn's server has accepted a connection, this class accepts the further
        connections that wait.
        """
        assert sockets is not None
        self._listener = sockets[0]
        self._make: Any = self.config.http_protocol_class
        self._looks = False
        self._opening: set[asyncio.Task[Any]] = set()
        self.config.http_protocol_class = self._make_and_look  # type: ignore[assignment]
        await super().startup(sockets)

    def _make_and_look(self, **given: Any) -> asyncio.Protocol:
        """Create the protocol of a connection that uvicorn's server has accepted. Then accept the further connections
        that wait.
        """
        if not self._looks:
            self._looks = True
            asyncio.get_running_loop().call_soon(self._take_waiting, given)
        protocol: asyncio.Protocol = self._make(**given)
        return protocol

    def _take_waiting(self, given: dict[str, Any]) -> None:
        self._looks = False
        for _ in range(AT_ONCE):
            if self.should_exit or not self._take_one(given):
                return
        self._looks = True
        asyncio.get_running_loop().call_soon(self._take_waiting, given)

    def _take_one(self, given: dict[str, Any]) -> bool:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # No connection waits, or no descriptor is left: uvicorn's server handles both.
            return False
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(partial(self._make, **given), connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True
