"""What an admin's client takes on its command line: each a type for argparse, which says what is wrong with a value."""

import json
import re
import sys
from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from nexmdm.client.http_client import Json

TARGET: Final = (
    "a device id, an alias in any case, tag:NAME, or all; several of a kind with commas between them; "
    "or alias:NAME for one alias as it is, commas and all"
)
_LITERAL: Final = "alias:"
_IDENTIFIER: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def url(text: str) -> str:
    """Return a server's address."""
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ArgumentTypeError(str(error)) from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ArgumentTypeError("must look like https://mdm.example.com")
    if parsed.path != "/":
        raise ArgumentTypeError("must have no path, because the path is part of the signature")
    return text


def identifier(text: str) -> str:
    """Return the id of a device or a command."""
    if not _IDENTIFIER.fullmatch(text):
        raise ArgumentTypeError(f"{text!r} is not an id")
    return text.lower()


def tag(text: str) -> str:
    """Return a tag, which is part of a path."""
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", text):
        raise ArgumentTypeError(f"{text!r} is not a tag, which has up to 64 letters, digits and . _ : -")
    return text


def target(text: str) -> Json:
    """Return the target of a command, in the form that the API requires."""
    if text.startswith(_LITERAL) and text != _LITERAL:
        return {"aliases": [text.removeprefix(_LITERAL)]}
    names = [name.strip() for name in text.split(",") if name.strip()]
    kinds = {_kind(name) for name in names}
    if len(kinds) != 1 or _LITERAL in names:
        raise ArgumentTypeError(f"must be {TARGET}")
    kind = kinds.pop()
    if kind == "all":
        return {"all": True}
    return {kind: [name.lower() if kind == "device_ids" else name.removeprefix("tag:") for name in names]}


def _kind(name: str) -> str:
    if name == "all":
        return "all"
    if name.startswith("tag:"):
        return "tags"
    return "device_ids" if _IDENTIFIER.fullmatch(name) else "aliases"


class Param(NamedTuple):
    """A parameter of a command, and its value as it was given."""

    name: str
    value: Any
    text: str


def param(text: str) -> Param:
    """Return a parameter: its value is JSON if it is JSON, else text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentTypeError("must look like name=value")
    try:
        return Param(name, json.loads(value, parse_constant=_not_json), value)
    except (ValueError, RecursionError):
        return Param(name, value, value)


def _not_json(text: str) -> Any:
    raise ValueError(text)


def seconds(text: str) -> int:
    """Return a length of time."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None:
        raise ArgumentTypeError("must look like 600, 10m, 12h or 7d")
    return int(found[1]) * _UNITS[found[2]]


def moment(text: str) -> str:
    """Return a time in the form of the API, from a written time (the server checks it) or from an age."""
    if re.match(r"[0-9]{4}-", text):
        return text
    if not re.fullmatch(r"[0-9]{1,6}[smhd]", text):
        raise ArgumentTypeError("must look like 2h, for two hours ago, or like 2026-01-01T00:00:00Z")
    try:
        then = datetime.now(UTC) - timedelta(seconds=seconds(text))
    except OverflowError as error:
        raise ArgumentTypeError("must not be before the year 1") from error
    return then.isoformat().replace("+00:00", "Z")


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ArgumentTypeError("must be a whole number from 1 on")
    return int(text)


def method(text: str) -> str:
    """Return an HTTP method."""
    if not re.fullmatch(r"[A-Za-z]+", text):
        raise ArgumentTypeError("must be GET, POST or PATCH")
    return text.upper()


def path(text: str) -> str:
    """Return a request target as it is signed."""
    if not re.fullmatch(r"/[!-\"$-~]*", text):
        raise ArgumentTypeError("must begin with / and be percent-encoded")
    return text.removesuffix("?")


class Content(NamedTuple):
    """The body of a request, and the file that it is from."""

    name: str
    body: bytes


NO_BODY: Final = Content("", b"")


def content(name: str) -> Content:
    """Return what a file holds."""
    try:
        return Content(name, sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except OSError as error:
        raise ArgumentTypeError(str(error)) from error
