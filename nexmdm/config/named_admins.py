"""The keys and secrets of named admins, from the environment.

ADMIN_KEY_OPS1 and HMAC_SECRET_OPS1 configure the admin with the principal `ops1`.
"""

import os
import re
from collections.abc import Mapping
from typing import Final

from nexmdm.config import environment
from nexmdm.config.environment import ConfigError, Misconfigured

UNNAMED: Final = "admin"
"""The principal of the admin with ADMIN_KEY and HMAC_SECRET."""

KEY: Final = "ADMIN_KEY"
SECRET: Final = "HMAC_SECRET"  # noqa: S105
_PREVIOUS: Final = "_PREVIOUS"
_NAME: Final = re.compile("[A-Z0-9]{1,64}")
"""The form of the name in a variable. The database stores principals of at most 64 characters."""

_TAKEN: Final = {
    "ADMIN": f"{UNNAMED} is the principal of {KEY} and {SECRET}",
    "PREVIOUS": f"{_PREVIOUS} marks previous values",
}


def variables() -> list[str]:
    """Return the sorted names of the variables in the environment that configure named admins.

    A variable with an invalid name of an admin is included.
    """
    beginnings, others = (f"{KEY}_", f"{SECRET}_"), (KEY + _PREVIOUS, SECRET + _PREVIOUS)
    return sorted(name for name in os.environ if name.startswith(beginnings) and name not in others)


def keys_and_secrets() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return two dictionaries: the admin keys and the HMAC secrets of each principal.

    The first value of each list is the current value, and the next values are previous values. Both dictionaries have
    the same principals. Raises Misconfigured if a name is invalid, or if a value is missing or invalid.
    """
    by_name: dict[str, list[str]] = {}
    for variable in filter(environment.text, variables()):
        by_name.setdefault(_name_in(variable), []).append(variable)
    keys = {name.lower(): _live(f"{KEY}_{name}", given) for name, given in by_name.items()}
    secrets = {name.lower(): _live(f"{SECRET}_{name}", given) for name, given in by_name.items()}
    return keys, secrets


def by_variable(kind: str, live: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the values in `live` by environment variable, and not by principal.

    `kind` is KEY or SECRET. `live` contains the values by principal.
    """
    return {f"{kind}_{principal.upper()}": values for principal, values in live.items()}


def _name_in(variable: str) -> str:
    """Return the admin's upper-case name in the name of a variable. Raises Misconfigured if the name is invalid."""
    kind = KEY if variable.startswith(KEY) else SECRET
    name = variable.removeprefix(f"{kind}_").removesuffix(_PREVIOUS)
    hint = f"Choose a name such as OPS1. {kind}_OPS1 belongs to the principal ops1."
    if not _NAME.fullmatch(name):
        message = (
            f"{variable!a} contains no valid name of an admin. A name has 1 to 64 characters: letters A to Z and "
            "digits."
        )
        raise Misconfigured(ConfigError.MALFORMED, message, hint)
    if name in _TAKEN:
        raise Misconfigured(ConfigError.MALFORMED, f"{variable} cannot name an admin {name}: {_TAKEN[name]}.", hint)
    return name


def _live(variable: str, given: list[str]) -> list[str]:
    current = environment.text(variable)
    if not current:
        message = f"{variable} is required with {', '.join(given)}, but is not set."
        hint = "A named admin needs a key and a secret, each with a current value. Set both variables, or remove both."
        raise Misconfigured(ConfigError.MISSING, message, hint)
    return [environment.sound_secret(variable, current), *environment.previous_secrets(variable + _PREVIOUS)]
