"""A reader of the event feed."""

from typing import Final

from nexmdm.client.http_client import FleetClient
from nexmdm.client.rows import Json

OLDEST: Final = ""
NOW: Final = "now"
PAGE: Final = 500
_PATH: Final = "/admin/events"


class EventFeed:
    """A reader of the event feed, page by page.

    - `after`: the cursor of the next page. All events before it have been read.
    - `caught_up`: true if no event followed the last page.
    - `is_stuck`: true if newer events wait for an older transaction in the database.
    """

    def __init__(self, client: FleetClient, after: str, wanted: Json) -> None:
        """Begin after `after`: a cursor, NOW or OLDEST. `wanted` contains the filters of the API."""
        self._client = client
        self._wanted = wanted
        self.after = after
        self.caught_up = False
        self.is_stuck = False

    def read(self, limit: int, *, wait_seconds: float = 0) -> list[Json]:
        """Return the next page, with at most `limit` events. Wait up to `wait_seconds` for an event.

        Each event gets a field `cursor`. A reader that continues from this cursor misses no event, but may read events
        of the same page again. The cursor of the last event of a page is the place directly after this event. Raises
        Refused or Unreachable.
        """
        start = self.after
        # NOW and OLDEST are not cursors, so they cannot be the cursor of an event. The first page has only one event.
        # This event gets the cursor after it.
        size = 1 if start in (OLDEST, NOW) else min(limit, PAGE)
        page = self._client.get(_PATH, after=start, limit=size, wait_seconds=wait_seconds or None, **self._wanted)
        events, reached = page["items"], page["next_cursor"]
        self.after, self.caught_up = reached, page["caught_up"]
        self.is_stuck = not events and not self.caught_up and reached == start
        return [event | {"cursor": reached if event is events[-1] else start} for event in events]
