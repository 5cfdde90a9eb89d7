"""DATABASE_URL, DIRECT_DATABASE_URL, and the parameters of every connection that NexMDM makes."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from nexmdm.common.postgresql import session
from nexmdm.config.environment import ConfigError, Misconfigured

_SCHEMES: Final = ("postgres", "postgresql")
_DJANGOS: Final = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
_PARAMETERS: Final = frozenset(option.keyword.decode() for option in Conninfo.get_defaults())
_SHOWN: Final = re.compile(r"[A-Za-z_]{1,40}")
_ALIKE: Final = "is not a URL like postgresql://user:password@host/name."

_HINTS: Final = {
    "schema": "Set the schema by options=-csearch_path%3D… instead.",
    "pgbouncer": "Remove it.",
}

_OURS: Final = {
    "application_name": "nexmdm",
    "connect_timeout": 5,
    "target_session_attrs": "read-write",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""The parameters of a connection if the URL does not set them (libpq: "Connection Parameters").

A server that has become read-only is skipped. A network that drops packets silently is detected after 10 s with
unacknowledged data (tcp_user_timeout, in ms), or after 25 s without such data.
"""

_GONE: Final = (
    "-c idle_in_transaction_session_timeout=5s"
    " -c idle_session_timeout=0"
    " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
)
"""PostgreSQL's settings to detect that NexMDM has vanished, and to release the rows that it had locked. A transaction
of NexMDM is idle no longer than it takes to send the next statement. A session may be idle for long, because the
dispatcher's listening session only waits.
"""

_ALWAYS: Final = rf"-c {session.ISOLATION}=read\ committed -c datestyle=ISO -c timezone=UTC -c {session.MARK}=1"
"""The settings that all statements here require, whatever the defaults of the database or the role are. Under another
isolation, statements that wait for each other fail; and psycopg reads dates only in ISO."""


def django_settings(url: str, variable: str = "DATABASE_URL") -> dict[str, Any]:
    """Return Django's settings for a libpq URL (`postgresql://user:password@host:port/name?sslmode=require`).

    `variable` is the variable with the URL. Raises Misconfigured, whose text shows no part of the URL except the name
    of a parameter.
    """
    _refuse_ambiguous(variable, url)
    _refuse_unknown(variable, url)
    try:
        parts = conninfo_to_dict(url)
    except Exception:  # noqa: BLE001  (psycopg's error may quote the password)
        raise Misconfigured(ConfigError.MALFORMED, f"{variable} {_ALIKE}") from None
    settings: dict[str, Any] = {_DJANGOS[key]: str(value) for key, value in parts.items() if key in _DJANGOS}
    if any(not re.fullmatch(r"[0-9]{0,5}", port) for port in settings.get("PORT", "").split(",")):
        raise Misconfigured(ConfigError.MALFORMED, f"{variable} has a port that is not a number.")
    settings["OPTIONS"] = {key: value for key, value in parts.items() if key not in _DJANGOS}
    if not settings.get("NAME"):
        raise Misconfigured(
            ConfigError.MALFORMED, f"{variable} contains no database name.", "Add /name after the host."
        )
    return settings


def options(given: Mapping[str, Any], *, statement_seconds: int, lock_seconds: int) -> dict[str, Any]:
    """Return libpq's parameters of a connection: NexMDM's own and the URL's (`given`), with the options of both."""
    times = f"-c statement_timeout={statement_seconds}s -c lock_timeout={lock_seconds}s"
    joined = " ".join(filter(None, (times, _GONE, str(given.get("options", "")), _ALWAYS)))
    return {**_OURS, **given, "options": joined}


def _refuse_ambiguous(variable: str, url: str) -> None:
    """Refuse a raw @ in the password: libpq would read the text after it as the host, and show it in its errors."""
    if "://" in url and url.partition("?")[0].count("@") > 1:
        message = f"{variable} has more than one @ before the host."
        raise Misconfigured(ConfigError.MALFORMED, message, "In the user and the password, write %40 instead of @.")


def _refuse_unknown(variable: str, url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Misconfigured(ConfigError.MALFORMED, f"{variable} {_ALIKE}") from None
    if parts.scheme not in _SCHEMES:
        return  # libpq also accepts `key=value` pairs.
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        # libpq reads JDBC's ssl=true as sslmode=require.
        if name not in _PARAMETERS and name != "ssl":
            # A raw ? in the password would make the text after it a parameter's name.
            shown = f" {name}" if "@" not in parts.query and _SHOWN.fullmatch(name) else ""
            message = f"{variable} has a parameter{shown} that PostgreSQL's client library does not know."
            raise Misconfigured(
                ConfigError.MALFORMED,
                message,
                _HINTS.get(name, "Remove the parameter, or correct the parameter's name."),
            )
