"""One web worker: `python -m nexmdm.web`, on HOST and PORT, or on a socket that its parent opened and listens on.

NEXMDM_LISTEN_FD is the number of that socket, which workers may share: serve passes it on, and so can systemd.
"""

import os
import resource
import socket
import sys
from typing import Final

import uvicorn
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from nexmdm.http.accepting import AcceptingServer
from nexmdm.standalone import parent_watch

VARIABLE: Final = "NEXMDM_LISTEN_FD"
BACKLOG: Final = 2048
DESCRIPTORS: Final = 65_536
"""The limit on open files and connections that a worker sets. The usual 1,024 are easily exhausted by any client."""


class CannotListen(RuntimeError):
    """HOST and PORT cannot be listened on; the text says why."""


def main() -> None:
    """Serve until SIGTERM, then answer the requests in flight. If it cannot start, print why in one line, and exit."""
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
    """Open a socket that listens on HOST and PORT. Raises CannotListen."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.HOST, settings.PORT, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(_why(error)) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(_why(error)) from error
    return listener


def _why(error: OSError) -> str:
    return f"Cannot listen on HOST {settings.HOST}, PORT {settings.PORT}: {error.strerror}. Set another one."


def _raise_descriptor_limit() -> None:
    """Raise the limit on open descriptors to DESCRIPTORS, or to the system's hard limit if that is lower."""
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
