"""The variables of named admins: a server with them knows each admin, and an error in them stops the start."""

import re
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from pytest_django import Settings

from loadtest.testbed import testbed
from loadtest.testbed.serving import MANAGE
from nexmdm.client.http_client import FleetClient
from nexmdm.config import checks, named_admins, secrets_file
from nexmdm.config.environment import ConfigError, Misconfigured
from tests.servers.test_checks import run_in_production

SECRET: Final = "a-Secret-of-more-than-32-characters-0123"
EVERY_START: Final = ((MANAGE, "serve"), (MANAGE, "dispatch"), (MANAGE, "migrate"), ("-m", "nexmdm.web"))


def given(*names: str) -> dict[str, str]:
    """Return each of these variables with its own valid value."""
    return {name: f"{SECRET}-of-{name}" for name in names}


PAIR: Final = given("ADMIN_KEY_OPS1", "HMAC_SECRET_OPS1")
ROTATING: Final = given("ADMIN_KEY_X", "ADMIN_KEY_X_PREVIOUS", "HMAC_SECRET_X", "HMAC_SECRET_X_PREVIOUS")


def test_named_admins_are_served_on_the_embedded_default_which_generates_nothing_for_them(tmp_path: Path) -> None:
    named = given("ADMIN_KEY_OPS1", "HMAC_SECRET_OPS1", "HMAC_SECRET_OPS1_PREVIOUS", "ADMIN_KEY_7", "HMAC_SECRET_7")
    pairs = {
        "ops1": (named["ADMIN_KEY_OPS1"], named["HMAC_SECRET_OPS1_PREVIOUS"]),
        "7": (named["ADMIN_KEY_7"], named["HMAC_SECRET_7"]),
    }
    with testbed.served(tmp_path / "data", **named) as serving:
        for key, secret in pairs.values():
            with closing(FleetClient(serving.url, key=key, secret=secret)) as admin:
                admin.post("/admin/enrollment-tokens", {})
        with closing(serving.admin()) as admin:
            found, _ = admin.items("/admin/audit", 10)
        assert [entry["principal"] for entry in found] == ["7", "ops1"]
        assert set(serving.secrets) == set(secrets_file.NAMES)
        assert not [secret for secret in named.values() if secret in serving.said]


def test_named_admins_are_accepted_in_production(db: None) -> None:
    done = run_in_production(MANAGE, "check", "--deploy", "--fail-level", "WARNING", **PAIR, **ROTATING)
    assert (done.returncode, "no issues" in done.stdout) == (0, True), done.stderr


def test_a_variable_that_is_empty_is_not_set(db: None) -> None:
    empty = dict.fromkeys(("ADMIN_KEY_A_B", "ADMIN_KEY_ADMIN", "ADMIN_KEY_OPS1", "HMAC_SECRET_OPS1_PREVIOUS"), "")
    assert run_in_production(MANAGE, "check", "--deploy", **empty).returncode == 0


WRONG: Final[dict[str, tuple[dict[str, str], str, str]]] = {
    "a name in small letters": (given("ADMIN_KEY_ops", "HMAC_SECRET_ops"), ConfigError.MALFORMED, "'ADMIN_KEY_ops'"),
    "a name of two words": (given("ADMIN_KEY_A_B", "HMAC_SECRET_A_B"), ConfigError.MALFORMED, "'ADMIN_KEY_A_B'"),
    "a name with a hyphen": (given("HMAC_SECRET_A-B"), ConfigError.MALFORMED, "'HMAC_SECRET_A-B'"),
    "a name in other letters": (given("ADMIN_KEY_É"), ConfigError.MALFORMED, "'ADMIN_KEY_\\xc9'"),
    "no name": (given("ADMIN_KEY_"), ConfigError.MALFORMED, "'ADMIN_KEY_'"),
    "no name, on its way out": (given("ADMIN_KEY__PREVIOUS"), ConfigError.MALFORMED, "'ADMIN_KEY__PREVIOUS'"),
    "a name with no room": (given(f"ADMIN_KEY_{'X' * 65}"), ConfigError.MALFORMED, f"'ADMIN_KEY_{'X' * 65}'"),
    "the name admin": (given("ADMIN_KEY_ADMIN", "HMAC_SECRET_ADMIN"), ConfigError.MALFORMED, "ADMIN_KEY_ADMIN"),
    "that, on its way out": (given("HMAC_SECRET_ADMIN_PREVIOUS"), ConfigError.MALFORMED, "HMAC_SECRET_ADMIN_PREVIOUS"),
    "the name PREVIOUS": (given("ADMIN_KEY_PREVIOUS_PREVIOUS"), ConfigError.MALFORMED, "ADMIN_KEY_PREVIOUS_PREVIOUS"),
    "a key without a secret": (given("ADMIN_KEY_X"), ConfigError.MISSING, "HMAC_SECRET_X"),
    "a secret without a key": (given("HMAC_SECRET_X"), ConfigError.MISSING, "ADMIN_KEY_X"),
    "a key on its way out alone": (
        given("ADMIN_KEY_X_PREVIOUS", "HMAC_SECRET_X"), ConfigError.MISSING, "ADMIN_KEY_X"
    ),
    "a secret on its way out alone": (
        given("ADMIN_KEY_X", "HMAC_SECRET_X_PREVIOUS"), ConfigError.MISSING, "HMAC_SECRET_X"
    ),
    "a short key": (PAIR | {"ADMIN_KEY_OPS1": "Zx9-too-small"}, ConfigError.SHORT, "ADMIN_KEY_OPS1"),
    "a short one on its way out": (
        PAIR | {"HMAC_SECRET_OPS1_PREVIOUS": "Zx9-too-small"}, ConfigError.SHORT, "HMAC_SECRET_OPS1_PREVIOUS"
    ),
    "an example": (PAIR | {"HMAC_SECRET_OPS1": "nxs_test_" + SECRET}, ConfigError.PLACEHOLDER, "HMAC_SECRET_OPS1"),
    "two lines": (PAIR | {"ADMIN_KEY_OPS1": f"{SECRET}\n{SECRET}"}, ConfigError.MALFORMED, "ADMIN_KEY_OPS1"),
}  # fmt: skip


@pytest.mark.parametrize(("variables", "fault", "named"), WRONG.values(), ids=WRONG)
def test_an_invalid_named_admin_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], fault: str, named: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(Misconfigured) as refused:
        named_admins.keys_and_secrets()
    message = str(refused.value)
    assert re.search(rf"\({fault}\) {re.escape(named)} .+\. .+", message)
    assert not [secret for secret in variables.values() if secret in message]


@pytest.mark.parametrize("argv", EVERY_START)
def test_an_invalid_named_admin_stops_every_start_in_production(db: None, argv: tuple[str, ...]) -> None:
    done = run_in_production(*argv, **given("ADMIN_KEY_X"))
    assert_stopped(done.returncode, done.stderr, given("ADMIN_KEY_X"))
    assert f"({ConfigError.MISSING}) HMAC_SECRET_X " in done.stderr


def assert_stopped(status: int, message: str, variables: dict[str, str]) -> None:
    assert status != 0
    assert "Traceback" not in message
    assert not [secret for secret in variables.values() if secret in message]


UNNAMED: Final = {
    "SECRET_KEY": "SECRET_KEY", "COMMAND_SIGNING_KEY": "COMMAND_SIGNING_KEYS", "METRICS_TOKEN": "METRICS_TOKEN",
    "ADMIN_KEY": "ADMIN_KEYS", "HMAC_SECRET": "HMAC_SECRETS",
}  # fmt: skip
"""The settings that other variables become."""

SHARED: Final = [
    *((name, "ADMIN_KEY_X_PREVIOUS") for name in ("SECRET_KEY", "COMMAND_SIGNING_KEY", "METRICS_TOKEN")),
    ("ADMIN_KEY", "ADMIN_KEY_X"),
    ("ADMIN_KEY", "HMAC_SECRET_X"),
    ("HMAC_SECRET", "HMAC_SECRET_X_PREVIOUS"),
    ("ADMIN_KEY_X", "HMAC_SECRET_X"),
    ("ADMIN_KEY_X", "ADMIN_KEY_OPS1"),
    ("HMAC_SECRET_X", "HMAC_SECRET_OPS1"),
    ("ADMIN_KEY_X", "ADMIN_KEY_X_PREVIOUS"),
    ("HMAC_SECRET_X", "HMAC_SECRET_X_PREVIOUS"),
]


@pytest.mark.parametrize(("one", "other"), SHARED)
def test_a_value_that_is_configured_twice_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, one: str, other: str
) -> None:
    twice = f"{SECRET}-twice"
    for variable, value in (PAIR | ROTATING | dict.fromkeys((one, other), twice)).items():
        monkeypatch.setenv(variable, value)
    settings.NAMED_ADMIN_KEYS, settings.NAMED_HMAC_SECRETS = named_admins.keys_and_secrets()
    if one in UNNAMED:
        setattr(settings, UNNAMED[one], twice if one in ("SECRET_KEY", "METRICS_TOKEN") else [twice])
    (found,) = checks.settings_in_force()
    assert found.id == ConfigError.SHARED
    assert {name.removesuffix("_PREVIOUS") for name in (one, other)} <= set(re.findall(r"[A-Z0-9_]+", str(found)))
    assert twice not in str(found)


def test_a_value_that_is_configured_twice_stops_the_start(db: None) -> None:
    done = run_in_production(MANAGE, "serve", **PAIR | {"HMAC_SECRET_OPS1": PAIR["ADMIN_KEY_OPS1"]})
    assert_stopped(done.returncode, done.stdout + done.stderr, PAIR)
    assert f"({ConfigError.SHARED}) ADMIN_KEY_OPS1 and HMAC_SECRET_OPS1 " in done.stderr + done.stdout
