"""A tolerant parser for JSON from phones. It reads bodies that a strict parser refuses.

The parser keeps lone surrogates and numbers of any size. The repair then repairs, drops or refuses these values
(nexmdm/common/tolerance/repair.py). NaN, infinity, invalid JSON and invalid UTF-8 are errors.
"""

import json
import re
from typing import Any, Final

from nexmdm.common.types import MAX_DEPTH, parse_json

MAX_DIGITS: Final = 4000
"""An integer with more digits is read as infinity, because Python's int() raises ValueError for more than 4300 digits.
"""

READ_DEPTH: Final = 2 * MAX_DEPTH
"""If a body is nested too deep for the parser, all deeper levels are replaced by null. No field allows so many levels.
"""

_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
"""A string, with or without a closing quote. If the closing quote were required, unclosed strings would take quadratic
time.
"""


def parse(raw: bytes) -> Any:
    """Return the content of the body of a phone. Raises ValueError if the body is not JSON."""
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
