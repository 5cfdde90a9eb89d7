"""A receiver of webhooks on this machine. It checks the signature of each request."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from nexmdm.client.events import webhook_signature
from nexmdm.client.events.webhook_signature import BadSignature
from nexmdm.client.rows import Json

LARGEST_BODY: Final = 1_048_576
REMEMBERED: Final = 100_000
"""How many of the newest event ids the receiver compares to recognize a repeated event."""

_IDLE_SECONDS: Final = 60
_TEXT: Final = "text/plain; charset=utf-8"


class Receiver:
    """A receiver of webhooks on 127.0.0.1.

    - `key`: the key in the secret of the webhook.
    - `took`: called with each event, in the form of the event feed. Its field `again` is true if the event was received
      before.
    - `refused`: called with the reason of each refusal. `took` and `refused` are never called at the same time.
    - `fail_with`: the status of the answer to each valid request. The default is 204.
    - `limit`: the number of events after which `run` returns.
    """

    def __init__(
        self,
        port: int,
        key: bytes,
        *,
        took: Callable[[Json], None],
        refused: Callable[[str], None],
        fail_with: int | None = None,
        limit: int | None = None,
    ) -> None:
        """Open the port. Raises OSError if the port cannot be used."""
        self._key = key
        self._took = took
        self._refused = refused
        self._fail_with = fail_with
        self._left = limit
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._server = _Server(("127.0.0.1", port), self._answer, self._answered)

    @property
    def url(self) -> str:
        """The URL of this receiver."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    def run(self) -> None:
        """Answer requests until `limit` events have come. Raises OSError if `took` or `refused` raises OSError."""
        try:
            self._server.serve_forever(poll_interval=0.1)
        finally:
            self._server.server_close()
        if self._error is not None:
            raise self._error

    def _answer(self, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        with self._lock:
            try:
                status, text = self._judged(headers, body)
                if status >= 400 and text:
                    self._refused(text)
            except OSError as error:
                # The output is closed, so the next event could not be printed.
                self._error = error
                return 503, "The receiver is stopping."
            return status, text

    def _answered(self) -> None:
        if self._error is not None or (self._left is not None and self._left <= 0):
            # shutdown() waits for the server, and the server waits for this thread. So a new thread calls shutdown().
            threading.Thread(target=self._server.shutdown).start()

    def _judged(self, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        try:
            webhook_id = webhook_signature.verify(self._key, headers, body, time.time())
        except BadSignature as bad:
            return 401, f"Bad signature: {bad}."
        event = _event(webhook_id, body)
        if event is None:
            return 400, "The body is not an event. An event is an object with type, timestamp and data."
        again = webhook_id in self._seen
        self._remember(webhook_id)
        self._took(event | {"again": again})
        if self._left is not None:
            self._left -= 1
        return (204, "") if self._fail_with is None else (self._fail_with, "")

    def _remember(self, webhook_id: str) -> None:
        self._seen[webhook_id] = None
        self._seen.move_to_end(webhook_id)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)


def _event(webhook_id: str, body: bytes) -> Json | None:
    """Return the event in a body, in the form of the event feed. Return None if the body is not an event."""
    try:
        content = json.loads(body)
        data = dict(content["data"])
        return {
            "id": webhook_id,
            "type": str(content["type"]),
            "at": str(content["timestamp"]),
            "device_id": data.pop("device_id", None),
            "request_id": data.pop("request_id", None),
            "data": data,
        }
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


Answer = Callable[[dict[str, str], bytes], tuple[int, str]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], answer: Answer, answered: Callable[[], None]) -> None:
        self.answer = answer
        self.answered = answered
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a broken connection. NexMDM sends the event again."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: _Server

    def do_POST(self) -> None:
        """Answer the request of a webhook."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True
            self._send(413 if length.isdecimal() else 411, "The body must have a Content-Length of at most 1 MiB.")
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            self._send(*self.server.answer(headers, body))
        finally:
            self.server.answered()

    def _send(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        if content:
            self.send_header("Content-Type", _TEXT)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing. The functions `took` and `refused` print everything."""
