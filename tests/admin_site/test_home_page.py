"""The home page of the admin site: it begins with the lines that need attention, and each line links to its rows."""

import html
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Final

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser

from commands import finishing, queue
from commands.models import Attempt, Delivery
from commands.push import circuit_breaker
from commands.push.circuit_breaker import Circuit
from devices.models import Device
from nexmdm.common import database
from nexmdm.models import DispatcherSeen
from nexmdm.monitoring import dispatcher_status
from tests.support.actors import Admin, Phone, fcm_calls_dead
from tests.support.html import plain
from tests.support.moments import let_pass

MaxQueries = Callable[[int], AbstractContextManager[Any]]

HOME: Final = "/django-admin/"


@pytest.fixture
def browser(db: None) -> Browser:
    """A visitor who has logged in, while a dispatcher runs."""
    dispatcher_status.note_seen(Circuit())
    browser = Browser()
    browser.force_login(User.objects.create_user("staff", is_staff=True))
    return browser


def attention(browser: Browser) -> dict[str, str]:
    """Return the lines that need attention, each with the address of its link."""
    page = browser.get(HOME).content.decode()
    part = page[page.index('id="attention"') :].partition("</section>")[0]
    return {plain(text): html.unescape(address) for address, text in re.findall(r'<a href="(.*?)">(.*?)</a>', part)}


def listed(browser: Browser, address: str) -> int:
    answer = browser.get(address)
    assert answer.status_code == 200
    return len(answer.context["cl"].result_list)


def end_everything() -> None:
    queue.expire(100)
    finishing.finish(100)


def test_a_healthy_fleet_needs_no_attention_and_the_page_shows_this(
    admin: Admin, phone: Phone, browser: Browser
) -> None:
    phone.heartbeat(status={"battery_pct": 90})
    request_id = admin.command(to=phone).json["request_id"]
    phone.report(request_id, "succeeded")
    end_everything()
    assert attention(browser) == {}
    assert "nothing No command failed or expired in the last day" in plain(browser.get(HOME).content.decode())


def test_commands_without_success_in_the_last_day_link_to_their_list(admin: Admin, browser: Browser) -> None:
    one, other = admin.enrol("one"), admin.enrol("other")
    for outcomes in (("failed", "failed"), ("succeeded", "failed"), ("succeeded", "succeeded"), ()):
        request_id = admin.command("ring", to=[one, other], params={"duration_seconds": 5}).json["request_id"]
        for phone, outcome in zip((one, other), outcomes, strict=False):
            phone.report(request_id, outcome)
    let_pass(minutes=20)
    end_everything()
    lines = attention(browser)
    assert list(lines) == [
        "1 command failed in the last day",
        "1 command expired in the last day",
        "1 command succeeded on some of its devices only in the last day",
    ]
    assert [listed(browser, address) for address in lines.values()] == [1, 1, 1]
    let_pass(days=1)
    assert not [text for text in attention(browser) if "command" in text]


def test_a_command_that_ends_today_counts_even_if_it_was_issued_long_ago(admin: Admin, browser: Browser) -> None:
    admin.command("lock", to=admin.enrol("one"))
    let_pass(days=28, hours=1)
    end_everything()
    assert listed(browser, attention(browser)["1 command expired in the last day"]) == 1


def test_devices_that_need_attention_lead_to_their_list_and_revoked_ones_need_none(
    admin: Admin, browser: Browser
) -> None:
    for name in ("silent", "silent too", "revoked"):
        admin.enrol(name).heartbeat(status={"battery_pct": 5})
    let_pass(days=1, minutes=1)
    revoked = Device.objects.get(hardware_id="revoked").pk
    admin.post(f"/admin/devices/{revoked}/revoke")
    admin.enrol("low").heartbeat(status={"battery_pct": 15, "charging": False})
    admin.enrol("charging").heartbeat(status={"battery_pct": 3, "charging": True})
    admin.enrol("full").heartbeat(status={"battery_pct": 16})
    admin.enrol("failing", push_token="ok-1").heartbeat()
    admin.enrol("dead", push_token="ok-2").heartbeat()
    Device.objects.filter(hardware_id="failing").update(push_failures=5)
    fcm_calls_dead("ok-2")
    lines = attention(browser)
    assert {text: listed(browser, address) for text, address in lines.items()} == {
        "2 devices have been silent for a day": 2,
        "1 device gets no pushes: its last five or more pushes failed": 1,
        "1 device has a dead push token": 1,
        "1 device has 15% battery or less and no charger": 1,
    }


def test_an_open_circuit_breaker_and_a_missing_dispatcher_need_attention(browser: Browser) -> None:
    dispatcher_status.note_seen(Circuit(state=circuit_breaker.OPEN, reason="FCM answers 401"))
    assert list(attention(browser)) == ["FCM circuit breaker is open, and pushes wait: FCM answers 401"]
    DispatcherSeen.objects.all().delete()
    (line,) = attention(browser).items()
    assert line[0].startswith("No dispatcher is running")
    assert line[1] == "/django-admin/nexmdm/dispatcherseen/"


def test_counts_are_limited_and_show_their_limit(
    admin: Admin, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.admin_site.attention.MOST_COMMANDS", 1)
    monkeypatch.setattr("nexmdm.admin_site.attention.MOST_LOW", 1)
    for name in ("one", "other"):
        phone = admin.enrol(name)
        phone.heartbeat(status={"battery_pct": 1})
        phone.report(admin.command(to=phone).json["request_id"], "failed")
    end_everything()
    assert list(attention(browser)) == [
        "1+ commands failed in the last day", "1+ devices have 15% battery or less and no charger",
    ]  # fmt: skip


def hours(browser: Browser, name: str) -> list[tuple[str, int, int]]:
    """Return the rows of a chart's table with a count above 0, newest first."""
    page = browser.get(HOME).content.decode()
    table = page[page.index(f'id="{name}"') :].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r'<th scope="row">(.*?)</th><td class="number">(\d+)</td><td class="number">(\d+)</td>', table)
    assert len(rows) == 24
    return [(plain(hour), int(good), int(bad)) for hour, good, bad in rows if int(good) + int(bad)]


def test_results_are_counted_by_hour_without_withdrawn_deliveries(admin: Admin, phone: Phone, browser: Browser) -> None:
    for outcome in ("succeeded", "failed"):
        phone.report(admin.command(to=phone).json["request_id"], outcome)
    let_pass(hours=3)
    phone.report(admin.command(to=phone).json["request_id"], "succeeded")
    admin.post(f"/admin/commands/{admin.command(to=phone).json['request_id']}/cancel")
    new, old = (
        f"{Delivery.objects.filter(state=state).latest('id').settled_at:%H}:00" for state in ("succeeded", "failed")
    )
    assert hours(browser, "results-per-hour") == [(new, 1, 0), (old, 1, 1)]
    assert "2 succeeded, 1 failed or expired since" in browser.get(HOME).content.decode()
    let_pass(days=1)
    assert hours(browser, "results-per-hour") == []


def test_pushes_are_counted_by_hour_and_each_hour_leads_to_its_pushes(
    admin: Admin, phone: Phone, browser: Browser
) -> None:
    admin.command(to=phone)
    delivery, now = Delivery.objects.get(), database.now()
    for number, (outcome, age) in enumerate((("accepted", 5), ("rejected", 0), ("accepted", 0)), start=1):
        at = now - timedelta(hours=age)
        Attempt.objects.create(delivery=delivery, number=number, outcome=outcome, started_at=at, finished_at=at)
    assert hours(browser, "pushes-per-hour") == [
        (f"{now:%H}:00", 1, 1), (f"{now - timedelta(hours=5):%H}:00", 1, 0),
    ]  # fmt: skip
    page = browser.get(HOME).content.decode()
    for hour, count in ((now, 2), (now - timedelta(hours=5), 1)):
        (address,) = re.findall(rf'<a href="([^"]+)">{hour:%H}:00</a>', page)
        assert listed(browser, html.unescape(address)) == count


def test_a_chart_has_a_name_and_a_summary_in_words(browser: Browser) -> None:
    page = browser.get(HOME).content.decode()
    for name in ("pushes-per-hour", "results-per-hour"):
        assert f'role="img" aria-labelledby="{name}" aria-describedby="{name}-summary"' in page
        assert f'<p id="{name}-summary"' in page
        assert f"0 {'accepted by FCM' if name.startswith('p') else 'succeeded'}, 0 " in page


def test_a_chart_counts_only_the_newest_rows_and_shows_this(
    admin: Admin, phone: Phone, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexmdm.admin_site.hourly_charts.MOST", 1)
    for _ in range(2):
        phone.report(admin.command(to=phone).json["request_id"], "succeeded")
    assert [counts for _, *counts in hours(browser, "results-per-hour")] == [[1, 0]]
    assert (
        "Only the newest 1 are counted: the counts of earlier hours are too low." in browser.get(HOME).content.decode()
    )


def test_the_home_page_costs_thirteen_queries_for_any_content(
    admin: Admin, browser: Browser, django_assert_max_num_queries: MaxQueries
) -> None:
    for phone in admin.enrol_fleet(20):
        phone.heartbeat(status={"battery_pct": 1})
        phone.report(admin.command(to=phone).json["request_id"], "failed")
    end_everything()
    with django_assert_max_num_queries(13):
        assert len(attention(browser)) == 2
