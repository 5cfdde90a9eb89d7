"""The ledger of the event feed notices each kind of loss, by real rows of a small control loop."""

import asyncio

import pytest
from django.db import connection
from psycopg.conninfo import make_conninfo

from commands import finishing
from devices.presence import spans
from loadtest.chaos import feed
from loadtest.chaos.feed import FeedSnapshot
from nexmdm.client.http_client import FleetClient
from nexmdm.common import database
from tests.support.actors import Admin

pytestmark = pytest.mark.django_db(transaction=True)

_SEEN = "SELECT device_id::text FROM devices_presence WHERE last_seen_at IS NOT NULL"

ONE_EVENT = "facts with exactly one event"
ONE_FACT = "events without a fact"
IN_ORDER = "events that a client of the feed got, each once and in order"


def snapshot() -> FeedSnapshot:
    settings = connection.settings_dict
    own = {"user": settings["USER"], "password": settings["PASSWORD"], "host": settings["HOST"]}
    return feed.read(make_conninfo(**own, port=settings["PORT"], dbname=settings["NAME"]))


def missed(ids: list[str] | None = None) -> set[str]:
    found = snapshot()
    return {one.name for one in feed.compare(found, found.ids if ids is None else ids) if not one.held}


@pytest.fixture
def loop(admin: Admin) -> None:
    """Two devices, of which one comes online and goes offline again. An admin renames it.

    A command to both succeeds on one in time, and fails late on the other. One write is refused.
    """
    first, second = admin.enrol_fleet(2)
    assert first.heartbeat().status == 200
    assert admin.call("PATCH", f"/admin/devices/{first.device_id}", {"alias": "renamed 1"}).status == 200
    database.execute("UPDATE devices_presence SET last_seen_at = last_seen_at - interval '1 hour'")
    assert spans.end_silent(10) == 1
    request_id = admin.command().json["request_id"]
    assert first.report(request_id, "succeeded").status == 200
    database.execute("UPDATE commands_delivery SET open_until = now() WHERE state = 'pending'")
    assert second.report(request_id, "failed").json["late"] is True
    assert finishing.finish_recent(10) == 1
    assert admin.command("dance").status == 422


def test_a_sound_run_passes(loop: None) -> None:
    assert missed() == set()
    assert set(snapshot().events) == {
        ("device.updated", "", database.row(_SEEN)[0], "renamed 1"),
        *((f"device.{state}", "", database.row(_SEEN)[0], "") for state in ("online", "offline")),
        ("command.issued", *request(), "", ""),
        ("command.finished", *request(), "", "partial"),
        *((("delivery.settled", *request(), device, state)) for device, state in settled()),
        ("audit.refused", "", "", "invalid_request"),
    }


def request() -> list[str]:
    return [row[0] for row in database.rows("SELECT id::text FROM commands_command")]


def settled() -> list[tuple[str, str]]:
    rows = database.rows("SELECT device_id::text, state FROM commands_delivery")
    return [*rows, *((device, "late failed") for device, state in rows if state == "expired")]


@pytest.mark.parametrize(
    "event_type", ["command.issued", "command.finished", "delivery.settled", "audit.refused", "device.updated"]
)
def test_a_fact_without_its_event_is_noticed(loop: None, event_type: str) -> None:
    database.execute("DELETE FROM nexmdm_event WHERE type = %s", [event_type])
    assert ONE_EVENT in missed()


def test_an_event_written_twice_is_noticed(loop: None) -> None:
    database.execute(
        "INSERT INTO nexmdm_event (type, device_ids, request_id, data)"
        " SELECT type, device_ids, request_id, data FROM nexmdm_event WHERE type = 'command.issued'"
    )
    assert missed() == {ONE_FACT}


def test_an_event_with_another_state_is_noticed(loop: None) -> None:
    database.execute(
        "UPDATE nexmdm_event SET data = jsonb_set(data, '{state}', '\"failed\"') WHERE data->>'state' = 'succeeded'"
    )
    assert missed() == {ONE_EVENT, ONE_FACT}


def test_a_client_that_missed_or_repeated_or_reordered_an_event_is_noticed(loop: None) -> None:
    ids = snapshot().ids
    for got in (ids[1:], ids[:-1], [ids[0], *ids], [ids[1], ids[0], *ids[2:]]):
        assert missed(got) == {IN_ORDER}


def test_an_empty_feed_is_no_success(admin: Admin) -> None:
    assert ONE_EVENT in missed()


def test_a_client_of_the_feed_gives_up_in_time_when_the_server_is_away(admin: Admin) -> None:
    with FleetClient("http://127.0.0.1:9", key=admin.key, secret=admin.secret) as client:
        reader = feed.FeedReader(client)
        asyncio.run(reader.read_until("1-0", 0.3))
    assert reader.ids == []
