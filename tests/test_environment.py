"""Settings come from the environment: taken as they are, or refused with a sentence that never shows a secret."""

import base64
import json
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from loadtest.fcm_standin import FcmStandin
from nexmdm import environment
from nexmdm.environment import Fault, Misconfigured

GOOD = "a-Secret-of-more-than-32-characters-0123"
ACCOUNT = {
    "type": "service_account", "project_id": "p", "client_email": "e", "private_key": "do-not-show", "token_uri": "u"
}  # fmt: skip


@pytest.mark.parametrize("value", [GOOD, "$" + GOOD, f"{GOOD}=", f'"{GOOD}"', f"${{{GOOD}}}", f"{GOOD} {GOOD}"])
def test_a_secret_is_taken_letter_by_letter(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ADMIN_KEY", value)
    assert environment.secret("ADMIN_KEY", {"ADMIN_KEY": "the generated one"}) == value


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("", Fault.MISSING),
        ("Zx9-too-small", Fault.SHORT),
        ("x" * 40, Fault.PLACEHOLDER),
        ("please-change-me-please-change-me-please", Fault.PLACEHOLDER),
        ("nxs_test_Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZg", Fault.PLACEHOLDER),
        *(
            (value, Fault.MALFORMED)
            for value in (f"{GOOD}é", f"{GOOD}\n{GOOD}", f"{GOOD}\r", f"{GOOD}\x7f", f"{GOOD} ")
        ),
        (f" {GOOD}", Fault.MALFORMED),
        (f"{GOOD}\udcff", Fault.MALFORMED),
    ],
)
def test_a_missing_short_malformed_or_placeholder_secret_stops_the_start_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str, fault: Fault
) -> None:
    monkeypatch.setenv("ADMIN_KEY", value)
    with pytest.raises(Misconfigured, match=rf"^\({fault}\) ADMIN_KEY .* Make one with: ") as refused:
        environment.secret("ADMIN_KEY", None)
    assert not value or value not in str(refused.value)


@pytest.mark.parametrize("name", ["ADMIN_KEY_PREVIOUS", "SECRET_KEY_FALLBACKS"])
def test_a_secret_on_its_way_out_is_as_long_as_any(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, f"{GOOD}, {GOOD[::-1]}")
    assert environment.previous_secrets(name) == [GOOD, GOOD[::-1]]
    monkeypatch.setenv(name, f"{GOOD},short")
    with pytest.raises(Misconfigured, match=Fault.SHORT):
        environment.previous_secrets(name)


@pytest.mark.parametrize("encode", [str, lambda text: base64.b64encode(text.encode()).decode()])
def test_a_service_account_is_json_or_base64_of_it(
    monkeypatch: pytest.MonkeyPatch, fcm: FcmStandin, encode: Callable[[str], str]
) -> None:
    account = fcm.service_account()
    monkeypatch.setenv("FIREBASE_SERVICE_ACCOUNT_JSON", encode(json.dumps(account)))
    assert environment.firebase_service_account() == account


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{", "neither JSON nor base64"),
        ("[]", "neither JSON nor base64"),
        ("%%%", "neither JSON nor base64"),
        (json.dumps({"private_key": "do-not-show"}), "lacks project_id, client_email, token_uri"),
        (json.dumps(ACCOUNT | {"type": "authorized_user"}), "not of the type"),
        (json.dumps(ACCOUNT), "private_key .* is not a whole RSA key"),
    ],
)
def test_a_malformed_service_account_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.setenv("FIREBASE_SERVICE_ACCOUNT_JSON", value)
    with pytest.raises(Misconfigured, match=rf"^\({Fault.FIREBASE}\) .*{reason}") as refused:
        environment.firebase_service_account()
    assert "FIREBASE_SERVICE_ACCOUNT_JSON" in str(refused.value)
    assert "do-not-show" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("broken", [lambda key: key[:-80], lambda key: key.replace("\n", "\\n")])
def test_a_key_that_suffered_on_its_way_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fcm: FcmStandin, broken: Callable[[str], str]
) -> None:
    account = fcm.service_account()
    account["private_key"] = broken(account["private_key"])
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(Misconfigured, match=Fault.FIREBASE) as refused:
        environment.firebase_service_account()
    assert account["private_key"][60:90] not in "".join(traceback.format_exception(refused.value))


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


def test_a_database_url_that_is_none_is_not_shown() -> None:
    url = "postgres:/nex:p4ss" + "word@db.example/fleet"
    with pytest.raises(Misconfigured, match=Fault.MALFORMED) as refused:
        environment.database(url)
    assert "p4ssword" not in "".join(traceback.format_exception(refused.value))


def test_the_folder_of_the_metrics_is_there_or_the_start_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert environment.folder("PROMETHEUS_MULTIPROC_DIR") == str(tmp_path)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "missing"))
    with pytest.raises(Misconfigured, match=Fault.METRICS_FOLDER):
        environment.folder("PROMETHEUS_MULTIPROC_DIR")


def test_a_data_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match=rf"^\({Fault.DATA_FOLDER}\) .*{tmp_path}/file.* Set NEXMDM_DATA_DIR"):
        environment.generated_secrets(tmp_path / "file" / "secrets.env")
