"""The application on a socket of this machine, for programs that the tests run."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tests.support.actors import Client
from tests.support.moments import releasing_connection

METHODS: Final = ("GET", "POST", "PATCH", "DELETE")


class Handler(BaseHTTPRequestHandler):
    """Passes each request to the real ASGI application."""

    def handle_one_request(self) -> None:
        """Answer one request, then close."""
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = releasing_connection(
            Client().request, self.command, self.path, body or None, list(self.headers.items())
        )
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler] = Handler) -> Iterator[str]:
    """Serve requests by a handler, by default those of the API, until the end of the block. Yields the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
