"""Reading the event feed: pages after a cursor, each event with a cursor from which to continue."""

from typing import Final

from nexmdm.client.http_client import FleetClient
from nexmdm.client.rows import Json

OLDEST: Final = ""
NOW: Final = "now"
PAGE: Final = 500
_PATH: Final = "/admin/events"


class EventFeed:
    """Reads events of one feed in order.

    `after` is the cursor of the next page: all events before it have been read. `caught_up` is True if no event
    followed the last page.
    """

    def __init__(self, client: FleetClient, after: str, wanted: Json) -> None:
        """`after` is a cursor, NOW or OLDEST; `wanted` are the filters of the API."""
        self._client = client
        self._wanted = wanted
        self.after = after
        self.caught_up = False
        self.is_stuck = False

    def read(self, limit: int, *, wait_seconds: float = 0) -> list[Json]:
        """Return the next page, with at most `limit` events; wait up to `wait_seconds` for a first event.

        Each event gets a `cursor`. A reader that continues there misses nothing, but may get events of the same page
        again. The cursor of a page's last event is the place after this event. Raises Refused and Unreachable.
        """
        start = self.after
        # NOW and OLDEST are not cursors. So the first page has only one event, which gets the cursor after it.
        size = 1 if start in (OLDEST, NOW) else min(limit, PAGE)
        page = self._client.get(_PATH, after=start, limit=size, wait_seconds=wait_seconds or None, **self._wanted)
        events, reached = page["items"], page["next_cursor"]
        self.after, self.caught_up = reached, page["caught_up"]
        self.is_stuck = not events and not self.caught_up and reached == start
        return [event | {"cursor": reached if event is events[-1] else start} for event in events]
