"""The file with the profiles. This file contains the secrets only if no keyring contains them."""

import configparser
import io
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import platformdirs

from nexmdm.client.profiles import keychain, private_file

DEFAULT: Final = "default"
IN_KEYRING: Final = "keyring"
IN_FILE: Final = "file"
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIELDS: Final = ("url", "secrets", "admin_key", "hmac_secret")


class ProfileError(Exception):
    """A profile cannot be used. The message contains the reason and the remedy, and no secret."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The address of a server, and an admin of this server.

    `secrets` is IN_KEYRING or IN_FILE. `admin_key` and `hmac_secret` are empty if the secrets are in the keyring.
    """

    name: str
    url: str
    secrets: str
    admin_key: str = field(repr=False)
    hmac_secret: str = field(repr=False)

    def credentials(self) -> tuple[str, str]:
        """Return the admin key and the HMAC secret. Raises ProfileError if they cannot be read."""
        if self.secrets == IN_FILE:
            return self.admin_key, self.hmac_secret
        if self.secrets != IN_KEYRING:
            message = (
                f"The profile {self.name!r} in {path()} does not state where its secrets are: `secrets` must be "
                f"{IN_KEYRING!r} or {IN_FILE!r}."
            )
            raise ProfileError(f"{message} Run `nexmdm login --profile {self.name}`.")
        try:
            found = [keychain.read(_entry(self.name, kind)) for kind in _FIELDS[2:]]
        except keychain.NoKeyring as error:
            message = f"The secrets of the profile {self.name!r} cannot be read: {error}. Unlock the keyring, or set "
            raise ProfileError(f"{message}ADMIN_KEY and HMAC_SECRET in the environment.") from error
        key, secret = found
        if key is None or secret is None:
            message = f"The keyring no longer has the secrets of the profile {self.name!r}."
            raise ProfileError(f"{message} Run `nexmdm login --profile {self.name}`.")
        return key, secret


def path() -> Path:
    """Return the path of the file."""
    return platformdirs.user_config_path("nexmdm") / "profiles.ini"


def load_all() -> dict[str, Profile]:
    """Return all profiles by name. Raises ProfileError if the file cannot be read."""
    parsed = _read()
    return {name: Profile(name, *(parsed.get(name, one, fallback="") for one in _FIELDS)) for name in parsed.sections()}


def save(name: str, url: str, key: str, secret: str, *, use_keyring: bool) -> Profile:
    """Save a profile, and return it. An earlier profile with this name is replaced.

    With `use_keyring`, the secrets go into the keyring if it works. Raises ProfileError if the name or the file is
    invalid. Raises OSError if the file cannot be written.
    """
    before = load_all().get(checked_name(name))
    place = IN_FILE
    if use_keyring:
        try:
            for kind, value in zip(_FIELDS[2:], (key, secret), strict=True):
                keychain.store(_entry(name, kind), value)
            place = IN_KEYRING
        except keychain.NoKeyring:
            place = IN_FILE
    if before and before.secrets == IN_KEYRING and place == IN_FILE:
        with suppress(keychain.NoKeyring):
            _forget(name)
    shown = (key, secret) if place == IN_FILE else ("", "")
    profile = Profile(name, url, place, *shown)
    parsed = _read()
    values = zip(_FIELDS, (url, place, *shown), strict=True)
    parsed[name] = {one: value for one, value in values if value}
    _write(parsed)
    return profile


def find(name: str) -> Profile:
    """Return the profile with this name. Raises ProfileError if it does not exist."""
    known = load_all()
    if name not in known:
        others = f" The profiles are: {', '.join(known)}." if known else ""
        raise ProfileError(
            f"There is no profile {name!r}.{others} To create the profile, run `nexmdm login --profile {name}`."
        )
    return known[name]


def remove(name: str) -> None:
    """Delete a profile and its secrets.

    Raises ProfileError if the profile does not exist or its secrets cannot be deleted. Raises OSError if the file
    cannot be written.
    """
    if find(name).secrets == IN_KEYRING:
        try:
            _forget(name)
        except keychain.NoKeyring as error:
            message = f"The secrets of the profile {name!r} cannot be removed from the keyring: {error}."
            raise ProfileError(f"{message} Unlock the keyring, then try again.") from error
    parsed = _read()
    parsed.remove_section(name)
    _write(parsed)


def checked_name(text: str) -> str:
    """Return `text`. Raises ProfileError if it cannot be the name of a profile."""
    if not _NAME.fullmatch(text) or text == configparser.DEFAULTSECT or not text.strip("."):
        raise ProfileError(
            f"{text!r} cannot be the name of a profile. A name has 1 to 64 letters (A to Z, a to z), digits, dots, "
            "underscores and hyphens. `DEFAULT`, and names that have only dots, are not allowed."
        )
    return text


def _forget(name: str) -> None:
    for kind in _FIELDS[2:]:
        keychain.forget(_entry(name, kind))


def _entry(profile: str, kind: str) -> str:
    return f"{profile}/{kind}"


def _read() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    try:
        parsed.read_string(path().read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return parsed
    except (configparser.Error, OSError, UnicodeError) as error:
        # The message of the original error may contain a line of the file, and so a secret.
        message = f"{path()} cannot be read ({type(error).__name__})."
        raise ProfileError(f"{message} Repair the file, or delete the file and run `nexmdm login`.") from None
    return parsed


def _write(parsed: configparser.ConfigParser) -> None:
    text = io.StringIO()
    parsed.write(text)
    private_file.write(path(), text.getvalue())
