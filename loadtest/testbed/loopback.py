"""The address and the ports of the servers that tests start."""

import random
import socket
from contextlib import suppress
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_PORTS: Final = range(15_000, 32_000)
"""These ports are below the range of outgoing connections (ip_local_port_range). So the port of a stopped server stays
free."""


def free_port() -> int:
    """Return a port that is free. Raises OSError if no free port was found."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind((LOOPBACK, port))
            return port
    raise OSError("no port is free")
