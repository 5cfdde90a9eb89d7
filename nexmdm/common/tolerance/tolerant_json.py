"""A tolerant parser for the JSON of phones, for bodies that a strict parser refuses.

Lone surrogates and numbers of any size are read as they are, so that their field is checked by its role
(nexmdm/common/tolerance/repair.py). NaN, infinity, broken JSON and bytes that are not UTF-8 stay unreadable.
"""

import json
import re
from typing import Any, Final

from nexmdm.common.types import MAX_DEPTH, parse_json

MAX_DIGITS: Final = 4000
"""Longer integers are read as an infinite number. Python's int() raises ValueError beyond 4300 digits."""

READ_DEPTH: Final = 2 * MAX_DEPTH
"""If the parser cannot read deeper levels, they are replaced by null. No field allows that many levels."""

_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
"""A string, closed or not: if the end were required, unclosed strings would take quadratic time."""


def parse(raw: bytes) -> Any:
    """Parse the body of a phone; ValueError if it is not JSON."""
    try:
        return parse_json(raw)
    except ValueError:
        text = raw.decode("utf-8-sig")
    try:
        return _loads(text)
    except RecursionError:
        text = _cut_deep_levels(text)
    try:
        return _loads(text)
    except RecursionError as error:  # brackets that are not closed
        raise ValueError("nested too deep") from error


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=_integer, parse_constant=_refuse_constant)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _cut_deep_levels(text: str) -> str:
    """Return JSON text with null for each object or array below READ_DEPTH levels."""
    kept, copied_to, cut_from, depth = [], 0, 0, 0
    for position, character in enumerate(_STRING.sub(_blank, text)):
        if character in "[{":
            depth += 1
            if depth == READ_DEPTH + 1:
                cut_from = position
        elif character in "]}":
            if depth == READ_DEPTH + 1:
                kept += [text[copied_to:cut_from], "null"]
                copied_to = position + 1
            depth -= 1
    return "".join([*kept, text[copied_to:]])


def _blank(string: re.Match[str]) -> str:
    return " " * len(string[0])
