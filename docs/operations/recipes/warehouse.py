#!/usr/bin/env python3
"""Copy all events of NexMDM into a data warehouse, each once. SQLite stands for the warehouse.

It uses Python's standard library only. Run it again and again, as from cron. Environment: NEXMDM_URL, ADMIN_KEY,
HMAC_SECRET. The argument is the file of the database. docs/operations/events.md explains it.
"""

import hashlib
import hmac
import json
import os
import sqlite3
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

TABLES = """
    CREATE TABLE IF NOT EXISTS events (
        id TEXT PRIMARY KEY, type TEXT NOT NULL, at TEXT NOT NULL, device_id TEXT, request_id TEXT, data TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS place (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), cursor TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS gaps (at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, cursor TEXT NOT NULL);
"""

Json = dict[str, Any]


class CursorExpired(Exception):
    """Events after the cursor are deleted, or the database of NexMDM was restored."""


def get(path: str, **query: Any) -> Json:
    """Read from NexMDM. The signature covers the method, the time and the target (docs/operations/http-api.md)."""
    target = f"{path}?{urlencode(query)}"
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
        if error.code == 410:
            raise CursorExpired from error
        raise


def store(database: sqlite3.Connection, page: Json) -> None:
    """Store a page and the cursor behind it in one transaction: after a crash, no event is missing, and none twice."""
    with database:
        database.executemany(
            "INSERT OR IGNORE INTO events VALUES (:id, :type, :at, :device_id, :request_id, :data)",
            [event | {"data": json.dumps(event["data"])} for event in page["items"]],
        )
        database.execute("INSERT OR REPLACE INTO place VALUES (1, ?)", [page["next_cursor"]])


def begin_again(database: sqlite3.Connection, cursor: str) -> None:
    """Note that events may be missing, and continue with the oldest event. Events that are stored are left out."""
    with database:
        database.execute("INSERT INTO gaps (cursor) VALUES (?)", [cursor])
        database.execute("DELETE FROM place")
    sys.stderr.write("Events may be missing: see the table gaps.\n")


def copy(database: sqlite3.Connection) -> None:
    """Copy all events that can be read now."""
    while True:
        found = database.execute("SELECT cursor FROM place").fetchone()
        cursor = found[0] if found else ""
        try:
            page = get("/admin/events", after=cursor, limit=1000)
        except CursorExpired:
            begin_again(database, cursor)
            continue
        store(database, page)
        # Events may wait for an older transaction: the next run reads them.
        if page["caught_up"] or page["next_cursor"] == cursor:
            return


def main() -> None:
    with closing(sqlite3.connect(sys.argv[1])) as database:
        database.executescript(TABLES)
        try:
            copy(database)
        except OSError as error:
            sys.exit(f"NexMDM gives no answer: {error}. The next run continues.")


if __name__ == "__main__":
    main()
