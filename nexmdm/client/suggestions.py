"""Similar names for a name that does not exist."""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

MOST: Final = 3
_LIKENESS: Final = 0.75
_SERIES: Final = re.compile(r"(.*?)([0-9]{1,4})", re.DOTALL)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are most similar to `name`, with the most similar name first.

    Upper and lower case make no difference. Names that differ only in a number at the end, such as `tab-3` and `tab-4`,
    do not count as similar.
    """
    meant = fold(name)
    by_key = {fold(one): one for one in known}
    others = [key for key in by_key if not _in_one_series(key, meant)]
    return [by_key[key] for key in difflib.get_close_matches(meant, others, MOST, _LIKENESS)]


def _in_one_series(one: str, other: str) -> bool:
    """Return whether two names differ only in the number at their ends."""
    first, second = _SERIES.fullmatch(one), _SERIES.fullmatch(other)
    if first is None or second is None or first[1] != second[1]:
        return False
    return int(first[2]) != int(second[2])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question with similar names and a space in front, or an empty string if no name is similar."""
    found = nearest(name, known)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def fold(name: str) -> str:
    """Return a name in the form in which names are compared. The server compares aliases in the same form."""
    return unicodedata.normalize("NFC", name).casefold().strip()
