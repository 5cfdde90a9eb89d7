#!/usr/bin/env python3
"""Open a ticket for each command that did not succeed, and each phone that lost its push target.

It reads the events of NexMDM by cursor, with Python's standard library only, and needs no address that NexMDM can
reach. Environment: NEXMDM_URL, ADMIN_KEY, HMAC_SECRET, TICKETS_URL, TICKETS_TOKEN. The argument is the file of the
cursor; with --once, it ends when no event is left. docs/operations/events.md explains it.
"""

import hashlib
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

TYPES = "command.finished,device.push_dead"
LONGEST_PAUSE_SECONDS = 60

Json = dict[str, Any]


class Problem(Exception):
    """An answer of NexMDM that is an error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}")
        self.status, self.code = status, code


def get(path: str, **query: Any) -> Json:
    """Read from NexMDM. The signature covers the method, the time and the target (docs/operations/http-api.md)."""
    target = f"{path}?{urlencode(query)}" if query else path
    timestamp, no_body = str(int(time.time())), hashlib.sha256(b"").hexdigest()
    message = f"NXD1\n{timestamp}\n\nGET\n{target}\n{no_body}"
    signature = hmac.new(os.environ["HMAC_SECRET"].encode(), message.encode(), "sha256").hexdigest()
    headers = {"X-Admin": os.environ["ADMIN_KEY"], "X-Timestamp": timestamp, "X-Signature": f"v1={signature}"}
    request = urllib.request.Request(os.environ["NEXMDM_URL"] + target, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: Json = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        is_problem = error.headers.get("Content-Type") == "application/problem+json"
        raise Problem(error.code, json.load(error)["code"] if is_problem else "") from error


def ticket_of(event: Json) -> Json | None:
    """The ticket for an event, or None if none is necessary.

    An event says what happened. It may be read days later, so the present state decides.
    """
    external_id = f"nexmdm-{event['id']}"
    if event["type"] == "device.push_dead":
        device = get(f"/admin/devices/{event['device_id']}")
        if device["push"] != "dead" or device["presence"] in ("revoked", "retired"):
            return None
        title = f"Commands reach {device['alias'] or device['hardware_id']} by heartbeat only: its push target is dead"
        return {"external_id": external_id, "title": title, "text": f"Device {event['device_id']}"}
    if event["data"]["outcome"] == "succeeded":
        return None
    path = f"/admin/commands/{event['request_id']}"
    rows = get(f"{path}/deliveries", state="not_succeeded", limit=50)["items"]
    failed = [row for row in rows if not row["late_result"] or row["late_result"]["status"] != "succeeded"]
    if not failed:
        return None
    title = f"{event['data']['action']} did not succeed on every phone: {event['data']['outcome']}"
    lines = [f"{row['alias'] or row['device_id']}: {row['state']}" for row in failed]
    return {"external_id": external_id, "title": title, "text": "\n".join(lines)}


def open_ticket(ticket: Json) -> None:
    """Open a ticket. The ticket system refuses a second one with the same external_id by 409."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['TICKETS_TOKEN']}"}
    request = urllib.request.Request(os.environ["TICKETS_URL"], json.dumps(ticket).encode(), headers)
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise


def read_page(cursor: str, wait_seconds: int) -> Json:
    """Read one page of events. If the cursor is too old, begin again with the oldest event."""
    try:
        return get("/admin/events", after=cursor, types=TYPES, limit=20, wait_seconds=wait_seconds)
    except Problem as problem:
        if problem.code != "cursor_expired":
            raise
    sys.stderr.write("Events are missing: the cursor is too old, or the database of NexMDM was restored.\n")
    return get("/admin/events", types=TYPES, limit=20)


def run(file: Path, *, once: bool) -> None:
    """Open tickets, and store the cursor after each page. If a page was interrupted, the next run reads it again."""
    cursor = file.read_text() if file.exists() else "now"
    while True:
        page = read_page(cursor, 0 if once else 30)
        for event in page["items"]:
            if ticket := ticket_of(event):
                open_ticket(ticket)
        is_stuck = not page["items"] and page["next_cursor"] == cursor
        cursor = page["next_cursor"]
        part = file.with_suffix(".part")
        part.write_text(cursor)
        part.replace(file)
        if once and (page["caught_up"] or is_stuck):
            return


def main() -> None:
    once, failures = "--once" in sys.argv, 0
    file = Path(next(word for word in sys.argv[1:] if word != "--once"))
    while True:
        began = time.monotonic()
        try:
            run(file, once=once)
        except (OSError, Problem) as error:
            if once or (isinstance(error, Problem) and error.status < 500 and error.status != 429):
                sys.exit(f"NexMDM or the ticket system refused: {error}")
            sys.stderr.write(f"{error}; trying again\n")
            failures = 0 if time.monotonic() - began > LONGEST_PAUSE_SECONDS else failures + 1
            time.sleep(min(LONGEST_PAUSE_SECONDS, 2**failures))
        except KeyboardInterrupt:
            sys.exit(0)
        else:
            return


if __name__ == "__main__":
    main()
