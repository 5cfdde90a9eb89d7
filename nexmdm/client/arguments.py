"""Values of a command line. Each function parses one kind of value, and its error says what is wrong."""

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
    "Write alias:NAME if NAME can only be an alias"
)
TARGET: Final = f"all, or tag:NAME, or a device: {DEVICE}. Separate several tags or several devices with commas"
LITERAL: Final = "alias:"
TAG: Final = "tag:"
IDENTIFIER: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def url(text: str) -> str:
    """Return a server's address."""
    try:
        parsed = urlsplit(text)
        port = parsed.port
    except ValueError as error:
        raise ArgumentTypeError(f"must be a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.hostname or parsed.query or parsed.fragment or port == 0:
        raise ArgumentTypeError("must look like https://mdm.example.com")
    if parsed.path not in ("", "/"):
        raise ArgumentTypeError("must have no path, because the path is part of the signature")
    return text


def tag(text: str) -> str:
    """Return a tag, which is part of a path."""
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", text):
        raise ArgumentTypeError(f"{text!r} is not a tag. A tag has 1 to 64 characters: letters, digits and . _ : -")
    return text


class Target(NamedTuple):
    """The devices of a command: all of them, those with any of these tags, or those with these names."""

    everything: bool
    tags: tuple[str, ...]
    names: tuple[str, ...]


def target(text: str) -> Target:
    """Return the target of a command."""
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
    """A parameter of a command, with its parsed value and its text."""

    name: str
    value: Any
    text: str


def param(text: str) -> Param:
    """Return a parameter. The value is read as JSON if it is JSON, else as text."""
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
    """Return a length of time, in seconds."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None:
        raise ArgumentTypeError("must look like 600, 10m, 12h or 7d")
    return int(found[1]) * _UNITS[found[2]]


def moment(text: str) -> str:
    """Return a time in the form of the API, from a time in a form of nexmdm/client/times.py."""
    try:
        return times.moment(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ArgumentTypeError("must be a whole number, at least 1")
    return int(text)


def method(text: str) -> str:
    """Return an HTTP method."""
    if not re.fullmatch(r"[A-Za-z]+", text):
        raise ArgumentTypeError("must be an HTTP method, such as GET, POST or PATCH")
    return text.upper()


def path(text: str) -> str:
    """Return a request target, in the form that is signed."""
    if not re.fullmatch(r"/[!-\"$-~]*", text):
        raise ArgumentTypeError("must begin with / and be percent-encoded")
    return text.removesuffix("?")


class Content(NamedTuple):
    """The body of a request, and the name of its file."""

    name: str
    body: bytes


NO_BODY: Final = Content("", b"")


def content(name: str) -> Content:
    """Return the content of a file."""
    try:
        return Content(name, sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except OSError as error:
        raise ArgumentTypeError(str(error)) from error


class Value(click.ParamType[Any]):
    """A type for click, made from a function of this module."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value. A value that is not a text was parsed already."""
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
