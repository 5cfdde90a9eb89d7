"""What operations see of webhooks: metrics, readiness, the pages of the site, settings."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser

from nexmdm.common import database
from tests.support.actors import Admin, Client, Phone
from tests.support.html import plain
from tests.support.processes import run
from tests.webhooks.conftest import Hook
from tests.webhooks.receiver import Receiver, send_once, status
from tests.webhooks.test_sending import tag

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def scrape(client: Client, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], float]:
    """Return a function that reads one series of the metrics again."""

    def read(series: str) -> float:
        monkeypatch.setattr("nexmdm.monitoring.metrics._gauges._read_at", float("-inf"))
        lines = client.request("GET", "/metrics").body.decode().splitlines()
        (line,) = [line for line in lines if line.startswith(f"{series} ")]
        return float(line.rpartition(" ")[2])

    return read


@pytest.fixture
def browser() -> Browser:
    """A member of staff."""
    browser = Browser()
    browser.force_login(User.objects.create_user("staff", is_staff=True))
    return browser


def states(scrape: Callable[[str], float]) -> list[float]:
    return [scrape(f'nexmdm_webhooks{{state="{state}"}}') for state in ("ok", "failing", "paused")]


def test_the_metrics_count_webhooks_by_state_and_attempts_by_outcome(
    admin: Admin,
    phone: Phone,
    make_hook: Callable[..., Hook],
    receiver: Receiver,
    scrape: Callable[[str], float],
) -> None:
    hooks = [make_hook() for _ in range(3)]
    before = [scrape(f'nexmdm_webhook_attempts_total{{outcome="{name}"}}') for name in ("delivered", "refused")]
    assert states(scrape) == [3, 0, 0]
    hooks[0].change(paused=True)
    hooks[1].replay("now")
    hooks[2].replay("now")
    receiver.state.script = [status(500)]
    tag(admin, phone, "kiosk")
    send_once()
    assert states(scrape) == [1, 1, 1]
    after = [scrape(f'nexmdm_webhook_attempts_total{{outcome="{name}"}}') for name in ("delivered", "refused")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1]


def test_the_lag_is_the_age_of_the_oldest_event_that_waits_for_a_webhook_that_is_not_paused(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, scrape: Callable[[str], float]
) -> None:
    send_once()
    assert scrape("nexmdm_webhook_lag_seconds") == 0
    tag(admin, phone, "kiosk")
    database.execute("UPDATE nexmdm_event SET at = at - %s", [timedelta(hours=1)])
    assert 3600 <= scrape("nexmdm_webhook_lag_seconds") < 3660
    send_once()
    assert scrape("nexmdm_webhook_lag_seconds") == 0
    tag(admin, phone, "till")
    hook.change(paused=True)
    assert scrape("nexmdm_webhook_lag_seconds") == 0


def test_readiness_counts_paused_webhooks_and_stays_200(admin: Admin, make_hook: Callable[..., Hook]) -> None:
    for _ in range(2):
        make_hook().change(paused=True)
    answer = admin.client.request("GET", "/readyz")
    assert (answer.status, answer.json["webhooks"]) == (200, "2 paused")


def test_a_failing_webhook_is_visible_before_it_is_paused(
    admin: Admin, phone: Phone, hook: Hook, receiver: Receiver, browser: Browser
) -> None:
    receiver.state.script = [status(503)]
    tag(admin, phone, "kiosk")
    send_once()
    assert admin.client.request("GET", "/readyz").json["webhooks"] == "1 failing"
    row = admin.get(f"/admin/webhooks/{hook.id}").json
    assert row["paused"] is False
    assert row["why"].startswith("The receiver has accepted no event since 20")
    assert "1 webhook fails: its receiver accepts no event" in plain(browser.get("/django-admin/").content.decode())
    database.execute("UPDATE nexmdm_webhook SET next_attempt_at = now()")
    send_once()
    assert admin.client.request("GET", "/readyz").json["webhooks"] == "ok"
    assert admin.get(f"/admin/webhooks/{hook.id}").json["why"] is None


def test_the_site_shows_webhooks_with_their_attempts_and_what_is_paused(
    admin: Admin, phone: Phone, make_hook: Callable[..., Hook], receiver: Receiver, browser: Browser
) -> None:
    hook = make_hook(description="Ticket system", types=["device.*"])
    receiver.state.script = [status(503)]
    tag(admin, phone, "kiosk")
    send_once()
    listed = plain(browser.get("/django-admin/nexmdm/webhook/").content.decode())
    assert "Ticket system" in listed
    assert "failing" in listed
    page = plain(browser.get(f"/django-admin/nexmdm/webhook/{hook.id}/change/").content.decode())
    assert "refused with 503" in page
    assert receiver.url in page
    found = browser.get("/django-admin/nexmdm/webhookattempt/", {"outcome": "refused"}).content.decode()
    assert "device.updated" in plain(found)
    hook.change(paused=True)
    home = plain(browser.get("/django-admin/").content.decode())
    assert "1 webhook is paused" in " ".join(home.split())
    assert hook.secret not in listed + page + found + home


@pytest.mark.parametrize("value", ["10.0.0.0/33", "private", "10.0.0.1/8", "::ffff:10.0.0.0/104"])
def test_a_malformed_network_stops_the_start(value: str) -> None:
    outcome = run("manage.py", "check", WEBHOOK_ALLOW_PRIVATE=value)
    assert outcome.returncode != 0
    assert "(nexmdm.E006) WEBHOOK_ALLOW_PRIVATE" in outcome.stderr
