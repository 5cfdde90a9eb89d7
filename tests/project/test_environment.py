"""Settings come from the environment: read unchanged, or refused with a sentence that never shows a secret."""

import base64
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from loadtest.fake_fcm.server import FcmStandin
from nexmdm.config import database_url, environment, provisioning
from nexmdm.config.environment import ConfigError, Misconfigured
from tests.support.actors import Client

GOOD = "a-Secret-of-more-than-32-characters-0123"
CHECKSUM = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
ACCOUNT = {
    "type": "service_account", "project_id": "p", "client_email": "e", "private_key": "do-not-show", "token_uri": "u"
}  # fmt: skip


@pytest.mark.parametrize("value", [GOOD, "$" + GOOD, f"{GOOD}=", f'"{GOOD}"', f"${{{GOOD}}}", f"{GOOD} {GOOD}"])
def test_a_secret_is_read_unchanged(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ADMIN_KEY", value)
    assert environment.secret("ADMIN_KEY", {"ADMIN_KEY": "the generated one"}) == value


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("", ConfigError.MISSING),
        ("Zx9-too-small", ConfigError.SHORT),
        ("x" * 40, ConfigError.PLACEHOLDER),
        ("please-change-me-please-change-me-please", ConfigError.PLACEHOLDER),
        ("nxs_test_Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZg", ConfigError.PLACEHOLDER),
        *(
            (value, ConfigError.MALFORMED)
            for value in (f"{GOOD}é", f"{GOOD}\n{GOOD}", f"{GOOD}\r", f"{GOOD}\x7f", f"{GOOD} ")
        ),
        (f" {GOOD}", ConfigError.MALFORMED),
        (f"{GOOD}\udcff", ConfigError.MALFORMED),
    ],
)
def test_a_missing_short_malformed_or_placeholder_secret_stops_the_start_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str, fault: ConfigError
) -> None:
    monkeypatch.setenv("ADMIN_KEY", value)
    with pytest.raises(Misconfigured, match=rf"^\({fault}\) ADMIN_KEY .* To create a secret, run: ") as refused:
        environment.secret("ADMIN_KEY", None)
    assert not value or value not in str(refused.value)


@pytest.mark.parametrize("name", ["ADMIN_KEY_PREVIOUS", "SECRET_KEY_FALLBACKS"])
def test_a_previous_secret_has_the_same_minimum_length(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, f"{GOOD}, {GOOD[::-1]}")
    assert environment.previous_secrets(name) == [GOOD, GOOD[::-1]]
    monkeypatch.setenv(name, f"{GOOD},short")
    with pytest.raises(Misconfigured, match=ConfigError.SHORT):
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
        (json.dumps({"private_key": "do-not-show"}), "does not contain project_id, client_email, token_uri"),
        (json.dumps(ACCOUNT | {"type": "authorized_user"}), "not of the type"),
        (json.dumps(ACCOUNT), "private_key .* is not a complete RSA key"),
    ],
)
def test_a_malformed_service_account_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.setenv("FIREBASE_SERVICE_ACCOUNT_JSON", value)
    with pytest.raises(Misconfigured, match=rf"^\({ConfigError.FIREBASE}\) .*{reason}") as refused:
        environment.firebase_service_account()
    assert "FIREBASE_SERVICE_ACCOUNT_JSON" in str(refused.value)
    assert "do-not-show" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("broken", [lambda key: key[:-80], lambda key: key.replace("\n", "\\n")])
def test_a_damaged_key_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fcm: FcmStandin, broken: Callable[[str], str]
) -> None:
    account = fcm.service_account()
    account["private_key"] = broken(account["private_key"])
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(Misconfigured, match=ConfigError.FIREBASE) as refused:
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


@pytest.mark.parametrize(
    "value",
    [
        "ftp://fcm", "fcm.googleapis.com", "https://fcm/path", "https://", "https://fcm:port", "https://fcm:0",
        "https://fcm:65536", "https://:443", "https://[::1", "https://-", "https://fcm//", "https://fcm?a=b",
        "https://a b",
    ],
)  # fmt: skip
def test_an_origin_is_a_scheme_and_a_host(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FCM_BASE_URL", value)
    with pytest.raises(ImproperlyConfigured, match="FCM_BASE_URL"):
        environment.origin("FCM_BASE_URL", "https://fcm.googleapis.com")


@pytest.mark.parametrize("value", ["https://fcm.googleapis.com/", "http://127.0.0.1:9000", "http://[::1]:9000"])
def test_an_origin_may_have_a_port_and_a_slash_at_its_end(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FCM_BASE_URL", value)
    assert environment.origin("FCM_BASE_URL", "https://fcm.googleapis.com") == value.rstrip("/")


def test_an_origin_with_a_password_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCM_BASE_URL", "https://user:p4ssword@fcm")
    with pytest.raises(Misconfigured) as refused:
        environment.origin("FCM_BASE_URL", "https://fcm.googleapis.com")
    assert "p4ssword" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("https://mdm.example.com", "only the host name"),
        ("mdm.example.com:443", "only the host name"),
        ("mdm.example.com/admin", "only the host name"),
        ("mdm.example.com.", "only the host name"),
        ("a b", "only the host name"),
        ("mdm_1.example.com", "only the host name"),
        ("a..b", "only the host name"),
        (".", "only the host name"),
        ("[::1]:8000", "only the host name"),
        ('["mdm.example.com"]', "Do not use brackets or quotes"),
        ('["a.example.com", "b.example.com"]', "Do not use brackets or quotes"),
        ("'mdm.example.com'", "Do not use brackets or quotes"),
        ("mdm.example.com,https://a", "only the host name"),
        ("*.example.com", "Write .example.com for all names below a domain"),
        ("::1", "in brackets and without a zone: \\[::1\\]"),
        ("fe80::1%eth0", "in brackets and without a zone: \\[fe80::1\\]"),
        ("münchen.example", "xn--"),
        (" , ", "do not set the variable"),
    ],
)
def test_a_host_that_no_request_can_match_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, value: str, hint: str
) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", value)
    with pytest.raises(Misconfigured, match=rf"^\({ConfigError.MALFORMED}\) ALLOWED_HOSTS .*{hint}"):
        environment.hosts("ALLOWED_HOSTS", ["localhost"])


HOSTS: Final = [
    "mdm.example.com",
    "MDM.example.com",
    ".example.com",
    "*",
    "10.0.0.1",
    "[::1]",
    "[2001:db8::1]",
    "xn--e1afmkfd",
]


def test_hosts_are_taken_as_they_are_and_match_the_requests_that_they_name(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", ", ".join(HOSTS))
    assert environment.hosts("ALLOWED_HOSTS", ["localhost"]) == HOSTS
    for host in HOSTS:
        settings.ALLOWED_HOSTS = [host]
        named = f"a{host}" if host.startswith(".") else host.replace("*", "any.example")
        assert Client().request("GET", "/healthz", None, {"Host": named}).status == 200


@pytest.mark.parametrize("value", ["http://0.0.0.0", "0.0.0.0:8000", "[::]", "a b", "*", "127.0.0.1/8"])
def test_an_invalid_listening_address_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HOST", value)
    with pytest.raises(Misconfigured, match=rf"^\({ConfigError.MALFORMED}\) HOST .* Set the port in PORT"):
        environment.listening_host("HOST", "127.0.0.1")


@pytest.mark.parametrize("value", ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "my_container"])  # noqa: S104
def test_an_address_or_a_name_can_be_listened_on(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HOST", value)
    assert environment.listening_host("HOST", "127.0.0.1") == value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("10.0.0.1/8", "has host bits set"),
        ("*", "does not appear to be"),
        ("proxy.example.com", "does not appear to be"),
        ("10.0.0.1 10.0.0.2", "does not appear to be"),
        ('["10.0.0.1"]', "does not appear to be"),
        ("::ffff:10.0.0.0/104", "IPv4"),
    ],
)
def test_a_network_that_no_client_can_be_in_is_refused(monkeypatch: pytest.MonkeyPatch, value: str, why: str) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", value)
    with pytest.raises(Misconfigured, match=rf"^\({ConfigError.MALFORMED}\) TRUSTED_PROXIES .*{why}"):
        environment.networks("TRUSTED_PROXIES")


@pytest.mark.parametrize(
    "value", ["60", "0/m", "60/0m", "60/01m", "-1/m", "60/min", "60 /m", "1e3/m", "9999999999/m", "1/99999d"]
)
def test_an_invalid_rate_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ADMIN_RATE_LIMIT", value)
    with pytest.raises(
        Misconfigured, match=rf"^\({ConfigError.MALFORMED}\) ADMIN_RATE_LIMIT must be a number, a slash and a unit"
    ):
        environment.rate("ADMIN_RATE_LIMIT", "120/m")


@pytest.mark.parametrize("value", ["60/m", "1/s", "5/10s", "1000000/d"])
def test_a_rate_is_a_number_in_a_period(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ADMIN_RATE_LIMIT", value)
    assert environment.rate("ADMIN_RATE_LIMIT", "120/m") == value


def test_a_database_url_is_read_as_libpq_does() -> None:
    url = "postgresql://nex:p%40ss@db.example:6432/fleet?sslmode=require"
    assert database_url.django_settings(url) == {
        "NAME": "fleet",
        "USER": "nex",
        "PASSWORD": "p@ss",
        "HOST": "db.example",
        "PORT": "6432",
        "OPTIONS": {"sslmode": "require"},
    }
    with pytest.raises(ImproperlyConfigured, match="contains no database name"):
        database_url.django_settings("postgresql://nex@db.example")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://nex:pw@db.example/fleet?pgbouncer=true", "a parameter pgbouncer that"),
        ("postgresql://nex:pw@db.example/fleet?sslmode=require&schema=mdm", "a parameter schema that"),
        ("postgresql://nex:p4ss@word@db.example/fleet", "more than one @"),
        ("postgresql://nex:p4ss#a@word@db.example/fleet", "more than one @"),
        ("postgresql://nex:p4ss@word/x@db.example/fleet", "more than one @"),
        ("postgresql://nex:p4ss?word@db.example/fleet", "a parameter that"),
        ("postgresql://nex:p4ss?word=x@db.example/fleet", "a parameter that"),
    ],
)
def test_a_database_url_that_libpq_would_misread_is_refused_by_its_fault_and_not_shown(url: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=f"{ConfigError.MALFORMED}.*{said}") as refused:
        database_url.django_settings(url)
    shown = "".join(traceback.format_exception(refused.value)).split("Misconfigured: ")[-1]
    assert not [part for part in ("p4ss", "word@", "word=", "db.example", "pw@") if part in shown]


def test_the_urls_parameters_override_ours_but_its_options_are_joined() -> None:
    found = database_url.options(
        {"connect_timeout": "30", "options": "-c search_path=mdm"}, statement_seconds=30, lock_seconds=10
    )
    assert (found["connect_timeout"], found["target_session_attrs"]) == ("30", "read-write")
    given = found["options"].removeprefix("-c ").split(" -c ")
    assert [one for one in given if not one.startswith(("tcp_", "idle_"))][:4] == [
        "statement_timeout=30s", "lock_timeout=10s", "search_path=mdm",
        "default_transaction_isolation=read\\ committed",
    ]  # fmt: skip


def test_a_database_url_whose_port_is_no_number_is_refused_without_being_shown() -> None:
    with pytest.raises(Misconfigured, match=ConfigError.MALFORMED) as refused:
        database_url.django_settings("postgresql://nex@db.example:p4ssword/fleet")
    assert "p4ssword" not in str(refused.value)
    assert database_url.django_settings("postgresql://nex@a,b:6432/fleet")["HOST"] == "a,b"


def test_a_malformed_database_url_is_not_shown() -> None:
    url = "postgres:/nex:p4ss" + "word@db.example/fleet"
    with pytest.raises(Misconfigured, match=ConfigError.MALFORMED) as refused:
        database_url.django_settings(url)
    assert "p4ssword" not in "".join(traceback.format_exception(refused.value))


def test_a_missing_folder_of_the_metrics_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert environment.folder("PROMETHEUS_MULTIPROC_DIR") == str(tmp_path)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "missing"))
    with pytest.raises(Misconfigured, match=ConfigError.METRICS_FOLDER):
        environment.folder("PROMETHEUS_MULTIPROC_DIR")


def test_a_data_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match=rf"^\({ConfigError.DATA_FOLDER}\) .*{tmp_path}/file.* Set NEXMDM_DATA_DIR"):
        environment.generated_secrets(tmp_path / "file" / "secrets.env")


@pytest.mark.parametrize(
    ("read", "value"),
    [
        *((provisioning.public_url, value) for value in ("", "https://mdm.example.com", "http://10.0.0.5:8000")),
        *(
            (provisioning.agent_component, value)
            for value in ("", "com.example.agent/.AdminReceiver", "com.example.agent/org.other.Admin$Receiver")
        ),
        *(
            (provisioning.agent_download_url, value)
            for value in ("", "https://mdm.example.com/a%20b.apk?v=1", "http://[2001:db8::1]:8080/agent.apk")
        ),
        *((provisioning.agent_signature_checksum, value) for value in ("", CHECKSUM, CHECKSUM + "=")),
    ],
)
def test_a_setting_of_provisioning_is_read_unchanged(
    read: Callable[[str], str], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBLIC_URL", value)
    assert read(value) == value


@pytest.mark.parametrize(
    ("read", "values"),
    [
        (provisioning.public_url, ("mdm.example.com", "https://a.example/path", "https://u:p@a.example", "ftp://a.b")),
        (
            provisioning.agent_component,
            ("com.example.agent", "agent/.Receiver", "com.example.agent/", "com.example/.A b", "com.example/é",
             "com.example/" + "A" * 501),
        ),
        (
            provisioning.agent_download_url,
            ("/agent.apk", "ftp://a.example/agent.apk", "https:///agent.apk", "https://a.example/a b.apk",
             "https://a.b:0/a", "https://a.example:x/a", "https://a.example/a#b", "https://a.example/" + "a" * 1007),
        ),
        (
            provisioning.agent_signature_checksum,
            (CHECKSUM[:-1], CHECKSUM + "A", CHECKSUM[:-1] + "9", CHECKSUM.replace("A", "+"), "0123"),
        ),
    ],
)  # fmt: skip
def test_a_setting_of_provisioning_that_can_never_be_right_is_refused(
    read: Callable[[str], str], values: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in values:
        monkeypatch.setenv("PUBLIC_URL", value)
        with pytest.raises(Misconfigured, match=rf"^\({ConfigError.MALFORMED}\) "):
            read(value)


def test_the_hint_shows_a_hexadecimal_checksum_in_the_right_form() -> None:
    digits = bytes(range(32)).hex(":").upper()
    with pytest.raises(Misconfigured, match=f"Write the checksum as {CHECKSUM}"):
        provisioning.agent_signature_checksum(digits)


def test_no_message_shows_the_password_in_an_address() -> None:
    with pytest.raises(Misconfigured) as refused:
        provisioning.agent_download_url("https://user:do-not-show@mdm.example.com/agent.apk")
    assert "do-not-show" not in str(refused.value)
