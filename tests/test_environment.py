"""Settings come from the environment: taken as they are, or refused with a sentence that never shows a secret."""

import base64
import json

import pytest
from django.core.exceptions import ImproperlyConfigured

from nexmdm import environment

GOOD = "a-Secret-of-more-than-32-characters-0123"
ACCOUNT = {"project_id": "p", "client_email": "e", "private_key": "k", "token_uri": "u"}


@pytest.mark.parametrize("value", [GOOD, "$" + GOOD, f"{GOOD}=", f'"{GOOD}"', f"${{{GOOD}}}"])
def test_a_secret_is_taken_letter_by_letter(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ADMIN_KEY", value)
    assert environment.secret("ADMIN_KEY", {"ADMIN_KEY": "the generated one"}) == value


@pytest.mark.parametrize("value", ["", "Zx9-too-small", "x" * 40, "please-change-me-please-change-me-please"])
def test_a_missing_short_or_placeholder_secret_stops_the_start_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ADMIN_KEY", value)
    with pytest.raises(ImproperlyConfigured) as refused:
        environment.secret("ADMIN_KEY", None)
    assert "ADMIN_KEY" in str(refused.value)
    assert not value or value not in str(refused.value)


@pytest.mark.parametrize("encode", [str, lambda text: base64.b64encode(text.encode()).decode()])
def test_a_service_account_is_json_or_base64_of_it(monkeypatch: pytest.MonkeyPatch, encode: object) -> None:
    assert callable(encode)
    monkeypatch.setenv("FIREBASE_SERVICE_ACCOUNT_JSON", encode(json.dumps(ACCOUNT)))
    assert environment.firebase_service_account() == ACCOUNT


@pytest.mark.parametrize("value", ["{", "[]", "%%%", json.dumps({"private_key": "do-not-show"})])
def test_a_malformed_service_account_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FIREBASE_SERVICE_ACCOUNT_JSON", value)
    with pytest.raises(ImproperlyConfigured, match="FIREBASE_SERVICE_ACCOUNT_JSON") as refused:
        environment.firebase_service_account()
    assert "do-not-show" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "70000"), ("PORT", "http"), ("PORT", "-1"), ("WEB_WORKERS", "0"), ("WEB_WORKERS", "1.5")],
)
def test_a_number_out_of_its_bounds_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ImproperlyConfigured, match=f"{name} must be a whole number from 1 to 65535, not '{value}'"):
        environment.whole(name, 1, minimum=1, maximum=65_535)


@pytest.mark.parametrize("value", ["ftp://fcm", "fcm.googleapis.com", "https://fcm/path", "https://"])
def test_an_origin_is_a_scheme_and_a_host(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FCM_BASE_URL", value)
    with pytest.raises(ImproperlyConfigured, match="FCM_BASE_URL"):
        environment.origin("FCM_BASE_URL", "https://fcm.googleapis.com")


def test_a_database_url_is_read_as_libpq_does() -> None:
    url = "postgresql://nex:p%40ss@db.example:6432/fleet?sslmode=require"
    assert environment.database(url) == {
        "NAME": "fleet",
        "USER": "nex",
        "PASSWORD": "p@ss",
        "HOST": "db.example",
        "PORT": "6432",
        "OPTIONS": {"sslmode": "require"},
    }
    with pytest.raises(ImproperlyConfigured, match="names no database"):
        environment.database("postgresql://nex@db.example")
