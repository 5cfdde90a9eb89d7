"""Sessions of the admin site: they work as Django's do, and no cookie can be read from the database."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db.models import F
from django.test import Client
from pytest_django import Settings

PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def staff(db: None, settings: Settings) -> None:
    """An account to log in with."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    User.objects.create_superuser("root", password=PASSWORD)


@pytest.fixture
def browser() -> Client:
    """Staff who has logged in."""
    browser = Client()
    log_in(browser)
    return browser


def log_in(browser: Client) -> None:
    assert browser.post("/django-admin/login/", {"username": "root", "password": PASSWORD}).status_code == 302


def status(browser: Client) -> int:
    """Return 200 for a visitor who is logged in, and 302 (to the login) for others."""
    return browser.get("/django-admin/").status_code


def test_no_cookie_is_in_the_database_and_no_stored_value_works_as_a_cookie(browser: Client) -> None:
    cookie = browser.cookies["sessionid"].value
    row = Session.objects.get()
    assert status(browser) == 200
    assert cookie not in (row.session_key, row.session_data)
    browser.cookies["sessionid"] = row.session_key
    assert status(browser) == 302


def test_a_logout_ends_the_session(browser: Client) -> None:
    cookie = browser.cookies["sessionid"].value
    browser.post("/django-admin/logout/")
    assert not Session.objects.exists()
    browser.cookies["sessionid"] = cookie
    assert status(browser) == 302


def test_a_session_ends_with_its_time(browser: Client) -> None:
    Session.objects.update(expire_date=F("expire_date") - timedelta(hours=13))
    assert status(browser) == 302


def test_an_invented_cookie_opens_nothing_and_no_login_makes_it_valid() -> None:
    browser = Client()
    browser.cookies["sessionid"] = "x" * 32
    assert status(browser) == 302
    log_in(browser)
    assert status(browser) == 200
    assert browser.cookies["sessionid"].value != "x" * 32
