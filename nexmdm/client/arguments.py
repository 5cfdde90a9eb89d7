"""Parsers of command-line values.

Each function parses a text into one kind of value, and raises ArgumentTypeError if the text is invalid.
"""

import json
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import rich_click as click

from nexmdm.client import times

DEVICE: Final = (
    "an alias, a hardware id, a device id, the start of a device id, or @last. "
    "To search only the aliases, write alias:NAME"
)
TARGET: Final = f"all, or tag:NAME, or a device: {DEVICE}. Separate several tags or several devices with commas"
LITERAL: Final = "alias:"
TAG: Final = "tag:"
IDENTIFIER: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def url(text: str) -> str:
    """Return the address of a server unchanged.

    It must be an http or https URL without a path, because a path would change the signed target.
    """
    try:
        parsed = urlsplit(text)
        port = parsed.port
    except ValueError as error:
        raise ArgumentTypeError(f"must be a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.hostname or parsed.query or parsed.fragment or port == 0:
        raise ArgumentTypeError("must look like https://mdm.example.com")
    if parsed.path not in ("", "/"):
        raise ArgumentTypeError("must have no path, because the client would sign another path than the server sees")
    return text


def tag(text: str) -> str:
    """Return a tag unchanged."""
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", text):
        raise ArgumentTypeError(f"{text!r} is not a tag. A tag has 1 to 64 characters: letters, digits and . _ : -")
    return text


class Target(NamedTuple):
    """The target of a command: every device, devices with one of the tags, or the named devices."""

    everything: bool
    tags: tuple[str, ...]
    names: tuple[str, ...]


def target(text: str) -> Target:
    """Return the target of a command. The forms of the text are in TARGET."""
    if text.startswith(LITERAL) and text != LITERAL:
        return Target(everything=False, tags=(), names=(text,))
    words = [word.strip() for word in text.split(",") if word.strip()]
    kinds = {"all" if word == "all" else "tag" if word.startswith(TAG) else "name" for word in words}
    if len(kinds) != 1 or {LITERAL, TAG} & set(words):
        raise ArgumentTypeError(f"must be {TARGET}")
    (kind,) = kinds
    tags = tuple(word.removeprefix(TAG) for word in words) if kind == "tag" else ()
    return Target(kind == "all", tags, tuple(dict.fromkeys(words)) if kind == "name" else ())


class Param(NamedTuple):
    """A parameter of a command. `text` is the value as it was typed."""

    name: str
    value: Any
    text: str


def param(text: str) -> Param:
    """Return a parameter from `name=value`. The value is parsed as JSON, or is a text if it is not JSON."""
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
    """Return a duration in seconds. The units are s, m, h and d. A number without a unit means seconds."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None:
        raise ArgumentTypeError("must look like 600, 10m, 12h or 7d")
    return int(found[1]) * _UNITS[found[2]]


def moment(text: str) -> str:
    """Return a time in the form of the API. nexmdm/client/times.py has the forms of the text."""
    try:
        return times.moment(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    """Return an integer of at least 1."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ArgumentTypeError("must be a whole number, at least 1")
    return int(text)


def method(text: str) -> str:
    """Return the name of an HTTP method in upper case."""
    if not re.fullmatch(r"[A-Za-z]+", text):
        raise ArgumentTypeError("must be an HTTP method, such as GET, POST or PATCH")
    return text.upper()


def path(text: str) -> str:
    """Return a request target: a path, possibly with a query.

    It must be percent-encoded, because it is signed and sent unchanged.
    """
    if not re.fullmatch(r"/[!-\"$-~]*", text):
        raise ArgumentTypeError("must begin with / and be percent-encoded")
    return text.removesuffix("?")


class Content(NamedTuple):
    """The body of a request, and the name of the file that contains it."""

    name: str
    body: bytes


NO_BODY: Final = Content("", b"")


def content(name: str) -> Content:
    """Return the content of a file. The name `-` means standard input."""
    try:
        return Content(name, sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except OSError as error:
        raise ArgumentTypeError(str(error)) from error


class Value(click.ParamType[Any]):
    """A parameter type of click that calls a parser function."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parsed value. A value that is not a string is already parsed."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ArgumentTypeError as error:
            self.fail(str(error), param, ctx)


URL: Final = Value("url", url)
SECONDS: Final = Value("time", seconds)
MOMENT: Final = Value("time", moment)
POSITIVE: Final = Value("number", positive)
