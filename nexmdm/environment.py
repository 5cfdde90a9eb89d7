"""Read the environment (contract: configuration) into typed values, and refuse what cannot be right."""

import base64
import binascii
import ipaddress
import json
import re
from pathlib import Path
from typing import Any, Final

import environ
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict

env: Final = environ.Env()

MINIMUM_SECRET_LENGTH: Final = 32
_RATE: Final = re.compile(r"[1-9][0-9]*/[1-9]?[0-9]*[smhd]")
_SERVICE_ACCOUNT_FIELDS: Final = ("project_id", "client_email", "private_key", "token_uri")


def whole(name: str, default: int, *, minimum: int, maximum: int) -> int:
    """Return the integer `name`, within its bounds (inclusive)."""
    text = env.str(name, default=str(default))
    if not re.fullmatch(r"[0-9]{1,12}", text) or not minimum <= int(text) <= maximum:
        raise ImproperlyConfigured(f"{name} must be a whole number from {minimum} to {maximum}, not {text!r}.")
    return int(text)


def choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    """Return `name`, one of the words in `allowed`."""
    value: str = env.str(name, default=default)
    if value not in allowed:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")
    return value


def flag(name: str, *, default: bool) -> bool:
    """Return a yes or no: true, on, yes, 1 or false, off, no, 0."""
    text = env.str(name, default="").lower()
    if text and text not in (*environ.Env.BOOLEAN_TRUE_STRINGS, "false", "off", "no", "n", "0"):
        raise ImproperlyConfigured(f"{name} must be true or false, not {text!r}.")
    return bool(env.bool(name, default=default)) if text else default


def rate(name: str, default: str) -> str:
    """Return a rate as django-ratelimit writes it: `120/m`."""
    text: str = env.str(name, default=default)
    if not _RATE.fullmatch(text):
        raise ImproperlyConfigured(f"{name} must look like 120/m (a number, a slash, s, m, h or d), not {text!r}.")
    return text


def names(name: str, default: list[str]) -> list[str]:
    """Return a comma-separated list without blanks."""
    return [part.strip() for part in env.str(name, default=",".join(default)).split(",") if part.strip()]


def networks(name: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Return a comma-separated list of addresses or CIDR networks."""
    try:
        return [ipaddress.ip_network(part) for part in names(name, [])]
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} must list addresses or networks such as 10.0.0.0/8: {error}.") from error


def secret(name: str, generated: dict[str, str] | None) -> str:
    """Return a secret of at least 32 characters from the environment, else the generated one.

    With `generated` None (a DATABASE_URL is set) a missing secret stops the start. The value never enters a message.
    """
    value: str = env.str(name, default="")
    if not value and generated is not None:
        value = generated.get(name, "")
    if not value:
        raise ImproperlyConfigured(f"{name} is not set. With DATABASE_URL every secret comes from the environment.")
    return _checked(name, value)


def previous_secrets(name: str) -> list[str]:
    """Return the secrets that are on their way out (comma-separated), oldest last."""
    return [_checked(name, value) for value in names(name, [])]


def _checked(name: str, value: str) -> str:
    if len(value) < MINIMUM_SECRET_LENGTH:
        hint = 'Make one with: python3 -c "import secrets; print(secrets.token_urlsafe(48))"'
        raise ImproperlyConfigured(f"{name} is shorter than {MINIMUM_SECRET_LENGTH} characters. {hint}")
    if len(set(value)) < 8 or "change" in value.lower() or "insecure" in value.lower():
        raise ImproperlyConfigured(f"{name} looks like a placeholder. Set it to a random value of your own.")
    return value


def database(url: str) -> dict[str, Any]:
    """Return Django's settings for a libpq URL (`postgresql://user:password@host:port/name?sslmode=require`)."""
    try:
        parts = conninfo_to_dict(url)
    except Exception as error:
        raise ImproperlyConfigured("DATABASE_URL is not a URL like postgresql://user:password@host/name.") from error
    known = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    settings: dict[str, Any] = {known[key]: str(value) for key, value in parts.items() if key in known}
    settings["OPTIONS"] = {key: value for key, value in parts.items() if key not in known}
    if not settings.get("NAME"):
        raise ImproperlyConfigured("DATABASE_URL names no database: add /name after the host.")
    return settings


def firebase_service_account() -> dict[str, str] | None:
    """Return the service account, or None where push is not configured.

    FIREBASE_SERVICE_ACCOUNT_JSON holds the JSON or base64 of it; GOOGLE_APPLICATION_CREDENTIALS names a file.
    """
    text = env.str("FIREBASE_SERVICE_ACCOUNT_JSON", default="").strip()
    name = "FIREBASE_SERVICE_ACCOUNT_JSON"
    if not text and (path := env.str("GOOGLE_APPLICATION_CREDENTIALS", default="")):
        name = "GOOGLE_APPLICATION_CREDENTIALS"
        text = _read(name, Path(path))
    if not text:
        return None
    account = _parse_account(name, text)
    if missing := [field for field in _SERVICE_ACCOUNT_FIELDS if not isinstance(account.get(field), str)]:
        raise ImproperlyConfigured(f"{name} is not a service account: it lacks {', '.join(missing)}.")
    return account


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(f"{name} names a file that cannot be read: {path}.") from error


def _parse_account(name: str, text: str) -> dict[str, str]:
    try:
        decoded = text if text.startswith("{") else base64.b64decode(text, validate=True).decode()
        account = json.loads(decoded)
    except (binascii.Error, ValueError):
        account = None
    if not isinstance(account, dict):
        raise ImproperlyConfigured(f"{name} is neither JSON nor base64 of JSON.")
    return account
