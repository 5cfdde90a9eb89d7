"""The files that the admin site's pages may load, and the links on its error pages."""

import re
from ipaddress import ip_network
from typing import Final

import pytest
from django.contrib.auth.models import User
from django.test import Client as Browser
from pytest_django import Settings

from nexmdm.admin_site import content_policy
from tests.support.actors import LOGIN, Answer, Client, Visitor

PASSWORD: Final = "correct horse battery"
HOME: Final = "/django-admin/"
WITH_A_WAY_BACK: Final = f'<a href="{HOME}">To the home page</a>'


@pytest.fixture(autouse=True)
def quick_hashing(settings: Settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def staff(db: None) -> Visitor:
    """A visitor who has logged in."""
    browser = Browser()
    browser.force_login(User.objects.create_superuser("root", password=PASSWORD))
    return Visitor(session=browser.cookies["sessionid"].value)


def refused_form(**headers: str) -> Answer:
    return Visitor().post_form(LOGIN, {"username": "root"}, "", **headers)


@pytest.mark.parametrize("path", [HOME, LOGIN, "/django-admin/nothing/", "/django-admin/devices/device/add/"])
def test_every_page_may_load_only_our_own_files_and_run_no_inline_script(staff: Visitor, path: str) -> None:
    for answer in (staff.request("GET", path), Visitor().request("GET", path), refused_form()):
        assert answer.headers["content-security-policy"] == content_policy.POLICY
        text = answer.body.decode()
        assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]* src=\"/static/)", text) == []
    directives = dict(part.split(maxsplit=1) for part in content_policy.POLICY.split("; "))
    assert set(directives.values()) == {"'self'", "'none'"}
    assert directives["default-src"] == "'none'"


@pytest.mark.parametrize("away", ["https://evil.example/", "//evil.example", "javascript:alert(1)", "/\\evil.example"])
def test_a_login_that_names_another_site_leads_to_the_home_page(staff: Visitor, away: str) -> None:
    visitor, token = Visitor(), "t" * 32
    words = {"username": "root", "password": PASSWORD, "csrfmiddlewaretoken": token}
    for target, more in ((f"{LOGIN}?next={away}", {}), (LOGIN, {"next": away}), (LOGIN, {})):
        answer = visitor.post_form(target, {**words, **more}, f"csrftoken={token}")
        assert (answer.status, answer.headers["location"]) == (302, HOME)


def test_a_refused_form_shows_the_servers_view_and_the_remedy_for_a_proxy(db: None, settings: Settings) -> None:
    settings.ALLOWED_HOSTS, settings.TRUSTED_PROXIES = ["mdm.example.com"], [ip_network("10.0.0.0/8")]
    answer = refused_form(Host="mdm.example.com", Origin="https://<b>.example.com")
    text = answer.body.decode()
    assert (answer.status, answer.headers["content-type"]) == (403, "text/html; charset=utf-8")
    for part in ("http://mdm.example.com", "https://&lt;b&gt;.example.com", "Host", "X-Forwarded-Proto: https"):
        assert f"<code>{part}</code>" in text
    assert "<code>TRUSTED_PROXIES</code>" in text
    assert WITH_A_WAY_BACK in text
    assert "DEBUG" not in text


def test_a_missing_page_has_a_link_back(staff: Visitor) -> None:
    for path in ("/django-admin/nothing/", "/django-admin/auth/user/"):
        answer = staff.request("GET", path)
        assert (answer.status, WITH_A_WAY_BACK in answer.body.decode()) == (404, True)


def test_an_error_page_says_what_to_do(staff: Visitor) -> None:
    not_there = staff.request("GET", "/django-admin/nothing/").body.decode()
    assert "use the search box of the home page" in not_there
    refused = staff.request("GET", "/django-admin/devices/device/?token_hash=x").body.decode()
    assert "Open the list, and choose the filters in the list." in refused


def test_a_bad_request_has_a_link_back(staff: Visitor) -> None:
    answer = staff.request("GET", "/django-admin/devices/device/?token_hash=x")
    assert (answer.status, WITH_A_WAY_BACK in answer.body.decode()) == (400, True)


def test_an_error_page_makes_no_query(staff: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("django.db.connection.ensure_connection", lambda: 1 / 0)
        answer = staff.post_form("/django-admin/logout/", {}, "")
    assert (answer.status, WITH_A_WAY_BACK in answer.body.decode()) == (403, True)


def test_the_site_has_an_icon_that_exists(staff: Visitor, client: Client) -> None:
    for page in (staff.request("GET", HOME), Visitor().request("GET", LOGIN), refused_form()):
        (icon,) = re.findall(r'<link rel="icon" type="image/svg\+xml" href="([^"]+)">', page.body.decode())
        answer = client.request("GET", icon)
        assert (answer.status, answer.headers["content-type"]) == (200, "image/svg+xml")


def test_a_static_file_is_sent_once_and_then_recognized_by_its_etag(client: Client) -> None:
    path = "/static/admin/css/base.css"
    first = client.request("GET", path)
    assert (first.status, first.headers["content-type"]) == (200, "text/css")
    assert first.headers["content-length"] == str(len(first.body))
    for tags in (first.headers["etag"], f"W/{first.headers['etag']}", f'"another", {first.headers["etag"]}'):
        again = client.request("GET", path, None, {"If-None-Match": tags})
        assert (again.status, again.body) == (304, b"")
    assert client.request("GET", path, None, {"If-None-Match": '"another"'}).status == 200
    head = client.request("HEAD", path)
    assert (head.status, head.headers["content-length"], head.body) == (200, first.headers["content-length"], b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_a_static_file_is_only_read(client: Client, method: str) -> None:
    answer = client.request(method, "/static/admin/css/base.css")
    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["", "nothing.css", "../manage.py", "admin", "admin/", "/etc/passwd", "\0", "admin/../../x"]
)
def test_nothing_but_the_files_of_the_site_is_served(client: Client, path: str) -> None:
    assert client.request("GET", f"/static/{path}").code == "not_found"
