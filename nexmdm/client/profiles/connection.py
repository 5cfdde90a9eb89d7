"""The choice of the server and the admin for a call.

The command line comes first, then the environment, then a profile.
"""

import os
import re
from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nexmdm.client import arguments
from nexmdm.client.http_client import on_loopback
from nexmdm.client.profiles import profile_file
from nexmdm.client.profiles.own_server import OwnServer
from nexmdm.client.profiles.profile_file import Profile

UNNAMED: Final = "admin"
"""The principal of the admin with ADMIN_KEY and HMAC_SECRET."""

KEY: Final = "ADMIN_KEY"
SECRET: Final = "HMAC_SECRET"  # noqa: S105
URL: Final = "NEXMDM_URL"
PROFILE: Final = "NEXMDM_PROFILE"
OF_THE_CHECKOUT: Final = "manage.py"
"""The name under which `manage.py fleet` stores the ids for `@last` if no profile is chosen."""

_NAME: Final = re.compile("[A-Z0-9]{1,64}")
_TAKEN: Final = ("ADMIN", "PREVIOUS")
_SENDABLE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")


class NotConnected(Exception):
    """The server or its secrets are not known or not usable. The message contains the remedy."""


class Wish(NamedTuple):
    """The options `--url`, `--as` and `--profile` of the command line. The value of `--as` is in lower case."""

    url: str | None
    principal: str
    profile: str | None


@dataclass(frozen=True, slots=True)
class Connection:
    """The chosen server and admin.

    `host` is the Host header, or None for the host in `url`. `source` names the origin of `key` and of `secret`, for
    messages. `profile` is the name under which the ids for `@last` are stored.
    """

    url: str
    host: str | None
    key: str = field(repr=False)
    secret: str = field(repr=False)
    source: tuple[str, str]
    profile: str


def choose(wish: Wish, own: OwnServer | None) -> Connection:
    """Return the server to call, and the admin who signs the requests.

    `own` is the server of `manage.py fleet`, or None for the program `nexmdm`. Raises NotConnected if the server or the
    secrets are not known. Raises ProfileError if the profile cannot be used.
    """
    variables = variables_of(wish.principal)
    name = wish.profile or os.environ.get(PROFILE)
    if own is not None and name is None:
        return _own_server(wish, own, variables)
    found = _profile(name)
    url = wish.url or _address(URL, os.environ.get(URL))
    if url is None and found is not None:
        url = _address(f"The url of the profile {found.name!r}", found.url)
    if url is None:
        raise NotConnected(f"No server is known. Run `nexmdm login`, or set {URL}, {KEY} and {SECRET}.")
    profile = found.name if found else profile_file.DEFAULT
    if pair := _of_the_environment(wish.principal, variables):
        return Connection(url, None, *pair, variables, profile)
    if found is None:
        raise NotConnected(f"Set {' and '.join(variables)} in the environment, or run `nexmdm login`.")
    if url.rstrip("/") != found.url.rstrip("/"):
        message = f"The secrets of the profile {found.name!r} are for {found.url} only, not for {url}."
        raise NotConnected(f"{message} Name another --profile, or set {' and '.join(variables)} in the environment.")
    source = (f"the admin key of the profile {found.name!r}", "its signing secret")
    key, secret = found.credentials()
    sendable(f"The admin key of the profile {found.name!r}", key)
    sendable(f"The signing secret of the profile {found.name!r}", secret)
    return Connection(url, None, key, secret, source, profile)


def _address(name: str, url: str | None) -> str | None:
    """Return the address of a server. Raises NotConnected if the address is invalid.

    `name` is the source of the address, for the message.
    """
    try:
        return arguments.url(url) if url else None
    except ArgumentTypeError as error:
        raise NotConnected(f"{name} {error}, but it is {url!r}.") from error


def variables_of(principal: str) -> tuple[str, str]:
    """Return the names of the two variables with the key and the secret of an admin.

    Raises NotConnected if `principal` cannot be the name of an admin.
    """
    if principal == UNNAMED:
        return KEY, SECRET
    name = principal.upper()
    if not _NAME.fullmatch(name) or name in _TAKEN:
        hint = "a name has 1 to 64 letters A to Z and digits, such as OPS1."
        raise NotConnected(f"{principal!r} cannot be the name of an admin: {hint}")
    return f"{KEY}_{name}", f"{SECRET}_{name}"


def sendable(name: str, value: str) -> str:
    """Return `value` if a header can contain it.

    Raises NotConnected if no header can contain it. The message does not contain the value.
    """
    if not _SENDABLE.fullmatch(value):
        raise NotConnected(f"{name} must be one line of printable ASCII characters.")
    return value


def _own_server(wish: Wish, own: OwnServer, variables: tuple[str, str]) -> Connection:
    pair = own.credentials(wish.principal)
    if pair is None:
        message = (
            f"No secrets are known for the admin {wish.principal!r}. Set {' and '.join(variables)} in the environment."
        )
        raise NotConnected(message)
    if wish.url is None:
        return Connection(own.url, own.host, *pair, variables, OF_THE_CHECKOUT)
    if wish.principal == UNNAMED:
        _check_secrets(wish.url, own.url)
    return Connection(wish.url, None, *pair, variables, OF_THE_CHECKOUT)


def _check_secrets(url: str, own: str) -> None:
    """Raise NotConnected if generated secrets would sign a request for a server on another machine.

    Generated secrets are valid only for the server of this checkout.
    """
    missing = [name for name in (KEY, SECRET) if not os.environ.get(name)]
    if not missing or on_loopback(url) or url.rstrip("/") == own:
        return
    message = (
        f"{url} is not the server of this checkout. The client uses this checkout's secrets only for the server of "
        "this checkout."
    )
    advice = f"Set {KEY} and {SECRET} in the environment to the secrets of {url} (not set: {', '.join(missing)})."
    raise NotConnected(f"{message} {advice}")


def _profile(name: str | None) -> Profile | None:
    """Return the profile `name`. If `name` is None, return the default profile, or None if it does not exist."""
    return profile_file.load_all().get(profile_file.DEFAULT) if name is None else profile_file.find(name)


def _of_the_environment(principal: str, variables: tuple[str, str]) -> tuple[str, str] | None:
    """Return the key and the secret of an admin from the environment.

    Return None if neither variable is set for the unnamed admin. Raises NotConnected if only one variable is set, or if
    neither variable is set for a named admin.
    """
    found = {name: value for name in variables if (value := os.environ.get(name))}
    missing = [name for name in variables if name not in found]
    if not missing:
        return sendable(variables[0], found[variables[0]]), sendable(variables[1], found[variables[1]])
    if found or principal != UNNAMED:
        message = f"Set both {' and '.join(variables)} in the environment, or remove both"
        raise NotConnected(f"{message} (not set: {', '.join(missing)}).")
    return None
