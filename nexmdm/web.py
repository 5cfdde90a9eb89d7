"""One web worker on a listening socket that its parent opened: `python -m nexmdm.web`, NEXMDM_LISTEN_FD its number."""

import os
import socket
import sys
from typing import Final

import uvicorn

from nexmdm import lifeline

VARIABLE: Final = "NEXMDM_LISTEN_FD"
BACKLOG: Final = 2048


def main() -> None:
    """Serve until SIGTERM; requests in flight are then answered."""
    listener = socket.socket(fileno=int(os.environ.pop(VARIABLE)))
    server = uvicorn.Server(_config())
    lifeline.watch()
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)


def _config() -> uvicorn.Config:
    return uvicorn.Config(
        "nexmdm.asgi:application",
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=20,
        backlog=BACKLOG,
    )


if __name__ == "__main__":
    main()
