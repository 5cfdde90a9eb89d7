"""An invalid configuration is refused, with an id and a hint, by `check --deploy` and by every way to start."""

import os
import re
import subprocess
import venv
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
from django.conf import settings as django_settings
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import OperationalError, connection
from pytest_django import Settings

from loadtest.testbed.serving import MANAGE
from nexmdm.config import checks
from nexmdm.config.environment import ConfigError
from nexmdm.standalone import embedded_postgres
from tests.support import processes

SECRET: Final = "a-Secret-of-more-than-32-characters-0123"
KINDS: Final = ("SECRET_KEY_FALLBACKS", "ADMIN_KEYS", "HMAC_SECRETS", "COMMAND_SIGNING_KEYS", "METRICS_TOKEN")
BACKENDS: Final = "django.core.cache.backends"

UNFIT: Final = f"""
from nexmdm.settings import *
DEBUG = True
SECRET_KEY = "django-insecure-{SECRET}"
HMAC_SECRETS = ["short"]
CACHES = {{"default": {{"BACKEND": "{BACKENDS}.locmem.LocMemCache"}}}}
"""


def ids(found: list[CheckMessage]) -> list[str | None]:
    assert all(message.hint for message in found)
    return [message.id for message in found]


def run_in_production(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program with the tests' PostgreSQL as its DATABASE_URL."""
    production = {
        "DATABASE_URL": embedded_postgres.url(django_settings.DATA_DIR),
        "SECRET_KEY": SECRET + "-a-longer-one",
        "ADMIN_KEY": SECRET + "A",
        "HMAC_SECRET": SECRET + "B",
        "COMMAND_SIGNING_KEY": SECRET + "C",
        "PORT": "0",
    }
    return processes.run(*argv, **production | variables)


@pytest.fixture
def unfit(tmp_path: Path) -> dict[str, str]:
    """Settings with many errors."""
    (tmp_path / "unfit.py").write_text(UNFIT)
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{processes.ROOT}", "DJANGO_SETTINGS_MODULE": "unfit"}


def test_the_default_settings_are_accepted() -> None:
    assert checks.settings_in_force() == []
    assert checks.metrics_folder() == []


def test_debug_is_refused(settings: Settings) -> None:
    settings.DEBUG = True
    assert ids(checks.settings_in_force()) == [ConfigError.DEBUG]


def test_hosts_in_other_settings_that_no_request_can_match_are_refused(settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["mdm.example.com", "https://mdm.example.com", "*.example.com"]
    found = checks.settings_in_force()
    assert ids(found) == [ConfigError.MALFORMED] * 2


HOSTS_REFUSED: Final = ("https://mdm.example.com", "mdm.example.com:443", '["mdm.example.com"]', "a b")


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        *(((MANAGE, "check"), "ALLOWED_HOSTS", value) for value in HOSTS_REFUSED),
        *(((MANAGE, part), "ALLOWED_HOSTS", "a b") for part in ("serve", "dispatch", "migrate")),
        (("-m", "nexmdm.web"), "ALLOWED_HOSTS", "a b"),
        ((MANAGE, "check"), "TRUSTED_PROXIES", "proxy.example.com"),
        ((MANAGE, "check"), "ADMIN_RATE_LIMIT", "60"),
        ((MANAGE, "check"), "FCM_BASE_URL", "fcm.googleapis.com"),
        ((MANAGE, "check"), "HOST", "http://0.0.0.0"),
        ((MANAGE, "check"), "HEARTBEAT_LOG", "none"),
        ((MANAGE, "check"), "PUBLIC_URL", "https://mdm.example.com/nexmdm"),
        ((MANAGE, "serve"), "AGENT_COMPONENT", "com.example.agent"),
        ((MANAGE, "check"), "AGENT_DOWNLOAD_URL", "agent.apk"),
        ((MANAGE, "check"), "AGENT_SIGNATURE_CHECKSUM", "00" * 32),
    ],
)
def test_an_invalid_value_stops_every_start_with_an_id_and_a_hint(
    tmp_path: Path, argv: tuple[str, ...], name: str, value: str
) -> None:
    done = processes.run(*argv, NEXMDM_DATA_DIR=str(tmp_path / "data"), **{name: value})
    assert done.returncode != 0
    assert re.search(rf"\({ConfigError.MALFORMED}\) {name} .+\. .+\.$", done.stderr.strip())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["ADMIN_KEYS", "HMAC_SECRETS", "COMMAND_SIGNING_KEYS", "SECRET_KEY_FALLBACKS"])
def test_a_weak_secret_among_the_valid_secrets_is_refused(settings: Settings, name: str) -> None:
    setattr(settings, name, [SECRET, "too-short-for-a-secret"])
    (found,) = checks.settings_in_force()
    assert (found.id, "too-short-for" in str(found)) == (ConfigError.SHORT, False)


@pytest.mark.parametrize(
    ("first", "second"),
    list(
        combinations(["SECRET_KEY_FALLBACKS", "ADMIN_KEYS", "HMAC_SECRETS", "COMMAND_SIGNING_KEYS", "METRICS_TOKEN"], 2)
    ),
)
def test_one_value_for_two_secrets_is_refused(settings: Settings, first: str, second: str) -> None:
    for name in (first, second):
        setattr(settings, name, SECRET if name == "METRICS_TOKEN" else [*getattr(settings, name), SECRET])
    (found,) = checks.settings_in_force()
    assert (found.id, SECRET in str(found)) == (ConfigError.SHARED, False)


def test_a_value_may_be_set_twice_for_the_same_secret(settings: Settings) -> None:
    settings.ADMIN_KEYS = [SECRET, SECRET]
    assert checks.settings_in_force() == []


@pytest.mark.parametrize("name", ["NAMED_ADMIN_KEYS", "NAMED_HMAC_SECRETS"])
def test_a_key_or_a_secret_of_a_named_admin_given_twice_is_refused(settings: Settings, name: str) -> None:
    setattr(settings, name, {"ops1": [SECRET, SECRET]})
    (found,) = checks.settings_in_force()
    assert (found.id, SECRET in str(found)) == (ConfigError.SHARED, False)


@pytest.mark.parametrize("token", ["x", "change-me-change-me-change-me-change-me"])
def test_a_metrics_token_is_checked_like_every_secret(db: None, token: str) -> None:
    done = run_in_production(MANAGE, "check", "--deploy", METRICS_TOKEN=token)
    assert (done.returncode, "METRICS_TOKEN" in done.stderr) == (1, True)


def test_equal_secrets_are_named_before_the_start(db: None) -> None:
    done = run_in_production(MANAGE, "check", "--deploy", SECRET_KEY=SECRET, ADMIN_KEY=SECRET, METRICS_TOKEN=SECRET)
    assert (done.returncode, done.stderr.count(f"({ConfigError.SHARED})"), SECRET in done.stderr) == (1, 3, False)


@pytest.mark.parametrize(
    "backend", ["locmem.LocMemCache", "dummy.DummyCache", "filebased.FileBasedCache", "db.DatabaseCache"]
)
def test_a_cache_that_cannot_count_for_the_limits_is_refused(settings: Settings, backend: str) -> None:
    settings.CACHES = {"default": {"BACKEND": f"{BACKENDS}.{backend}", "LOCATION": "somewhere"}}
    assert ids(checks.settings_in_force()) == [ConfigError.CACHE]


@pytest.mark.parametrize(
    ("workers", "folder", "found"), [(1, "", []), (2, "", [ConfigError.METRICS_FOLDER]), (2, "/tmp", [])]
)
def test_several_workers_need_a_folder_for_their_metrics(
    settings: Settings, workers: int, folder: str, found: list[str]
) -> None:
    settings.WEB_WORKERS, settings.PROMETHEUS_MULTIPROC_DIR = workers, folder
    assert ids(checks.metrics_folder()) == found


def test_pools_that_use_all_of_postgresqls_connections_are_accepted(db: None, settings: Settings) -> None:
    def found(workers: int, pool: int) -> list[str | None]:
        settings.WEB_WORKERS, settings.DATABASE_POOL_SIZE = workers, pool
        return ids(checks.connections())

    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('max_connections'), current_setting('superuser_reserved_connections')")
        assert cursor.fetchone() == ("100", "3")
    # 97 connections are ours: the workers' pools, the dispatcher's, one to listen on, three for commands.
    assert found(workers=30, pool=3) == []
    assert found(workers=31, pool=3) == [ConfigError.CONNECTIONS]


def test_the_limit_of_the_role_counts_too(db: None, settings: Settings) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER ROLE postgres CONNECTION LIMIT 20")
        assert checks.connections() == []
        cursor.execute("ALTER ROLE postgres CONNECTION LIMIT 19")
        assert ids(checks.connections()) == [ConfigError.CONNECTIONS]


def test_an_unreachable_database_is_a_warning(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr("nexmdm.config.checks.database.row", refuse)
    found = checks.connections()
    assert ids(found) == [checks.UNCHECKED_CONNECTIONS]
    checks.refuse(found)


@pytest.mark.parametrize("command", ["verify_audit", "prune", "migrate"])
def test_a_command_says_in_one_line_that_its_database_cannot_be_reached(db: None, command: str) -> None:
    nowhere = embedded_postgres.url(django_settings.DATA_DIR).replace("/nexmdm?", "/nowhere?")
    done = run_in_production(MANAGE, command, DATABASE_URL=nowhere)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1].removeprefix("CommandError: ")
    assert re.fullmatch('The database cannot be reached: .* database "nowhere" does not exist', last)


def test_check_deploy_finds_nothing_in_production(db: None) -> None:
    done = run_in_production(MANAGE, "check", "--deploy", "--fail-level", "WARNING")
    assert (done.returncode, "no issues" in done.stdout) == (0, True), done.stderr


def test_check_deploy_names_all_invalid_settings_and_shows_no_secret(db: None, unfit: dict[str, str]) -> None:
    done = run_in_production(MANAGE, "check", "--deploy", WEB_WORKERS="64", **unfit)
    named = {
        ConfigError.DEBUG,
        ConfigError.PLACEHOLDER,
        ConfigError.SHORT,
        ConfigError.CACHE,
        ConfigError.CONNECTIONS,
        ConfigError.METRICS_FOLDER,
    }
    assert done.returncode == 1
    assert set(re.findall(r"\((nexmdm\.\w+)\)", done.stderr)) == named
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    "argv", [(MANAGE, "serve"), (MANAGE, "dispatch"), ("-m", "uvicorn", "nexmdm.asgi:application", "--port", "0")]
)
def test_invalid_settings_stop_every_way_to_start(db: None, unfit: dict[str, str], argv: tuple[str, ...]) -> None:
    done = run_in_production(*argv, **unfit)
    assert done.returncode != 0
    assert {ConfigError.DEBUG, ConfigError.PLACEHOLDER, ConfigError.SHORT, ConfigError.CACHE} <= set(
        re.findall(r"\((nexmdm\.\w+)\)", done.stderr)
    )


def test_too_many_connections_stop_a_web_worker(db: None, tmp_path: Path) -> None:
    done = run_in_production("-m", "nexmdm.web", WEB_WORKERS="64", PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert done.returncode != 0
    assert ConfigError.CONNECTIONS in done.stdout


def test_too_many_connections_stop_a_dispatcher(db: None, settings: Settings) -> None:
    settings.WEB_WORKERS = 64
    with pytest.raises(ImproperlyConfigured, match=rf"^\({ConfigError.CONNECTIONS}\) PostgreSQL allows 97 .* Lower"):
        call_command("dispatch", once=True)


def test_outside_of_its_environment_the_command_line_shows_the_remedy_in_one_line(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    bare = str(tmp_path / "bare" / "bin" / "python")
    done = subprocess.run([bare, MANAGE, "check"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    for word in (bare, "django", "make install", ".venv/bin/python manage.py"):
        assert word in done.stderr


def test_too_many_connections_stop_serve(tmp_path: Path) -> None:
    done = processes.run(MANAGE, "serve", NEXMDM_DATA_DIR=str(tmp_path / "data"), PORT="0", WEB_WORKERS="64")
    assert (done.returncode, done.stderr.splitlines()[-1].startswith(f"({ConfigError.CONNECTIONS}) ")) == (1, True)
