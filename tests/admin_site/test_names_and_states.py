"""Lists and pages of the admin site show names instead of ids, times in words, and states with a sign."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser
from django.urls import reverse

from commands.models import Attempt, Delivery, Report
from devices.models import EnrollmentToken
from nexmdm.common.read_only_admin.columns import relative
from tests.support.actors import Admin, Phone
from tests.support.html import plain


@pytest.fixture
def browser(db: None) -> Browser:
    """A visitor who has logged in."""
    browser = Browser()
    browser.force_login(User.objects.create_user("staff", is_staff=True))
    return browser


def page(browser: Browser, model: str, key: object = None) -> str:
    kind, args = ("changelist", []) if key is None else ("change", [key])
    answer = browser.get(reverse(f"nexmdm-admin:{model}_{kind}", args=args))
    assert answer.status_code == 200
    return answer.content.decode()


def test_titles_and_breadcrumbs_have_names(admin: Admin, browser: Browser) -> None:
    lobby = admin.enrol("hw-1", alias="lobby")
    nameless = admin.enrol("hw-2")
    request_id = admin.command("lock", to=lobby).json["request_id"]
    wide = admin.command("ping", to=[lobby, nameless]).json["request_id"]
    delivery = Delivery.objects.get(command=request_id)
    attempt = Attempt.objects.create(delivery=delivery, number=3)
    lobby.report(request_id, "running")
    EnrollmentToken.objects.filter(devices__id=lobby.device_id).update(label="first floor")
    token = EnrollmentToken.objects.get(label="first floor")
    for model, key, title in (
        ("devices_device", lobby.device_id, "Device lobby"),
        ("devices_device", nameless.device_id, "Device hw-2"),
        ("devices_enrollmenttoken", token.pk, "Enrollment token first floor"),
        ("commands_command", request_id, "Command lock for lobby"),
        ("commands_command", wide, "Command ping for 2 devices"),
        ("commands_delivery", delivery.pk, "Delivery lock for lobby"),
        ("commands_attempt", attempt.pk, "Attempt push 3 of lock for lobby"),
        ("commands_report", Report.objects.get().pk, "Report lock for lobby: running"),
    ):
        text = page(browser, model, key)
        assert f"<title>{title} | NexMDM</title>" in text
        assert f"<h1>{title}</h1>" in text
        crumbs = text[text.index('class="breadcrumbs"') :].partition("</div>")[0]
        assert title.endswith(plain(crumbs).rpartition("&rsaquo; ")[2])


def test_an_id_is_the_last_column_and_can_be_copied_whole(admin: Admin, phone: Phone, browser: Browser) -> None:
    request_id = admin.command(to=phone).json["request_id"]
    for model, key in (("devices_device", phone.device_id), ("commands_command", request_id)):
        last_cell = page(browser, model).partition("</tbody>")[0].rpartition("<td")[2]
        assert f'<code class="id" title="{key}"><span>{key[:-8]}</span>{key[-8:]}</code>' in last_cell


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s ago"), (59.9, "59 s ago"), (60, "1 min ago"), (3599, "59 min ago"), (3600, "1 h ago"),
        (48 * 3600 - 1, "47 h ago"), (48 * 3600, "2 days ago"), (400 * 86_400, "400 days ago"),
        (-30, "in 30 s"), (-7200, "in 2 h"),
    ],
)  # fmt: skip
def test_a_time_is_shown_in_its_largest_unit(seconds: float, text: str) -> None:
    now = datetime(2026, 3, 20, tzinfo=UTC)
    assert relative(now - timedelta(seconds=seconds), now) == text


def test_a_time_shows_its_exact_value_on_hover(admin: Admin, phone: Phone, browser: Browser) -> None:
    phone.heartbeat()
    found = re.search(
        r'<td class="field-last_seen_at"><time class="moment" datetime="([^"]+)" title="([^"]+)">(\d+ s ago) '
        r'<span class="exact">([^<]+)</span></time>',
        page(browser, "devices_device"),
    )
    assert found is not None
    at = datetime.fromisoformat(found[1])
    assert at.utcoffset() == timedelta()
    assert found[2] == found[4] == f"{at:%Y-%m-%d %H:%M:%S}Z"


def test_a_state_is_a_word_with_a_style(admin: Admin, phone: Phone, browser: Browser) -> None:
    for outcome in ("succeeded", "failed", None):
        request_id = admin.command(to=phone).json["request_id"]
        if outcome:
            phone.report(request_id, outcome)
    text = page(browser, "commands_delivery")
    for look, word in (("good", "succeeded"), ("bad", "failed"), ("busy", "pending"), ("quiet", "no_push_token")):
        assert f'<span class="badge {look}">{word}</span>' in text


def test_empty_lists_show_what_to_do_and_filtered_lists_link_back(admin: Admin, phone: Phone, browser: Browser) -> None:
    deliveries = reverse("nexmdm-admin:commands_delivery_changelist")
    assert "There are no deliveries yet. A command has one" in plain(page(browser, "commands_delivery"))
    for query in ({"state": "failed"}, {"q": "nobody"}):
        text = browser.get(deliveries, query).content.decode()
        assert 'No deliveries match. <a href="?">Show all deliveries</a>' in text
    admin.command(to=phone)
    assert "No deliveries are older." in browser.get(deliveries, {"before": "1"}).content.decode()


def test_enrollment_tokens_are_listed_with_their_states_and_lead_to_their_devices(
    admin: Admin, browser: Browser
) -> None:
    text = admin.enrollment_token(label="floor", tags=["floor-1"], max_uses=2)
    phone = Phone(admin.client, "hw-1")
    phone.register(text)
    used_up = admin.enrollment_token(label="once")
    Phone(admin.client, "hw-2").register(used_up)
    revoked = admin.post("/admin/enrollment-tokens", {"label": "gone"}).json["id"]
    admin.post(f"/admin/enrollment-tokens/{revoked}/revoke")
    listed = page(browser, "devices_enrollmenttoken")
    rows = [plain(row) for row in re.findall(r"<tr><th.*?</tr>", listed)]
    assert [row.partition(" in ")[0] for row in rows] == [
        "gone revoked 0 of 1 -", "once used up 1 of 1 -", "floor live 1 of 2 floor-1",
    ]  # fmt: skip
    assert text not in listed
    token = EnrollmentToken.objects.get(label="floor")
    devices = reverse("nexmdm-admin:devices_device_changelist")
    address = f"{devices}?enrolled_with__id__exact={token.pk}"
    assert f'<a href="{address}">1 of 2</a>' in listed
    assert [device.hardware_id for device in browser.get(address).context["cl"].result_list] == ["hw-1"]


@pytest.mark.parametrize(("query", "labels"), [("live", ["floor"]), ("used up", ["once"]), ("revoked", ["gone"])])
def test_enrollment_tokens_are_filtered_by_state(admin: Admin, browser: Browser, query: str, labels: list[str]) -> None:
    admin.enrollment_token(label="floor")
    Phone(admin.client, "hw-2").register(admin.enrollment_token(label="once"))
    revoked = admin.post("/admin/enrollment-tokens", {"label": "gone"}).json["id"]
    admin.post(f"/admin/enrollment-tokens/{revoked}/revoke")
    tokens = reverse("nexmdm-admin:devices_enrollmenttoken_changelist")
    answer = browser.get(tokens, {"state": query})
    assert [token.label for token in answer.context["cl"].result_list] == labels
    assert browser.get(tokens, {"q": "FLOO"}).context["cl"].result_list[0].label == "floor"
