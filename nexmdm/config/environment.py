"""Functions that read variables of the environment.

`name` is the name of the variable. `default` is the value if the variable is unset or empty. Each function raises
Misconfigured if the value is invalid.
"""

import base64
import binascii
import ipaddress
import json
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from django.core.checks import Error
from django.core.exceptions import ImproperlyConfigured

from nexmdm.config import secrets_file

MINIMUM_SECRET_LENGTH: Final = 32
_YES: Final = {"true", "on", "yes", "1"}
_NO: Final = {"false", "off", "no", "0"}
_SECRET: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
_RATE: Final = re.compile(r"[1-9][0-9]{0,8}/([1-9][0-9]{0,3})?[smhd]")
_LABEL: Final = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.IGNORECASE)
_ORIGIN: Final = re.compile(r"https?://(\[[^]/]*\]|[^:/\[\]]+)(?::([0-9]{1,5}))?")
_SERVICE_ACCOUNT_FIELDS: Final = ("project_id", "client_email", "private_key", "token_uri")
_PLACEHOLDERS: Final = ("change", "insecure", "nxs_test_", "nxk_test_")
_MAKE_ONE: Final = 'To create a secret, run: python3 -c "import secrets; print(secrets.token_urlsafe(48))"'
_TAKE_THE_FILE: Final = (
    "Use the unchanged JSON file of the service account from the Firebase console, or the base64 of this file."
)


class ConfigError(StrEnum):
    """The ids of the errors that prevent the start of NexMDM. Each error message begins with the id of its error."""

    DEBUG = "nexmdm.E001"
    MISSING = "nexmdm.E002"
    SHORT = "nexmdm.E003"
    PLACEHOLDER = "nexmdm.E004"
    SHARED = "nexmdm.E005"
    MALFORMED = "nexmdm.E006"
    FIREBASE = "nexmdm.E007"
    CACHE = "nexmdm.E008"
    CONNECTIONS = "nexmdm.E009"
    METRICS_FOLDER = "nexmdm.E010"
    DATA_FOLDER = "nexmdm.E011"
    ENCODING = "nexmdm.E012"
    TOO_OLD = "nexmdm.E013"
    STATEMENT_POOLING = "nexmdm.E014"


class Misconfigured(ImproperlyConfigured):
    """A variable of the environment is invalid.

    The message names the variable, the reason and the remedy. The message never contains a secret.
    """

    def __init__(
        self, fault: ConfigError, message: str, hint: str = "docs/operations/settings.md describes the allowed values."
    ) -> None:
        super().__init__(f"({fault}) {message} {hint}")
        self.check = Error(message, hint=hint, id=fault)


def text(name: str, default: str = "") -> str:
    """Return the value without any check."""
    return os.environ.get(name) or default


def whole(name: str, default: int, *, minimum: int, maximum: int) -> int:
    """Return the value as an integer from `minimum` to `maximum`, both inclusive."""
    given = text(name, str(default))
    if not re.fullmatch(r"[0-9]{1,12}", given) or not minimum <= int(given) <= maximum:
        raise Misconfigured(
            ConfigError.MALFORMED, f"{name} must be a whole number from {minimum} to {maximum}, not {given!r}."
        )
    return int(given)


def choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    """Return the value, which must be one of the words in `allowed`."""
    value = text(name, default)
    if value not in allowed:
        raise Misconfigured(ConfigError.MALFORMED, f"{name} must be one of {', '.join(allowed)}, not {value!r}.")
    return value


def flag(name: str, *, default: bool) -> bool:
    """Return True for true, on, yes or 1, and False for false, off, no or 0. Upper-case words are allowed."""
    given = text(name).lower()
    if given and given not in _YES | _NO:
        raise Misconfigured(ConfigError.MALFORMED, f"{name} must be true or false, not {given!r}.")
    return given in _YES if given else default


def rate(name: str, default: str) -> str:
    """Return a rate in the form of django-ratelimit. Example: `120/m` means 120 in one minute."""
    given = text(name, default)
    if not _RATE.fullmatch(given):
        message = f"{name} must be a number, a slash and a unit (s, m, h or d), such as 120/m, not {given!r}."
        raise Misconfigured(ConfigError.MALFORMED, message)
    return given


def origin(name: str, default: str) -> str:
    """Return a URL that has only a scheme, a host and possibly a port. Example: `https://fcm.googleapis.com`."""
    given = text(name, default).removesuffix("/")
    found = _ORIGIN.fullmatch(given)
    if found is None or not _is_host(found[1]) or not 1 <= int(found[2] or 443) <= 65_535:
        shown = "a value with a user or a password" if "@" in given else repr(given)
        raise Misconfigured(
            ConfigError.MALFORMED, f"{name} must be a scheme and a host such as {default}, not {shown}."
        )
    return given


def hosts(name: str, default: list[str]) -> list[str]:
    """Return the host names in a comma-separated list.

    Forms of a name: `mdm.example.com`, `.example.com` (with all subdomains) and `*` (every host).
    """
    found = names(name, default)
    if not found:
        raise Misconfigured(
            ConfigError.MALFORMED, f"{name} contains no host.", "Add a host, or do not set the variable."
        )
    return [sound_host(name, one) for one in found]


def sound_host(name: str, value: str) -> str:
    """Return `value`. Raises Misconfigured if `value` can never match the Host header of a request."""
    if value == "*" or _is_host(value) or (value.startswith(".") and _NAME.fullmatch(value[1:])):
        return value
    message = f"{name} contains {value!r}. No Host header can have this value."
    raise Misconfigured(ConfigError.MALFORMED, message, _how_to_write_host(value))


def _is_host(value: str) -> bool:
    """Return whether `value` is a host name, an IPv4 address, or an IPv6 address in brackets."""
    if value.startswith("[") and value.endswith("]"):
        return "%" not in value and isinstance(_address(value[1:-1]), ipaddress.IPv6Address)
    return _NAME.fullmatch(value) is not None


def _address(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None


def _how_to_write_host(value: str) -> str:
    if value.startswith(("[", '"', "'")) and _address(value[1:].partition("]")[0].partition("%")[0]) is None:
        return "Separate names with commas: a.example.com,b.example.com. Do not use brackets or quotes."
    if ":" in value and _address(value.partition("%")[0]) is not None:
        return f"Write an IPv6 address in brackets and without a zone: [{value.partition('%')[0]}]."
    if value.startswith("*"):
        return f"Write {value[1:]} for all names below a domain, or * for any name."
    if not value.isascii():
        return "Write an international name in its ASCII form, which begins with xn--."
    return "Write only the host name, such as mdm.example.com, without scheme, port, path, blank or underscore."


def listening_host(name: str, default: str) -> str:
    """Return the host name or the address on which the server listens.

    The value has no scheme and no port. An IPv6 address has no brackets.
    """
    given = text(name, default)
    if _address(given) is None and _NAME.fullmatch(given.replace("_", "-")) is None:
        message = f"{name} must be an address or a host name to listen on, such as {default}, not {given!r}."
        raise Misconfigured(
            ConfigError.MALFORMED, message, "Set the port in PORT. Write an IPv6 address without brackets."
        )
    return given


def names(name: str, default: list[str]) -> list[str]:
    """Return the entries of a comma-separated list, without spaces around them and without empty entries."""
    return [part.strip() for part in text(name, ",".join(default)).split(",") if part.strip()]


def networks(name: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Return the IP networks in a comma-separated list. An address alone is a network of one address."""
    try:
        found = [ipaddress.ip_network(part) for part in names(name, [])]
    except ValueError as error:
        message = f"{name} must list addresses or networks such as 10.0.0.0/8: {error}."
        raise Misconfigured(ConfigError.MALFORMED, message) from error
    for network in found:
        if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
            message = f"{name} contains {network}, but NexMDM uses the IPv4 form of such addresses."
            raise Misconfigured(ConfigError.MALFORMED, message, "Write an IPv4 address or network, such as 10.0.0.0/8.")
    return found


def folder(name: str) -> str:
    """Return the path of a folder, or an empty string if the variable is not set.

    The folder must exist, and this process must be able to write there.
    """
    path = text(name)
    if path and not (Path(path).is_dir() and os.access(path, os.W_OK | os.X_OK)):
        message = f"{name} is not a folder that this process can write to: {path}."
        raise Misconfigured(
            ConfigError.METRICS_FOLDER, message, "Before the start, create an empty folder at this path."
        )
    return path


def secret(name: str, generated: dict[str, str] | None) -> str:
    """Return a secret, which has at least 32 characters.

    If the variable is not set, return the secret from `generated`. If DATABASE_URL is set, `generated` is None, and the
    variable must be set.
    """
    value = text(name)
    if not value and generated is not None:
        value = generated.get(name, "")
    if not value:
        message = f"{name} is not set. If DATABASE_URL is set, every secret must be set in the environment."
        raise Misconfigured(ConfigError.MISSING, message, _MAKE_ONE)
    return sound_secret(name, value)


def optional_secret(name: str) -> str:
    """Return a secret, which has at least 32 characters, or an empty string if the variable is not set."""
    value = text(name)
    return sound_secret(name, value) if value else ""


def generated_secrets(path: Path) -> dict[str, str]:
    """Return the secrets in the file `path`, by variable. The first call creates the file.

    Raises Misconfigured if the file cannot be read or created.
    """
    try:
        return secrets_file.load_or_create(path)
    except OSError as error:
        message = f"The secrets cannot be stored in {path}: {error.strerror}."
        hint = (
            "Set NEXMDM_DATA_DIR to a folder that NexMDM can write to. If you use your own PostgreSQL, set "
            "DATABASE_URL instead."
        )
        raise Misconfigured(ConfigError.DATA_FOLDER, message, hint) from error


def previous_secrets(name: str) -> list[str]:
    """Return the previous values of a secret from a comma-separated list. The oldest value is last."""
    return [sound_secret(name, value) for value in names(name, [])]


def sound_secret(name: str, value: str) -> str:
    """Return `value`. Raises Misconfigured if it cannot be a secret.

    A secret is printable ASCII on one line, has at least 32 characters, and is no placeholder.
    """
    if not _SECRET.fullmatch(value):
        message = f"{name} must be printable ASCII, on one line, without spaces at the beginning or the end."
        raise Misconfigured(ConfigError.MALFORMED, message, _MAKE_ONE)
    if len(value) < MINIMUM_SECRET_LENGTH:
        message = f"{name} is shorter than {MINIMUM_SECRET_LENGTH} characters."
        raise Misconfigured(ConfigError.SHORT, message, _MAKE_ONE)
    if len(set(value)) < 8 or any(word in value.lower() for word in _PLACEHOLDERS):
        raise Misconfigured(ConfigError.PLACEHOLDER, f"{name} looks like a placeholder or an example.", _MAKE_ONE)
    return value


def firebase_service_account() -> dict[str, str] | None:
    """Return the Firebase service account, or None if no variable configures one.

    FIREBASE_SERVICE_ACCOUNT_JSON contains the JSON of the account, or base64 of this JSON. If it is not set,
    GOOGLE_APPLICATION_CREDENTIALS is the path of a file with this content.
    """
    name = "FIREBASE_SERVICE_ACCOUNT_JSON"
    given = text(name).strip()
    if not given and (path := text("GOOGLE_APPLICATION_CREDENTIALS")):
        name = "GOOGLE_APPLICATION_CREDENTIALS"
        given = _read(name, Path(path)).strip()
    if not given:
        return None
    account = _parse_account(name, given)
    if missing := [field for field in _SERVICE_ACCOUNT_FIELDS if not isinstance(account.get(field), str)]:
        raise Misconfigured(ConfigError.FIREBASE, f"{name} does not contain {', '.join(missing)}.", _TAKE_THE_FILE)
    if account.get("type") != "service_account":
        raise Misconfigured(ConfigError.FIREBASE, f'{name} is not of the type "service_account".', _TAKE_THE_FILE)
    if not _is_private_key(account["private_key"]):
        raise Misconfigured(
            ConfigError.FIREBASE, f"The private_key in {name} is not a complete RSA key.", _TAKE_THE_FILE
        )
    return account


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        message = f"{name} names a file that cannot be read: {path}."
        raise Misconfigured(
            ConfigError.FIREBASE, message, "Give the account that runs NexMDM the right to read this file."
        ) from None


def _parse_account(name: str, given: str) -> dict[str, str]:
    try:
        decoded = given if given.startswith("{") else base64.b64decode(given, validate=True).decode()
        account = json.loads(decoded)
    except (binascii.Error, ValueError):
        account = None
    if not isinstance(account, dict):
        raise Misconfigured(ConfigError.FIREBASE, f"{name} is neither JSON nor base64 of JSON.", _TAKE_THE_FILE)
    return account


def _is_private_key(pem: str) -> bool:
    try:
        return isinstance(load_pem_private_key(pem.encode(), password=None), RSAPrivateKey)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
