"""docs/operations/recipes/tickets.py and warehouse.py: programs that read the feed by cursor."""

import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction

from nexmdm.common import database
from tests.support import feed, processes, served
from tests.support.actors import Admin, Phone, fcm_calls_dead

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def reach(admin: Admin) -> Iterator[dict[str, str]]:
    """The environment of a program that reads from the API."""
    with served.serving() as url:
        yield {"NEXMDM_URL": url, "ADMIN_KEY": admin.key, "HMAC_SECRET": admin.secret}


class Tickets:
    """A ticket system: it refuses a second ticket with the same external_id."""

    def __init__(self) -> None:
        self.opened: dict[str, dict[str, Any]] = {}
        self.statuses: list[int] = []
        self.url = ""
        tickets = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                ticket = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Authorization"] == "Bearer t-1"
                status = tickets.statuses.pop(0) if tickets.statuses else 201
                if status == 201:
                    status = 409 if ticket["external_id"] in tickets.opened else 201
                    tickets.opened.setdefault(ticket["external_id"], ticket)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        self.handler = Handler

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Title and text of each ticket."""
        return [(ticket["title"], ticket["text"]) for ticket in self.opened.values()]


@pytest.fixture
def tickets() -> Iterator[Tickets]:
    found = Tickets()
    with served.serving(found.handler) as found.url:
        yield found


Run = Callable[[], subprocess.CompletedProcess[str]]


@pytest.fixture
def open_tickets(reach: dict[str, str], tickets: Tickets, tmp_path: Path) -> Run:
    """Run tickets.py over what can be read now. It has read everything before the test."""
    variables = {**reach, "TICKETS_URL": tickets.url, "TICKETS_TOKEN": "t-1"}

    def run() -> subprocess.CompletedProcess[str]:
        feed.wait_until_readable()
        recipe = "docs/operations/recipes/tickets.py"
        return processes.run(recipe, str(tmp_path / "cursor"), "--once", **variables)

    assert run().returncode == 0
    return run


def finished(admin: Admin, *statuses: tuple[Phone, str]) -> str:
    """Send a ping to phones that report these statuses, and return its id."""
    request_id = str(admin.command("ping", to=[phone for phone, _ in statuses]).json["request_id"])
    for phone, status in statuses:
        phone.report(request_id, status)
    call_command("dispatch", once=True)
    return request_id


def test_a_command_that_failed_opens_one_ticket(admin: Admin, tickets: Tickets, open_tickets: Run) -> None:
    good, bad = admin.enrol("HW-1", alias="front"), admin.enrol("HW-2", alias="back")
    finished(admin, (good, "succeeded"), (bad, "failed"))
    finished(admin, (good, "succeeded"))
    assert open_tickets().returncode == open_tickets().returncode == 0
    assert tickets.texts == [("ping did not succeed on every phone: partial", "back: failed")]


def test_no_ticket_is_opened_for_what_became_good_meanwhile(admin: Admin, tickets: Tickets, open_tickets: Run) -> None:
    phone = admin.enrol("HW-1", alias="front", push_token="token-1")
    with transaction.atomic():
        fcm_calls_dead("token-1")
    phone.heartbeat(push_token="token-2")
    request_id = str(admin.command("ping", to=phone).json["request_id"])
    admin.post(f"/admin/commands/{request_id}/cancel")
    call_command("dispatch", once=True)
    phone.report(request_id, "succeeded")
    assert open_tickets().returncode == 0
    assert tickets.texts == []


def test_a_phone_whose_push_target_is_dead_opens_a_ticket(admin: Admin, tickets: Tickets, open_tickets: Run) -> None:
    phone = admin.enrol("HW-1", alias="front", push_token="token-1")
    with transaction.atomic():
        fcm_calls_dead("token-1")
    assert open_tickets().returncode == 0
    assert tickets.texts == [
        ("Commands reach front by heartbeat only: its push target is dead", f"Device {phone.device_id}")
    ]


def test_an_error_of_the_ticket_system_opens_the_ticket_later(
    admin: Admin, tickets: Tickets, open_tickets: Run
) -> None:
    finished(admin, (admin.enrol("HW-1", alias="front"), "failed"))
    tickets.statuses = [500]
    ran = open_tickets()
    assert (ran.returncode, "HTTP Error 500" in ran.stderr) == (1, True)
    assert open_tickets().returncode == 0
    assert len(tickets.texts) == 1


def test_a_cursor_that_is_too_old_begins_again_and_opens_no_ticket_twice(
    admin: Admin, tickets: Tickets, open_tickets: Run
) -> None:
    finished(admin, (admin.enrol("HW-1", alias="front"), "failed"))
    open_tickets()
    restore_elsewhere()
    ran = open_tickets()
    assert (ran.returncode, "Events are missing" in ran.stderr) == (0, True)
    assert len(tickets.texts) == 1


def restore_elsewhere() -> None:
    """Let the events belong to a database that was restored from a dump."""
    database.execute("UPDATE nexmdm_eventmark SET database = 'another one'")


@pytest.fixture
def copied(reach: dict[str, str], tmp_path: Path) -> Callable[[], list[tuple[Any, ...]]]:
    """Run warehouse.py, and return its rows."""
    path = tmp_path / "warehouse.db"

    def run() -> list[tuple[Any, ...]]:
        feed.wait_until_readable()
        ran = processes.run("docs/operations/recipes/warehouse.py", str(path), **reach)
        assert ran.returncode == 0, ran.stderr
        with closing(sqlite3.connect(path)) as found:
            return found.execute("SELECT id, type, at, device_id, request_id, data FROM events").fetchall()

    return run


def test_the_warehouse_has_each_event_once_however_often_it_copies(
    admin: Admin, copied: Callable[[], list[tuple[Any, ...]]]
) -> None:
    phone = admin.enrol("HW-1", alias="front")
    first = copied()
    finished(admin, (phone, "succeeded"))
    assert copied()[: len(first)] == first
    events = feed.all_events(admin)
    assert [(*row[:5], json.loads(row[5])) for row in copied()] == [tuple(event.values()) for event in events]


def test_the_warehouse_begins_again_after_a_restored_backup_and_notes_the_gap(
    admin: Admin, copied: Callable[[], list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    admin.enrol("HW-1", alias="front")
    before = copied()
    restore_elsewhere()
    admin.enrol("HW-2", alias="back")
    assert copied()[: len(before)] == before
    assert len(copied()) == len(before) + 1
    with closing(sqlite3.connect(tmp_path / "warehouse.db")) as found:
        assert found.execute("SELECT count(*) FROM gaps").fetchone() == (1,)
