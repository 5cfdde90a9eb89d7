"""The settings of database connections, from DATABASE_URL or DIRECT_DATABASE_URL."""

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
"""The connection parameters that apply if the URL does not set them (libpq: "Connection Parameters").

With `target_session_attrs`, libpq skips a server that is read-only. If the network drops packets without an error, the
connection fails after some time. This time is 10 s if the server has not acknowledged data (`tcp_user_timeout`, in ms).
Without such data, the time is 25 s (the keepalive parameters, in s).
"""

_GONE: Final = (
    "-c idle_in_transaction_session_timeout=5s"
    " -c idle_session_timeout=0"
    " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
)
"""Settings of a session with which PostgreSQL detects that NexMDM has vanished.

PostgreSQL then ends the session and releases its locks. A transaction of NexMDM is idle only until NexMDM sends the
next statement. A session may be idle for long: one session of each dispatcher only waits for notifications.
"""

_ALWAYS: Final = rf"-c {session.ISOLATION}=read\ committed -c datestyle=ISO -c timezone=UTC -c {session.MARK}=1"
"""Settings of a session that the code requires. They override the defaults of the database and of the role.

With a stricter isolation, statements that wait for each other fail. psycopg can read dates only in the ISO style.
"""


def django_settings(url: str, variable: str = "DATABASE_URL") -> dict[str, Any]:
    """Return Django's settings for a libpq URL, such as `postgresql://user:password@host:5432/name?sslmode=require`.

    `variable` is the name of the environment variable that contains the URL, for error messages. Raises Misconfigured
    if the URL is invalid. The only part of the URL that the message may show is the name of a parameter.
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
    """Return the libpq parameters of a connection.

    `given` contains the parameters of the URL, which override NexMDM's defaults. The session settings that the code
    requires override the parameters of the URL.
    """
    times = f"-c statement_timeout={statement_seconds}s -c lock_timeout={lock_seconds}s"
    joined = " ".join(filter(None, (times, _GONE, str(given.get("options", "")), _ALWAYS)))
    return {**_OURS, **given, "options": joined}


def _refuse_ambiguous(variable: str, url: str) -> None:
    """Raise Misconfigured if the user or the password contains an `@` that is not percent-encoded.

    libpq would take the text after this `@` for the host, and would show it in error messages.
    """
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
            # If the password contains a raw ?, the text after it looks like the name of a parameter.
            shown = f" {name}" if "@" not in parts.query and _SHOWN.fullmatch(name) else ""
            message = f"{variable} has a parameter{shown} that PostgreSQL's client library does not know."
            raise Misconfigured(
                ConfigError.MALFORMED,
                message,
                _HINTS.get(name, "Remove the parameter, or correct the parameter's name."),
            )
