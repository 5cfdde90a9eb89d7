"""The check of the event feed in a run.

The check compares three things: the facts in the tables, the events in the database, and the events that a client read
during the fault. Each fact must have exactly one event, and each event must have a fact. The client must get each event
once, in the order of the feed.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import orjson
import psycopg

from loadtest.chaos.ledgers import none, part
from loadtest.load.targets import Target
from nexmdm.client.http_client import FleetClient

TARGET: Final = "/admin/events"
LIMIT: Final = 1000
WAIT_SECONDS: Final = 2
ANSWER_SECONDS: Final = 20
PAUSE_SECONDS: Final = 0.2
_TIMEOUT: Final = aiohttp.ClientTimeout(total=ANSWER_SECONDS)

Fact = tuple[str, ...]
"""Four texts that identify a fact: the event type, the request id, the device id, and a detail, for example the state.
If an event type has no request id, device id or detail, this text is empty."""

_FACTS: Final = """
    SELECT ARRAY['device.updated', '', id::text, alias] FROM devices_device
    WHERE starts_with(alias, 'renamed ')
    UNION ALL
    SELECT ARRAY['device.push_dead', '', id::text, ''] FROM devices_device WHERE push_token_dead_at IS NOT NULL
    UNION ALL
    SELECT ARRAY['device.online', '', device_id::text, ''] FROM devices_presence WHERE online_from IS NOT NULL
    UNION ALL
    SELECT ARRAY[type, '', device_id::text, '']
    FROM devices_presencespan CROSS JOIN unnest(ARRAY['device.online', 'device.offline']) AS type
    UNION ALL
    SELECT ARRAY['command.issued', id::text, '', ''] FROM commands_command
    UNION ALL
    SELECT ARRAY['command.finished', id::text, '', outcome] FROM commands_command WHERE finished_at IS NOT NULL
    UNION ALL
    SELECT ARRAY['delivery.settled', command_id::text, device_id::text, state] FROM commands_delivery
    WHERE settled_at IS NOT NULL
    UNION ALL
    SELECT ARRAY['delivery.settled', delivery.command_id::text, delivery.device_id::text, 'late ' || report.status]
    FROM commands_report report JOIN commands_delivery delivery ON delivery.id = report.delivery_id
    WHERE report.late AND NOT report.duplicate
    UNION ALL
    SELECT ARRAY['audit.refused', '', '', code] FROM nexmdm_auditentry WHERE status >= 400
"""
_EVENTS: Final = """
    SELECT to_hex((extract(epoch FROM at) * 1000000)::bigint) || '-' || id || '-' || one.place - 1, type,
        COALESCE(request_id::text, ''), COALESCE(one.device_id::text, ''),
        data::text
    FROM nexmdm_event
    CROSS JOIN LATERAL unnest(COALESCE(device_ids, ARRAY[NULL]::uuid[])) WITH ORDINALITY AS one (device_id, place)
    ORDER BY xid, id, one.place
"""


@dataclass(frozen=True, slots=True)
class FeedSnapshot:
    """The content of the database in one snapshot.

    - `facts`: how often each fact is in the tables, without the table of events.
    - `ids`: the ids of all events, in the order of the feed.
    - `events`: how often each fact is in an event. Only the event types in `_JUDGED` count.
    """

    facts: Counter[Fact]
    ids: list[str]
    events: Counter[Fact]


def read(database_url: str) -> FeedSnapshot:
    """Read the facts and the events of the database in one snapshot."""
    with psycopg.connect(database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        facts = Counter(tuple(row) for (row,) in connection.execute(_FACTS))
        rows = connection.execute(_EVENTS).fetchall()
    events = (_fact(event_type, request, device, orjson.loads(data)) for _, event_type, request, device, data in rows)
    return FeedSnapshot(facts, [row[0] for row in rows], Counter(event for event in events if event[0] in _JUDGED))


_JUDGED: Final = frozenset(
    {
        "device.updated", "device.push_dead", "device.online", "device.offline", "command.issued", "command.finished",
        "delivery.settled", "audit.refused",
    }
)  # fmt: skip
"""The event types whose facts can also be read from a table other than the table of events."""


def _fact(event_type: str, request_id: str, device_id: str, data: Mapping[str, Any]) -> Fact:
    detail = ""
    if event_type == "command.finished":
        detail = data["outcome"]
    elif event_type == "delivery.settled":
        detail = f"late {data['result']['status']}" if data["late"] else data["state"]
    elif event_type == "device.updated":
        detail = data["alias"]
    elif event_type == "audit.refused":
        detail = data["code"]
    return event_type, request_id, device_id, detail


@dataclass(slots=True)
class FeedReader:
    """A client that follows the event feed from its beginning.

    `ids` contains the ids of the events that the client has read.
    """

    admin: FleetClient
    ids: list[str] = field(default_factory=list)
    _cursor: str = ""

    async def follow(self) -> None:
        """Read the feed until cancelled. After an error or a missing answer, continue from the last cursor."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                await self._read_page(session)

    async def read_until(self, event_id: str, seconds: float) -> None:
        """Read the feed until the event `event_id` was read, but for at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), aiohttp.ClientSession(timeout=_TIMEOUT) as session:
                while event_id not in self.ids[-2 * LIMIT :]:
                    await self._read_page(session)

    async def _read_page(self, session: aiohttp.ClientSession) -> None:
        """Read one page. If the server does not answer with a page, wait for PAUSE_SECONDS."""
        try:
            page = await self._page(session)
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            await asyncio.sleep(PAUSE_SECONDS)
            return
        self.ids += [event["id"] for event in page["items"]]
        self._cursor = page["next_cursor"]

    async def _page(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        query = urlencode({"after": self._cursor, "limit": LIMIT, "wait_seconds": WAIT_SECONDS})
        target = f"{TARGET}?{query}"
        headers = self.admin.sign("GET", target, b"")
        async with session.get(self.admin.url + target, headers=headers) as response:
            response.raise_for_status()
            return dict(orjson.loads(await response.read()))


def compare(snapshot: FeedSnapshot, read_ids: Iterable[str]) -> list[Target]:
    """Compare the facts, the events, and the ids of the events that a client read.

    Return the result of one check (a Target) for each promise.
    """
    got = list(read_ids)[: len(snapshot.ids)]
    in_place = sum(one == other for one, other in zip(got, snapshot.ids, strict=False))
    matched = snapshot.facts & snapshot.events
    return [
        Target("facts with exactly one event", "all", *part(matched.total(), snapshot.facts.total())),
        none("events without a fact", (snapshot.events - snapshot.facts).total()),
        Target(
            "events that a client of the feed got, each once and in order", "all", *part(in_place, len(snapshot.ids))
        ),
    ]
