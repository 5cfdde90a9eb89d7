"""A busy worker accepts all waiting connections in one turn of its loop, so that their clients do not wait for many
turns.
"""

import asyncio
import socket
from typing import Final

import uvicorn
import uvloop

from nexmdm.asgi import application
from nexmdm.http.protocol import Protocol
from nexmdm.http.server import AcceptingServer

CLIENTS: Final = 100
TURNS: Final = 20


def test_waiting_connections_are_accepted_together() -> None:
    async def taken() -> int:
        config = uvicorn.Config(application, http=Protocol, ws="none", log_config=None, lifespan="off")
        config.load()
        server = AcceptingServer(config)
        server.lifespan = config.lifespan_class(config)
        with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS) as listener:
            listener.setblocking(False)
            await server.startup([listener])
            clients = [socket.create_connection(listener.getsockname()) for _ in range(CLIENTS)]
            for _ in range(TURNS):
                await asyncio.sleep(0)
            count = len(server.server_state.connections)
            for client in clients:
                client.close()
            await server.shutdown([listener])
        return count

    assert uvloop.run(taken()) == CLIENTS
