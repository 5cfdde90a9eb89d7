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
"""The time between two looks for new events. One look serves all waiting clients of a process. A client gets an event
within 250 ms after the event's commit."""


def _place(text: str) -> str:
    if text not in ("", cursor.NOW):
        Cursor.parse(text)
    return text


After = Annotated[str, Field(max_length=120), AfterValidator(_place)]
"""A cursor of the feed; `now`; or nothing, for the oldest event that is kept."""


class EventQuery(Body):
    """`after`: a `next_cursor`, `now`, or nothing (the feed then begins with the oldest stored event).

    `types`: names of types, separated by commas; a name that ends in `*` means all types that begin with the
    text before the `*`.
    `wait_seconds`: the longest time to wait for a first event.
    """

    after: After = ""
    types: Annotated[str, Field(max_length=1000), AfterValidator(event_types.check_names)] = ""
    device_id: Identifier | None = None
    limit: Annotated[QueryInteger, Field(ge=1, le=1000)] = 100
    wait_seconds: Annotated[QueryNumber, Field(ge=0, le=30)] = 0


class EventRow(ResponseSchema):
    """One event. `id` is the same whenever the event is read; `data` depends on `type`."""

    id: str
    type: str
    at: Time
    device_id: UUID | None
    request_id: UUID | None
    data: dict[str, Any]


class EventPage(ResponseSchema):
    """One page of the feed. `caught_up` is true if no committed event follows `next_cursor` now."""

    items: list[EventRow]
    next_cursor: str
    caught_up: bool


@router.get("/events", response=EventPage, url_name="events")
async def list_events(request: HttpRequest, query: Query[EventQuery]) -> HttpResponse:
    """List what happened to the fleet, in order, oldest first. Send `next_cursor` as `after` to continue.

    An event is written in the transaction that stores its fact, so a fact that was rolled back has no event. The order
    never changes, and no new event appears before an event that was read. While an older write transaction is open
    in the database's cluster, newer events wait for it, and `caught_up` is false. With `types` or `device_id`, a page
    may be empty although events follow (`caught_up` is false): continue from the page's `next_cursor`. Events are kept
    for `EVENT_RETENTION_DAYS`.
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
    """Return the place that an `After` names; None for the oldest event."""
    if after == cursor.NOW:
        return feed.newest_place()
    return Cursor.parse(after) if after else None


async def _until_match(place: Cursor, looked_until: Key, wanted: Filter, until: float) -> Cursor:
    """Wait until a wanted event may come after a place, or until a moment (monotonic time). Return the place to read.

    No row before `place` or `looked_until` needs another look. The place that is returned comes after all rows that
    did not match.
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
