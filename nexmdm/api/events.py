"""The endpoint of the event feed."""

import asyncio
import time
from typing import Annotated, Any, Final
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from ninja import Query
from pydantic import AfterValidator, Field

from nexmdm.auth.admin_router import AdminRouter
from nexmdm.common import database, shutdown
from nexmdm.common.database import run_in_db_thread
from nexmdm.common.overload.shared_lookup import SharedLookup
from nexmdm.common.types import Body, Identifier, QueryInteger, QueryNumber, ResponseSchema, Time, respond
from nexmdm.events import cursor, event_types, feed
from nexmdm.events.cursor import Cursor
from nexmdm.events.recent import Filter, Key, Recent, Stretch

router = AdminRouter(tags=["events"])

POLL_SECONDS: Final = 0.1
"""The time between two queries for new events, in seconds.

One query serves all waiting clients of a process. A client gets an event at most 250 ms after the event's commit.
"""


def _place(text: str) -> str:
    if text not in ("", cursor.NOW):
        Cursor.parse(text)
    return text


After = Annotated[str, Field(max_length=120), AfterValidator(_place)]
"""A cursor of the event feed, or `now`, or an empty string for the oldest stored event."""


class EventQuery(Body):
    """The query of the event feed.

    - `after`: a `next_cursor`, `now`, or an empty text (the page begins with the oldest stored event).
    - `types`: names of event types, separated by commas. A name that ends in `*` means all types that begin with the
      text before the `*`.
    - `device_id`: only events about this device.
    - `wait_seconds`: the longest time to wait for an event, in seconds.
    """

    after: After = ""
    types: Annotated[str, Field(max_length=1000), AfterValidator(event_types.check_names)] = ""
    device_id: Identifier | None = None
    limit: Annotated[QueryInteger, Field(ge=1, le=1000)] = 100
    wait_seconds: Annotated[QueryNumber, Field(ge=0, le=30)] = 0


class EventRow(ResponseSchema):
    """One event. Every read of the event returns the same `id`. The content of `data` depends on `type`."""

    id: str
    type: str
    at: Time
    device_id: UUID | None
    request_id: UUID | None
    data: dict[str, Any]


class EventPage(ResponseSchema):
    """One page of the event feed. `caught_up` is true if no committed event follows `next_cursor` now."""

    items: list[EventRow]
    next_cursor: str
    caught_up: bool


@router.get("/events", response=EventPage, url_name="events")
async def list_events(request: HttpRequest, query: Query[EventQuery]) -> HttpResponse:
    """List the events of the fleet, oldest first. To continue, send `next_cursor` as `after`.

    The transaction that stores a fact also writes its event. So a fact that was rolled back has no event. The order of
    events never changes. A new event always comes after the events that a client has read. While an older write
    transaction is open in the database cluster, newer events wait for it, and `caught_up` is false. With `types` or
    `device_id`, a page may be empty although events follow. In this case `caught_up` is false: continue from
    `next_cursor`. Events are stored for `EVENT_RETENTION_DAYS`.
    """
    until = time.monotonic() + query.wait_seconds
    wanted = feed.Wanted(event_types.names_in(query.types), query.device_id)
    after = await run_in_db_thread(first_place, query.after)
    while True:
        looked_until = _recent.stretch.end
        page = await run_in_db_thread(feed.read, after, wanted, query.limit)
        if page.events or time.monotonic() >= until or shutdown.is_requested():
            return respond(_shown(page))
        if page.caught_up or page.next_cursor == after:
            after = await _until_match(page.next_cursor, looked_until, Filter(wanted), until)
        else:
            after = page.next_cursor
        database.continue_request()


def first_place(after: str) -> Cursor | None:
    """Return the cursor for the text `after`, or None for the oldest stored event."""
    if after == cursor.NOW:
        return feed.newest_place()
    return Cursor.parse(after) if after else None


async def _until_match(place: Cursor, looked_until: Key, wanted: Filter, until: float) -> Cursor:
    """Wait until a matching event may exist, or until `until`, a time of time.monotonic().

    The caller has examined all rows up to the later one of `place` and `looked_until`. Return the cursor to read from.
    This cursor is `place`, or a later cursor if no row between the two matches.
    """
    seen = max((place.xid, place.id), looked_until)
    while time.monotonic() < until and not shutdown.is_requested():
        stretch = await _stretch.outcome()
        if seen < stretch.start or wanted.matches_any(stretch, seen):
            break
        if seen < stretch.end:
            seen = stretch.end
            place = place._replace(xid=seen[0], id=seen[1], place=0)
        await asyncio.sleep(min(POLL_SECONDS, max(0.0, until - time.monotonic())))
        database.continue_request()
    return place


_recent: Final = Recent()


async def _look() -> Stretch:
    return await run_in_db_thread(_recent.look)


_stretch: Final = SharedLookup(_look, fresh_seconds=POLL_SECONDS / 2)


def _shown(page: feed.Page) -> EventPage:
    items = [
        EventRow(
            id=event.id,
            type=event.type,
            at=event.at,
            device_id=event.device_id,
            request_id=event.request_id,
            data=event.data,
        )
        for event in page.events
    ]
    return EventPage(items=items, next_cursor=page.next_cursor.text, caught_up=page.caught_up)
