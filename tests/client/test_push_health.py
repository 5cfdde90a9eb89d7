"""nexmdm push-health: its order, its forms, and its filters."""

import csv
import io
from typing import Final

import pytest
import yaml
from django.core.management import call_command

from loadtest.fake_fcm.server import FcmStandin
from nexmdm.models import PushHealthHour
from tests.support.actors import Admin, Client, Phone
from tests.support.fleet_command import InProcess, Ran, run
from tests.support.moments import let_pass

pytestmark = pytest.mark.django_db(transaction=True)

COLUMNS: Final = [
    "answered_percent", "accepted", "answered_by_push", "answered_by_heartbeat", "downgraded", "p50_ms", "p95_ms",
    "devices", "attempts",
]  # fmt: skip


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    """A transport to a server with an empty database."""
    return InProcess(client)


def enrol(admin: Admin, name: str, push_token: str | None, model: str) -> Phone:
    pushed = {} if push_token is None else {"push_token": push_token}
    return admin.enrol(name, model=model, agent_version="2.0", **pushed)


@pytest.fixture
def fleet(admin: Admin, fcm: FcmStandin) -> None:
    """Five models: answers by push, half by push, by heartbeat; pushes that FCM refused; no pushes."""
    good = [enrol(admin, f"good-{number}", f"ok-g{number}", "Good") for number in range(2)]
    half = [enrol(admin, f"half-{number}", f"ok-h{number}", "Half") for number in range(2)]
    slow, idle = enrol(admin, "slow", "ok-s", "Slow"), enrol(admin, "idle", None, "Idle")
    refused = [enrol(admin, f"gone-{number}", f"unregistered-{number}", "Gone") for number in range(2)]
    request_id = admin.command("ping", to=[*good, *half, slow, *refused], expires_in_seconds=86_400).json["request_id"]
    call_command("dispatch", once=True)
    for phone in (*good, half[0]):
        phone.report(request_id, "succeeded", via="push")
    for phone in (half[1], slow):
        phone.report(request_id, "succeeded", via="heartbeat")
    assert idle.device_id


def rows(ran: Ran) -> list[list[str]]:
    assert ran.status == 0, ran.err
    return [line.split() for line in ran.out.splitlines()]


def test_the_worst_model_is_first_and_one_without_pushes_last(network: InProcess, fleet: None) -> None:
    headings, *found = rows(run("push-health", transport=network))
    assert headings == ["model", *COLUMNS]
    assert [row[:2] for row in found] == [["Gone", "-"], ["Slow", "0"], ["Half", "50"], ["Good", "100"], ["Idle", "-"]]
    assert found[2][2:6] == ["2", "1", "1", "0"]


@pytest.mark.parametrize("field", ["model", "manufacturer", "os_version", "agent_version"])
def test_each_field_names_the_first_column(network: InProcess, fleet: None, field: str) -> None:
    headings, *found = rows(run("push-health", "--by", field, "-o", "wide", transport=network))
    assert (headings[0], len(found)) == (field, 5 if field == "model" else 1)
    assert found[0][0] == {"model": "Gone", "agent_version": "2.0"}.get(field, "-")


def test_scripts_get_the_fields_of_the_api_and_csv_has_the_columns_of_the_table(
    network: InProcess, admin: Admin, fleet: None
) -> None:
    api = {row["key"]: row for row in admin.get("/admin/push-health").json["items"]}
    shown = run("push-health", "--json", transport=network).json
    assert [row["key"] for row in shown] == ["Gone", "Slow", "Half", "Good", "Idle"]
    assert {row["key"]: row for row in shown} == api
    assert yaml.safe_load(run("push-health", "-o", "yaml", transport=network).out) == shown
    table = list(csv.DictReader(io.StringIO(run("push-health", "-o", "csv", transport=network).out)))
    assert list(table[0]) == ["model", *COLUMNS]
    assert [row["answered_percent"] for row in table] == ["", "0", "50", "100", ""]


def test_since_counts_only_what_came_later(network: InProcess, fleet: None) -> None:
    let_pass(hours=3)
    # In these hours, no dispatcher ran.
    PushHealthHour.objects.all().delete()
    assert rows(run("push-health", "--since", "2h ago", transport=network))[1][-1] == "0"
    assert rows(run("push-health", "--since", "4h", transport=network))[1][-1] == "2"
    ran = run("push-health", "--since", "soon", transport=network)
    assert (ran.status, "must look like 2h ago" in ran.err.replace("\n", " ")) == (2, True)


def test_an_empty_list_is_reported(network: InProcess) -> None:
    ran = run("push-health", transport=network)
    assert (ran.status, ran.out, ran.err) == (0, "", "There are no devices and no pushes.\n")
    assert run("push-health", "--json", transport=network).json == []
    assert run("push-health", "-o", "csv", transport=network).out.startswith("model,")


def test_an_unknown_field_is_refused_with_the_known_ones(network: InProcess) -> None:
    ran = run("push-health", "--by", "alias", transport=network)
    assert (ran.status, "agent_version" in ran.err) == (2, True)
    assert network.seen == []
