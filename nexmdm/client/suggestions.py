"""Suggestions for a name that does not exist: similar names that exist."""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

MOST: Final = 3
_LIKENESS: Final = 0.75
_SERIES: Final = re.compile(r"(.*?)([0-9]{1,4})", re.DOTALL)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are most similar to this one, the most similar first. Case does not matter.

    Names of one series, as `tab-3` and `tab-4`, are not similar: they name different things.
    """
    meant = fold(name)
    by_key = {fold(one): one for one in known}
    others = [key for key in by_key if not _in_one_series(key, meant)]
    return [by_key[key] for key in difflib.get_close_matches(meant, others, MOST, _LIKENESS)]


def _in_one_series(one: str, other: str) -> bool:
    """Return whether two names differ only in the numbers at their ends."""
    first, second = _SERIES.fullmatch(one), _SERIES.fullmatch(other)
    if first is None or second is None or first[1] != second[1]:
        return False
    return int(first[2]) != int(second[2])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question, with a space before it, or an empty text if no known name is similar."""
    found = nearest(name, known)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def fold(name: str) -> str:
    """Return the form in which two spellings of a name are equal. The server compares aliases in this form too."""
    return unicodedata.normalize("NFC", name).casefold().strip()
