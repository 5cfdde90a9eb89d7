"""The sender of webhooks, and programs that receive them. The reference library signs."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from standardwebhooks.webhooks import Webhook

from tests.support.processes import ROOT

DEVICE: Final = "0192f0c1-a2b3-7d4e-8f90-a1b2c3d4e5f6"
AT: Final = "2026-01-01T00:00:00.000000Z"
READY_SECONDS: Final = 20


def body(event_type: str, *, device_id: str | None = None, request_id: str | None = None, **data: Any) -> bytes:
    """Return the body of a webhook's request about an event."""
    content = {"type": event_type, "timestamp": AT, "data": {"device_id": device_id, "request_id": request_id, **data}}
    return json.dumps(content).encode()


def signed(secret: str, webhook_id: str, content: bytes, at: datetime | None = None) -> dict[str, str]:
    """Return the headers of a request with a signature of the reference library."""
    sent_at = at or datetime.now(UTC)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": Webhook(secret).sign(webhook_id, sent_at, content.decode()),
    }


def post(
    port: int,
    secret: str,
    body: bytes,
    *,
    webhook_id: str = "1-0",
    age: timedelta = timedelta(),
    sent: bytes | None = None,
    headers: dict[str, str | None] | None = None,
) -> tuple[int, str]:
    """Send a signed request when the receiver listens, and return its answer.

    `age` is how long ago it was signed. `sent` replaces the signed body, and `headers` replace signed headers, or
    remove them.
    """
    wait_for(port)
    given = (
        signed(secret, webhook_id, body, datetime.now(UTC) - age)
        | {"content-type": "application/json"}
        | (headers or {})
    )
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)) as connection:
        kept = {name: value.encode() for name, value in given.items() if value is not None}
        connection.request("POST", "/", body if sent is None else sent, kept)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def wait_for(port: int) -> None:
    """Wait until a program listens on a port of this machine."""
    ends_at = time.monotonic() + READY_SECONDS
    while True:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as connected:
            # Without a listener, the system may give the connection this very port, and it is connected with itself.
            if connected.getsockname() != connected.getpeername():
                return
        assert time.monotonic() < ends_at, f"nothing listens on {port}"
        time.sleep(0.01)


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def program(*argv: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program of ours until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *argv],
        env={**os.environ, **variables},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Send Ctrl-C to a program, and return what it still prints."""
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=READY_SECONDS)
