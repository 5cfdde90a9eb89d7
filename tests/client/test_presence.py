"""nexmdm device --history: its forms, and its beginning."""

import csv
import io
import re

import pytest
from django.db.models.functions import Now

from devices.models import ServiceMark
from tests.support.actors import Admin, Client, Phone
from tests.support.fleet_command import InProcess, run
from tests.support.moments import let_pass

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    """A transport to the server."""
    return InProcess(client)


@pytest.fixture
def till(admin: Admin) -> Phone:
    """A phone that was online for 5 minutes, offline for 15, and is online now."""
    phone = admin.enrol("till-hw", alias="till-7")
    phone.heartbeat()
    let_pass(minutes=20)
    ServiceMark.objects.update(at=Now())
    phone.heartbeat()
    return phone


def test_a_history_is_a_table_with_the_lengths_and_the_uptime(network: InProcess, till: Phone) -> None:
    ran = run("device", "till-7", "--history", transport=network)
    assert ran.status == 0, ran.err
    headings, *rows, uptime = ran.out.splitlines()
    assert headings.split() == ["state", "from", "to", "length"]
    assert [row.split()[0] for row in rows] == ["online", "offline", "online"]
    assert [row.split()[3] for row in rows[:2]] == ["0:05:00", "0:15:00"]
    assert re.fullmatch(r"uptime 25\.\d\d%", uptime)


def test_a_history_has_the_forms_for_scripts(admin: Admin, network: InProcess, till: Phone) -> None:
    shown = run("device", "till-7", "--history", "--json", transport=network).json
    api = admin.get(f"/admin/devices/{till.device_id}/presence").json
    assert shown["items"] == api["items"]
    assert set(shown) == set(api)
    text = run("device", "till-7", "--history", "-o", "csv", transport=network).out
    assert [row["state"] for row in csv.DictReader(io.StringIO(text))] == ["online", "offline", "online"]


def test_a_history_can_begin_later(network: InProcess, till: Phone) -> None:
    shown = run("device", "till-7", "--history", "--since", "10m ago", "--json", transport=network).json
    assert [item["state"] for item in shown["items"]] == ["offline", "online"]


def test_a_device_that_was_never_seen_has_no_history(admin: Admin, network: InProcess) -> None:
    admin.enrol("new-hw", alias="new")
    ran = run("device", "new", "--history", transport=network)
    assert (ran.status, "no heartbeat" in ran.err) == (0, True)


def test_since_without_history_is_a_usage_error(network: InProcess, till: Phone) -> None:
    ran = run("device", "till-7", "--since", "1h ago", transport=network)
    assert (ran.status, "--since works only with --history" in " ".join(ran.err.split())) == (2, True)
