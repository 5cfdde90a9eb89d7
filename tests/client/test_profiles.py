"""Profiles: a server and an admin's secrets, saved once. The environment overrides them, and no output shows them."""

import io
import stat
import threading
from pathlib import Path
from typing import Any, Final

import httpx
import keyring.backend
import pytest
from pytest_django import Settings

from tests.support.actors import Admin, Client
from tests.support.fleet_command import InProcess, Ran, run, run_nexmdm

SERVER: Final = "https://mdm.example.com"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Path:
    """The file of profiles of this test."""
    settings.ALLOWED_HOSTS = ["*"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "nexmdm" / "profiles.ini"


@pytest.fixture
def network(client: Client, admin: Admin) -> InProcess:
    return InProcess(client)


class Keyring(keyring.backend.KeyringBackend):
    """A keyring that works."""

    priority = 5

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def working_keyring(monkeypatch: pytest.MonkeyPatch) -> Keyring:
    found = Keyring()
    monkeypatch.setattr("keyring.get_keyring", lambda: found)
    return found


@pytest.fixture
def secrets(settings: Settings) -> tuple[str, str]:
    return settings.ADMIN_KEYS[0], settings.HMAC_SECRETS[0]


def login(network: httpx.BaseTransport, typed: tuple[str, ...], *words: str) -> Ran:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
        return run_nexmdm("login", *words, transport=network)


def test_login_saves_a_profile_that_only_its_owner_can_read_and_the_next_call_uses_it(
    network: InProcess, secrets: tuple[str, str], config: Path
) -> None:
    ran = login(network, secrets, "--url", f"{SERVER}/")
    assert ran.status == 0
    assert f"Saved the profile 'default'. Its secrets are in {config}." in ran.err
    assert not any(secret in ran.out + ran.err for secret in secrets)
    assert (stat.S_IMODE(config.stat().st_mode), stat.S_IMODE(config.parent.stat().st_mode)) == (0o600, 0o700)
    assert run_nexmdm("summary", "--json", transport=network).json["open_deliveries"] == 0
    assert str(network.seen[-1].url) == f"{SERVER}/admin/summary"


def test_secrets_that_the_server_refuses_are_not_saved(
    network: InProcess, secrets: tuple[str, str], config: Path
) -> None:
    ran = login(network, (secrets[0], "w" * 40), "--url", SERVER)
    assert ran.status == 1
    assert "401 invalid_signature" in ran.err
    assert "The profile was not saved." in ran.err
    assert not config.exists()
    assert login(network, (secrets[0], "w" * 40), "--url", SERVER, "--no-check").status == 0
    refused = run_nexmdm("summary", transport=network)
    assert "Check that the admin key of the profile 'default' and its signing secret belong to" in refused.err


@pytest.mark.parametrize("typed", [("", "x" * 40), ("x" * 40, " "), ("é" * 40, "x" * 40)])
def test_a_secret_that_cannot_be_sent_is_refused_and_not_shown(
    network: InProcess, typed: tuple[str, str], config: Path
) -> None:
    ran = login(network, typed, "--url", SERVER)
    assert (ran.status, "must be one line of printable ASCII characters." in ran.err) == (2, True)
    assert "xxx" not in ran.err
    assert not config.exists()


def test_each_profile_has_its_server_and_is_named_before_or_after_the_verb(
    network: InProcess, secrets: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    login(network, secrets, "--url", SERVER)
    login(network, secrets, "--url", "https://shop.example.com", "--profile", "shop")
    monkeypatch.setenv("NEXMDM_PROFILE", "default")
    for words in (("summary", "--profile", "shop"), ("--profile", "shop", "summary")):
        assert run_nexmdm(*words, transport=network).status == 0
        assert network.seen[-1].url.host == "shop.example.com"
    assert run("summary", "--profile", "shop", transport=network).status == 0
    assert network.seen[-1].url.host == "shop.example.com"
    monkeypatch.setenv("NEXMDM_PROFILE", "shop")
    run_nexmdm("summary", transport=network)
    assert network.seen[-1].url.host == "shop.example.com"
    listed = run_nexmdm("profiles", transport=network)
    assert [line.split() for line in listed.out.splitlines()] == [
        ["name", "url", "secrets"], ["default", SERVER, "file"], ["shop", "https://shop.example.com", "file"],
    ]  # fmt: skip
    assert run_nexmdm("logout", "--profile", "shop", transport=network).status == 0
    gone = run_nexmdm("summary", "--profile", "shop", transport=network)
    assert (gone.status, "There is no profile 'shop'. The profiles are: default." in gone.err) == (2, True)


def test_the_environment_overrides_a_profile(
    network: InProcess, secrets: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    login(network, ("k" * 40, "s" * 40), "--url", "https://other.example.com", "--no-check")
    monkeypatch.setenv("ADMIN_KEY", secrets[0])
    half = run_nexmdm("summary", transport=network)
    assert (half.status, "(not set: HMAC_SECRET)" in half.err) == (2, True)
    monkeypatch.setenv("HMAC_SECRET", secrets[1])
    monkeypatch.setenv("NEXMDM_URL", SERVER)
    assert run_nexmdm("summary", transport=network).status == 0
    assert network.seen[-1].url.host == "mdm.example.com"


def test_the_secrets_of_a_profile_go_to_its_own_server_only(network: InProcess, secrets: tuple[str, str]) -> None:
    login(network, secrets, "--url", SERVER)
    before = len(network.seen)
    ran = run_nexmdm("summary", "--url", "https://other.example.com", transport=network)
    assert ran.status == 2
    assert f"The secrets of the profile 'default' are for {SERVER} only" in ran.err
    assert len(network.seen) == before
    assert run_nexmdm("summary", "--url", f"{SERVER}/", transport=network).status == 0


def test_without_a_profile_the_client_shows_how_to_make_one(network: InProcess) -> None:
    ran = run_nexmdm("summary", transport=network)
    assert (ran.status, ran.err) == (
        2, "No server is known. Run `nexmdm login`, or set NEXMDM_URL, ADMIN_KEY and HMAC_SECRET.\n",
    )  # fmt: skip
    missing = run_nexmdm("summary", "--url", SERVER, transport=network)
    assert "Set ADMIN_KEY and HMAC_SECRET in the environment, or run `nexmdm login`." in missing.err
    assert network.seen == []


def test_a_working_keyring_has_the_secrets_and_the_file_has_none(
    network: InProcess, secrets: tuple[str, str], config: Path, working_keyring: Keyring
) -> None:
    assert "Its secrets are in the keyring." in login(network, secrets, "--url", SERVER).err
    assert not any(secret in config.read_text() for secret in secrets)
    assert set(working_keyring.kept.values()) == set(secrets)
    assert run_nexmdm("summary", transport=network).status == 0
    login(network, secrets, "--url", SERVER, "--no-keyring")
    assert working_keyring.kept == {}
    login(network, secrets, "--url", SERVER)
    run_nexmdm("logout", transport=network)
    assert working_keyring.kept == {}
    login(network, secrets, "--url", SERVER, "--no-keyring")
    assert secrets[0] in config.read_text()


def test_a_keyring_that_does_not_answer_counts_as_none(
    network: InProcess, secrets: tuple[str, str], working_keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    login(network, secrets, "--url", SERVER)
    monkeypatch.setattr("nexmdm.client.profiles.keychain.SECONDS", 0.05)
    unlocked = threading.Event()
    monkeypatch.setattr(Keyring, "get_password", lambda *_: unlocked.wait())
    ran = run_nexmdm("summary", transport=network)
    assert (ran.status, "the keyring did not answer within 0.05 s" in ran.err) == (2, True)
    stays = run_nexmdm("logout", transport=network)
    assert (stays.status, "cannot be removed from the keyring" in stays.err) == (1, True)
    saved = login(network, secrets, "--url", SERVER, "--profile", "other")
    assert "profiles.ini" in saved.err
    unlocked.set()


@pytest.mark.parametrize("broken", [RuntimeError("no bus"), None])
def test_the_message_about_a_keyring_that_fails_or_forgets_has_the_remedy(
    network: InProcess,
    secrets: tuple[str, str],
    working_keyring: Keyring,
    monkeypatch: pytest.MonkeyPatch,
    broken: Exception | None,
) -> None:
    login(network, secrets, "--url", SERVER)

    def get_password(*_: Any) -> None:
        if broken:
            raise broken

    monkeypatch.setattr(Keyring, "get_password", get_password)
    ran = run_nexmdm("summary", transport=network)
    assert ran.status == 2
    assert ("no bus" if broken else "Run `nexmdm login --profile default`.") in ran.err
    assert "profiles.ini" in login(network, secrets, "--url", SERVER).err


@pytest.mark.parametrize("text", ["admin_key = s3cret-without-a-section\n", "[default]\n[default]\n", "\xff"])
def test_a_file_that_cannot_be_read_is_named_and_not_shown(network: InProcess, config: Path, text: str) -> None:
    config.parent.mkdir()
    config.write_bytes(text.encode("latin-1"))
    for words in (("summary",), ("profiles",), ("logout",)):
        ran = run_nexmdm(*words, transport=network)
        assert ran.status in (1, 2)
        assert f"{config} cannot be read" in ran.err
        assert "s3cret" not in ran.err


@pytest.mark.parametrize("name", ["a/b", "..", "DEFAULT", "x" * 65])
def test_an_invalid_name_of_a_profile_is_refused(network: InProcess, name: str) -> None:
    ran = login(network, (), "--url", SERVER, "--profile", name)
    assert (ran.status, "cannot be the name of a profile" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("url = nonsense", "The url of the profile 'default' must look like https://mdm.example.com"),
        ("url = https://x.example\nsecrets = vault", "`secrets` must be 'keyring' or 'file'."),
        (
            "url = https://x.example\nsecrets = file\nadmin_key = \u00e9\nhmac_secret = x",
            "The admin key of the profile",
        ),
        ("url = https://x.example\nsecrets = file\nadmin_key = x", "The signing secret of the profile"),
    ],
)
def test_a_damaged_profile_is_refused_before_a_call_and_can_be_listed_and_removed(
    network: InProcess, config: Path, text: str, said: str
) -> None:
    config.parent.mkdir(exist_ok=True)
    config.write_text(f"[default]\n{text}\n", encoding="utf-8")
    ran = run_nexmdm("summary", transport=network)
    assert (ran.status, network.seen) == (2, [])
    assert said in ran.err
    assert run_nexmdm("profiles", transport=network).status == 0
    assert run_nexmdm("logout", transport=network).status == 0


def test_an_invalid_address_in_the_environment_is_named(network: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXMDM_URL", "mdm.example.com")
    ran = run_nexmdm("summary", transport=network)
    assert (ran.status, network.seen) == (2, [])
    assert ran.err == "NEXMDM_URL must look like https://mdm.example.com, but it is 'mdm.example.com'.\n"
