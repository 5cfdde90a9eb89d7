"""The settings of a session, which libpq calls `options`: parsed, and written as statements for a transaction.

PostgreSQL accepts these settings at the start of a session. Poolers do not.
"""

import re
from collections.abc import Mapping
from typing import Final

MARK: Final = "nexmdm.session"
"""A setting without an effect. If a session has this setting, the server or pooler has accepted all options."""

ISOLATION: Final = "default_transaction_isolation"
_OF_SOCKETS: Final = "tcp_"
"""The beginning of the names of settings for network connections. A pooler has its own network connections."""

_LISTS_OF_NAMES: Final = ("search_path", "temp_tablespaces")
"""Settings whose values are lists. Each part of a list must be quoted separately."""

_WORD: Final = re.compile(r"(?:\\.|\S)+")
_SETTING: Final = re.compile(r"(?:-c|--)([A-Za-z_][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)


def parse(options: str) -> tuple[dict[str, str], str]:
    """Return the settings in libpq's options, and the rest of the options.

    If a setting occurs several times, its last value counts. The rest, such as Neon's `endpoint=…`, is for a proxy.
    """
    settings: dict[str, str] = {}
    others = []
    for word in _WORD.findall(re.sub(r"(^|\s)-c\s+", r"\1-c", options)):
        if match := _SETTING.fullmatch(word):
            settings[match[1].replace("-", "_").lower()] = re.sub(r"\\(.)", r"\1", match[2])
        else:
            others.append(word)
    return settings, " ".join(others)


def statements(settings: Mapping[str, str]) -> list[str]:
    """Return the statements that give one transaction these settings. These statements must be the first statements of
    the transaction.
    """
    # Do not use set_config(): it is a query, and after a query the isolation level can no longer be set.
    given = {name: value for name, value in settings.items() if name != MARK and not name.startswith(_OF_SOCKETS)}
    isolation = given.pop(ISOLATION, "read committed")
    locals_ = [f"SET LOCAL {name} = {_literal(name, value)}" for name, value in given.items()]
    return [f"SET TRANSACTION ISOLATION LEVEL {isolation.upper()}", *locals_]


def _literal(name: str, value: str) -> str:
    parts = [part.strip().strip('"') for part in value.split(",")] if name in _LISTS_OF_NAMES else [value]
    return ", ".join("'" + part.replace("'", "''") + "'" for part in parts)
