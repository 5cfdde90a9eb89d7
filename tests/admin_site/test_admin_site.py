"""The admin site: staff see everything but secrets, find it quickly, and can change nothing."""

import asyncio
import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_network
from typing import Any, Final
from uuid import UUID

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from commands.models import Attempt, Command, Delivery, Report
from devices.models import Device, EnrollmentToken, LastRefusal, Presence
from nexmdm.admin_site.site import site
from nexmdm.common import database
from nexmdm.common.read_only_admin import csv_export
from nexmdm.common.read_only_admin.filters import ExactTextFilter
from nexmdm.common.types import rfc3339
from nexmdm.models import AuditEntry, DispatcherSeen, Webhook, WebhookAttempt
from tests.support.actors import Answer, Visitor
from tests.support.html import plain

MaxQueries = Callable[[int], AbstractContextManager[Any]]

PASSWORD = "correct horse battery"
SECRETS = {
    "push_token": "secret-push-token",
    "token_hash": "secret-token-hash",
    "token_digest": b"secret-token-digest",
    "next_hash": "secret-next-hash",
    "next_digest": b"secret-next-digest",
}
MODELS = list(site._registry)


@pytest.fixture(autouse=True)
def quick_hashing(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def superuser(db: None) -> User:
    return User.objects.create_superuser("root", password=PASSWORD)


@pytest.fixture
def browser(superuser: User) -> Client:
    """A visitor with all permissions."""
    browser = Client()
    browser.force_login(superuser)
    return browser


@dataclass(slots=True)
class World:
    """A small fleet with some work done: each command is for both devices."""

    enrollment: EnrollmentToken
    now: datetime

    def device(self, alias: str, **fields: Any) -> Device:
        fields = {"token_hash": "hash", "command_key_id": "key", "hardware_id": f"hw-{alias}", **fields}
        device = Device.objects.create(alias=alias, enrolled_with=self.enrollment, **fields)
        Presence.objects.create(device=device, last_seen_at=self.now, last_status={"battery_pct": 83})
        return device

    def command(self, action: str, **fields: Any) -> Command:
        times = {"issued_at": self.now, "expires_at": self.now + timedelta(minutes=10)}
        given = {"params": '{"package":"com.example"}', "target": {"all": True}, "device_count": 2}
        return Command.objects.create(action=action, issued_by="admin", **{**given, **times, **fields})

    def delivery(self, command: Command, device: Device, state: str = "pending", **fields: Any) -> Delivery:
        is_open = state in ("pending", "received")
        settled = None if is_open else self.now
        given = {"open_until": command.expires_at, "settled_at": settled, "push_state": "accepted"}
        return Delivery.objects.create(command=command, device=device, state=state, **{**given, **fields})

    def attempt(self, delivery: Delivery, outcome: str, http_status: int | None, fcm_error: str = "") -> Attempt:
        return Attempt.objects.create(
            delivery=delivery,
            number=delivery.attempts.count() + 1,
            outcome=outcome,
            http_status=http_status,
            fcm_error=fcm_error,
            message_id=f"projects/p/messages/{outcome}-{delivery.pk}",
            latency_ms=41,
            finished_at=self.now,
        )


@pytest.fixture
def world(db: None) -> World:
    now = timezone.now()
    token = EnrollmentToken.objects.create(token_sha256=b"secret-enrollment", expires_at=now + timedelta(days=1))
    return World(token, now)


@pytest.fixture
def worked(world: World) -> World:
    """Two devices, two commands, every kind of row."""
    lobby = world.device("lobby", next_expires_at=world.now, **SECRETS)
    yard = world.device("yard", push_token="yard-token", push_token_dead_at=world.now)
    launch, ping = world.command("launch_app"), world.command("ping")
    done = world.delivery(launch, lobby, "succeeded")
    world.attempt(done, "retry_later", 503, "UNAVAILABLE")
    world.attempt(done, "accepted", 200)
    Report.objects.create(delivery=done, status="succeeded", message="it runs", output={"pid": 4711}, via="push")
    world.attempt(world.delivery(launch, yard), "token_dead", 404, "UNREGISTERED")
    world.attempt(world.delivery(ping, lobby, "failed"), "unknown", None)
    AuditEntry.objects.create(
        principal="admin",
        admin_key_id="0a1b2c3d",
        method="POST",
        path="/admin/command",
        body_sha256="ab" * 32,
        status=200,
    )
    DispatcherSeen.objects.create(name="host:1", circuit="closed")
    place = {"cursor_epoch": "e", "cursor_xid": "3", "cursor_id": 1, "cursor_place": 0}
    webhook = Webhook.objects.create(
        id=UUID("0192f0c1-d000-7abc-8def-000000000001"), url="https://example.com/", **place
    )
    WebhookAttempt.objects.create(webhook=webhook, event_id="1-0", type="x", is_delivered=True, latency_ms=41)
    return world


def page_of(model: type[Model], page: str = "changelist", *key: object) -> str:
    """Return the address of a model's page."""
    return reverse(f"nexmdm-admin:{model._meta.label_lower.replace('.', '_')}_{page}", args=key)


def listed(browser: Client, model: type[Model], **query: str | int | UUID) -> list[Any]:
    """Return the keys of a list's rows, in their order."""
    answer = browser.get(page_of(model), {name: str(value) for name, value in query.items()})
    assert answer.status_code == 200, answer.get("Location")
    return [row.pk for row in answer.context["cl"].result_list]


def page_text(browser: Client, row: Model) -> str:
    """Return a row's own page."""
    answer = browser.get(page_of(type(row), "change", row.pk))
    assert answer.status_code == 200
    return answer.content.decode()


def text_of(browser: Client, row: Model) -> str:
    """Return a row's own page without its mark-up."""
    return plain(page_text(browser, row))


@pytest.mark.parametrize("model", MODELS)
def test_a_visitor_without_a_login_is_sent_to_the_login(db: None, model: type[Model]) -> None:
    answer = Client().get(page_of(model))
    assert (answer.status_code, answer["Location"]) == (302, f"/django-admin/login/?next={page_of(model)}")


def test_an_account_that_is_not_staff_is_refused(db: None) -> None:
    User.objects.create_user("guest", password=PASSWORD)
    browser = Client()
    answer = browser.post("/django-admin/login/", {"username": "guest", "password": PASSWORD})
    assert "for a staff account" in answer.content.decode()
    assert browser.get("/django-admin/").status_code == 302


def test_staff_without_any_permission_sees_every_list(worked: World) -> None:
    User.objects.create_user("viewer", password=PASSWORD, is_staff=True)
    browser = Client()
    answer = browser.post("/django-admin/login/?next=/django-admin/", {"username": "viewer", "password": PASSWORD})
    assert (answer.status_code, answer["Location"]) == (302, "/django-admin/")
    assert "Deliveries" in browser.get("/django-admin/").content.decode()
    for model in MODELS:
        assert listed(browser, model), model


def test_a_deactivated_staff_account_sees_nothing(browser: Client, superuser: User) -> None:
    User.objects.filter(pk=superuser.pk).update(is_active=False)
    assert browser.get(page_of(Device)).status_code == 302


def test_logout_and_change_of_password_work(browser: Client, superuser: User) -> None:
    words = {"old_password": PASSWORD, "new_password1": "another long one", "new_password2": "another long one"}
    assert browser.post("/django-admin/password_change/", words).status_code == 302
    superuser.refresh_from_db()
    assert superuser.check_password("another long one")
    assert browser.post("/django-admin/logout/").status_code == 200
    assert browser.get("/django-admin/").status_code == 302


def everything() -> dict[type[Model], list[Any]]:
    return {model: list(model._default_manager.order_by("pk").values()) for model in MODELS}


@pytest.mark.parametrize("enforce_csrf", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_a_forged_post_is_refused_and_changes_nothing(
    worked: World, superuser: User, model: type[Model], enforce_csrf: bool
) -> None:
    browser = Client(enforce_csrf_checks=enforce_csrf)
    browser.force_login(superuser)
    before = everything()
    row = model._default_manager.first()
    assert row is not None
    fields = {field.name: "1" for field in model._meta.fields}
    action = {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes", "index": 0}
    addresses = [page_of(model), page_of(model, "add")]
    addresses += [page_of(model, page, row.pk) for page in ("change", "delete", "history")]
    for address in addresses:
        for body in (fields, {"post": "yes"}, action, fields | {"_save": "Save", "_saveasnew": "1"}):
            assert browser.post(address, body).status_code == (403 if enforce_csrf else 405), address
    assert everything() == before


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_no_other_method_is_accepted(worked: World, browser: Client, method: str) -> None:
    device = Device.objects.all()[0]
    assert browser.generic(method, page_of(Device, "change", device.pk)).status_code == 405


@pytest.mark.parametrize("model", MODELS)
def test_the_pages_to_add_and_to_delete_do_not_open(worked: World, browser: Client, model: type[Model]) -> None:
    row = model._default_manager.first()
    assert row is not None
    assert browser.get(page_of(model, "add")).status_code == 403
    assert browser.get(page_of(model, "delete", row.pk)).status_code == 403


def test_accounts_are_not_on_the_site(browser: Client) -> None:
    assert browser.get("/django-admin/auth/user/").status_code == 404


def pages(browser: Client) -> Iterator[tuple[str, str]]:
    """Walk every page that can be reached by links, and every row's own page and history."""
    rows = [(model, row.pk) for model in MODELS for row in model._default_manager.all()]
    todo = {page_of(model, page, pk) for model, pk in rows for page in ("change", "history")} | {"/django-admin/"}
    seen: set[str] = set()
    while todo - seen:
        address = (todo - seen).pop()
        seen.add(address)
        answer = browser.get(address)
        assert answer.status_code == 200, address
        text = answer.content.decode()
        yield address, text
        links = re.findall(r'href="(/django-admin/[^"]*|\?[^"]*)"', text)
        found = {(address.partition("?")[0] + link if link[0] == "?" else link) for link in links}
        todo |= {link.replace("&amp;", "&") for link in found if link.count("=") <= 1}


def test_no_secret_is_on_any_page(worked: World, browser: Client) -> None:
    walked = 0
    for address, text in pages(browser):
        walked += 1
        assert "secret-" not in text, address
        assert "yard-token" not in text, address
        assert b"secret-".hex() not in text, address
    assert walked > 50


def test_no_page_posts_a_form_except_the_logout(worked: World, browser: Client) -> None:
    for address, text in pages(browser):
        posted = re.findall(r'<form[^>]* method="post"[^>]*>', text)
        if not address.startswith("/django-admin/password_change/"):
            assert posted == ['<form id="logout-form" method="post" action="/django-admin/logout/">'], address


@pytest.mark.parametrize("column", [*SECRETS, "enrolled_with__token_sha256", "token_digest_key"])
def test_a_secret_cannot_be_guessed_by_asking_for_its_beginning(worked: World, browser: Client, column: str) -> None:
    for lookup in ("", "__startswith", "__gt", "__isnull"):
        assert browser.get(page_of(Device), {column + lookup: "s"}).status_code == 400
        assert browser.get(page_of(Delivery), {f"device__{column}{lookup}": "s"}).status_code == 400


@pytest.mark.parametrize("secret", [value for value in SECRETS.values() if isinstance(value, str)])
def test_a_secret_finds_nothing(worked: World, browser: Client, secret: str) -> None:
    for model in (Device, Delivery, Attempt, Command):
        assert listed(browser, model, q=secret) == []


def test_a_device_shows_whether_its_push_token_lives(worked: World, browser: Client) -> None:
    mute = worked.device("mute")
    assert "Push token: ok" in text_of(browser, Device.objects.get(alias="lobby"))
    assert re.search(
        r"Push token: dead since \d+ s ago \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ",
        text_of(browser, Device.objects.get(alias="yard")),
    )
    assert "Push token: none" in text_of(browser, mute)


@pytest.mark.parametrize("model", [Device, Command, Delivery, Attempt, AuditEntry])
def test_lists_are_newest_first_for_any_requested_order(worked: World, browser: Client, model: type[Model]) -> None:
    newest_first = list(model._default_manager.order_by("-pk").values_list("pk", flat=True))
    assert listed(browser, model) == newest_first
    assert listed(browser, model, o="1.2") == newest_first


def test_deliveries_are_filtered_by_action(worked: World, browser: Client) -> None:
    (ping,) = Delivery.objects.filter(command__action="ping")
    assert listed(browser, Delivery, action="ping") == [ping.pk]
    assert listed(browser, Delivery, action="wipe") == []


def test_deliveries_are_filtered_by_state(worked: World, browser: Client) -> None:
    for state in ("pending", "succeeded", "failed"):
        (delivery,) = Delivery.objects.filter(state=state)
        assert listed(browser, Delivery, state=state) == [delivery.pk]


def test_the_site_shows_a_push_as_superseded_once_its_delivery_is_settled(
    worked: World, browser: Client, staff: Visitor
) -> None:
    lobby, yard = Device.objects.get(alias="lobby"), Device.objects.get(alias="yard")
    ring = worked.command("ring", expires_at=worked.now + timedelta(hours=1))
    waits = worked.delivery(ring, lobby, push_state="waiting", next_attempt_at=worked.now)
    settled = worked.delivery(ring, yard, "succeeded", push_state="retrying")
    lock = worked.command("lock", issued_at=worked.now - timedelta(hours=2), expires_at=worked.now - timedelta(hours=1))
    overdue = worked.delivery(lock, lobby, push_state="waiting", next_attempt_at=worked.now)
    assert listed(browser, Delivery, push="waiting") == [waits.pk]
    assert listed(browser, Delivery, push="retrying") == []
    assert listed(browser, Delivery, push="superseded") == [overdue.pk, settled.pk]
    assert {row["delivery_id"] for row in exported(staff, Delivery, "?push=superseded")} == {
        str(overdue.pk), str(settled.pk),
    }  # fmt: skip
    assert {row["push"] for row in exported(staff, Delivery, "?push=superseded")} == {"superseded"}
    for delivery in (settled, overdue):
        page = browser.get(page_of(Delivery, "change", delivery.pk)).content.decode()
        assert "superseded" in page
        assert not re.search(r"next attempt at.{,200}class=\"moment\"", page, re.DOTALL)
    assert "1 superseded" in browser.get(page_of(Command, "change", ring.pk)).content.decode()


def test_deliveries_are_filtered_by_fcms_answer(worked: World, browser: Client) -> None:
    (dead,) = Delivery.objects.filter(attempts__http_status=404)
    (retried,) = Delivery.objects.filter(attempts__fcm_error="UNAVAILABLE")
    assert listed(browser, Delivery, http_status=404) == [dead.pk]
    assert listed(browser, Delivery, fcm_error="UNAVAILABLE") == [retried.pk]


@pytest.mark.parametrize(
    ("query", "condition"),
    [
        ({"fcm_error": "UNREGISTERED"}, {"fcm_error": "UNREGISTERED"}),
        ({"fcm_error": "none"}, {"fcm_error": ""}),
        ({"http_status": "404"}, {"http_status": 404}),
        ({"http_status": "none"}, {"http_status": None}),
        ({"outcome": "accepted"}, {"outcome": "accepted"}),
        ({"action": "ping"}, {"delivery__command__action": "ping"}),
        ({"action": "launch_app", "http_status": "503"}, {"http_status": 503}),
        ({"age": "1 hour"}, {}),
    ],
)
def test_attempts_are_filtered(
    worked: World, browser: Client, query: dict[str, str], condition: dict[str, Any]
) -> None:
    expected = list(Attempt.objects.filter(**condition).values_list("pk", flat=True))
    assert expected
    assert listed(browser, Attempt, **query) == expected


def test_an_answer_that_fcm_does_not_document_is_found_as_other(worked: World, browser: Client) -> None:
    odd = worked.attempt(Delivery.objects.all()[0], "rejected", 418, "TEAPOT")
    assert listed(browser, Attempt, http_status="other") == [odd.pk]
    assert listed(browser, Attempt, fcm_error="other") == [odd.pk]


def test_attempts_are_filtered_by_date(worked: World, browser: Client) -> None:
    Attempt.objects.filter(http_status=503).update(started_at=worked.now - timedelta(days=3))
    recent = list(Attempt.objects.exclude(http_status=503).values_list("pk", flat=True))
    recent += list(Attempt.objects.filter(http_status=None).values_list("pk", flat=True))
    assert set(listed(browser, Attempt, age="1 day")) == set(recent)
    assert len(listed(browser, Attempt, age="7 days")) == 4


def test_commands_are_filtered_by_action_and_open_deliveries(worked: World, browser: Client) -> None:
    launch, ping = Command.objects.get(action="launch_app"), Command.objects.get(action="ping")
    assert listed(browser, Command, action="ping") == [ping.pk]
    assert listed(browser, Command, state="open") == [launch.pk]
    assert listed(browser, Command, state="completed") == listed(browser, Command, outcome="failed") == [ping.pk]
    Command.objects.update(cancelled_at=worked.now)
    assert listed(browser, Command, state="cancelled") == [ping.pk]


def standings(browser: Client) -> dict[str, tuple[str, str, str]]:
    """Return the state, the outcome and the counts that the list of commands shows for each action."""
    page = browser.get(page_of(Command)).content.decode()
    shown = re.findall(
        r'field-action"><a[^>]*>(\w+)</a></th><td class="field-standing">(.*?)</td><td class="field-came_to">(.*?)</td>'
        r'<td class="field-counts">(.*?)</td>',
        page,
    )
    return {action: (plain(state), plain(outcome), plain(counts)) for action, state, outcome, counts in shown}


def test_the_list_of_commands_shows_state_outcome_and_counts(worked: World, browser: Client) -> None:
    assert standings(browser) == {
        "launch_app": ("open", "-", "1 pending , 1 succeeded"),
        "ping": ("completed", "failed", "1 failed"),
    }
    launch = Command.objects.get(action="launch_app")
    launch.deliveries.filter(state="pending").update(open_until=worked.now - timedelta(minutes=1))
    Command.objects.update(cancelled_at=worked.now)
    assert standings(browser) == {
        "launch_app": ("cancelled", "partial", "1 succeeded , 1 expired"),
        "ping": ("cancelled", "failed", "1 failed"),
    }
    address = f"{page_of(Delivery)}?command__id__exact={launch.pk}&amp;state=expired"
    assert f'<a href="{address}">1 expired</a>' in browser.get(page_of(Command)).content.decode()


def test_a_list_of_commands_counts_small_commands_only_and_links_to_the_others(
    worked: World, browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.admin.commands.MOST", 3)
    Command.objects.filter(action="ping").update(device_count=4)
    assert standings(browser) == {
        "launch_app": ("open", "-", "1 pending , 1 succeeded"),
        "ping": ("-", "-", "on its own page"),
    }


def test_devices_are_filtered_by_presence_and_push(worked: World, browser: Client) -> None:
    lobby, yard = Device.objects.get(alias="lobby"), Device.objects.get(alias="yard")
    Presence.objects.filter(device=yard).update(last_seen_at=worked.now - timedelta(hours=3))
    assert listed(browser, Device, presence="online") == [lobby.pk]
    assert listed(browser, Device, presence="offline") == [yard.pk]
    assert listed(browser, Device, push="dead") == [yard.pk]
    Device.objects.update(revoked_at=worked.now)
    assert listed(browser, Device, presence="revoked") == [yard.pk, lobby.pk]
    assert listed(browser, Device, presence="offline") == []


def test_a_request_id_finds_its_command_deliveries_and_attempts(worked: World, browser: Client) -> None:
    command = Command.objects.get(action="launch_app")
    mine = {"delivery__command": command}
    for typed in (str(command.pk), f" {str(command.pk).upper()} ", command.pk.hex):
        assert listed(browser, Command, q=typed) == [command.pk]
        assert listed(browser, Delivery, q=typed) == list(command.deliveries.values_list("pk", flat=True))
        assert listed(browser, Attempt, q=typed) == list(Attempt.objects.filter(**mine).values_list("pk", flat=True))


@pytest.mark.parametrize("typed", ["id", "alias", "part of the alias", "hardware id"])
def test_a_device_id_or_part_of_an_alias_in_any_case_finds_the_device_and_its_work(
    worked: World, browser: Client, typed: str
) -> None:
    lobby = Device.objects.get(alias="lobby")
    text = {"id": str(lobby.pk), "alias": "lobby", "part of the alias": "OBB", "hardware id": "W-lobby"}[typed]
    mine = Attempt.objects.filter(delivery__device=lobby).values_list("pk", flat=True)
    assert listed(browser, Device, q=text) == [lobby.pk]
    assert listed(browser, Command, q=text) == list(Command.objects.values_list("pk", flat=True))
    assert listed(browser, Delivery, q=text) == list(lobby.deliveries.values_list("pk", flat=True))
    assert listed(browser, Attempt, q=text) == list(mine)


def test_a_search_without_a_match_finds_nothing(worked: World, browser: Client) -> None:
    for text in ("nobody", "%", str(UUID(int=7))):
        assert listed(browser, Delivery, q=text) == []


@pytest.mark.parametrize(
    "query",
    [
        "q=x",
        "q=%00",
        "q=%ED%A0%80",
        "before=%00",
        "before=x",
        "before=" + "9" * 30,
        "command__id__exact=x",
        "state=x",
        "p=0",
        "p=99999999999",
        "all=",
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_an_odd_query_is_not_a_server_error(worked: World, browser: Client, model: type[Model], query: str) -> None:
    assert browser.get(f"{page_of(model)}?{query}").status_code in (200, 302, 400)


def parameters_of(model: type[Model]) -> list[str]:
    """Return the query parameters of a list's filters, except those that accept any text."""
    filters: Any = site._registry[model].list_filter
    known = [one for one in filters if not issubclass(one, ExactTextFilter)]
    return [name for one in known for name in getattr(one, "parameters", None) or [one.parameter_name]]


TIMES: Final = ["since", "until"]


@pytest.mark.parametrize(
    "value",
    ["-" + "9" * 5000, "%00", "%ED%A0%80", "0001-01-01T00:00%2B23:59", "1970-01-01T00:00%2B00:01"],
)
@pytest.mark.parametrize("model", [model for model in MODELS if set(TIMES) <= set(parameters_of(model))])
def test_an_invalid_time_filters_nothing(worked: World, browser: Client, model: type[Model], value: str) -> None:
    everything = listed(browser, model)
    answer = browser.get(f"{page_of(model)}?{'&'.join(f'{name}={value}' for name in TIMES)}")
    assert (answer.status_code, [row.pk for row in answer.context["cl"].result_list]) == (200, everything)


@pytest.mark.parametrize("value", ["foo", "-" + "9" * 5000, "%00", "%ED%A0%80"])
@pytest.mark.parametrize("model", [model for model in MODELS if parameters_of(model)])
def test_a_choice_that_a_filter_does_not_offer_is_refused(
    worked: World, browser: Client, staff: Visitor, model: type[Model], value: str
) -> None:
    for name in set(parameters_of(model)) - {*TIMES}:
        answer = browser.get(f"{page_of(model)}?{name}={value}")
        assert (answer.status_code, answer["Location"]) == (302, f"{page_of(model)}?e=1"), name
        assert browser.get(f"{page_of(model)}?{name}=").status_code == 200


def test_an_export_with_an_unknown_choice_is_refused(worked: World, staff: Visitor) -> None:
    answer = staff.request("GET", f"{page_of(Command, 'export')}?state=foo")
    assert (answer.status, answer.headers["location"]) == (302, "../?e=1")


@pytest.mark.parametrize("key", ["x", "_00", "9" * 30, str(UUID(int=7))])
@pytest.mark.parametrize("model", MODELS)
def test_a_missing_row_leads_back_to_the_index(worked: World, browser: Client, model: type[Model], key: str) -> None:
    answer = browser.get(page_of(model, "change", key))
    assert (answer.status_code, answer["Location"]) == (302, "/django-admin/")


def test_rows_beyond_a_page_are_one_link_away(worked: World, browser: Client) -> None:
    (delivery,) = Delivery.objects.filter(state="failed")
    Attempt.objects.all().delete()
    for _ in range(130):
        worked.attempt(delivery, "retry_later", 503, "UNAVAILABLE")
    keys = list(Attempt.objects.order_by("-pk").values_list("pk", flat=True))
    first = browser.get(page_of(Attempt), {"http_status": 503}).context["cl"]
    assert [row.pk for row in first.result_list] == keys[:100]
    second = browser.get(page_of(Attempt) + first.older).context["cl"]
    assert [row.pk for row in second.result_list] == keys[100:]
    assert second.older == ""


def test_a_delivery_has_a_timeline_from_issue_to_settlement(worked: World, browser: Client) -> None:
    (done,) = Delivery.objects.filter(state="succeeded")
    Command.objects.filter(pk=done.command_id).update(issued_at=worked.now - timedelta(seconds=90))
    first, second = done.attempts.order_by("number")
    Attempt.objects.filter(pk=first.pk).update(started_at=worked.now - timedelta(seconds=89.5))
    Attempt.objects.filter(pk=second.pk).update(started_at=worked.now - timedelta(seconds=1))
    Report.objects.filter(delivery=done).update(reported_at=worked.now)
    story = re.findall(r'<li class="(\w+)">(.*?)</li>', page_text(browser, done), re.DOTALL)
    told = [(event, plain(text)) for event, text in story]
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z"
    for (event, text), (expected, pattern) in zip(
        told,
        [
            ("issued", rf"{moment} Issued by admin"),
            ("attempt", rf"{moment} \+0\.5 s Push 1: retry_later HTTP 503 UNAVAILABLE in 41 ms projects/p/\S+"),
            ("attempt", rf"{moment} \+1\.5 min Push 2: accepted HTTP 200 in 41 ms projects/p/messages/accepted-\d+"),
            ("report", rf"{moment} \+1\.5 min Report: succeeded \(came by push\) it runs"),
            ("settled", rf"{moment} \+1\.5 min Settled: succeeded"),
        ],
        strict=True,
    ):
        assert event == expected
        assert re.fullmatch(pattern, text), text
    text = text_of(browser, done)
    assert "State: succeeded" in text
    assert re.search(r"Result: succeeded it runs \{ &quot;pid&quot;: 4711 \}", text)


def test_an_open_delivery_shows_its_reason(worked: World, browser: Client) -> None:
    (waiting,) = Delivery.objects.filter(state="pending")
    assert "Why open: The push token is dead." in text_of(browser, waiting)
    Delivery.objects.filter(pk=waiting.pk).update(state="cancelled", settled_at=worked.now)
    assert "Why open: -" in text_of(browser, waiting)


def test_an_audit_entry_shows_all_of_its_fields(worked: World, browser: Client) -> None:
    entry = AuditEntry.objects.get()
    text = text_of(browser, entry)
    shown = {"Principal": "admin", "Admin key id": "0a1b2c3d", "Body sha256": "ab" * 32, "Hash": entry.hash}
    for label, value in (shown | {"Previous": "0" * 64, "Path": "/admin/command", "Status": "200"}).items():
        assert f"{label}: {value}" in text
    labels = [field.verbose_name.capitalize() for field in AuditEntry._meta.fields if field.name != "id"]
    assert [label for label in labels if f"{label}:" not in text] == []


def test_a_late_result_is_shown_as_such(worked: World, browser: Client) -> None:
    (delivery,) = Delivery.objects.filter(state="pending")
    Delivery.objects.filter(pk=delivery.pk).update(state="expired", settled_at=worked.now)
    Report.objects.create(delivery=delivery, status="succeeded", message="at last", late=True)
    Report.objects.create(delivery=delivery, status="failed", message="again", late=True, duplicate=True)
    text = text_of(browser, delivery)
    assert "State: expired" in text
    assert "Result: succeeded , late: the delivery was already settled at last" in text


def test_an_overdue_delivery_is_expired_everywhere_marked_or_not(worked: World, browser: Client) -> None:
    (overdue,) = Delivery.objects.filter(state="pending")
    Delivery.objects.filter(pk=overdue.pk).update(open_until=worked.now - timedelta(minutes=1))
    assert listed(browser, Delivery, state="pending") == []
    assert listed(browser, Delivery, state="expired") == [overdue.pk]
    assert listed(browser, Command, state="open") == []
    assert browser.get(page_of(Delivery), {"state": "expired"}).content.decode().count(">expired</span>") == 1
    for row in (overdue, overdue.device):
        assert "expired" in text_of(browser, row)
        assert "pending" not in text_of(browser, row)
    assert "By state: 1 succeeded , 1 expired " in text_of(browser, overdue.command)


def test_a_command_links_to_its_deliveries_by_state(worked: World, browser: Client) -> None:
    command = Command.objects.get(action="launch_app")
    answer = browser.get(page_of(Command, "change", command.pk)).content.decode()
    assert "&quot;package&quot;: &quot;com.example&quot;" in answer
    address = f"{page_of(Delivery)}?command__id__exact={command.pk}&amp;state=pending"
    assert f'<a href="{address}">1 pending</a>' in answer
    assert len(listed(browser, Delivery, command__id__exact=command.pk)) == 2
    assert len(listed(browser, Delivery, command__id__exact=command.pk, state="pending")) == 1


def test_a_device_shows_its_status_and_links_to_its_deliveries(worked: World, browser: Client) -> None:
    lobby = Device.objects.get(alias="lobby")
    text = text_of(browser, lobby)
    assert "Presence: online" in text
    assert "&quot;battery_pct&quot;: 83" in text
    newest = lobby.deliveries.all()[0]
    assert page_of(Delivery, "change", newest.pk) in browser.get(page_of(Device, "change", lobby.pk)).content.decode()
    assert len(listed(browser, Delivery, device__id__exact=lobby.pk)) == 2


def test_a_device_shows_why_it_was_last_refused(worked: World, browser: Client, staff: Visitor) -> None:
    lobby = Device.objects.get(alias="lobby")
    assert "Last refusal: -" in text_of(browser, lobby)
    LastRefusal.objects.create(device=lobby, at=worked.now, route="/v1/heartbeat", code="device_revoked")
    when = f"{worked.now:%Y-%m-%d %H:%M:%SZ}"
    assert re.search(rf"Last refusal: \d+ s ago {when} device_revoked at /v1/heartbeat", text_of(browser, lobby))
    refused = {row["alias"]: row["last_refusal_code"] for row in exported(staff, Device)}
    assert refused == {"lobby": "device_revoked", "yard": ""}


def test_texts_of_a_phone_are_shown_as_text(worked: World, browser: Client) -> None:
    lobby = Device.objects.get(alias="lobby")
    Presence.objects.filter(device=lobby).update(last_status={"foreground_app": "<script>alert(1)</script>"})
    Device.objects.filter(pk=lobby.pk).update(alias="<b>lobby</b>")
    for address in (page_of(Device), page_of(Device, "change", lobby.pk), page_of(Delivery)):
        answer = browser.get(address).content.decode()
        assert "<script>alert" not in answer
        assert "<b>lobby" not in answer


WITH_MORE: Final = {Command: 1, Delivery: 3}
"""How many queries more a list takes: for the counts of commands; for the reasons and results of deliveries."""


@pytest.mark.parametrize("model", MODELS)
def test_a_list_of_any_length_costs_a_fixed_number_of_queries(
    worked: World, browser: Client, model: type[Model], django_assert_max_num_queries: MaxQueries
) -> None:
    for number in range(20):
        delivery = worked.delivery(worked.command("reboot"), worked.device(f"device-{number}"))
        worked.attempt(delivery, "accepted", 200)
        Report.objects.create(delivery=delivery, status="received")
    with django_assert_max_num_queries(4 + WITH_MORE.get(model, 0)):
        assert listed(browser, model)


def test_a_search_costs_one_query_more(
    worked: World, browser: Client, django_assert_max_num_queries: MaxQueries
) -> None:
    command = Command.objects.get(action="launch_app")
    with django_assert_max_num_queries(5 + WITH_MORE[Delivery]):
        assert len(listed(browser, Delivery, q=command.pk)) == 2


@pytest.mark.parametrize(("model", "queries"), [(Delivery, 8), (Command, 14), (Device, 14)])
def test_a_page_costs_a_few_queries_for_any_content(
    worked: World, browser: Client, model: type[Model], queries: int, django_assert_max_num_queries: MaxQueries
) -> None:
    (done,) = Delivery.objects.filter(state="succeeded")
    for number in range(20):
        worked.attempt(done, "accepted", 200)
        Report.objects.create(delivery=done, status="running")
        worked.delivery(done.command, worked.device(f"device-{number}"))
        worked.delivery(worked.command("reboot"), done.device)
    row = {Delivery: done, Command: done.command, Device: done.device}[model]
    text_of(browser, row)  # Django keeps the content type of a model for as long as the process runs
    with django_assert_max_num_queries(queries):
        text_of(browser, row)


def test_a_delivery_shows_its_newest_hundred_reports(worked: World, browser: Client) -> None:
    (done,) = Delivery.objects.filter(state="succeeded")
    Report.objects.bulk_create(
        Report(delivery=done, status="running", message=f"said {n}.", reported_at=worked.now + timedelta(seconds=n))
        for n in range(150)
    )
    text = text_of(browser, done)
    assert text.count(" said ") == 100
    assert text.index(" said 148.") < text.index(" said 149.")
    assert "Result: succeeded it runs" in text
    assert "earlier reports are not shown" in text
    assert len(listed(browser, Report, delivery__id__exact=done.pk)) == 100


def test_a_delivery_shows_repeats_of_reports_and_the_number_of_reports_not_stored(
    worked: World, browser: Client, staff: Visitor
) -> None:
    (done,) = Delivery.objects.filter(state="succeeded")
    last = worked.now + timedelta(minutes=1)
    running = Report.objects.create(
        delivery=done, status="running", repeat_count=41, last_repeated_at=last, reported_at=worked.now
    )
    Delivery.objects.filter(pk=done.pk).update(reports_not_kept=7)
    text = text_of(browser, done)
    assert f"42 times, the last one at {last:%Y-%m-%d %H:%M:%S}Z" in text
    assert "7 further reports were counted but not stored" in text
    assert "Reports not kept: 7" in text
    assert re.search("Repeats: 41 Last repeat: in 5[0-9] s 20", text_of(browser, running))
    (row,) = [row for row in exported(staff, Report) if row["report_id"] == str(running.pk)]
    assert (row["repeats"], row["last_repeated_at"]) == ("41", rfc3339(last))


def test_a_command_shows_its_counts_and_the_newest_of_its_deliveries(worked: World, browser: Client) -> None:
    command = Command.objects.get(action="launch_app")
    for number in range(25):
        worked.delivery(command, worked.device(f"device-{number}"), "failed")
    page = page_text(browser, command)
    assert "State: open" in plain(page)
    assert "By state: 1 pending , 1 succeeded , 25 failed " in plain(page)
    assert "By push: 27 accepted" in plain(page)
    newest = list(command.deliveries.exclude(state="succeeded").values_list("pk", flat=True)[:20])
    newest += command.deliveries.filter(state="succeeded").values_list("pk", flat=True)
    assert [int(key) for key in re.findall(r'href="/django-admin/commands/delivery/(\d+)/change/"', page)] == newest


def test_the_first_page_counts_the_fleet_its_open_work_and_its_pushes(worked: World, browser: Client) -> None:
    worked.device("revoked", revoked_at=worked.now)
    Presence.objects.filter(device=worked.device("silent")).update(last_seen_at=None)
    Presence.objects.filter(device=worked.device("away")).update(last_seen_at=worked.now - timedelta(hours=1))
    worked.attempt(Delivery.objects.all()[0], "blocked", 418)
    Attempt.objects.filter(fcm_error="UNREGISTERED").update(finished_at=worked.now - timedelta(days=2))
    page = browser.get("/django-admin/").content.decode()
    bars = re.findall(
        r'<th scope="row"><a href="([^"]+)">(\w+)</a></th>.*?<td class="number">([\d,]+)</td>', page, re.DOTALL
    )
    counted = {label: int(number) for _, label, number in bars}
    assert counted == {
        "online": 2, "offline": 1, "never": 1, "revoked": 1, "retired": 0,
        "pending": 1, "received": 0,
        "OK": 1, "UNAVAILABLE": 1, "UNKNOWN": 1, "418": 1,
    }  # fmt: skip
    for address, label, _ in bars:
        rows = browser.get(address.replace("&amp;", "&")).context["cl"].result_list
        assert len(rows) == counted[label], label


def test_the_first_page_shows_that_a_count_is_incomplete(
    worked: World, browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.admin_site.dashboard.MOST", 1)
    page = plain(browser.get("/django-admin/").content.decode())
    assert "There are 1 or more." in page
    assert re.search(r"Only the newest 1 are counted, since \d{4}-\d\d-\d\d \d\d:\d\dZ\.", page)


def test_a_long_list_shows_an_estimate_of_its_rows(worked: World, browser: Client) -> None:
    (delivery,) = Delivery.objects.filter(state="failed")
    for _ in range(150):
        worked.attempt(delivery, "retry_later", 503, "UNAVAILABLE")
    database.execute("ANALYZE commands_attempt")
    assert "100 attempts on this page, newest first; about 154 in all." in plain(
        browser.get(page_of(Attempt)).content.decode()
    )
    narrowed = browser.get(page_of(Attempt), {"fcm_error": "UNAVAILABLE"})
    assert "100 attempts on this page, newest first." in plain(narrowed.content.decode())
    older = browser.get(page_of(Attempt) + browser.get(page_of(Attempt)).context["cl"].older)
    assert "54 attempts on this page, newest first." in plain(older.content.decode())


@pytest.mark.parametrize("counted", [0, 68, 100])
def test_an_estimate_of_no_more_than_the_page_shows_is_left_out(worked: World, browser: Client, counted: int) -> None:
    (delivery,) = Delivery.objects.filter(state="failed")
    for _ in range(110):
        worked.attempt(delivery, "retry_later", 503, "UNAVAILABLE")
    database.execute("UPDATE pg_class SET reltuples = %s WHERE oid = 'commands_attempt'::regclass", [counted])
    assert "100 attempts on this page, newest first." in plain(browser.get(page_of(Attempt)).content.decode())


def a_day_apart(world: World) -> list[Attempt]:
    """Return five attempts of one delivery, each a day younger than the attempt before."""
    (delivery,) = Delivery.objects.filter(state="failed")
    Attempt.objects.all().delete()
    attempts = [world.attempt(delivery, "accepted", 200) for _ in range(5)]
    for age, attempt in enumerate(reversed(attempts)):
        Attempt.objects.filter(pk=attempt.pk).update(started_at=datetime(2026, 3, 20 - age, 12, 0, tzinfo=UTC))
    return attempts


@pytest.mark.parametrize(
    ("since", "until", "found"),
    [
        ("2026-03-18T12:00", "", [4, 3, 2]),
        ("", "2026-03-18T12:00", [1, 0]),
        ("2026-03-17T00:00", "2026-03-19", [2, 1]),
        ("2026-03-18T12:01", "2026-03-19T11:59", []),
        ("2027-01-01T00:00", "", []),
        ("", "1999-01-01T00:00", []),
        ("2026-03-19T04:00+16:00", "2026-03-18T12:01-23:59", [2]),
        ("2026-03-18T12:01-23:59", "2026-03-21T12:00+23:59", [4, 3]),
        ("never", "0001-01-01T00:00", [4, 3, 2, 1, 0]),
    ],
)
def test_attempts_are_filtered_by_time(
    worked: World, browser: Client, since: str, until: str, found: list[int]
) -> None:
    attempts = a_day_apart(worked)
    assert listed(browser, Attempt, since=since, until=until) == [attempts[place].pk for place in found]


@pytest.mark.parametrize("model", [Command, Delivery, Report, AuditEntry])
def test_other_lists_are_filtered_by_time_too(worked: World, browser: Client, model: type[Model]) -> None:
    everything = listed(browser, model)
    assert everything
    today = f"{worked.now - timedelta(hours=1):%Y-%m-%dT%H:%M}"
    assert listed(browser, model, since=today) == listed(browser, model, age="1 day") == everything
    assert listed(browser, model, until=today) == []


def test_a_span_of_time_of_an_empty_list_is_empty(browser: Client) -> None:
    assert listed(browser, Attempt, age="1 hour", until="2026-03-18T12:00") == []


def test_the_form_for_a_time_keeps_the_other_filters(worked: World, browser: Client) -> None:
    page = browser.get(page_of(Attempt), {"fcm_error": "UNAVAILABLE", "q": "lobby", "since": "2026-03-18T12:00"})
    form = re.search(r"<form method=\"get\">.*?</form>", page.content.decode(), re.DOTALL)
    assert form is not None
    assert re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', form[0]) == [
        ("fcm_error", "UNAVAILABLE"),
        ("q", "lobby"),
    ]
    assert 'name="since" value="2026-03-18T12:00"' in form[0]


@pytest.fixture
def staff(browser: Client) -> Visitor:
    """A visitor who has logged in, on the real ASGI stack."""
    return Visitor(session=browser.cookies["sessionid"].value)


def test_staff_reads_everything_and_writes_nothing_on_the_real_stack(
    worked: World, browser: Client, staff: Visitor
) -> None:
    token = "t" * 32
    cookies = f"sessionid={browser.cookies['sessionid'].value}; csrftoken={token}"
    form = {"Cookie": cookies, "X-CSRFToken": token, "Content-Type": "application/x-www-form-urlencoded"}
    before = everything()
    for model in MODELS:
        row = model._default_manager.first()
        assert row is not None
        for address in (page_of(model), page_of(model, "change", row.pk)):
            assert Visitor().request("GET", address).status == 302
            assert staff.request("GET", address).status == 200
            assert staff.request("POST", address, b"action=delete_selected&post=yes", form).status == 405
    assert everything() == before


def exported(staff: Visitor, model: type[Model], query: str = "") -> list[dict[str, str]]:
    """Return the rows of a list as CSV."""
    answer = staff.request("GET", page_of(model, "export") + query)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    return list(csv.DictReader(io.StringIO(answer.body.decode(), newline="")))


EXPORTED = [model for model in MODELS if model is not DispatcherSeen]


@pytest.mark.parametrize("model", EXPORTED)
def test_a_list_is_exported_as_csv_newest_first(worked: World, staff: Visitor, model: type[Model]) -> None:
    rows = exported(staff, model)
    keys = [str(key) for key in model._default_manager.order_by("-pk").values_list("pk", flat=True)]
    assert len(rows) == len(keys)
    if model is not AuditEntry:
        assert [next(iter(row.values())) for row in rows] == keys


def test_a_filtered_list_is_exported_as_it_is_filtered(worked: World, staff: Visitor) -> None:
    (row,) = exported(staff, Attempt, "?fcm_error=UNREGISTERED&before=0")
    (attempt,) = Attempt.objects.filter(fcm_error="UNREGISTERED")
    delivery = attempt.delivery
    assert row == {
        "attempt_id": str(attempt.pk), "delivery_id": str(delivery.pk), "request_id": str(delivery.command_id),
        "action": "launch_app", "device_id": str(delivery.device_id), "alias": "yard", "attempt": "1",
        "outcome": "token_dead", "http_status": "404", "fcm_error": "UNREGISTERED",
        "message_id": attempt.message_id, "latency_ms": "41", "detail": "",
        "started_at": rfc3339(attempt.started_at), "finished_at": rfc3339(worked.now),
    }  # fmt: skip
    found = exported(staff, Device, "?presence=online&push=ok")
    assert [row["alias"] for row in found] == ["lobby"]
    assert (found[0]["presence"], found[0]["last_status"]) == ("online", '{"battery_pct": 83}')


def test_the_csv_of_commands_has_states_and_reads_a_few_deliveries_at_a_time(
    worked: World, staff: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.queries.commands.DELIVERIES_PER_QUERY", 3)
    (late,) = Delivery.objects.filter(state="pending")
    Delivery.objects.filter(pk=late.pk).update(state="expired", settled_at=worked.now)
    Report.objects.create(delivery=late, status="succeeded", late=True)
    worked.delivery(worked.command("ring"), late.device)
    standing = ("action", "state", "outcome", "completed_at", "pending", "succeeded", "failed", "expired", "late")
    assert [tuple(row[name] for name in standing) for row in exported(staff, Command)] == [
        ("ring", "open", "", "", "1", "0", "0", "0", "0"),
        ("ping", "completed", "failed", rfc3339(worked.now), "0", "0", "1", "0", "0"),
        ("launch_app", "completed", "partial", rfc3339(worked.now), "0", "1", "0", "1", "1"),
    ]


def test_the_link_to_the_csv_carries_the_filters_and_begins_at_the_top(worked: World, browser: Client) -> None:
    page = browser.get(page_of(Attempt), {"fcm_error": "UNREGISTERED", "before": str(10**9)}).content.decode()
    assert '<a href="export/?fcm_error=UNREGISTERED">Export CSV</a>' in page
    assert "Export" not in browser.get(page_of(DispatcherSeen)).content.decode()


def test_an_export_keeps_one_chunk_in_memory_and_misses_no_row(
    worked: World, staff: Visitor, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: MaxQueries
) -> None:
    monkeypatch.setattr("nexmdm.common.read_only_admin.csv_export.CHUNK", 10)
    (delivery,) = Delivery.objects.filter(state="failed")
    for _ in range(55):
        worked.attempt(delivery, "retry_later", 503, "UNAVAILABLE")
    page, chunks = 4, 7
    with django_assert_max_num_queries(page + chunks):
        rows = exported(staff, Attempt, "?fcm_error=UNAVAILABLE")
    keys = Attempt.objects.filter(fcm_error="UNAVAILABLE").values_list("pk", flat=True)
    assert [int(row["attempt_id"]) for row in rows] == list(keys)


def test_exports_at_the_same_moment_read_their_chunks_one_after_the_other(worked: World, staff: Visitor) -> None:
    async def begun_while_another_one_reads() -> Answer:
        await csv_export.READING.enter("another")
        begun = asyncio.create_task(staff.arequest("GET", page_of(Report, "export"), None, staff.cookies))
        deadline = time.monotonic() + 10
        while not any(state.waiters for state in csv_export.READING._states._made.values()):
            assert time.monotonic() < deadline, "it does not wait"
            await asyncio.sleep(0)
        csv_export.READING.leave("another")
        return await begun

    with staff.keeping_the_connection():
        answer = async_to_sync(begun_while_another_one_reads)()
    assert (answer.status, len(answer.body.splitlines())) == (200, 1 + Report.objects.count())


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1", '=cmd|" /C calc"!A0']
)
def test_no_spreadsheet_reads_a_cell_as_a_formula(worked: World, staff: Visitor, text: str) -> None:
    Report.objects.update(message=text)
    Device.objects.filter(alias="lobby").update(alias=text)
    (report,) = exported(staff, Report)
    assert (report["message"], report["alias"]) == (f"'{text}", f"'{text}")


def test_a_cell_may_contain_anything_else(worked: World, staff: Visitor) -> None:
    message = 'a "quoted" word, a comma,\r\na line, and é = ✓'
    Report.objects.update(message=message)
    (report,) = exported(staff, Report)
    assert report["message"] == message


@pytest.mark.parametrize("model", EXPORTED)
def test_no_secret_is_in_any_csv(worked: World, staff: Visitor, model: type[Model]) -> None:
    body = staff.request("GET", page_of(model, "export")).body.replace(b"secret-body-sha256", b"")
    assert b"secret-" not in body
    assert b"yard-token" not in body
    assert b"secret-".hex().encode() not in body


def test_the_csv_of_the_audit_is_enough_to_verify_it(worked: World, staff: Visitor) -> None:
    rows = exported(staff, AuditEntry)
    assert [row["previous"] for row in rows[:-1]] == [row["hash"] for row in rows[1:]]
    for row in rows:
        covered = [
            "nexmdm audit 1", row["previous"], int(row["id"]), row["at"], row["principal"], row["admin_key_id"],
            row["idempotency_key"], row["address"] or None, row["method"], row["path"], row["body_sha256"],
            int(row["status"]), row["code"], row["request_id"] or None, row["correlation_id"],
        ]  # fmt: skip
        assert sha256(json.dumps(covered, ensure_ascii=False).encode()).hexdigest() == row["hash"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_an_export_is_only_read(worked: World, browser: Client, method: str) -> None:
    assert browser.generic(method, page_of(Attempt, "export")).status_code == 405


def test_a_head_request_for_an_export_reads_no_rows(worked: World, staff: Visitor) -> None:
    answer = staff.request("HEAD", page_of(Attempt, "export"))
    assert (answer.status, answer.body) == (200, b"")
    assert re.fullmatch(r'attachment; filename="attempts-\d{8}T\d{6}Z\.csv"', answer.headers["content-disposition"])


@pytest.mark.parametrize(("query", "status"), [("?token_hash__startswith=s", 400), ("?delivery__id__exact=x", 302)])
def test_an_export_refuses_what_its_list_refuses(worked: World, staff: Visitor, query: str, status: int) -> None:
    for page in ("changelist", "export"):
        assert staff.request("GET", page_of(Attempt, page) + query).status == status


def test_a_visitor_without_a_login_gets_no_csv(worked: World) -> None:
    answer = Visitor().request("GET", page_of(Device, "export"))
    assert (answer.status, answer.body) == (302, b"")


HTTPS_HOST = {"Host": "mdm.example.com", "Origin": "https://mdm.example.com"}


@pytest.fixture
def proxied(superuser: User, settings: Settings) -> Visitor:
    """A proxy that is trusted, in front of a server that is not on loopback."""
    settings.ALLOWED_HOSTS = ["mdm.example.com"]
    settings.TRUSTED_PROXIES = [ip_network("10.0.0.0/8")]
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = True
    return Visitor("10.0.0.1")


def test_staff_logs_in_through_a_proxy_that_ends_tls(proxied: Visitor) -> None:
    answer = proxied.log_in(
        "root", PASSWORD, **HTTPS_HOST, **{"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
    )
    assert (answer.status, answer.headers["location"]) == (302, "/django-admin/")
    assert re.search(r"sessionid=\w+;.* HttpOnly;.* SameSite=Lax; Secure$", answer.headers["set-cookie"])


def test_an_untrusted_proxy_cannot_set_the_scheme_to_https(proxied: Visitor) -> None:
    stranger = Visitor("192.0.2.9")
    assert stranger.log_in("root", PASSWORD, **HTTPS_HOST, **{"X-Forwarded-Proto": "https"}).status == 403


@pytest.mark.parametrize(
    ("given", "secure"),
    [
        ({}, False),
        ({"ALLOWED_HOSTS": "localhost,127.0.0.1"}, False),
        ({"ALLOWED_HOSTS": "localhost,mdm.example.com"}, True),
        ({"TRUSTED_PROXIES": "127.0.0.1"}, True),
    ],
)
def test_the_cookies_of_the_admin_site_are_secure_unless_it_is_only_on_loopback(
    given: dict[str, str], secure: bool
) -> None:
    program = "from django.conf import settings as s; print(s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE)"
    environ = {**os.environ, **given, "DJANGO_SETTINGS_MODULE": "nexmdm.settings"}
    said = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(secure)] * 2
