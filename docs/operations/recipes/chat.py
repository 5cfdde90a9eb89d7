#!/usr/bin/env python3
"""Post events to a chat: a receiver of a webhook of NexMDM, with Python's standard library only.

It runs next to NexMDM, or behind a proxy with TLS. Environment: WEBHOOK_SECRET (`nexmdm webhook add` prints it),
CHAT_URL (an incoming webhook of the chat, which takes {"text": …}), PORT. docs/operations/events.md explains it.
"""

import base64
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

CHAT_SECONDS = 8  # NexMDM waits for an answer for 10 seconds.
TOLERANCE_SECONDS = 300
LARGEST_BODY = 1_048_576
REMEMBERED = 10_000

Json = dict[str, Any]
posted: OrderedDict[str, None] = OrderedDict()
lock = Lock()


def is_signed(headers: Json, body: bytes, secret: str) -> bool:
    """Whether a request comes from NexMDM, and was signed a moment ago (Standard Webhooks, version v1)."""
    timestamp = headers.get("webhook-timestamp", "")
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers.get('webhook-id', '')}.{timestamp}.".encode() + body
    right = b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256"))
    given = headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(one.encode(), right) for one in given)


def text_of(event: Json) -> str | None:
    """The message about an event, or None if the chat need not know."""
    data = event["data"]
    device = data.get("alias") or data.get("device_id")
    match event["type"]:
        case "command.finished" if data["outcome"] != "succeeded":
            counts = ", ".join(f"{number} {state}" for state, number in data["counts"].items() if number)
            return f"{data['action']} ended as {data['outcome']}: {counts} ({data['request_id']})"
        case "device.enrolled" | "device.re_enrolled" | "device.revoked" | "device.reinstated" | "device.retired":
            return f"{device} is {event['type'].partition('.')[2].replace('_', '-')}"
        case "webhook.test":
            return "A test of the webhook"
    return None


def post_to_chat(url: str, text: str) -> int:
    """Post a message and return the chat's status; 503 if the chat gives no answer."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    content, kind = json.dumps({"text": escaped}).encode(), {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content, kind), timeout=CHAT_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 503


def deliver(webhook_id: str, event: Json, url: str) -> int:
    """Post an event that was not posted before, and return the status for NexMDM."""
    text = text_of(event)
    with lock:
        # NexMDM sends an event again if our answer was lost.
        if text is None or webhook_id in posted:
            return 204
        status = post_to_chat(url, text)
        if status == 429 or status >= 500:
            return 503  # NexMDM tries again later, and sends no later event before.
        if status >= 400:
            # The chat will never take this message: an error would stop all later ones.
            sys.stderr.write(f"The chat refused the event {webhook_id}: {status}\n")
        posted[webhook_id] = None
        if len(posted) > REMEMBERED:
            posted.popitem(last=False)
    return 204


class Handler(BaseHTTPRequestHandler):
    """Answers requests of NexMDM: 204 acknowledges an event, any other status asks for it again."""

    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True
            self.answer(413)
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not is_signed(headers, body, os.environ["WEBHOOK_SECRET"]):
            self.answer(401)
            return
        self.answer(deliver(headers["webhook-id"], json.loads(body), os.environ["CHAT_URL"]))

    def answer(self, status: int) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9001"))), Handler)
    sys.stderr.write(f"Listening on http://127.0.0.1:{server.server_port}/\n")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
