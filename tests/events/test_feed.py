"""GET /admin/events: the order, the cursor, filters, waiting, retention and restored databases."""

import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from nexmdm.common import database
from nexmdm.events import epochs
from nexmdm.events import feed as feed_of_server
from tests.support import feed
from tests.support.actors import Admin

pytestmark = pytest.mark.django_db(transaction=True)


def aliases(events: list[dict[str, Any]]) -> list[str]:
    return [event["data"]["alias"] for event in events]


def enrol(admin: Admin, *names: str) -> list[str]:
    return [admin.enrol(name, alias=name).device_id for name in names]


def test_events_come_oldest_first_and_page_by_page(admin: Admin) -> None:
    names = [f"till {number}" for number in range(5)]
    enrol(admin, *names)
    assert aliases(feed.all_events(admin, limit=2)) == names


def test_an_event_has_the_keys_of_the_contract(admin: Admin) -> None:
    (device_id,) = enrol(admin, "till 1")
    (event,) = feed.all_events(admin)
    assert set(event) == {"id", "type", "at", "device_id", "request_id", "data"}
    assert (event["type"], event["device_id"], event["request_id"]) == ("device.enrolled", device_id, None)


def test_the_cursor_continues_within_the_events_of_one_statement(admin: Admin) -> None:
    admin.enrol_fleet(7)
    request_id = admin.command().json["request_id"]
    assert admin.post(f"/admin/commands/{request_id}/cancel").json["cancelled"] == 7
    read = feed.all_events(admin, types="delivery.*", limit=3)
    assert len({event["device_id"] for event in read}) == len({event["id"] for event in read}) == len(read) == 7


def test_the_same_place_gives_the_same_events_again(admin: Admin) -> None:
    enrol(admin, "till 1", "till 2")
    assert feed.all_events(admin) == feed.all_events(admin)


def test_after_now_gives_only_what_follows(admin: Admin) -> None:
    enrol(admin, "till 1")
    feed.all_events(admin)
    cursor = feed.read(admin, after="now").json["next_cursor"]
    enrol(admin, "till 2")
    assert aliases(feed.all_events(admin, after=cursor)) == ["till 2"]


@pytest.mark.parametrize(
    ("types", "found"),
    [
        ("device.enrolled", {"device.enrolled"}),
        ("device.*", {"device.enrolled", "device.revoked"}),
        ("device.revoked,command.issued", {"device.revoked", "command.issued"}),
        ("*", {"device.enrolled", "device.revoked", "command.issued"}),
        ("rollout.*", set()),
    ],
)
def test_types_are_names_or_beginnings_of_names(admin: Admin, types: str, found: set[str]) -> None:
    first, _ = enrol(admin, "till 1", "till 2")
    assert admin.command().status == 200
    assert admin.post(f"/admin/devices/{first}/revoke").status == 200
    every = {event["type"] for event in feed.all_events(admin, types=types)} - {"delivery.settled"}
    assert every == found


def test_a_device_has_its_own_events(admin: Admin) -> None:
    _, second = enrol(admin, "till 1", "till 2")
    request_id = admin.command().json["request_id"]
    assert admin.post(f"/admin/commands/{request_id}/cancel").status == 200
    read = feed.all_events(admin, device_id=second)
    assert [event["type"] for event in read] == ["device.enrolled", "delivery.settled"]
    assert {event["device_id"] for event in read} == {second}


def test_a_page_without_a_match_leads_on_to_the_matches(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_of_server, "SCANNED", 2)
    ids = enrol(admin, "till 1", "till 2", "till 3", "till 4", "till 5")
    first = feed.read(admin, device_id=ids[4]).json
    assert (first["items"], first["caught_up"]) == ([], False)
    assert aliases(feed.all_events(admin, device_id=ids[4])) == ["till 5"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"after": "yesterday"}, "after"),
        ({"after": "MQ"}, "after"),
        ({"types": "device.enroled"}, "types"),
        ({"types": "device.*,"}, "types"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"wait_seconds": "31"}, "wait_seconds"),
        ({"device_id": "till 7"}, "device_id"),
    ],
)
def test_a_query_that_cannot_be_meant_is_refused(admin: Admin, query: dict[str, str], field: str) -> None:
    answer = feed.read(admin, **query)
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert answer.json["errors"][0]["loc"] == ["query", field]


def test_events_wait_for_an_older_transaction_and_the_page_says_so(admin: Admin) -> None:
    cursor = feed.read(admin, after="now").json["next_cursor"]
    with feed.open_write_transaction() as older:
        enrol(admin, "till 1")
        held = feed.read(admin, after=cursor).json
        assert (held["items"], held["caught_up"]) == ([], False)
        older.execute("INSERT INTO nexmdm_event (type, data) VALUES ('device.enrolled', '{\"alias\": \"older\"}')")
        older.commit()
    assert aliases(feed.all_events(admin, after=held["next_cursor"])) == ["till 1", "older"]


def test_what_is_rolled_back_has_no_event(admin: Admin) -> None:
    with feed.open_write_transaction() as other:
        other.execute("INSERT INTO nexmdm_event (type, data) VALUES ('device.enrolled', '{}')")
    assert feed.all_events(admin) == []


def test_a_waiting_reader_gets_the_event_within_250_ms_of_its_commit(admin: Admin) -> None:
    feed.all_events(admin)
    cursor = feed.read(admin, after="now").json["next_cursor"]
    committed: list[float] = []

    def append() -> None:
        with feed.open_write_transaction() as other:
            other.execute("INSERT INTO nexmdm_event (type, data) VALUES ('device.enrolled', '{\"alias\": \"new\"}')")
            other.commit()
            committed.append(time.monotonic())

    writer = threading.Timer(0.3, append)
    writer.start()
    answer = feed.read(admin, after=cursor, wait_seconds=10)
    waited_after_commit = time.monotonic() - committed[0]
    writer.join()
    assert aliases(answer.json["items"]) == ["new"]
    assert waited_after_commit < 5, "it did not wait until the end of its time"


def test_a_wait_ends_at_its_time_with_nothing(admin: Admin) -> None:
    feed.all_events(admin)
    cursor = feed.read(admin, after="now").json["next_cursor"]
    answer = feed.read(admin, after=cursor, wait_seconds=0.2)
    assert (answer.status, answer.json["items"]) == (200, [])


def test_retention_deletes_old_events_and_expires_the_cursors_before_them(admin: Admin) -> None:
    enrol(admin, "till 1")
    before = feed.read(admin, limit=1).json["next_cursor"]
    start = feed_of_server.place_of(None).text
    enrol(admin, "till 2")
    feed.all_events(admin)
    database.execute("UPDATE nexmdm_event SET at = at - interval '31 days' WHERE data->>'alias' = 'till 1'")
    assert feed_of_server.prune(timedelta(days=30), 10) == 1
    answer = feed.read(admin, after=start)
    assert (answer.status, answer.code) == (410, "cursor_expired")
    assert aliases(feed.all_events(admin, after=before)) == aliases(feed.all_events(admin)) == ["till 2"]


def test_retention_keeps_young_events_and_whatever_follows_them(admin: Admin) -> None:
    enrol(admin, "till 1", "till 2")
    database.execute("UPDATE nexmdm_event SET at = at - interval '31 days' WHERE data->>'alias' = 'till 2'")
    assert feed_of_server.prune(timedelta(days=30), 10) == 0
    assert aliases(feed.all_events(admin)) == ["till 1", "till 2"]


def test_events_restored_into_another_database_are_readable_and_old_cursors_have_expired(admin: Admin) -> None:
    enrol(admin, "till 1")
    cursor = feed.read(admin).json["next_cursor"]
    database.execute("UPDATE nexmdm_event SET xid = '9000000000000'")
    database.execute("UPDATE nexmdm_eventmark SET database = 'another cluster'")
    answer = feed.read(admin, after=cursor)
    assert (answer.status, answer.code) == (410, "cursor_expired")
    enrol(admin, "till 2")
    assert aliases(feed.all_events(admin)) == ["till 1", "till 2"]


def test_an_event_written_after_a_restore_never_has_the_id_of_an_event_that_the_restore_lost(admin: Admin) -> None:
    enrol(admin, "till 1")
    (lost,) = feed.all_events(admin)
    database.execute("DELETE FROM nexmdm_event")
    database.execute(
        "SELECT setval(pg_get_serial_sequence('nexmdm_event', 'id'), %s, false)", [int(lost["id"].split("-")[1])]
    )
    enrol(admin, "till 2")
    (new,) = feed.all_events(admin)
    assert new["id"].split("-")[1:] == lost["id"].split("-")[1:]
    assert new["id"] != lost["id"]


def test_many_restored_events_are_moved_in_batches_and_readers_wait_meanwhile(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(admin, "till 1", "till 2", "till 3")
    feed.all_events(admin)
    database.execute("UPDATE nexmdm_event SET xid = (9000000000000 + id)::text::xid8")
    database.execute("UPDATE nexmdm_eventmark SET database = 'another cluster'")
    monkeypatch.setattr(epochs, "BATCH", 2)
    assert (epochs.move(), epochs.move(), epochs.move()) == (2, 1, 0)
    assert aliases(feed.all_events(admin)) == ["till 1", "till 2", "till 3"]
    database.execute("UPDATE nexmdm_event SET xid = (9000000000000 + id)::text::xid8")
    database.execute("DELETE FROM nexmdm_eventmark")
    answer = feed.read(admin)
    assert (answer.status, answer.code) == (503, "overloaded")


def test_a_cursor_of_now_survives_transaction_ids_that_a_crash_gives_again(admin: Admin) -> None:
    enrol(admin, "till 1")
    feed.all_events(admin)
    with feed.open_write_transaction() as lost:
        lost.execute("SELECT pg_current_xact_id()")
    place = feed_of_server.newest_place()
    ((xid,),) = database.rows("SELECT max(xid)::text FROM nexmdm_event")
    assert place.xid == int(xid), "the place of a row on the disk, not of a transaction without one"


def test_a_cursor_from_after_the_point_to_which_the_cluster_was_recovered_has_expired(admin: Admin) -> None:
    enrol(admin, "till 1")
    feed.all_events(admin)
    place = feed_of_server.newest_place()
    answer = feed.read(admin, after=place._replace(xid=place.xid + 1_000_000).text)
    assert (answer.status, answer.code) == (410, "cursor_expired")


def test_only_signed_requests_read_events(admin: Admin) -> None:
    assert admin.client.request("GET", "/admin/events").status == 401
