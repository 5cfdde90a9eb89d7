"""GET /admin/events with `wait_seconds`: what many waiting clients cost the database, and what each of them gets."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test.utils import CaptureQueriesContext

from nexmdm.api import events as endpoint
from nexmdm.api.events import POLL_SECONDS
from nexmdm.events import recent
from tests.support import feed
from tests.support.actors import Admin, Answer, Client

pytestmark = pytest.mark.django_db(transaction=True)

DEVICE = uuid4()


async def read(admin: Admin, **query: Any) -> Answer:
    target = f"/admin/events?{urlencode(query)}"
    return await Client().arequest("GET", target, b"", admin.headers("GET", target, b""))


async def append(*events: tuple[str, UUID | None]) -> None:
    """Append events of these types about these devices, in one transaction of another session."""

    def commit() -> None:
        with feed.open_write_transaction() as other:
            for event_type, device_id in events:
                other.execute(
                    "INSERT INTO nexmdm_event (type, device_ids, data) VALUES (%s, %s, '{}')",
                    [event_type, [uuid4(), device_id] if device_id else None],
                )
            other.commit()

    await asyncio.to_thread(commit)


async def append_and_look(admin: Admin, *events: tuple[str, UUID | None]) -> None:
    """Append events between two waits that are so long that each waiting client looks at least once in each."""
    await read(admin, after="now", wait_seconds=1.5 * POLL_SECONDS)
    await append(*events)
    await read(admin, after="now", wait_seconds=1.5 * POLL_SECONDS)


@contextmanager
def reads_with_a_filter() -> Iterator[list[str]]:
    """Collect the statements that read events with a filter."""
    made: list[str] = []
    with CaptureQueriesContext(connection) as queries:
        yield made
    made += [sql for sql in (query["sql"] for query in queries) if "LIKE ANY" in sql or "one.device_id = '" in sql]


def newest(admin: Admin) -> str:
    feed.all_events(admin)
    return str(feed.read(admin, after="now").json["next_cursor"])


@pytest.mark.parametrize("wanted", [{"types": "device.re*"}, {"types": "device.revoked"}, {"device_id": DEVICE}])
def test_events_that_no_waiting_client_asked_for_cost_no_read_and_a_match_ends_each_wait(
    admin: Admin, wanted: dict[str, Any]
) -> None:
    cursor = newest(admin)

    async def scenario() -> list[Answer]:
        waiting = [asyncio.create_task(read(admin, after=cursor, wait_seconds=20, **wanted)) for _ in range(10)]
        for _ in range(5):
            await append_and_look(admin, ("device.updated", uuid4()), ("command.issued", None))
        assert not any(task.done() for task in waiting)
        await append(("device.revoked", DEVICE))
        return await asyncio.gather(*waiting)

    with reads_with_a_filter() as reads:
        answers = async_to_sync(scenario)()
    for answer in answers:
        assert {event["type"] for event in answer.json["items"]} == {"device.revoked"}
    assert len(reads) == 10 * 2, "each client reads at the beginning, and when its event has come"


def test_a_wait_that_ends_without_a_match_leads_past_what_did_not_match_and_misses_nothing(admin: Admin) -> None:
    cursor = newest(admin)

    async def scenario() -> Answer:
        waiting = asyncio.create_task(read(admin, after=cursor, wait_seconds=1, types="device.revoked"))
        await append_and_look(admin, ("device.updated", DEVICE))
        return await waiting

    ended = async_to_sync(scenario)().json
    assert (ended["items"], ended["caught_up"]) == ([], True)
    async_to_sync(append)(("device.updated", DEVICE), ("device.revoked", DEVICE))
    following = feed.all_events(admin, after=ended["next_cursor"])
    assert [event["type"] for event in following] == ["device.updated"] * 2 + ["device.revoked"] * 2


@pytest.mark.parametrize("limit", ["KEPT_ROWS", "READ_ROWS", "KEPT_CHARACTERS"])
def test_a_waiting_client_gets_events_that_are_no_longer_in_memory(
    admin: Admin, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(recent, limit, 1)
    cursor = newest(admin)

    async def scenario() -> Answer:
        waiting = asyncio.create_task(read(admin, after=cursor, wait_seconds=20, types="device.revoked"))
        await append_and_look(admin, ("device.updated", DEVICE))
        await append_and_look(admin, ("device.revoked", DEVICE), *[("device.updated", DEVICE)] * 6)
        return await waiting

    answer = async_to_sync(scenario)()
    assert {event["type"] for event in answer.json["items"]} == {"device.revoked"}


def test_waiting_clients_get_events_after_the_database_was_restored_from_an_earlier_time(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction ids of the other cluster are lower than those that this process has looked at."""
    later = (2**62, 0)
    monkeypatch.setattr(endpoint._recent, "stretch", recent.Stretch(later, later, ()))
    cursor = newest(admin)

    async def scenario() -> Answer:
        await read(admin, after=cursor, wait_seconds=0.3)
        waiting = asyncio.create_task(read(admin, after=cursor, wait_seconds=20))
        await append(("device.revoked", DEVICE))
        return await waiting

    assert async_to_sync(scenario)().json["items"] != []
