"""The event feed as a reader sees it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlencode

import psycopg
from django.db import connection

from nexmdm.common import database
from tests.support.actors import Admin, Answer

READABLE_WITHIN: Final = 20
"""The seconds in which transactions of the cluster's other databases end, such as the autovacuum's."""


def read(admin: Admin, **query: Any) -> Answer:
    """Read one page of events."""
    return admin.get(f"/admin/events?{urlencode(query)}" if query else "/admin/events")


def all_events(admin: Admin, **query: Any) -> list[dict[str, Any]]:
    """Read the feed page by page until everything committed is read."""
    return list(_pages(admin, query))


def _pages(admin: Admin, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ends_at = time.monotonic() + READABLE_WITHIN
    while True:
        answer = read(admin, **query)
        assert answer.status == 200, answer
        yield from answer.json["items"]
        if answer.json["caught_up"]:
            return
        assert time.monotonic() < ends_at, "an older write transaction is still open"
        query = query | {"after": answer.json["next_cursor"]}


def wait_until_readable() -> None:
    """Wait until a reader may see each event that is committed."""
    ends_at = time.monotonic() + READABLE_WITHIN
    while database.row(_WAITING)[0]:
        assert time.monotonic() < ends_at, "an older write transaction is still open"


_WAITING: Final = """
    SELECT EXISTS (SELECT FROM nexmdm_event WHERE xid >= pg_snapshot_xmin(pg_current_snapshot()))
"""


@contextmanager
def open_write_transaction() -> Iterator[psycopg.Connection[Any]]:
    """A transaction of another session that has begun to write, and is rolled back at the end unless committed."""
    with psycopg.connect(**connection.get_connection_params() | {"cursor_factory": psycopg.Cursor}) as other:
        other.execute("SELECT pg_current_xact_id()")
        yield other
        other.rollback()


def rows() -> list[tuple[Any, ...]]:
    """Return the type, device, request and data of each event stored, one for each device, in the order written."""
    found = database.rows("""
        SELECT type, device_id::text, request_id::text, data::text FROM nexmdm_event
        CROSS JOIN LATERAL unnest(COALESCE(device_ids, ARRAY[NULL]::uuid[])) WITH ORDINALITY AS one (device_id, place)
        ORDER BY id, place
    """)
    return [(*row, json.loads(data)) for *row, data in found]
